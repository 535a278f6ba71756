"""The section `views`."""

from clipgs.config.fields import Section, recipe_setting, setting


class Views(Section):
    """Posed pictures of the mesh, which a fit learns from."""

    pixels: int = recipe_setting(
        "views.pixels", "pixels", "width and height of a picture", assumed=True, ge=16, le=2048
    )
    supersample: int = setting(
        2, "factor", "drawn so much wider and higher, and averaged: edges without steps", assumed=True, ge=1, le=4
    )
    count: int = setting(36, "views", "pictures to fit", ge=4, le=360)
    held_out: int = setting(4, "views", "pictures between them, to measure quality", ge=1, le=100)
    fov_degrees: float = setting(40.0, "degrees", "field of view", assumed=True, gt=5, lt=120)
    distance: float = setting(
        2.54, "longest sides", "camera to centre; nothing is cut off from 2.54 on", assumed=True, gt=1, lt=20
    )
