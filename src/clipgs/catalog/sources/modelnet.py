"""ModelNet40 and ModelNet10 (Wu et al., "3D ShapeNets: A deep representation for volumetric shapes", CVPR 2015)."""

import hashlib
import logging
import re
import shutil
import threading
import zipfile
import zlib
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from clipgs.catalog.records import UpAxis
from clipgs.config import Config
from clipgs.core.errors import ClipgsError, ObjectError, SourceMissing
from clipgs.core.files import whole
from clipgs.core.seeds import unit_hash

log = logging.getLogger(__name__)

LICENSE = "academic research only; the copyright of each model is its author's"
CREDIT = "Princeton ModelNet (Wu et al., CVPR 2015) and the unnamed author of the model"
PAGE = "https://modelnet.cs.princeton.edu/"

_LOCATOR = re.compile(r"([A-Za-z0-9_-]+)/(train|test)/([A-Za-z0-9_-]{1,50})\.off")
_BLOCK_BYTES = 1 << 20


class ModelNet40Source:
    """See `Source`. A locator is `CLASS/train/NAME.off` or `CLASS/test/NAME.off`, as in the archive.

    The archive's split is kept, but a share of `train` becomes `validation`, by a hash of the object. Equal files are
    not duplicates, because the benchmark counts all its objects. So hashes are not frozen; an unpacked file is checked
    against the archive's checksum.
    """

    name = "modelnet40"
    title = "ModelNet40"
    url = "https://modelnet.cs.princeton.edu/ModelNet40.zip"
    objects = 12_311
    remote = True  # unpacking waits for the disk, and threads can share one open archive
    root = None

    def __init__(self, config: Config) -> None:
        self._place = config.catalog.modelnet.path or self.url
        self._downloads = config.catalog.downloads
        self._validation_fraction = config.catalog.validation_fraction
        self._max_bytes = config.meshes.max_file_mb * 1_000_000
        self._opening = threading.Lock()
        self._cache = config.cache_path / self.name / hashlib.sha256(self._place.encode()).hexdigest()[:12]

    # --- listing ---

    def locators(self) -> list[str]:
        if not self._members:
            forms = "CLASS/train/NAME.off or CLASS/test/NAME.off"
            raise SourceMissing(f"catalog.modelnet.path: {self._place} holds no {forms}; is it {self.title}?")
        return sorted(self._members)

    def gone(self, known: list[str]) -> list[str]:
        return [locator for locator in known if locator not in self._members]

    def digests(self, locators: list[str]) -> dict[str, str]:
        return {}  # no hash is frozen: `fetch` notes what it found

    def notes(self, known: Collection[str] = ()) -> list[str]:
        notes = []
        if len(self._members) != self.objects:
            notes.append(f"{self._place} holds {len(self._members)} objects; {self.title} has {self.objects}")
        if others := self._listing[1]:
            notes.append(f"{others} OFF files have other names than CLASS/train/NAME.off and are left out")
        return notes

    @cached_property
    def _folder(self) -> Path | None:
        """The folder of classes; None if `path` is an archive."""
        path = Path(self._place).expanduser()
        if "://" in self._place or not path.is_dir():
            return None
        return path / self.title if (path / self.title).is_dir() else path

    @cached_property
    def _listing(self) -> tuple[dict[str, zipfile.ZipInfo | None], int]:
        """Locator to member of the archive (in a folder None), and the number of other OFF files."""
        files: list[tuple[str, zipfile.ZipInfo | None]]
        if self._folder is None:
            files, deepest = [(info.filename, info) for info in self._archive.infolist()], 4
        else:
            files, deepest = [(str(path.relative_to(self._folder)), None) for path in self._folder.rglob("*.off")], 3
        members: dict[str, zipfile.ZipInfo | None] = {}
        others = 0
        for name, info in files:
            parts = name.split("/")
            # The published archive has macOS's shadow of every file.
            if parts[0] == "__MACOSX" or not parts[-1].endswith(".off") or parts[-1].startswith("._"):
                continue
            locator = "/".join(parts[-3:])
            if 3 <= len(parts) <= deepest and _LOCATOR.fullmatch(locator) and locator not in members:
                members[locator] = info
            else:
                others += 1
        return members, others

    @property
    def _members(self) -> dict[str, zipfile.ZipInfo | None]:
        return self._listing[0]

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        path = self._archive_path()
        try:
            return zipfile.ZipFile(path)
        except FileNotFoundError:
            raise SourceMissing(f"catalog.modelnet.path: {path} does not exist") from None
        except zipfile.BadZipFile as error:
            raise ClipgsError(f"{path} is not a whole zip archive ({error}); delete it and run again") from None

    def _archive_path(self) -> Path:
        if "://" not in self._place:
            return Path(self._place).expanduser()
        from clipgs.catalog.downloads import Downloader

        path = self._cache / f"{self.title}.zip"
        if path.exists():  # it is whole, and hashing 2 GB would slow every job
            return path
        downloader = Downloader(self._downloads)
        base, _, file = self.url.rpartition("/")
        url = downloader.resolve(base, file) if self._place == self.url else self._place
        log.info("downloading %s (ModelNet40 has 2 GB, ModelNet10 0.5 GB)", url)
        try:
            return downloader.get(url, path)
        except ObjectError as error:
            raise ClipgsError(f"{error}; download it yourself and name it in catalog.modelnet.path") from None

    # --- objects ---

    def identify(self, locator: str) -> dict[str, Any]:
        _, split, stem = self._parts(locator)
        uid = f"{self.name}-{stem}"
        position = unit_hash(uid)
        if split == "train" and position < self._validation_fraction:
            split = "validation"
        return {"uid": uid, "sha256": None, "group": uid, "split": split, "note": None}

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        terms = {"text": None, "license": LICENSE, "credit": CREDIT, "page": PAGE}
        return [{"category": self._parts(locator)[0], **terms} for locator in locators]

    def label_digest(self, locators: list[str]) -> str:
        return ""

    def fetch(self, row: dict[str, Any]) -> Path:
        path = self.path(row)
        if self._folder is not None:
            if not path.is_file():
                raise ObjectError(f"{row['locator']} is no longer in {self._folder}")
            return path
        with self._opening:  # one thread lists the archive for all
            member = self._members.get(row["locator"])
        if member is None:
            raise ObjectError(f"{row['locator']} is no longer in the archive")
        if member.file_size > self._max_bytes:
            megabytes = f"{member.file_size / 1e6:.0f} MB"
            raise ObjectError(f"the file has {megabytes}, meshes.max_file_mb is {self._max_bytes / 1e6:.0f}")
        if _checksum(path) == (member.file_size, member.CRC):
            return path
        try:
            with whole(path) as temporary, self._archive.open(member) as packed, open(temporary, "wb") as file:
                shutil.copyfileobj(packed, file, _BLOCK_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ObjectError(f"{row['locator']} is damaged in the archive: {error}") from None
        return path

    def path(self, row: dict[str, Any]) -> Path:
        self._parts(row["locator"])  # raises unless it is inside the folder
        return (self._cache if self._folder is None else self._folder) / row["locator"]

    def all_files(self, row: dict[str, Any]) -> list[Path]:
        return [self.path(row)]

    def elsewhere(self, row: dict[str, Any]) -> list[Path]:
        return []

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "z"

    @staticmethod
    def _parts(locator: str) -> tuple[str, str, str]:
        """Class, split and name."""
        match = _LOCATOR.fullmatch(locator)
        if match is None:
            raise ObjectError(f"{locator!r} is not CLASS/train/NAME.off or CLASS/test/NAME.off")
        return match[1], match[2], match[3]


class ModelNet10Source(ModelNet40Source):
    """Ten classes whose objects all have the same orientation; its files differ from ModelNet40's."""

    name = "modelnet10"
    title = "ModelNet10"
    url = "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip"
    objects = 4_899


def _checksum(path: Path) -> tuple[int, int] | None:
    """Size in bytes and CRC-32 of a file, as in a zip; None if there is no file."""
    size = crc = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except FileNotFoundError:
        return None
    return size, crc
