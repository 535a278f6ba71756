"""A folder of ready splats from any program, which enter the workflow after `fit`."""

import json
import posixpath
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from clipgs.catalog.named_files import META, picture_files
from clipgs.catalog.records import SAYS_ITS_AXIS, UpAxis
from clipgs.catalog.sources import archives
from clipgs.catalog.sources.digests import unchanged
from clipgs.catalog.sources.folder import FolderSource
from clipgs.config import Config
from clipgs.core.errors import ObjectError
from clipgs.core.lists import counted, enumerated

FILES = (".ply", ".splat", ".ksplat", ".spz", ".sog", ".glb", ".gltf", ".pt", ".pth", ".ckpt", ".pkl")
GLTF_EXTENSION = "KHR_gaussian_splatting"
_GLTF_HEAD_BYTES = 1 << 16  # of a GLB the JSON comes first, and that of a splat is shorter


class SplatSource(FolderSource):
    """See `Source`. A locator is the file's path relative to the folder, with forward slashes.

    Of an object in a zip or a tar it is the path of that archive, a slash, and the name in it.
    """

    name = "splats"
    what = "splat"
    suffixes = (*FILES, ".json", *archives.SUFFIXES)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._max_bytes = config.meshes.max_file_mb * 1_000_000
        self._archive_of: dict[str, Path | None] = {}

    @cached_property
    def _archives(self) -> archives.Archives:
        return archives.Archives(self._cache, FILES, self._max_bytes)

    def _inside(self, path: Path) -> list[str]:
        """The splats in a file. Meshes in .glb and other files beside splats hold none."""
        own, suffix = super()._inside(path), path.suffix.lower()
        if suffix in (".glb", ".gltf"):
            return own if has_gltf_extension(path) else []
        if suffix == ".json":
            return own if path.name == META and _is_of_splat(path) else []
        if suffix in archives.SUFFIXES:
            if suffix in (".gz", ".bz2", ".xz") and not path.stem.lower().endswith(".tar"):
                return []
            names = self._archives.names(path)
            # A zip file of pictures is one splat, and one that cannot be read is a failed one.
            return [f"{own[0]}/{name}" for name in names] if names and names != [META] else own
        return own

    def _split(self, locator: str) -> tuple[Path, str] | None:
        """The archive and the name in it; None of an object that is a file itself."""
        parts = locator.split("/")
        for count in range(1, len(parts)):
            if parts[count - 1].lower().endswith(archives.SUFFIXES):
                path = self._archive("/".join(parts[:count]))
                if path is not None:
                    return path, "/".join(parts[count:])
        return None

    def _archive(self, locator: str) -> Path | None:
        """The path of an archive, which may have gone; None of a folder. An archive may hold 100,000 objects."""
        if locator not in self._archive_of:
            path = self._locate(locator)
            self._archive_of[locator] = None if path.is_dir() else path
        return self._archive_of[locator]

    def notes(self, known: Collection[str] = ()) -> list[str]:
        found = {split[0] for locator in self._files if (split := self._split(locator))}
        damaged = sorted(archive.name for archive in found if not self._archives.is_whole(archive))
        files = counted(len(damaged), "archive is", "archives are")
        note = [f"{files} damaged or cut short: {enumerated(damaged)}"] if damaged else []
        return note + super().notes(known)

    def gone(self, known: list[str]) -> list[str]:
        split = {locator: found for locator in known if (found := self._split(locator)) is not None}
        names = {archive: self._names(archive) for archive in {archive for archive, _ in split.values()}}
        files = super().gone([locator for locator in known if locator not in split])
        return [*files, *(locator for locator, (archive, name) in split.items() if name not in names[archive])]

    def _names(self, archive: Path) -> frozenset[str]:
        return frozenset(self._archives.names(archive)) if archive.is_file() else frozenset()

    def digests(self, locators: list[str]) -> dict[str, str]:
        split = {locator: found for locator in locators if (found := self._split(locator)) is not None}
        digests = super().digests([locator for locator in locators if locator not in split])
        here = {archive for archive, _ in split.values() if archive.is_file()}
        for locator, (archive, name) in split.items():
            if archive in here and (digest := self._archives.digests(archive).get(name)) is not None:
                digests[locator] = digest
        return digests

    def _digest(self, locator: str) -> str:
        split = self._split(locator)
        if split is None:
            return super()._digest(locator)
        archive, name = split
        digest = self._archives.digests(archive).get(name) if archive.is_file() else None
        if digest is None:
            raise ObjectError(f"{name} cannot be read in {archive.name}, which is damaged or has no such file")
        return digest

    def fetch(self, row: dict[str, Any]) -> Path:
        if split := self._split(row["locator"]):
            self._archives.copy(*split, row["sha256"])
        with unchanged(self, row, row["sha256"]) as path:
            return path

    def path(self, row: dict[str, Any]) -> Path:
        split = self._split(row["locator"])
        return super().path(row) if split is None else self._archives.place(split[1], row["sha256"])

    def elsewhere(self, row: dict[str, Any]) -> list[Path]:
        split = self._split(row["locator"])
        if split is None or split[1] not in self._names(split[0]):
            return super().elsewhere(row)
        return [self._archives.copy(*split, row["sha256"])]  # the cache was emptied

    def _named(self, locator: str) -> str:
        """Without the suffixes of archives and of compression; a meta.json is called as its folder."""
        parts = locator.split("/")
        folders = [part.removesuffix(".gz").removesuffix(".xz").removesuffix(".bz2") for part in parts[:-1]]
        folders = [posixpath.splitext(part)[0] if part.endswith(archives.SUFFIXES) else part for part in folders]
        if parts[-1] == META and folders:
            return "/".join(folders) + ".json"
        return "/".join([*folders, parts[-1].removesuffix(".ply").removesuffix(".compressed")])

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y" if row["locator"].lower().endswith(SAYS_ITS_AXIS) else self._settings.up_axis


def has_gltf_extension(path: Path) -> bool:
    """Whether a .glb or .gltf says at its beginning that it holds splats."""
    try:
        with path.open("rb") as file:
            return GLTF_EXTENSION.encode() in file.read(_GLTF_HEAD_BYTES)
    except OSError:
        return False


def _is_of_splat(path: Path) -> bool:
    try:
        return bool(picture_files(json.loads(path.read_bytes())))
    except (OSError, ValueError, RecursionError):
        return False
