"""Parametric shapes of the built-in source: geometry, paint, the GLB writer, and one function a category."""
