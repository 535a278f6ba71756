"""Training: the frozen teacher, its features of every triplet, and the encoder that learns from them."""
