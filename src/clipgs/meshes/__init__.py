"""Mesh files become normalised meshes, coloured surface points and posed views. Importing it loads nothing heavy."""
