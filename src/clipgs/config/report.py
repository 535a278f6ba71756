"""The section `report`."""

from clipgs.config.fields import Section, setting


class Report(Section):
    """The HTML page of results, with images, tables, curves and an interactive viewer of splats."""

    run: bool = setting(True, "true or false")
    """The configured run is trained and evaluated for the report. false means a report of the existing results."""
    splats: int = setting(6, "splats", ge=0, le=50)
    """The interactive viewer has this many splats."""
    samples: int = setting(6, "objects", ge=0, le=100)
    """The report shows this many of the best-fitted objects, and as many of the worst."""
