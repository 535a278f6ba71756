"""The frozen teacher: a CLIP of open_clip, and its features of images and captions."""
