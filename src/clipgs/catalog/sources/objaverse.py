"""Objaverse 1.0: all of it, its LVIS subset, or a list of uids.

The objaverse package is not used: it has no retry, timeout, checksum or endpoint. But whole files in its cache
(`objaverse.root`) are read in place, and never written.
"""

import hashlib
import re
from collections.abc import Collection
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clipgs.catalog.records import LICENSES, UID_PATTERN, UpAxis
from clipgs.catalog.sources.annotations import AnnotatedSource, AnnotationFiles, label_hash, page_of, read_xl_table
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.core.files import sha256_of, whole
from clipgs.core.lists import Names, enumerated, read_rows
from clipgs.core.runner import Progress

PART_VERSION = 1  # raised when other values are read from an annotation
_NOWHERE = "unknown"  # the folder in the locator of a listed uid that is not in Objaverse
_FOLDER = "^[0-9]{3}-[0-9]{3}$"
_PATH = rf"^glbs/(?P<locator>{_FOLDER[1:-1]}/(?P<uid>[A-Za-z0-9_-]{{1,64}}))\.glb$"


class ObjaverseSource(AnnotatedSource):
    """See `Source`. A locator is FOLDER/UID, where the GLB is glbs/FOLDER/UID.glb in the dataset."""

    name = "objaverse"

    def given(self) -> list[Path]:
        settings = self.config.catalog.objaverse
        if settings.subset != "list":
            return []
        if settings.uids is None:
            raise UsageError("config: catalog.objaverse.subset = list: name a file with one uid a line in `uids`")
        return [Path(settings.uids)]

    @cached_property
    def _wanted(self) -> list[str]:
        settings = self.config.catalog.objaverse
        if settings.categories and settings.subset != "lvis":
            raise UsageError("config: catalog.objaverse.categories holds LVIS categories: set subset to lvis")
        if settings.subset == "list":
            uids = read_uids(Path(str(settings.uids)))
            unknown = [uid for uid in uids if uid not in self._paths]
            if len(unknown) == len(uids):
                text = f"{settings.uids} names no object of Objaverse: {enumerated(unknown)}"
                raise UsageError(f"config: catalog.objaverse.uids: {text}")
            return uids
        if settings.subset == "all":
            return list(self._paths)
        known = Names(self._lvis.values())
        if unknown := known.unknown(settings.categories):
            raise UsageError(f"config: catalog.objaverse.categories: LVIS has no category {known.shown(unknown)}")
        chosen = {known.find(category) for category in settings.categories} or set(self._lvis.values())
        return [uid for uid, category in self._lvis.items() if category in chosen]

    @cached_property
    def _wanted_locators(self) -> Any:
        return self._locators(self._wanted)

    def _locators(self, wanted: list[str]) -> Any:
        """FOLDER/UID of every uid."""
        import pyarrow as pa
        import pyarrow.compute as pc

        uids = pa.array(wanted, pa.string())
        paths = pa.array([self._paths.get(uid) for uid in wanted], pa.string())
        folders = pc.utf8_slice_codeunits(paths, len("glbs/"), len("glbs/") + len(_NOWHERE))
        valid_folders = folders.unique().filter(pc.match_substring_regex(folders.unique(), _FOLDER))
        named_right = pc.equal(paths, pc.binary_join_element_wise("glbs/", folders, "/", uids, ".glb", ""))
        right = pc.and_(named_right, pc.is_in(folders, value_set=valid_folders))
        right = pc.and_(right, pc.match_substring_regex(uids, f"^{UID_PATTERN.pattern}$"))
        wrong = pc.and_(pc.is_valid(paths), pc.invert(pc.fill_null(right, False)))
        for uid, path in zip(uids.filter(wrong).to_pylist(), paths.filter(wrong).to_pylist(), strict=True):
            locator_of(uid, path)  # raises
        return pc.binary_join_element_wise(pc.fill_null(folders, _NOWHERE), uids, "/")

    def gather(self) -> list[Path]:
        folders = _folders(self._wanted_locators)  # reads both lists, so that a cut one is found now
        files = [self.files.get("object-paths.json.gz"), self.files.get("lvis-annotations.json.gz")]
        files += self.files.get_all([f"metadata/{folder}.json.gz" for folder in folders])
        if self.config.catalog.objaverse.hashes:
            files.append(self.files.linked(self.config.catalog.objaverse.hashes))
        return files

    def read(self) -> Any:
        return self._objects(self._wanted, self._wanted_locators)

    def outside(self, locators: list[str]) -> Any:
        uids = [locator.split("/")[-1] for locator in locators]
        wanted = [uid for uid in uids if uid in self._paths]
        return self._objects(wanted, self._locators(wanted))

    def _objects(self, wanted: list[str], locators: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        lvis, uids = self._lvis, pa.array(wanted, pa.string())
        annotations = self._annotations(_folders(locators))
        places = pc.index_in(uids, value_set=annotations["uid"].combine_chunks())
        found = annotations.take(places)
        nowhere = pc.binary_join_element_wise("unreadable: Objaverse has no object ", uids, "")
        category = pc.index_in(uids, value_set=pa.array(list(lvis), pa.string()))
        columns = {name: found[name] for name in found.column_names} | {
            "uid": uids,
            "locator": locators,
            "file_identifier": pc.binary_join_element_wise(page_of(""), uids, ""),
            "note": pc.if_else(pc.starts_with(locators, f"{_NOWHERE}/"), nowhere, pa.scalar(None, pa.string())),
            "category": pa.array(list(lvis.values()), pa.string()).take(category),
        }
        if place := self.config.catalog.objaverse.hashes:
            read = partial(read_xl_table, columns=["fileIdentifier", "sha256"])
            hashes = self.files.read(self.files.linked, place, read)
            columns["sha256"] = _looked_up(hashes, columns["file_identifier"])
            in_lvis = _looked_up(hashes, pa.array([page_of(uid) for uid in lvis]))  # of any subset
            columns["lvis"] = pc.is_in(columns["sha256"], value_set=pc.drop_null(in_lvis))
        return pa.table(columns)

    def _annotations(self, folders: list[str]) -> Any:
        """The rows of these annotation files, with the columns of `_part_schema`."""
        import pyarrow as pa

        parts = []
        with closing(Progress("reading annotations of Objaverse", len(folders), "file")) as progress:
            for folder in folders:
                parts.append(self._part(folder))
                progress.step()
        return pa.concat_tables(parts) if parts else pa.Table.from_pylist([], _part_schema())

    def _part(self, folder: str) -> Any:
        """The rows of one annotation file, from the cache if it was read before."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = f"metadata/{folder}.json.gz"
        file = self.files.get(name)
        found = file.stat()
        origin = f"{PART_VERSION} {file.resolve()} {found.st_size} {found.st_mtime_ns}"
        place = hashlib.sha256(str(file.resolve().parent).encode()).hexdigest()[:8]
        path = self.files.cache / "parts" / place / f"{folder}.parquet"
        try:
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"origin") == origin.encode():
                return table
        except (OSError, pa.ArrowInvalid):
            pass  # not read yet, or not whole
        rows = [_annotation(uid, entry) for uid, entry in sorted(self.files.read_json(name).items())]
        table = pa.Table.from_pylist(rows, _part_schema().with_metadata({"origin": origin}))
        with whole(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return table

    def notes(self, known: Collection[str] = ()) -> list[str]:
        settings = self.config.catalog.objaverse
        if settings.subset == "list" and (unknown := [uid for uid in self._wanted if uid not in self._paths]):
            text = f"{len(unknown)} of {len(self._wanted)} uids in {settings.uids} are not in Objaverse"
            return [f"{text}: {enumerated(unknown)}", *self._notes()]
        return self._notes()

    def _notes(self) -> list[str]:
        if self.config.catalog.objaverse.hashes is not None:
            return super().notes()
        return [*super().notes(), "re-uploads of the same file are not known: catalog.objaverse.hashes names no table"]

    # --- files ---

    def fetch(self, row: dict[str, Any]) -> Path:
        if row["locator"].startswith(f"{_NOWHERE}/"):
            raise ObjectError(f"Objaverse has no object {row['uid']}")
        return fetch_glb(self.files, row["locator"], row["sha256"], self.max_bytes)

    def path(self, row: dict[str, Any]) -> Path:
        return glb_path(self.files, row["locator"])

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y"


def _looked_up(hashes: Any, identifiers: Any) -> Any:
    """The SHA-256 of each identifier, null where the table has none."""
    import pyarrow.compute as pc

    order = pc.index_in(identifiers, value_set=hashes["fileIdentifier"].combine_chunks())
    return pc.utf8_lower(hashes["sha256"].combine_chunks().take(order))


def _folders(locators: Any) -> list[str]:
    """The names of the annotation files of these objects."""
    import pyarrow.compute as pc

    folders = (
        pc.utf8_slice_codeunits(locators, 0, len(_NOWHERE)).unique().to_pylist()
    )  # "unknown" is as long as 000-023
    return sorted(set(folders) - {_NOWHERE})


def read_uids(path: Path, key: str = "config: catalog.objaverse.uids") -> list[str]:
    """The first column of a text or CSV file, sorted and unique, without a header `uid` and empty lines.

    `key` names the setting in errors.

    Raises:
        UsageError: the file cannot be read, has no uid, or has text that is not a uid.
    """
    uids: set[str] = set()
    for line, cells in read_rows(path, key):
        uid = cells[0].strip().removesuffix(".glb")
        if not uid or (not uids and uid.lower() == "uid"):
            continue
        if not UID_PATTERN.fullmatch(uid):
            raise UsageError(f"{key}: {path}, line {line}: {uid[:80]!r} is not a uid")
        uids.add(uid)
    if not uids:
        raise UsageError(f"{key}: {path} names no uid")
    return sorted(uids)


def locator_of(uid: str, path: str) -> str:
    """FOLDER/UID of glbs/FOLDER/UID.glb. The folder also names the annotation file.

    Raises:
        ClipgsError: the path has another form.
    """
    match = re.fullmatch(_PATH, path)
    if match is None or match["uid"] != uid:
        raise ClipgsError(f"object-paths.json.gz gives {uid!r} the path {path!r}, which is not glbs/FOLDER/UID.glb")
    return match["locator"]


def glb_path(files: AnnotationFiles, locator: str) -> Path:
    """The path of the GLB in our cache, or in the objaverse package's if it is only there."""
    own, theirs = _glb_places(files, locator)
    return theirs if not own.exists() and theirs.exists() else own


def _glb_places(files: AnnotationFiles, locator: str) -> tuple[Path, Path]:
    name = f"glbs/{locator}.glb"
    return files.cache / name, files.package / "hf-objaverse-v1" / name


def fetch_glb(files: AnnotationFiles, locator: str, sha256: str | None, max_bytes: int) -> Path:
    """The path of an Objaverse 1.0 GLB: the package's copy if it is right, else a download into our cache.

    Raises:
        ObjectError: the file is not available, is cut, is too large, or has another hash.
    """
    own, theirs = _glb_places(files, locator)
    if not own.exists() and theirs.exists() and _is_right(theirs, sha256):
        return theirs
    url = files.downloader.resolve(files.BASE, f"glbs/{locator}.glb")
    files.downloader.get(url, own, sha256=sha256, max_bytes=max_bytes, token=True)
    if not _is_right(own, None):
        raise ObjectError(f"{own.name} is not a whole GLB file: its header names another length")
    return own


def _is_right(path: Path, sha256: str | None) -> bool:
    """Whether the file has that hash or, if it is None, is a GLB of the length in its header."""
    if sha256 is not None:
        return sha256_of(path) == sha256
    with open(path, "rb") as file:
        header = file.read(12)
    return header[:4] == b"glTF" and int.from_bytes(header[8:12], "little") == path.stat().st_size


# --- one annotation ---


def _part_schema() -> Any:
    import pyarrow as pa

    texts = dict.fromkeys(("uid", "text", "license", "license_name", "credit", "page"), pa.string())
    numbers = dict.fromkeys(("faces", "vertices", "bytes", "textures", "animations"), pa.int64())
    return pa.schema(texts | numbers | {"label_hash": pa.uint64()})


def _annotation(uid: str, entry: Any) -> dict[str, Any]:
    """The row of one annotation. The text is the object's name; values of a wrong type become null."""
    entry = _mapping(entry)
    glb = _mapping(_mapping(entry.get("archives")).get("glb"))
    user = _mapping(entry.get("user"))
    license_name, page = _text(entry.get("license")), _text(entry.get("viewerUrl")) or ""
    labels = {
        "text": _text(entry.get("name")),
        "license": LICENSES.get(license_name.lower(), license_name) if license_name else None,
        "credit": _text(user.get("displayName")) or _text(user.get("username")),
        "page": page if page.startswith("https://") else page_of(uid),
    }
    return labels | {
        "uid": uid,
        "license_name": license_name,
        "label_hash": label_hash(*labels.values()),
        "faces": _count(entry.get("faceCount")),
        "vertices": _count(entry.get("vertexCount")),
        "bytes": _count(glb.get("size")),
        "textures": _count(glb.get("textureCount")),
        "animations": _count(entry.get("animationCount")),
    }


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    # A name that is cut inside an emoji has a lone surrogate, which UTF-8 cannot encode.
    return value.encode("utf-8", "replace").decode().strip() or None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None
