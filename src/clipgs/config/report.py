"""The section `report`."""

from clipgs.config.fields import Section, setting


class Report(Section):
    """The page of what was made: pictures, tables, curves, and splats to turn."""

    run: bool = setting(
        True, "switch", "with the configured run, trained and evaluated for it; false: of what there is"
    )
    splats: int = setting(6, "splats", "that can be turned on the page", ge=0, le=50)
    samples: int = setting(6, "objects", "shown as the best, and as many as the worst", ge=0, le=100)
