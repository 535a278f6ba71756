"""Objaverse-XL, from its annotation tables: files of Objaverse 1.0, single files on GitHub, and the Smithsonian's.

The tables have the SHA-256 of every file, and a file with another hash is refused. The uid is Objaverse's own for
Objaverse 1.0, else the file's SHA-256, which Cap3D and others also use as the name.
"""

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clipgs.catalog.records import LABEL_COLUMNS, SUFFIXES, UpAxis
from clipgs.catalog.sources.annotations import AnnotatedSource, label_hash, read_xl_table
from clipgs.catalog.sources.objaverse import fetch_glb, glb_path, locator_of
from clipgs.core.errors import ObjectError, UsageError

_COLUMNS = ["fileIdentifier", "source", "license", "sha256"]
_TEXTS = ("locator", "uid", "file_identifier", "sha256", "category", "license_name", "refused", *LABEL_COLUMNS[2:])
_BATCH_ROWS = 1 << 16
_GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)/blob/([0-9a-f]{40})/(.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RAW = "https://raw.githubusercontent.com/"
_SKETCHFAB = "sketchfab:"  # before the FOLDER/UID of an Objaverse 1.0 file


class ObjaverseXLSource(AnnotatedSource):
    """See `Source`. A locator is the table's fileIdentifier or, for an Objaverse 1.0 file, sketchfab:FOLDER/UID."""

    name = "objaverse_xl"

    def given(self) -> list[Path]:
        if not self.config.catalog.objaverse_xl.tables:
            raise UsageError("config: catalog.objaverse_xl.tables names no table")
        return []

    def gather(self) -> list[Path]:
        tables = [self.files.linked(place) for place in self.config.catalog.objaverse_xl.tables]
        _ = self._lvis, self._paths  # read now, so that a cut file is found
        return [*tables, self.files.get("object-paths.json.gz"), self.files.get("lvis-annotations.json.gz")]

    def read(self) -> Any:
        import numpy as np
        import pyarrow as pa

        parts = []
        for place in self.config.catalog.objaverse_xl.tables:
            table = self.files.read(self.files.linked, place, partial(read_xl_table, columns=_COLUMNS))
            parts += [self._part(batch) for batch in table.to_batches(max_chunksize=_BATCH_ROWS)]
        rows = pa.concat_tables(parts) if parts else None
        if not rows:
            raise UsageError("config: the files in catalog.objaverse_xl.tables list no object")
        codes = rows["locator"].combine_chunks().dictionary_encode().indices.to_numpy()
        _, first = np.unique(codes, return_index=True)  # the first row of each locator
        return rows.take(np.sort(first))

    def _part(self, batch: Any) -> Any:
        """Rows of an annotation table, with the columns `_TEXTS` and `label_hash`."""
        import pyarrow as pa

        rows = []
        for identifier, source, license_name, digest in zip(*batch.to_pydict().values(), strict=True):
            if not identifier:
                continue
            digest = (digest or "").lower()
            locator, uid, refused = self._place(identifier, source or "", digest)
            category = self._lvis.get(uid) if locator.startswith(_SKETCHFAB) else None
            labels = (_name(identifier), license_name or None, _credit(identifier), identifier)
            own = (locator, uid, identifier, digest or None, category, license_name or None, refused)
            rows.append(dict(zip(_TEXTS, own + labels, strict=True)) | {"label_hash": label_hash(*labels)})
        return pa.Table.from_pylist(rows, pa.schema(dict.fromkeys(_TEXTS, pa.string()) | {"label_hash": pa.uint64()}))

    def _place(self, identifier: str, source: str, digest: str) -> tuple[str, str, str | None]:
        """Locator, uid, and the reason to refuse the object, else None."""
        if not _SHA256.fullmatch(digest):
            return identifier, "", "no SHA-256 in the table"
        if source == "sketchfab":
            uid = identifier.rsplit("/", 1)[-1]
            path = self._paths.get(uid)
            if path is None:
                return identifier, digest, "not in Objaverse 1.0"
            return _SKETCHFAB + locator_of(uid, path), uid, None
        if source == "thingiverse":
            return identifier, digest, "thingiverse gives no file without an account"
        if _suffix(identifier) not in SUFFIXES:
            return identifier, digest, "a kind of file that is not read"
        if source == "github":
            return identifier, digest, None if _GITHUB.fullmatch(identifier) else "no single file at a commit"
        if source == "smithsonian":
            return identifier, digest, None if identifier.startswith("https://") else "no address of a file"
        return identifier, digest, "a source that is not known"

    def notes(self, known: Collection[str] = ()) -> list[str]:
        if self.table["category"].null_count < len(self.table):
            return super().notes()
        return [*super().notes(), "no table lists Objaverse 1.0, so copies of LVIS objects are not recognised"]

    # --- files ---

    def fetch(self, row: dict[str, Any]) -> Path:
        locator = row["locator"]
        if locator.startswith(_SKETCHFAB):
            return fetch_glb(self.files, locator.removeprefix(_SKETCHFAB), row["sha256"], self.max_bytes)
        github = _GITHUB.fullmatch(locator)
        if github:
            base, relative = _RAW, "/".join([*github.groups()[:3], unquote(github[4])])
        else:
            parts = urlsplit(locator)
            base, relative = f"{parts.scheme}://{parts.netloc}/", unquote(parts.path).lstrip("/")
        url = self.files.downloader.resolve(base, relative)
        return self.files.downloader.get(url, self.path(row), sha256=row["sha256"], max_bytes=self.max_bytes)

    def path(self, row: dict[str, Any]) -> Path:
        locator, digest = row["locator"], row["sha256"]
        if locator.startswith(_SKETCHFAB):
            return glb_path(self.files, locator.removeprefix(_SKETCHFAB))
        if not _SHA256.fullmatch(digest or ""):
            raise ObjectError(f"no SHA-256 is known of {locator}")
        return self.config.cache_path / self.name / digest[:2] / f"{digest}{_suffix(locator)}"

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "z" if self.path(row).suffix == ".stl" else "auto"  # STL is for 3D printers, whose Z is up


def _suffix(identifier: str) -> str:
    """The suffix of the file that an address names."""
    name = urlsplit(identifier).path.rsplit("/", 1)[-1]
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


def _credit(identifier: str) -> str | None:
    github = _GITHUB.fullmatch(identifier)
    if github:
        return f"{github[1]}/{github[2]} on GitHub"
    return "Smithsonian Institution" if urlsplit(identifier).netloc.endswith("si.edu") else None


def _name(identifier: str) -> str | None:
    """A GitHub file's name in words; addresses of other sources have no name."""
    github = _GITHUB.fullmatch(identifier)
    if not github:
        return None
    stem = unquote(github[4]).rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_\W]+", " ", stem).split()) or None
