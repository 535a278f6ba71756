"""The section `pack`."""

from clipgs.config.fields import Section, setting


class Pack(Section):
    """The packed dataset: tar files, index and dataset card."""

    title: str = setting("clipgs triplets", "text")
    """The dataset card and the report have this title."""
    samples: int = setting(24, "objects", ge=0, le=400)
    """The contact sheet shows this many objects."""
