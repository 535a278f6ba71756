"""The section `render`."""

from clipgs.config.fields import Section, recipe_setting, setting


class Render(Section):
    """Renders of the splat, from the cameras of the views."""

    pixels: int = recipe_setting("render.pixels", "pixels", assumed=True, ge=16, le=2048)
    """Renders have this width and height."""
    webp_quality: int = setting(90, "0 to 100", assumed=True, ge=0, le=100)
    """Renders are stored as WebP of this quality."""
