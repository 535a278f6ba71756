"""The section `meshes`."""

from clipgs.config.fields import Section, setting


class Meshes(Section):
    """What is read from a mesh file, and what is refused."""

    max_file_mb: int = setting(512, "MB", "larger files are failed rows", ge=1)
    max_faces: int = setting(2_000_000, "triangles", "meshes with more are failed rows", ge=1)
    max_texture_pixels: int = setting(67_108_864, "pixels", "larger textures (8192 x 8192) are failed rows", ge=1)
    neutral_color: tuple[float, float, float] = setting(
        (0.7, 0.7, 0.7), "sRGB in [0, 1]", "colour of a mesh that has none", assumed=True, strict=False
    )
