"""A folder of ready splats from any program, which enter the workflow after `fit`."""

from typing import Any

from clipgs.catalog.records import UpAxis
from clipgs.catalog.sources.folder import FolderSource


class SplatSource(FolderSource):
    """See `Source`. A locator is the file's path relative to the folder, with forward slashes."""

    name = "splats"
    what = "splat"
    suffixes = (".ply",)

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return self._settings.up_axis
