"""Where objects come from. A source lists what it has, says what is frozen of it, labels it and fetches it."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from clipgs.catalog.records import UpAxis
from clipgs.config import Config
from clipgs.core.errors import ClipgsError


class Source(Protocol):
    """What the catalog and the fetch stage ask of a source. Construction reads nothing."""

    name: str
    remote: bool  # `fetch` waits for a network or a disk: threads that share the source call it, not processes

    def locators(self) -> list[str]:
        """All objects the source has now, each by the text that finds it again; sorted, without doubles."""

    def gone(self, known: list[str]) -> list[str]:
        """Those of the known locators that the source no longer has."""

    def identify(self, locator: str) -> dict[str, Any]:
        """What is frozen: uid, sha256, group, split (None: by hash), note (None, or why it cannot be used)."""

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        """Category, text, license, credit and page of each object; None where not known."""

    def label_digest(self, locators: list[str]) -> str:
        """Changes when `labels` of these would. Called whenever Snakemake parses, so it must be quick."""

    def fetch(self, row: dict[str, Any]) -> Path:
        """Makes the object's mesh file lie on disk, and says where.

        Raises:
            ObjectError: it cannot be had.
        """

    def path(self, row: dict[str, Any]) -> Path:
        """Where `fetch` put the mesh file."""

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        """The axis of the file that points up: `y` or `z`."""

    def notes(self) -> list[str]:
        """What the user should know of the source, a sentence each."""


@runtime_checkable
class Annotated(Protocol):
    """What a source with annotations says besides: enough to remember a plan, and what its rules left out."""

    def state(self) -> str:
        """Changes whenever anything that the source says may have changed. Looks at sizes and times only."""

    def refusals(self) -> dict[str, int]:
        """Rule to the number of objects that it left out."""

    def lvis_objects(self) -> int:
        """How many of the taken objects are LVIS shapes."""


# Sources whose files are splats: `sample`, `view` and the optimisation of `fit` are not for them.
READY_SPLATS = frozenset({"splats"})


def source(config: Config, name: str | None = None) -> Source:
    """The source that the configuration names, or the one that a frozen row came from."""
    from clipgs.catalog.sources.folder import FolderSource
    from clipgs.catalog.sources.modelnet import ModelNet10Source, ModelNet40Source
    from clipgs.catalog.sources.objaverse import ObjaverseSource
    from clipgs.catalog.sources.objaverse_xl import ObjaverseXLSource
    from clipgs.catalog.sources.procedural import ProceduralSource
    from clipgs.catalog.sources.splats import SplatSource

    known = (
        FolderSource,
        ProceduralSource,
        ModelNet40Source,
        ModelNet10Source,
        SplatSource,
        ObjaverseSource,
        ObjaverseXLSource,
    )
    kinds = {kind.name: kind for kind in known}
    name = name or config.catalog.source
    if name not in kinds:
        raise ClipgsError(f"objects of the source {name!r} are frozen here, and this version does not know it")
    return kinds[name](config)
