"""Splats: Gaussians as tensors and files, fitting them to views, rendering and judging them."""

from clipgs.splats.gaussians import Gaussians, Points, Views

__all__ = ["Gaussians", "Points", "Views"]
