"""The stage `report`."""

import logging

from clipgs.config import Config
from clipgs.core.files import write_bytes

log = logging.getLogger(__name__)


def report(config: Config) -> None:
    """Writes `report/index.html`: the triplets, the runs and their evaluations.

    Raises:
        ClipgsError: there are no packed triplets, or a file is damaged.
    """
    from clipgs.report.page import page

    file = config.output_path / "report" / "index.html"
    html = page(config).encode()
    write_bytes(file, html)
    log.info("report: %s (%.1f MB)", file, len(html) / 1e6)
