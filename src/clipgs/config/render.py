"""The section `render`."""

from clipgs.config.fields import Section, recipe_setting, setting


class Render(Section):
    """The 36 pictures of the splat."""

    pixels: int = recipe_setting("render.pixels", "pixels", "width and height", assumed=True, ge=16, le=2048)
    webp_quality: int = setting(90, "0 to 100", "of the WebP", assumed=True, ge=0, le=100)
