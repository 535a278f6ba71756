"""ModelNet40 and ModelNet10 (Wu et al., "3D ShapeNets: A deep representation for volumetric shapes", CVPR 2015)."""

import hashlib
import logging
import re
import shutil
import threading
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from clipgs.catalog.records import UpAxis
from clipgs.config import Config
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.core.files import whole
from clipgs.core.seeds import unit_hash

log = logging.getLogger(__name__)

LICENSE = "academic research only; the copyright of each model is its author's"
CREDIT = "Princeton ModelNet (Wu et al., CVPR 2015) and the unnamed author of the model"
PAGE = "https://modelnet.cs.princeton.edu/"

_LOCATOR = re.compile(r"([A-Za-z0-9_-]+)/(train|test)/([A-Za-z0-9_-]{1,50})\.off")
_BLOCK_BYTES = 1 << 20


class _Archive(NamedTuple):
    """A zip with the members that are objects, by locator."""

    bundle: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    others: int  # OFF files that stand elsewhere


class ModelNet40Source:
    """See `Source`. A locator is `CLASS/train/NAME.off` or `CLASS/test/NAME.off`, as in the archive.

    The archive's split stands; a share of `train` becomes `validation`, chosen by a hash of the object. Files that are
    equal are no doubles here: a benchmark's results are over all its objects. So their hashes are not frozen; a member
    of the archive is held against the archive's own checksum.
    """

    name = "modelnet40"
    title = "ModelNet40"
    url = "https://modelnet.cs.princeton.edu/ModelNet40.zip"
    objects = 12_311
    remote = True  # unpacking waits for the disk: threads that share one open archive do it

    def __init__(self, config: Config) -> None:
        self._place = config.catalog.modelnet.path or self.url
        self._downloads = config.catalog.downloads
        self._validation_fraction = config.catalog.validation_fraction
        self._max_bytes = config.meshes.max_file_mb * 1_000_000
        self._opening = threading.Lock()
        self._cache = config.cache_path / self.name / hashlib.sha256(self._place.encode()).hexdigest()[:12]

    # --- listing ---

    def locators(self) -> list[str]:
        if not self._files:
            raise UsageError(
                f"catalog.modelnet.path: {self._place} holds no CLASS/train/NAME.off or CLASS/test/NAME.off; "
                f"is it {self.title}?"
            )
        return self._files

    def gone(self, known: list[str]) -> list[str]:
        here = set(self._files)
        return [locator for locator in known if locator not in here]

    def notes(self) -> list[str]:
        notes = []
        if len(self._files) != self.objects:
            notes.append(f"{self._place} holds {len(self._files)} objects; {self.title} has {self.objects}")
        if self._others:
            notes.append(f"{self._others} OFF files do not stand as CLASS/train/NAME.off and are left out")
        return notes

    @cached_property
    def _folder(self) -> Path | None:
        """The folder of classes; None where there is an archive."""
        path = Path(self._place).expanduser()
        if "://" in self._place or not path.is_dir():
            return None
        return path / self.title if (path / self.title).is_dir() else path

    @cached_property
    def _listing(self) -> tuple[list[str], int]:
        """Locators, and how many OFF files are none."""
        if self._folder is None:
            return sorted(self._archive.members), self._archive.others
        names = [path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.off")]
        found = sorted(name for name in names if _LOCATOR.fullmatch(name))
        return found, sum(not name.rpartition("/")[2].startswith("._") for name in names) - len(found)

    @property
    def _files(self) -> list[str]:
        return self._listing[0]

    @property
    def _others(self) -> int:
        return self._listing[1]

    @cached_property
    def _archive(self) -> _Archive:
        path = self._archive_path()
        try:
            bundle = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise UsageError(f"catalog.modelnet.path: {path} is not there") from None
        except zipfile.BadZipFile as error:
            raise ClipgsError(f"{path} is no whole zip archive ({error}); delete it and run again") from None
        members, others = {}, 0
        for info in bundle.infolist():
            parts = info.filename.split("/")
            locator = "/".join(parts[-3:])
            # A Mac left a shadow of every file in the published archive.
            if parts[0] == "__MACOSX" or not parts[-1].endswith(".off") or parts[-1].startswith("._"):
                continue
            if len(parts) in (3, 4) and _LOCATOR.fullmatch(locator) and locator not in members:
                members[locator] = info
            else:
                others += 1
        return _Archive(bundle, members, others)

    def _archive_path(self) -> Path:
        if "://" not in self._place:
            return Path(self._place).expanduser()
        from clipgs.catalog.downloads import Downloader

        path = self._cache / f"{self.title}.zip"
        if path.exists():  # so it is whole; its members have checksums, and hashing 2 GB would slow every job
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
                raise ObjectError(f"{row['locator']} has gone from {self._folder}")
            return path
        with self._opening:  # one thread lists the archive for all
            bundle, members, _ = self._archive
        member = members.get(row["locator"])
        if member is None:
            raise ObjectError(f"{row['locator']} has gone from the archive")
        if member.file_size > self._max_bytes:
            raise ObjectError(
                f"the file has {member.file_size / 1e6:.0f} MB, meshes.max_file_mb is {self._max_bytes / 1e6:.0f}"
            )
        if _checksum(path) == (member.file_size, member.CRC):
            return path
        try:
            with whole(path) as temporary, bundle.open(member) as packed, open(temporary, "wb") as file:
                shutil.copyfileobj(packed, file, _BLOCK_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ObjectError(f"{row['locator']} is damaged in the archive: {error}") from None
        return path

    def path(self, row: dict[str, Any]) -> Path:
        self._parts(row["locator"])  # leads nowhere else
        return (self._cache if self._folder is None else self._folder) / row["locator"]

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
    """The ten classes whose objects all face one way: its files are not those of ModelNet40."""

    name = "modelnet10"
    title = "ModelNet10"
    url = "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip"
    objects = 4_899


def _checksum(path: Path) -> tuple[int, int] | None:
    """Bytes and CRC-32 of a file, as a zip states them; None where there is none."""
    size = crc = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except FileNotFoundError:
        return None
    return size, crc
