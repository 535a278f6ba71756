"""The section `points`."""

from clipgs.config.fields import Section, setting


class PointCloud(Section):
    """Points on the mesh surface, from which a fit starts."""

    count: int = setting(20_000, "points", assumed=True, ge=100, le=1_000_000)
    """This many points are sampled on each mesh."""
