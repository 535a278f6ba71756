"""Mesh files become normalised meshes, coloured surface points and posed views.

Nothing is imported here: a workflow that only names this room must not pay for trimesh and OpenGL.
"""
