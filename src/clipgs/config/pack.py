"""The section `pack`."""

from clipgs.config.fields import Section, setting


class Pack(Section):
    """The dataset: tars, index, card."""

    title: str = setting("clipgs triplets", "text", "heading of the dataset card")
    samples: int = setting(24, "objects", "in the contact sheet", ge=0, le=400)
