"""The common part of annotated sources: all objects' annotations, curated, as one table in the cache.

The table is made again when an input file has another size or time, or when a setting changes that decides on objects.
Snakemake asks for `state` whenever it parses; that compares sizes and times, and reads no annotations.
"""

import gzip
import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipgs.catalog.records import LABEL_COLUMNS
from clipgs.catalog.sources.curation import curate
from clipgs.config import Config
from clipgs.core.errors import ClipgsError, ObjectError, SourceMissing, UsageError
from clipgs.core.files import remove_sidecar, whole
from clipgs.core.lists import counted
from clipgs.core.runner import Progress
from clipgs.core.seeds import canonical_json, json_digest, unit_hash

log = logging.getLogger(__name__)

TABLE_VERSION = 1  # raised when the same inputs and settings give another table
_CANNOT_BE_READ = (OSError, EOFError, ValueError, zlib.error)  # cut, not gzip, not JSON, not UTF-8

# Rows of the table, sorted by locator. `category` is the LVIS category; `lvis` is also true for a file with the bytes
# of an LVIS object; `refused` is the rule that leaves the object out, else null. A subclass gives `label_hash` for the
# other labels, to which the category's is added here, and `lvis` if its files list more LVIS shapes than its rows.
_TEXTS = ("locator", "uid", "file_identifier", "sha256", "note", *LABEL_COLUMNS[1:], "license_name", "refused")
_NUMBERS = ("faces", "vertices", "bytes", "textures", "animations")
_COLUMNS = dict.fromkeys(_TEXTS, "string") | dict.fromkeys(_NUMBERS, "int64") | {"lvis": "bool", "label_hash": "uint64"}


def page_of(uid: str) -> str:
    """The page of an Objaverse 1.0 object, which is also its name in Objaverse-XL."""
    return f"https://sketchfab.com/3d-models/{uid}"


class AnnotationFiles:
    """The annotation files of Objaverse 1.0, from the cache of the objaverse package or downloaded into our cache.

    The package downloads without a check, straight to the final name. So a file in its cache may be cut, and is then
    ignored.
    """

    BASE = "https://huggingface.co/datasets/allenai/objaverse/resolve/main/"

    def __init__(self, config: Config) -> None:
        endpoint = config.catalog.downloads.endpoint
        mirror = "origin" if endpoint is None else f"mirror-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}"
        self.cache = config.cache_path / "objaverse"
        self._own = self.cache / "annotations" / mirror
        self.package = Path(config.catalog.objaverse.root).expanduser()
        self._settings = config.catalog.downloads
        self._ignored: set[Path] = set()  # damaged files in the package's cache
        self._lock = threading.Lock()
        self._downloader: Any = None

    @property
    def downloader(self) -> Any:
        """One `Downloader` for all threads, so that they share its rate limit."""
        from clipgs.catalog.downloads import Downloader

        with self._lock:
            if self._downloader is None:
                self._downloader = Downloader(self._settings)
            return self._downloader

    def get(self, name: str) -> Path:
        """The annotation file `name`, downloaded if it is in no cache.

        Raises:
            ClipgsError: the download failed.
        """
        own, theirs = self._own / name, self.package / "hf-objaverse-v1" / name
        return self._cached(own, theirs) or self._download(self.downloader.resolve(self.BASE, name), own, token=True)

    def get_all(self, names: list[str]) -> list[Path]:
        """As `get`, for several files at once."""
        paths = []
        with (
            closing(Progress("annotations of Objaverse", len(names), "file")) as progress,
            ThreadPoolExecutor(self._settings.parallel) as pool,
        ):
            for path in pool.map(self.get, names):
                paths.append(path)
                progress.step()
        return paths

    def linked(self, place: str) -> Path:
        """A table that the configuration names by URL or by path.

        Raises:
            UsageError: the path is not a file.
            ClipgsError: the download failed.
        """
        if "://" not in place:
            path = Path(place).expanduser()
            if not path.is_file():
                raise UsageError(f"config: {place} is not a file")
            return path
        base, _, name = place.rpartition("/")
        theirs = self.package / Path(name).stem / name  # the place of Objaverse-XL's tables in the package's cache
        own = self._own / f"{hashlib.sha256(place.encode()).hexdigest()[:8]}-{name}"
        if found := self._cached(own, theirs):
            return found
        url = self.downloader.resolve(base + "/", name)
        # A table may be on any host: the token is only for the endpoint that the user chose, or for the hub.
        trusted = self._settings.endpoint is not None or urlsplit(url).hostname == urlsplit(self.BASE).hostname
        return self._download(url, own, token=trusted)

    def _cached(self, own: Path, theirs: Path) -> Path | None:
        """The file in the package's cache, if it is usable and ours does not exist."""
        return theirs if not own.exists() and theirs.exists() and theirs not in self._ignored else None

    def _download(self, url: str, path: Path, *, token: bool) -> Path:
        try:
            return self.downloader.get(url, path, token=token)
        except ObjectError as error:
            raise ClipgsError(f"the annotations could not be downloaded: {error}") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in the annotation file `name` (.json.gz); raises as `read`."""
        return self.read(self.get, name, _load_json)

    def read(self, get: Callable[[str], Path], name: str, load: Callable[[Path], Any]) -> Any:
        """Loads the file `get(name)`; if one in the package's cache cannot be loaded, it is downloaded instead.

        Raises:
            ClipgsError: the file is cut or damaged. If it is ours, it is removed, so that the next run downloads it.
        """
        path = get(name)
        try:
            return load(path)
        except _CANNOT_BE_READ as error:
            if path.is_relative_to(self.package) and path not in self._ignored:
                log.warning("%s is cut or damaged (%s); it is downloaded again into %s", path, error, self._own)
                self._ignored.add(path)
                return self.read(get, name, load)
            again = ""
            if path.is_relative_to(self._own):
                path.unlink(missing_ok=True)
                remove_sidecar(path)
                again = "; it was removed: run the same command again to download it"
            raise ClipgsError(f"{path} is cut or damaged ({error}){again}") from None


def _load_json(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rb") as file:
        value = json.loads(file.read())
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} instead of names and values")
    return value


def lvis_categories(files: AnnotationFiles) -> dict[str, str]:
    """Uid to LVIS category; for an object in several categories, the first by name.

    Raises:
        ClipgsError: the file is not available, or holds something else.
    """
    listed = files.read_json("lvis-annotations.json.gz")
    if not all(isinstance(uids, list) and all(isinstance(uid, str) for uid in uids) for uids in listed.values()):
        raise ClipgsError("lvis-annotations.json.gz does not hold categories and lists of uids")
    return {uid: category for category in sorted(listed, reverse=True) for uid in listed[category]}


class AnnotatedSource:
    """The common part of Objaverse 1.0 and XL; see `Source`. A subclass gathers files and reads rows from them."""

    name: str
    remote = True
    root = None

    def __init__(self, config: Config) -> None:
        self.config = config
        self.files = AnnotationFiles(config)
        self._outside: tuple[set[str], Any] = (set(), None)  # locators that `outside` was asked for, and its rows
        self.max_bytes = config.meshes.max_file_mb * 1_000_000  # larger files are not downloaded

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Uid to the path of its GLB in the dataset of Objaverse 1.0."""
        paths = self.files.read_json("object-paths.json.gz")
        if not all(isinstance(path, str) for path in paths.values()):
            raise ClipgsError("object-paths.json.gz does not hold uids and paths")
        return paths

    @cached_property
    def _lvis(self) -> dict[str, str]:
        return lvis_categories(self.files)

    # --- for subclasses ---

    def given(self) -> list[Path]:
        """The user's own files that decide on objects."""
        raise NotImplementedError

    def gather(self) -> list[Path]:
        """Downloads or locates the annotation files."""
        raise NotImplementedError

    def read(self) -> Any:
        """All objects as a `pyarrow.Table` with some of the columns of this module, one row a locator."""
        raise NotImplementedError

    def outside(self, locators: list[str]) -> Any:
        """Rows of those locators that are in the annotations but not in `read`: another subset of them was frozen."""
        import pyarrow as pa

        return pa.table({"locator": pa.array([], pa.string())})

    # --- the table ---

    @cached_property
    def state(self) -> str:
        """Changes whenever the answers of this source may have changed. Compares sizes and times of files only."""
        table = self.config.catalog.curation.table
        try:
            given = [_stat(path.expanduser()) for path in [*self.given(), *([Path(table)] if table else [])]]
        except OSError as error:
            raise UsageError(f"config: {error.filename}: {error.strerror or error}") from None
        settings = {
            "version": TABLE_VERSION,
            "source": self.name,
            "endpoint": self.config.catalog.downloads.endpoint,
            **self.config.catalog.model_dump(mode="json", include={"objaverse", "objaverse_xl", "curation"}),
            "given": given,
        }
        key = json_digest(settings)[:16]
        manifest = self.files.cache / "tables" / f"{key}.json"
        try:
            inputs = json.loads(manifest.read_text())
            unchanged = inputs and all(_stat(Path(entry[0])) == entry for entry in inputs)
        except (OSError, ValueError, TypeError, IndexError):
            unchanged = False  # not made yet, not whole, or a file is missing
        if not unchanged:
            inputs = [_stat(path) for path in self.gather()]
            with whole(manifest) as temporary:
                temporary.write_text(canonical_json(inputs))
        return f"{key}-{json_digest(inputs)[:16]}"

    @cached_property
    def table(self) -> Any:
        """All objects, as a `pyarrow.Table` over the memory-mapped file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.files.cache / "tables" / f"{self.state}.parquet"
        try:
            return pq.read_table(path, memory_map=True)
        except FileNotFoundError:
            pass
        except (OSError, pa.ArrowInvalid):
            log.warning("%s is damaged and is made again", path)
        table = self._completed(self.read().sort_by("locator"))
        refused = curate(table, self.config.catalog)
        table = table.set_column(table.column_names.index("refused"), "refused", refused)
        with whole(path) as temporary:
            pq.write_table(table, temporary, compression="lz4", use_dictionary=False, write_statistics=False)
        for older in path.parent.glob(f"{path.stem.split('-')[0]}-*.parquet"):
            if older != path:
                older.unlink(missing_ok=True)  # the same settings with older inputs
        return table

    def _completed(self, rows: Any) -> Any:
        """The rows with all columns of this module."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = {
            name: rows[name].cast(kind) if name in rows.column_names else pa.nulls(len(rows), kind)
            for name, kind in _COLUMNS.items()
        }
        hashes, in_lvis = columns["sha256"], pc.is_valid(columns["category"])
        same_bytes = pc.is_in(hashes, value_set=pc.drop_null(pc.filter(hashes, in_lvis)))
        columns["lvis"] = pc.or_(pc.or_(in_lvis, same_bytes), columns["lvis"].fill_null(False))
        columns["label_hash"] = _with_category(columns["label_hash"].fill_null(0), columns["category"])
        return pa.table(columns)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """Locator to row, of the taken objects only: a table may hold far more refused objects."""
        import numpy as np
        import pyarrow.compute as pc

        rows = np.flatnonzero(pc.is_null(self.table["refused"]).to_numpy())
        return dict(zip(self.table["locator"].take(rows).to_pylist(), rows.tolist(), strict=True))

    @cached_property
    def _row_of_any(self) -> dict[str, int]:
        return {locator: row for row, locator in enumerate(self.table["locator"].to_pylist())}

    def _rows(self, locators: list[str]) -> list[int | None]:
        rows = list(map(self._row_of.get, locators))
        if None in rows:  # frozen when the rules were less strict
            rows = list(map(self._row_of_any.get, locators))
        return rows

    def _rows_outside(self, locators: list[str]) -> Any:
        """Rows of frozen objects that are not in the table; each is looked up once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        asked, table = self._outside
        new = [locator for locator in locators if locator not in asked]
        if new:
            found = self._completed(self.outside(new))
            table = found if table is None else pa.concat_tables([table, found])
            self._outside = (asked | set(new), table)
        return table.filter(pc.is_in(table["locator"], value_set=pa.array(locators, pa.string())))

    def _labelled(self, locators: list[str], columns: tuple[str, ...]) -> Any:
        """These columns, a row for each locator; all null for an object that no longer exists."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = self._rows(locators)
        missing = [locator for locator, row in zip(locators, rows, strict=True) if row is None]
        table = self.table.select(["locator", *columns]).take(pa.array([r for r in rows if r is not None], pa.int64()))
        if missing:
            table = pa.concat_tables([table, self._rows_outside(missing).select(["locator", *columns])])
            places = pc.index_in(pa.array(locators, pa.string()), value_set=table["locator"].combine_chunks())
            table = table.take(places)
        return table.select(columns)

    @cached_property
    def _frozen_columns(self) -> list[Any]:
        return [self.table[name].combine_chunks() for name in ("uid", "sha256", "note", "lvis")]

    # --- methods of `Source` ---

    def locators(self) -> list[str]:
        import pyarrow.compute as pc

        if not len(self.table):
            raise SourceMissing(f"the annotations of {self.name} list no object")
        taken = self.table.filter(pc.is_null(self.table["refused"]))["locator"].to_pylist()
        if not taken:
            counts = "; ".join(f"{rule}: {count}" for rule, count in self.refusals().items())
            raise UsageError(
                f"config: the rules of catalog.curation leave none of {len(self.table)} objects"
                + (f" (refused by {counts})" if counts else "")
            )
        return taken

    def gone(self, known: list[str]) -> list[str]:
        missing = [locator for locator, row in zip(known, self._rows(known), strict=True) if row is None]
        found = set(self._rows_outside(missing)["locator"].to_pylist()) if missing else set()
        return [locator for locator in missing if locator not in found]

    def digests(self, locators: list[str]) -> dict[str, str]:
        return {}  # the annotations have the hashes: a download with another is refused

    def all_files(self, row: dict[str, Any]) -> list[Path]:
        return [self.path(row)]

    def elsewhere(self, row: dict[str, Any]) -> list[Path]:
        return []

    def path(self, row: dict[str, Any]) -> Path:
        raise NotImplementedError

    def identify(self, locator: str) -> dict[str, Any]:
        row = self._row_of[locator]  # only taken objects are frozen
        uid, digest, note, lvis = (column[row].as_py() for column in self._frozen_columns)
        group = digest[:16] if digest else uid
        return {"uid": uid, "sha256": digest, "group": group, "split": self._split(group, lvis), "note": note}

    def _split(self, group: str, lvis: bool) -> str | None:
        if self.config.catalog.objaverse.lvis == "train":
            return None  # by hash, as in other sources
        if lvis:
            return "test"
        position = unit_hash(group)
        return "validation" if position < self.config.catalog.validation_fraction else "train"

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        return self._labelled(locators, LABEL_COLUMNS[1:]).to_pylist()

    def label_digest(self, locators: list[str]) -> str:
        hashes = self._labelled(locators, ("label_hash",))["label_hash"].fill_null(0)
        return hashlib.sha256(hashes.to_numpy().tobytes()).hexdigest()[:16]

    def refusals(self) -> dict[str, int]:
        """Rule to the number of objects that it leaves out; an object counts for the first rule that refuses it."""
        import pyarrow.compute as pc

        counts = pc.value_counts(pc.drop_null(self.table["refused"])).to_pylist()
        return {entry["values"]: entry["counts"] for entry in sorted(counts, key=lambda entry: -entry["counts"])}

    def lvis_objects(self) -> int:
        """How many of the taken objects are LVIS shapes."""
        import pyarrow.compute as pc

        return pc.sum(pc.and_(pc.is_null(self.table["refused"]), self.table["lvis"])).as_py() or 0

    def notes(self, known: Collection[str] = ()) -> list[str]:
        import pyarrow.compute as pc

        refused, lvis = self.refusals(), self.lvis_objects()
        taken = pc.is_null(self.table["refused"])
        count = len(self.table) - sum(refused.values())
        notes = [f"{count} of {len(self.table)} objects are taken"]
        notes += [f"catalog.curation refuses {left_out}: {rule}" for rule, left_out in refused.items()]
        if lvis and self.config.catalog.objaverse.lvis == "test":
            notes.append(
                f"{count - lvis} objects are for training and validation; {lvis} are LVIS shapes, for the test split"
            )
        elif lvis:
            what = counted(lvis, "object is an LVIS shape", "objects are LVIS shapes")
            notes.append(f"{what}, and may be trained on (catalog.objaverse.lvis: train)")
        missing = pc.drop_null(pc.filter(self.table["note"], taken))
        if len(missing):
            many = "objects are not available and become failed rows"
            what = counted(len(missing), "object is not available and becomes a failed row", many)
            notes.append(f"{what}; the first: {missing[0]}")
        return notes


def label_hash(*labels: str | None) -> int:
    """A 64-bit hash of labels."""
    text = "\x1f".join("\x00" if label is None else label for label in labels)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _with_category(hashes: Any, categories: Any) -> Any:
    """The hashes of other labels, combined with those of the categories."""
    import numpy as np

    encoded = categories.combine_chunks().dictionary_encode()
    of_category = np.array([*map(label_hash, encoded.dictionary.to_pylist()), 0], np.uint64)
    return hashes.to_numpy() ^ of_category[encoded.indices.fill_null(-1).to_numpy()]


def _stat(path: Path) -> list[Any]:
    found = os.stat(path)
    return [str(path), found.st_size, found.st_mtime_ns]


def read_xl_table(path: Path, columns: list[str]) -> Any:
    """Columns of an annotation table of Objaverse-XL (parquet or CSV), all text.

    Raises:
        UsageError: a column is missing.
        OSError, ValueError: the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv, dataset

    text = pa.schema([(name, pa.string()) for name in columns])
    options = csv.ConvertOptions(column_types=text)
    as_csv = dataset.CsvFileFormat(csv.ParseOptions(newlines_in_values=True), convert_options=options)
    table = dataset.dataset(path, format="parquet" if path.suffix == ".parquet" else as_csv)
    missing = [name for name in columns if name not in table.schema.names]
    if missing:
        raise UsageError(f"{path} has no column {', '.join(missing)} (it has {', '.join(table.schema.names)})")
    return table.to_table(columns).cast(text)
