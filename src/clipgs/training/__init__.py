"""Training: the teacher and its features, and CLIP-GS trained against them."""
