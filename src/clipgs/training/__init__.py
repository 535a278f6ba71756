"""Training of CLIP-GS on triplets and their features, and of the small teacher."""
