"""The section `views`."""

from clipgs.config.fields import Section, recipe_setting, setting


class Views(Section):
    """Views of the mesh, to which the splat is fitted."""

    pixels: int = recipe_setting(
        "views.pixels", "pixels", "Views have this width and height.", assumed=True, ge=16, le=2048
    )
    supersample: int = setting(
        2,
        "factor",
        "Views are drawn this many times wider and higher and then averaged, which smooths edges.",
        assumed=True,
        ge=1,
        le=4,
    )
    count: int = setting(
        36, "views", "A splat is fitted to this many views, and rendered from the same cameras.", ge=4, le=360
    )
    held_out: int = setting(
        4, "views", "This many further views, from between the others, measure the quality of the splat.", ge=1, le=100
    )
    fov_degrees: float = setting(40.0, "degrees", "The cameras have this field of view.", assumed=True, gt=5, lt=120)
    distance: float = setting(
        2.54,
        "longest sides",
        "The cameras are this far from the centre, in longest sides of the mesh. 2.54 cuts nothing off at 40 degrees.",
        assumed=True,
        gt=1,
        lt=20,
    )
