"""The section `views`."""

from clipgs.config.fields import Section, recipe_setting, setting


class Views(Section):
    """Views of the mesh, to which the splat is fitted."""

    pixels: int = recipe_setting("views.pixels", "pixels", assumed=True, ge=16, le=2048)
    """Views have this width and height."""
    supersample: int = setting(2, "factor", assumed=True, ge=1, le=4)
    """Views are drawn this many times wider and higher and then averaged, which smooths edges."""
    count: int = setting(36, "views", ge=4, le=360)
    """A splat is fitted to this many views, and rendered from the same cameras."""
    held_out: int = setting(4, "views", ge=1, le=100)
    """This many further views, from between the others, measure the quality of the splat."""
    fov_degrees: float = setting(40.0, "degrees", assumed=True, gt=5, lt=120)
    """The cameras have this field of view."""
    distance: float = setting(2.54, "longest sides", assumed=True, gt=1, lt=20)
    """The cameras are this far from the centre, in longest sides of the mesh. 2.54 cuts nothing off at 40 degrees."""
