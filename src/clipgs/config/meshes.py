"""The section `meshes`."""

from typing import Literal

from clipgs.config.fields import Section, setting


class Meshes(Section):
    """Limits and defaults for reading mesh files."""

    max_file_mb: int = setting(512, "MB", ge=1)
    """A larger mesh file is recorded as failed."""
    max_faces: int = setting(2_000_000, "triangles", ge=1)
    """A mesh with more triangles is recorded as failed."""
    max_texture_pixels: int = setting(67_108_864, "pixels", ge=1)
    """A mesh with a larger texture is recorded as failed. The default is 8192 x 8192 pixels."""
    neutral_color: tuple[float, float, float] = setting((0.7, 0.7, 0.7), "sRGB in [0, 1]", assumed=True, strict=False)
    """A mesh without colours gets this colour."""
    missing_material: Literal["neutral", "fail"] = setting("neutral", "name", assumed=True)
    """An .obj file whose .mtl file is missing gets the neutral colour, and a note in the index (`neutral`), or is
    recorded as failed (`fail`)."""
