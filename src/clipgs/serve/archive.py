"""The objects of an output as the page shows them: rows, filters, words, and single files out of the tars."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipgs.config import Config
from clipgs.core.bundles import Members, read_table, tar_objects
from clipgs.core.errors import ClipgsError, UsageError, snakemake
from clipgs.core.runner import Row
from clipgs.meshes.cameras import showing
from clipgs.stages import path
from clipgs.triplets.dataset import places
from clipgs.triplets.pack import all_rows

NONE = "none"  # stands for a label that an object does not have
FACETS = ("category", "license", "split")
SORTS = {"psnr": ("psnr", 1), "-psnr": ("psnr", -1), "caption": ("caption_score", 1)}  # key to column and direction
MAX_GAUSSIANS = 150_000  # of a splat on the page (5 MB): the largest and most opaque ones
_SHOWN = ("uid", "caption", "category", "split", "license", "psnr")  # of each object in a list
_FAILED = ("uid", "shard", "stage", "error", "file", "source", "category", "split")
_SHARDS_KEPT = 4  # whose pictures of meshes, and the places of whose views, are in memory
_SHARD = re.compile(r"[0-9]{1,12}")
_HEAD = {b"\x89PNG": "image/png", b"RIFF": "image/webp", b"\xff\xd8\xff": "image/jpeg"}
# Up to here no stage has made a picture of the splat.
_BEFORE_RENDERS = ("fetch", "sample", "view", "fit", "render")


class Filters(NamedTuple):
    """Which objects are listed; an empty text or None stands for all."""

    category: str = ""
    license: str = ""
    split: str = ""
    psnr_min: float | None = None  # dB
    psnr_max: float | None = None


class Archive:
    """The index of an output's triplets in memory, and its tars on disk.

    Files are found by uid alone: the index says in which shard and where an object is, and a member of a tar must bear
    the object's uid. No part of a request becomes a part of a path.

    Raises:
        ClipgsError: the index is missing or cannot be read.
    """

    def __init__(self, config: Config) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._config = config
        self.folder = config.output_path / "triplets"
        self._index = self.folder / "index.parquet"
        self._stamp = self._stat()
        try:
            rows = all_rows([self._index])
        except (OSError, pa.ArrowException) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise ClipgsError(f"{self._index} {what}; make it with: {snakemake('triplets')}") from None
        self._rows = rows.drop_columns(["group", "status", "stage", "error"]).combine_chunks()
        self.uids: list[str] = self._rows["uid"].to_pylist()
        self.place = {uid: i for i, uid in enumerate(self.uids)}
        self._codes: dict[str, np.ndarray] = {}
        self.facets: dict[str, list[tuple[str, int]]] = {}  # label and number of objects, the most frequent first
        self._labels: dict[str, dict[str, int]] = {}
        for name in FACETS:
            labels = pc.fill_null(self._rows[name], NONE).combine_chunks().dictionary_encode()
            self._codes[name] = labels.indices.to_numpy(zero_copy_only=False)
            names = labels.dictionary.to_pylist()
            self._labels[name] = {label: code for code, label in enumerate(names)}
            counts = np.bincount(self._codes[name], minlength=len(names)).tolist()
            self.facets[name] = sorted(zip(names, counts, strict=True), key=lambda one: (-one[1], one[0]))
        self._numbers = {
            name: self._rows[name].to_numpy(zero_copy_only=False).astype(np.float32)
            for name in ("psnr", "caption_score")
        }
        columns = [pc.fill_null(self._rows[name], "") for name in ("category", "caption", "file", "uid")]
        self._best: dict[str, int] = {}  # shard to the camera that shows objects best
        self._objects = lru_cache(_SHARDS_KEPT)(self._read_objects)
        self._thumbnails = lru_cache(_SHARDS_KEPT)(self._read_thumbnails)
        self._texts = pc.binary_join_element_wise(*columns, "\n")

    def __len__(self) -> int:
        return len(self.uids)

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self._index.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    @property
    def changed(self) -> bool:
        """Whether the index was written again since it was read."""
        return self._stat() != self._stamp

    @property
    def psnr(self) -> list[float] | None:
        """The lowest and highest PSNR in dB; None where none is known."""
        known = self._numbers["psnr"][np.isfinite(self._numbers["psnr"])]
        return [float(known.min()), float(known.max())] if len(known) else None

    @property
    def judged(self) -> bool:
        """Whether captions have scores."""
        return bool(np.isfinite(self._numbers["caption_score"]).any())

    # --- lists --------------------------------------------------------------------------------------------------------

    def chosen(self, filters: Filters, words: str = "") -> np.ndarray:
        """Places [m] of the objects that pass the filters and have all words, in the order of the index.

        A word is found at the beginning of a word of category, caption, file or uid, in any case.
        """
        import pyarrow.compute as pc

        mask = np.ones(len(self), bool)
        for name in FACETS:
            if label := getattr(filters, name):
                mask &= self._codes[name] == self._labels[name].get(label, -1)
        psnr = self._numbers["psnr"]
        with np.errstate(invalid="ignore"):
            if filters.psnr_min is not None:
                mask &= psnr >= filters.psnr_min
            if filters.psnr_max is not None:
                mask &= psnr <= filters.psnr_max
        for word in words.split():
            pattern = r"(^|[^\p{L}\p{N}])" + re.escape(word)
            found = pc.match_substring_regex(self._texts, pattern, ignore_case=True)
            mask &= found.to_numpy(zero_copy_only=False)
        return np.flatnonzero(mask)

    def sorted(
        self,
        chosen: np.ndarray,  # [m] places
        sort: str,
    ) -> np.ndarray:
        """The places [m] by a number of SORTS; objects without it come last."""
        column, direction = SORTS[sort]
        return chosen[np.argsort(direction * self._numbers[column][chosen], kind="stable")]

    def shown(
        self,
        chosen: np.ndarray,  # [m] places
    ) -> list[Row]:
        """What a list shows of these objects."""
        return self._rows.select(_SHOWN).take(chosen).to_pylist()

    def row(self, uid: str) -> Row:
        """All columns of an object, and what `uid.json` says beside them."""
        row = self._rows.slice(self.place[uid], 1).to_pylist()[0]
        meta = json.loads(self.member(uid, "json") or b"{}")
        more = {name: meta.get(name) for name in ("mesh", "mesh_to_splat")}
        hidden = ("offset", "bytes")
        return {key: value for key, value in row.items() if key not in hidden} | more

    @cached_property
    def failed(self) -> list[Row]:
        """The rows of failed objects, ordered by shard and uid."""
        import pyarrow.compute as pc

        found: list[Row] = []
        for file in sorted(self.folder.glob("[0-9]*.parquet")):
            rows = all_rows([file])
            found += rows.filter(pc.not_equal(rows["status"], "ok")).select(_FAILED).to_pylist()
        return sorted(found, key=lambda row: (row["shard"], row["uid"]))

    @cached_property
    def _failed_of(self) -> Mapping[str, Row]:
        return {row["uid"]: row for row in self.failed}

    def failures(self, stage: str = "", words: str = "") -> tuple[list[Row], list[tuple[str, int]]]:
        """Failed objects of a stage whose texts hold all words; and all stages with their number of failures."""
        stages = Counter(row["stage"] or NONE for row in self.failed).most_common()
        wanted = words.casefold().split()

        def fits(row: Row) -> bool:
            text = " ".join(str(row[name] or "") for name in _FAILED).casefold()
            return stage in ("", row["stage"] or NONE) and all(word in text for word in wanted)

        return [row for row in self.failed if fits(row)], stages

    # --- files --------------------------------------------------------------------------------------------------------

    def knows(self, uid: str) -> bool:
        """Whether there is a packed or failed object of this uid."""
        return uid in self.place or uid in self._failed_of

    def digest(self, uid: str) -> str:
        """What changes if the files of a packed object change."""
        return self._rows["sha256"][self.place[uid]].as_py()

    def members(self, uid: str) -> dict[str, tuple[int, int]]:
        """Name (without the uid) to offset in the tar and size, of a packed object's files; none if they are not there.

        Only headers are read.
        """
        place = self.place[uid]
        start, total = self._rows["offset"][place].as_py(), self._rows["bytes"][place].as_py()
        found = {}
        try:
            with open(self._tar("triplets", self._rows["shard"][place].as_py()), "rb") as file:
                for name, at, size in places(lambda at, n: os.pread(file.fileno(), n, start + at), total):
                    owner, _, kind = name.partition(".")
                    if owner != uid:  # the tar was written again since the index was read
                        return {}
                    found[kind] = (start + at, size)
        except (OSError, ValueError):
            return {}
        return found

    def member(self, uid: str, name: str) -> bytes | None:
        """One file of a packed object, such as `ply` or `00.webp`."""
        if name not in (found := self.members(uid)):
            return None
        at, size = found[name]
        with open(self._tar("triplets", self._rows["shard"][self.place[uid]].as_py()), "rb") as file:
            return os.pread(file.fileno(), size, at)

    def render(self, uid: str, view: int | None = None) -> bytes | None:
        """A render of the splat; by default from the camera that shows the object best."""
        if uid not in self.place:
            return None
        return self.member(uid, f"{self.best(uid) if view is None else view:02d}.webp")

    def best(self, uid: str) -> int:
        """The number of the camera that shows a packed object best."""
        shard = self._shard(uid)
        if shard not in self._best:  # all objects of a shard have the same cameras
            meta = json.loads(self.member(uid, "json") or b"{}")
            if "cameras" not in meta:
                return 0
            self._best[shard] = showing(np.array(meta["cameras"]["viewmats"]))
        return self._best[shard]

    def splat(self, uid: str) -> bytes | None:
        """A packed splat as .splat, without its smallest Gaussians where it has too many."""
        from clipgs.splats.export import SPLAT_ROW, to_splat  # imports torch
        from clipgs.splats.gaussians import Gaussians

        data = self.member(uid, "ply") if uid in self.place else None
        return data and to_splat(Gaussians.from_ply(data, uid))[: MAX_GAUSSIANS * SPLAT_ROW.itemsize]

    def mesh(self, uid: str) -> bytes | None:
        """The mesh from the side that shows it best, where that is kept."""
        return self._thumbnails(self._shard(uid)).get(uid)

    def mesh_views(self, uid: str) -> Members | None:
        """The rendered views of the mesh, in their order, where they are kept."""
        return self._pictures("views", uid)

    def picture_of_failed(self, uid: str) -> bytes | None:
        """A picture of a failed object: its mesh, or its splat if the failure came later."""
        row = self._failed_of[uid]
        if (mesh := self.mesh(uid)) or row["stage"] in _BEFORE_RENDERS:
            return mesh
        renders = self._pictures("renders", uid)
        return renders and renders.one(0)

    def _pictures(self, folder: str, uid: str) -> Members | None:
        found = self._objects(folder, self._shard(uid)).get(uid)
        pictures = (
            tuple(sorted(entry for entry in found.entries if entry[0].endswith((".png", ".webp")))) if found else ()
        )
        return found._replace(entries=pictures) if found and pictures else None

    def _shard(self, uid: str) -> str:
        return self._rows["shard"][self.place[uid]].as_py() if uid in self.place else self._failed_of[uid]["shard"]

    def _tar(self, folder: str, shard: str) -> Path:
        if not _SHARD.fullmatch(shard):  # the index of somebody else's output may say anything
            raise UsageError(f"{shard!r} is not the name of a shard")
        return path(self._config, folder, shard, ".tar")

    def _read_objects(self, folder: str, shard: str) -> dict[str, Members]:
        import tarfile

        try:
            return tar_objects(self._tar(folder, shard))
        except (OSError, ValueError, tarfile.TarError):
            return {}

    def _read_thumbnails(self, shard: str) -> dict[str, bytes]:
        try:
            rows = read_table(self._tar("views", shard).with_suffix(".parquet"), ["uid", "thumbnail"])
        except (OSError, ValueError, KeyError):  # the views may not be kept
            return {}
        return {row["uid"]: row["thumbnail"] for row in rows if row["thumbnail"]}


def picture_type(data: bytes) -> str | None:
    """The media type of a picture; None if the bytes are none of those that the stages write."""
    return next((kind for head, kind in _HEAD.items() if data.startswith(head)), None)
