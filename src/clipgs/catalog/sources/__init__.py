"""Where objects come from. A source lists what it has, says what is frozen of it, labels it and fetches it."""

from pathlib import Path
from typing import Any, Protocol

from clipgs.config import Config
from clipgs.storage import ClipgsError


class Source(Protocol):
    """What the catalog and the fetch stage ask of a source. Construction reads nothing."""

    name: str

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

    def up_axis(self, row: dict[str, Any]) -> str:
        """The axis of the file that points up: `y` or `z`."""

    def notes(self) -> list[str]:
        """What the user should know of the source, a sentence each."""


def source(config: Config, name: str | None = None) -> Source:
    """The source that the configuration names, or the one that a frozen row came from."""
    from clipgs.catalog.sources.folder import FolderSource
    from clipgs.catalog.sources.procedural import ProceduralSource

    kinds = {kind.name: kind for kind in (FolderSource, ProceduralSource)}
    name = name or config.catalog.source
    if name not in kinds:
        raise ClipgsError(f"objects of the source {name!r} are frozen here, and this version does not know it")
    return kinds[name](config)
