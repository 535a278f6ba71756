"""The section `points`."""

from clipgs.config.fields import Section, setting


class PointCloud(Section):
    """Points on the surface, which a fit starts from."""

    count: int = setting(20_000, "points", "points an object", assumed=True, ge=100, le=1_000_000)
