"""What annotated sources share: every object's annotation, read once into one table in the cache, and curated.

The table is made again when a file that it was made of has another size or time, or when a setting changes that
decides on objects. Snakemake asks `state` whenever it parses: that looks at sizes and times and reads nothing.
"""

import gzip
import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipgs.catalog.records import LABEL_COLUMNS
from clipgs.catalog.sources.curation import curate
from clipgs.config import Config
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.core.files import sidecar, whole
from clipgs.core.seeds import canonical_json, unit_hash

log = logging.getLogger(__name__)

TABLE_VERSION = 1  # raised when a table that is read in the same way would hold something else
LABELS = LABEL_COLUMNS[1:]
_SKETCHFAB = "https://sketchfab.com/3d-models/"
_CANNOT_BE_READ = (OSError, EOFError, ValueError, zlib.error)  # cut, not gzip, not JSON, not UTF-8

# Rows of the table, sorted by locator. `category` is the LVIS category; `lvis` is also true of a file that has the
# bytes of an LVIS object; `refused` is the rule that leaves the object out, else null. A subclass gives `label_hash`
# of the other labels, that of the category is mixed in; and `lvis`, where it knows of more than its rows show.
_COLUMNS = {
    "locator": "string",
    "uid": "string",
    "file_identifier": "string",
    "sha256": "string",
    "note": "string",
    "category": "string",
    "text": "string",
    "license": "string",
    "credit": "string",
    "page": "string",
    "faces": "int64",
    "vertices": "int64",
    "bytes": "int64",
    "textures": "int64",
    "animations": "int64",
    "license_name": "string",
    "lvis": "bool",
    "refused": "string",
    "label_hash": "uint64",
}


def page_of(uid: str) -> str:
    """Where an Objaverse 1.0 object is shown; Objaverse-XL names it so."""
    return _SKETCHFAB + uid


class AnnotationFiles:
    """The annotation files of Objaverse 1.0: of the objaverse package's cache, else downloaded into our own.

    The package downloads without a check, straight to the final name, so a file of its cache may be cut: such a one is
    passed over.
    """

    BASE = "https://huggingface.co/datasets/allenai/objaverse/resolve/main/"

    def __init__(self, config: Config) -> None:
        endpoint = config.catalog.downloads.endpoint
        mirror = "origin" if endpoint is None else f"mirror-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}"
        self.cache = config.cache_path / "objaverse"
        self._own = self.cache / "annotations" / mirror
        self.package = Path(config.catalog.objaverse.root).expanduser()
        self._settings = config.catalog.downloads
        self._passed_over: set[Path] = set()
        self._lock = threading.Lock()
        self._downloader: Any = None

    @property
    def downloader(self) -> Any:
        """One for all threads, so that they share its pace."""
        from clipgs.catalog.downloads import Downloader

        with self._lock:
            if self._downloader is None:
                self._downloader = Downloader(self._settings)
            return self._downloader

    def get(self, name: str) -> Path:
        """The file of that name, downloaded if need be.

        Raises:
            ClipgsError: it cannot be had.
        """
        own, theirs = self._own / name, self.package / "hf-objaverse-v1" / name
        if not own.exists() and theirs.exists() and theirs not in self._passed_over:
            return theirs
        return self.download(self.downloader.resolve(self.BASE, name), own, token=True)

    def get_all(self, names: list[str]) -> list[Path]:
        """As `get`, several at once."""
        from clipgs.core.runner import Progress

        progress = Progress("annotations of Objaverse", len(names), "file")
        try:
            with ThreadPoolExecutor(self._settings.parallel) as pool:
                paths = []
                for path in pool.map(self.get, names):
                    paths.append(path)
                    progress.step()
                return paths
        finally:
            progress.close()

    def linked(self, place: str) -> Path:
        """A table that the configuration names by URL or by path."""
        if "://" not in place:
            path = Path(place).expanduser()
            if not path.is_file():
                raise UsageError(f"config: {place} is not a file")
            return path
        base, _, name = place.rpartition("/")
        theirs = self.package / Path(name).stem / name  # where the objaverse package keeps Objaverse-XL's tables
        own = self._own / f"{hashlib.sha256(place.encode()).hexdigest()[:8]}-{name}"
        if not own.exists() and theirs.exists() and theirs not in self._passed_over:
            return theirs
        url = self.downloader.resolve(base + "/", name)
        # A table may lie anywhere: the token is for the endpoint that the user chose, or for the hub's own host.
        return self.download(
            url,
            own,
            token=self._settings.endpoint is not None or urlsplit(url).hostname == urlsplit(self.BASE).hostname,
        )

    def download(self, url: str, path: Path, **checks: Any) -> Path:
        """Downloads a file that the whole run needs."""
        try:
            return self.downloader.get(url, path, **checks)
        except ObjectError as error:
            raise ClipgsError(f"the annotations cannot be had: {error}") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """The names and values that a .json.gz file holds."""
        return self.read(self.get, name, _load_json)

    def read(self, get: Callable[[str], Path], name: str, load: Callable[[Path], Any]) -> Any:
        """Loads a file; one of the package's cache that cannot be loaded is passed over for a download.

        Raises:
            ClipgsError: the file is cut or damaged. Ours is removed, so that the next run downloads it again.
        """
        path = get(name)
        try:
            return load(path)
        except _CANNOT_BE_READ as error:
            if path.is_relative_to(self.package) and path not in self._passed_over:
                log.warning("%s is cut or damaged (%s); it is downloaded again into %s", path, error, self._own)
                self._passed_over.add(path)
                return self.read(get, name, load)
            again = ""
            if path.is_relative_to(self._own):
                for file in (path, sidecar(path)):
                    file.unlink(missing_ok=True)
                again = "; it was removed: run the same command again to download it"
            raise ClipgsError(f"{path} is cut or damaged ({error}){again}") from None


def _load_json(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rb") as file:
        value = json.loads(file.read())
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} instead of names and values")
    return value


def lvis_categories(files: AnnotationFiles) -> dict[str, str]:
    """Uid to LVIS category; of an object in several categories, to the first by name."""
    listed = files.read_json("lvis-annotations.json.gz")
    if not all(isinstance(uids, list) and all(isinstance(uid, str) for uid in uids) for uids in listed.values()):
        raise ClipgsError("lvis-annotations.json.gz does not hold categories and lists of uids")
    return {uid: category for category in sorted(listed, reverse=True) for uid in listed[category]}


class AnnotatedSource:
    """What Objaverse 1.0 and XL have in common; see `Source`. A subclass gathers files and reads rows of them."""

    name: str
    remote = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.files = AnnotationFiles(config)
        self._outside: tuple[set[str], Any] = (set(), None)  # what was looked up outside the table, and was found
        self.max_bytes = config.meshes.max_file_mb * 1_000_000  # what is larger is not downloaded

    # --- of the subclass ---

    def given(self) -> list[Path]:
        """Files that the user wrote and that decide on objects."""
        raise NotImplementedError

    def gather(self) -> list[Path]:
        """Makes the annotation files lie on disk."""
        raise NotImplementedError

    def read(self) -> Any:
        """All objects as a `pyarrow.Table` with some of the columns of this module, one row a locator."""
        raise NotImplementedError

    def outside(self, locators: list[str]) -> Any:
        """Those of these that are in the annotations and not in `read`: another subset of them was frozen."""
        import pyarrow as pa

        del locators
        return pa.table({"locator": pa.array([], pa.string())})

    # --- the table ---

    @cached_property
    def _state(self) -> str:
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
        key = hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]
        manifest = self.files.cache / "tables" / f"{key}.json"
        try:
            known = json.loads(manifest.read_text())
            if known and all(_stat(Path(entry[0])) == entry for entry in known):
                return _state_of(key, known)
        except (OSError, ValueError, TypeError, IndexError):
            pass  # not made yet, not whole, or a file has gone
        inputs = [_stat(path) for path in self.gather()]
        with whole(manifest) as temporary:
            temporary.write_text(canonical_json(inputs))
        return _state_of(key, inputs)

    def state(self) -> str:
        """Changes whenever anything that this source says may have changed."""
        return self._state

    @cached_property
    def table(self) -> Any:
        """All objects, a `pyarrow.Table` over the mapped file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.files.cache / "tables" / f"{self._state}.parquet"
        try:
            return pq.read_table(path, memory_map=True)
        except FileNotFoundError:
            pass
        except (OSError, pa.ArrowInvalid):
            log.warning("%s is damaged and is made again", path)
        table = self._curated(self.read())
        with whole(path) as temporary:
            pq.write_table(table, temporary, compression="lz4", use_dictionary=False, write_statistics=False)
        for older in path.parent.glob(f"{path.stem.split('-')[0]}-*.parquet"):
            if older != path:
                older.unlink(missing_ok=True)  # the same settings over files that are no more
        return table

    def _curated(self, rows: Any) -> Any:
        table = self._completed(rows.sort_by("locator"))
        return table.set_column(table.column_names.index("refused"), "refused", curate(table, self.config.catalog))

    def _completed(self, rows: Any) -> Any:
        """All columns of this module, of those that a subclass gives."""
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
        """Where each taken object stands; a table may hold far more that are refused."""
        import numpy as np
        import pyarrow.compute as pc

        rows = np.flatnonzero(pc.is_null(self.table["refused"]).to_numpy())
        return dict(zip(self.table["locator"].take(rows).to_pylist(), rows.tolist(), strict=True))

    @cached_property
    def _row_of_any(self) -> dict[str, int]:
        return {locator: row for row, locator in enumerate(self.table["locator"].to_pylist())}

    def _rows(self, locators: list[str]) -> list[int | None]:
        rows = list(map(self._row_of.get, locators))
        for place, row in enumerate(rows) if None in rows else ():
            if row is None:  # frozen under rules that were less strict
                rows[place] = self._row_of_any.get(locators[place])
        return rows

    def _rows_outside(self, locators: list[str]) -> Any:
        """Rows of frozen objects that the table does not hold, all looked up at once where `gone` asked for all."""
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
        """These columns, a row for each locator; of an object that is no more all null."""
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

    # --- what the catalog asks ---

    def locators(self) -> list[str]:
        import pyarrow.compute as pc

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

    def identify(self, locator: str) -> dict[str, Any]:
        row = self._row_of[locator]  # only what `locators` names is frozen
        uid, digest, note, lvis = (column[row].as_py() for column in self._frozen_columns)
        group = digest[:16] if digest else uid
        return {"uid": uid, "sha256": digest, "group": group, "split": self._split(group, lvis), "note": note}

    def _split(self, group: str, lvis: bool) -> str | None:
        if self.config.catalog.objaverse.lvis == "train":
            return None  # by hash, as of any source
        if lvis:
            return "test"
        position = unit_hash(group)
        return "validation" if position < self.config.catalog.validation_fraction else "train"

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        return self._labelled(locators, LABELS).to_pylist()

    def label_digest(self, locators: list[str]) -> str:
        hashes = self._labelled(locators, ("label_hash",))["label_hash"].fill_null(0)
        return hashlib.sha256(hashes.to_numpy().tobytes()).hexdigest()[:16]

    def refusals(self) -> dict[str, int]:
        """Rule to the number of objects that it left out; an object counts for the first rule that refused it."""
        import pyarrow.compute as pc

        counts = pc.value_counts(pc.drop_null(self.table["refused"])).to_pylist()
        return {entry["values"]: entry["counts"] for entry in sorted(counts, key=lambda entry: -entry["counts"])}

    def lvis_objects(self) -> int:
        """How many of the taken objects are LVIS shapes."""
        import pyarrow.compute as pc

        return pc.sum(pc.and_(pc.is_null(self.table["refused"]), self.table["lvis"])).as_py() or 0

    def notes(self) -> list[str]:
        import pyarrow.compute as pc

        refused, lvis = self.refusals(), self.lvis_objects()
        taken = pc.is_null(self.table["refused"])
        count = len(self.table) - sum(refused.values())
        notes = [f"{count} of {len(self.table)} objects are taken"]
        notes += [f"catalog.curation refuses {left_out}: {rule}" for rule, left_out in refused.items()]
        if lvis and self.config.catalog.objaverse.lvis == "test":
            notes.append(f"{count - lvis} objects are to train and validate on; {lvis} are LVIS shapes, to test on")
        elif lvis:
            notes.append(f"{lvis} objects are LVIS shapes, and may be trained on (catalog.objaverse.lvis: train)")
        unknown = pc.sum(pc.and_(taken, pc.is_valid(self.table["note"]))).as_py() or 0
        if unknown:
            first = pc.filter(self.table["note"], pc.and_(taken, pc.is_valid(self.table["note"])))[0].as_py()
            notes.append(f"{unknown} objects cannot be had and become failed rows; the first: {first}")
        return notes


def label_hash(*labels: str | None) -> int:
    """64 bits that change with the labels."""
    text = "\x1f".join("\x00" if label is None else label for label in labels)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _with_category(hashes: Any, categories: Any) -> Any:
    """The hashes of an object's other labels, mixed with that of its category."""
    import numpy as np

    encoded = categories.combine_chunks().dictionary_encode()
    of_category = np.array([*map(label_hash, encoded.dictionary.to_pylist()), 0], np.uint64)
    return hashes.to_numpy() ^ of_category[encoded.indices.fill_null(-1).to_numpy()]


def _stat(path: Path) -> list[Any]:
    found = os.stat(path)
    return [str(path), found.st_size, found.st_mtime_ns]


def _state_of(key: str, inputs: list[list[Any]]) -> str:
    return f"{key}-{hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:16]}"


def read_xl_table(path: Path, columns: list[str]) -> Any:
    """Columns of an annotation table of Objaverse-XL, all text.

    Raises:
        UsageError: it has not these columns.
        OSError, ValueError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    types = dict.fromkeys(columns, pa.string())
    if path.suffix == ".parquet":
        names = pq.read_schema(path).names
    else:
        with csv.open_csv(path) as reader:
            names = reader.schema.names
    missing = [name for name in columns if name not in names]
    if missing:
        raise UsageError(f"{path} has no column {', '.join(missing)} (it has {', '.join(names)})")
    if path.suffix == ".parquet":
        table = pq.read_table(path, columns=columns)
    else:
        options = csv.ConvertOptions(include_columns=columns, column_types=types)
        table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options)
    return table.cast(pa.schema([(name, pa.string()) for name in columns]))
