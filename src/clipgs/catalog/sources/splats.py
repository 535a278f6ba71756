"""A folder of ready splats from any program, which enter the workflow after `fit`."""

from pathlib import Path
from typing import Any, NamedTuple

from clipgs.catalog.records import UpAxis
from clipgs.catalog.sources.folder import FolderSource
from clipgs.core.errors import ObjectError
from clipgs.core.ply_header import END, parse_ply_header, splat_lacks

_HEADER_BYTES = 1 << 16


class SplatHeader(NamedTuple):
    """The counts in the PLY header of a splat."""

    gaussians: int
    harmonics: int  # coefficients above degree 0


class SplatSource(FolderSource):
    """See `Source`. A locator is the file's path relative to the folder, with forward slashes."""

    name = "splats"
    what = "splat"
    suffixes = (".ply",)

    def fetch(self, row: dict[str, Any]) -> Path:
        path = super().fetch(row)
        count = read_header(path).gaussians
        if count > self._settings.max_gaussians:
            raise ObjectError(
                f"it has {count} Gaussians, catalog.splats.max_gaussians is {self._settings.max_gaussians}"
            )
        return path

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return self._settings.up_axis


def read_header(path: Path) -> SplatHeader:
    """Reads the header only, so that a file of any size can be refused before it is loaded.

    Raises:
        ObjectError: the file is not a PLY, or its vertices are not Gaussians.
    """
    with open(path, "rb") as file:
        head, end, _ = file.read(_HEADER_BYTES).partition(END)
    if not head.startswith(b"ply") or not end:
        raise ObjectError("it is not a PLY file, or its header is cut short")
    try:
        vertex = parse_ply_header(head).element("vertex")
    except (ValueError, IndexError) as error:
        raise ObjectError(f"its header cannot be read ({error})") from None
    if vertex is None or vertex.count < 0:
        raise ObjectError("its header has no element `vertex`")
    if "packed_position" in vertex.properties:
        raise ObjectError("it is a compressed splat PLY; export it as an uncompressed PLY")
    if missing := ", ".join(splat_lacks(vertex.properties)):
        raise ObjectError(f"it is not a Gaussian splat: its vertices have no {missing} (a mesh or a point cloud?)")
    return SplatHeader(vertex.count, sum(name.startswith("f_rest_") for name in vertex.properties))
