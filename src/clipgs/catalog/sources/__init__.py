"""The sources of objects. A source lists its objects, and identifies, labels and fetches each of them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from clipgs.catalog.records import UpAxis
from clipgs.catalog.sources.folder import FolderSource
from clipgs.catalog.sources.modelnet import ModelNet10Source, ModelNet40Source
from clipgs.catalog.sources.objaverse import ObjaverseSource
from clipgs.catalog.sources.objaverse_xl import ObjaverseXLSource
from clipgs.catalog.sources.procedural import ProceduralSource
from clipgs.catalog.sources.splats import SplatSource
from clipgs.config import Config
from clipgs.core.errors import ClipgsError


class Source(Protocol):
    """What the catalog and the fetch stage need from a source. The constructor reads no files."""

    name: str
    remote: bool  # `fetch` waits for a network or a disk, so threads call it on one shared source, not processes

    @property
    def root(self) -> Path | None:
        """The user's own folder, anywhere in which the files of an object may lie; None: only beside the object."""

    def locators(self) -> list[str]:
        """All objects that the source has now, sorted and unique. A locator is the text that finds an object again.

        Raises:
            SourceMissing: there is nothing.
        """

    def gone(self, known: list[str]) -> list[str]:
        """Those of the known locators that the source no longer has. Raises as `locators`."""

    def digests(self, locators: list[str]) -> dict[str, str]:
        """The hash of each object's file as it is now, as `identify` gives it; none of an object without a file.

        Empty for a source whose locators always name the same bytes. Called whenever Snakemake parses, so a file that
        is as it was is not read again.
        """

    def identify(self, locator: str) -> dict[str, Any]:
        """The row to freeze: uid, sha256, group, split (None: by hash), note (None, or why it cannot be used)."""

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        """Category, text, license, credit and page of each object; None where not known."""

    def label_digest(self, locators: list[str]) -> str:
        """Changes when `labels` of these would. Called whenever Snakemake parses, so it must be quick."""

    def fetch(self, row: dict[str, Any]) -> Path:
        """Downloads or locates the object's mesh file, and returns its path.

        Raises:
            ObjectError: the file is not available or is wrong.
        """

    def path(self, row: dict[str, Any]) -> Path:
        """The path of the file that `fetch` returned."""

    def all_files(self, row: dict[str, Any]) -> list[Path]:
        """That file and those that it names: what the hash is of."""

    def elsewhere(self, row: dict[str, Any]) -> list[Path]:
        """As `all_files`, for a file of another name with the frozen bytes; empty if none is known."""

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        """The axis of the file that points up: `y`, `z`, or `auto` where the file's own program says it."""

    def notes(self, known: Collection[str] = ()) -> list[str]:
        """Sentences for the user about the source. `known` are the locators of frozen objects."""


# Sources whose files are splats: `sample`, `view` and the optimisation of `fit` skip their objects.
READY_SPLATS = frozenset({SplatSource.name})
_ANNOTATED = (ObjaverseSource, ObjaverseXLSource)
_SOURCES = (FolderSource, ProceduralSource, SplatSource, ModelNet40Source, ModelNet10Source, *_ANNOTATED)


def source(config: Config, name: str | None = None) -> Source:
    """The source that the configuration names, or the one with the name in a frozen row.

    Raises:
        ClipgsError: this version has no source of that name.
    """
    name = name or config.catalog.source
    for kind in _SOURCES:
        if kind.name == name:
            return kind(config)
    raise ClipgsError(f"the output has objects of the source {name!r}, which this version of clipgs does not have")
