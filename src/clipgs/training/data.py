"""The inputs of training: records of each shard, which are fixed-size arrays of half floats on disk, and features.

A record holds the first N Gaussians of an object as the encoder needs them (cleaned, centred, rows in farthest-point
order), so a batch only copies mapped memory. Threads read batches ahead. The seed and the number of a step alone decide
its batch.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from clipgs.config import Config, Encoder
from clipgs.core.bundles import Members, tar_objects
from clipgs.core.errors import ClipgsError, ObjectError, describe_error, snakemake
from clipgs.core.files import check, read_sidecar, whole
from clipgs.core.processes import usable_cores
from clipgs.core.runner import Progress, Row, good
from clipgs.core.seeds import canonical_json, json_digest, seed_of
from clipgs.encoder import prepare
from clipgs.splats.gaussians import PADDING_LOGIT, Gaussians
from clipgs.stages import path, table
from clipgs.teacher import features
from clipgs.teacher.features import ABOUT
from clipgs.training.augment import draw
from clipgs.training.gather import Rows
from clipgs.triplets.captions import same_text

log = logging.getLogger(__name__)

NUMBERS = 14  # per Gaussian: mean 3, quaternion 4, log-scale 3, opacity logit 1, colour 3
_LOGIT = 10  # column of the opacity logit
# Settings of the encoder that change a record.
_PREPARED_BY = ("gaussians", "choice", "groups", "group_size", "min_opacity", "radius_fraction", "outlier_radii")
_KEPT_SECONDS = 86_400  # since the last use of records of other settings; another run may be about to open them
_FORMAT = 2  # raised when the record of a splat changes
_SPLITS = ("train", "validation", "test")


# --- records ---------------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One object: `count` Gaussians, and for each patch the rows nearest to its centre."""

    count: int  # type: ignore[assignment]  # tuples have a method of this name
    rows: np.ndarray  # [N, 14] float16
    neighbours: np.ndarray  # [g, n]


def _file_type(objects: int, settings: Encoder) -> np.dtype:
    """The type of a file of records. An object that cannot be used has a count of 0."""
    g, n = settings.groups, settings.group_size
    rows = ("rows", "<f2", (objects, settings.gaussians, NUMBERS))
    row_number = "<i2" if settings.gaussians <= 1 << 15 else "<i4"
    return np.dtype([("count", "<i4", (objects,)), ("neighbours", row_number, (objects, g, n)), rows])


def compact(config: Config, shard: str, threads: int | None = None) -> Path:
    """Writes a shard's records unless they exist: objects sorted by uid, cleaned by `encoder.prepare`.

    Raises:
        ClipgsError: `triplets/S.tar` is missing or damaged.
    """
    tar = path(config, "triplets", shard, ".tar")
    kind = [getattr(config.encoder, name) for name in _PREPARED_BY]
    key = json_digest([_FORMAT, kind, splats_digest(config, shard)])[:16]
    file = config.output_path / "work" / "train" / f"{shard}.{key}.npy"
    with suppress(FileNotFoundError):
        os.utime(file)
        return file
    check(tar)
    members = tar_objects(tar)

    def record(uid: str) -> Record | str:
        try:
            return pack(prepare(Gaussians.from_ply(_ply(members[uid]), uid), config.encoder, uid), config.encoder)
        except (ObjectError, ValueError) as error:
            return describe_error(error)

    progress = Progress(f"records {shard}", len(members))
    uids = sorted(members)
    with whole(file) as temporary, ThreadPoolExecutor(threads or usable_cores()) as pool:
        (records,) = np.lib.format.open_memmap(temporary, "w+", _file_type(len(uids), config.encoder), (1,))
        for i, packed in enumerate(pool.map(record, uids)):
            if isinstance(packed, str):
                log.warning("train: %s of shard %s is left out: %s", uids[i], shard, packed)
            else:
                for field in Record._fields:
                    records[field][i] = getattr(packed, field)
            progress.step(ok=not isinstance(packed, str))
    progress.close()
    for old in file.parent.glob(f"{shard}.*.npy"):  # of other settings, or from before the shard was packed again
        with suppress(FileNotFoundError):  # another run removed it
            if old != file and time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                old.unlink()
    return file


def _ply(members: Members) -> bytes:
    (data,) = members._replace(entries=tuple(entry for entry in members.entries if entry[0] == "ply")).read().values()
    return data


def inputs_of(config: Config, shard: str, packed: Sequence[Row], found: features.Features) -> dict[str, Any]:
    """What training reads of a shard: the number of its objects, and hashes.

    Args:
        packed: the good rows of `triplets/S.parquet`, by uid.
    """
    return {
        "objects": len(packed),
        "captions": json_digest([[row[key] for key in ("uid", "split", "caption")] for row in packed]),
        "splats": splats_digest(config, shard),
        "features": features_digest(config, shard, found),
    }


def splats_digest(config: Config, shard: str) -> str:
    """Hash of the uids and splats of a shard, of nothing else in `triplets/S.tar`.

    Raises:
        ClipgsError: the tar is missing or damaged.
    """
    tar = path(config, "triplets", shard, ".tar")

    def digest() -> str:
        check(tar)
        found = hashlib.sha256()
        for uid, members in sorted(tar_objects(tar).items()):
            data = _ply(members)
            found.update(f"{uid}\0{len(data)}\0".encode())
            found.update(data)
        return found.hexdigest()

    return _kept(config, f"{shard}.splats", [tar], digest)


def features_digest(config: Config, shard: str, found: features.Features) -> str:
    """Hash of a shard's features as training reads them: of the numbers, not of the files' metadata."""

    def digest() -> str:
        numbers = hashlib.sha256(canonical_json([found.uids, list(found.images.shape)]).encode())
        for tensor in (found.images, found.texts, found.scores):
            numbers.update(tensor.contiguous().numpy().data)
        return numbers.hexdigest()

    files = [features.features_path(config, kind, shard) for kind in ("images", "texts")]
    return _kept(config, f"{shard}.{config.teacher.slug}", files, digest)


def _kept(config: Config, name: str, files: Sequence[Path], digest: Callable[[], str]) -> str:
    """A digest of what training reads of files, computed again only when one of them has other bytes."""
    kept = config.output_path / "work" / "train" / f"{name}.json"
    of = [read_sidecar(file) or "" for file in files]  # without one, `check` raises
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text())
        if known["of"] == of:
            return known["digest"]
    found = digest()
    with whole(kept) as temporary:
        temporary.write_text(canonical_json({"of": of, "digest": found}) + "\n")
    return found


def pack(
    gaussians: Gaussians,  # [N, *], prepared
    settings: Encoder,
) -> Record:
    """The record of one object. Missing rows are copies of the first one, with opacity 0.

    Raises:
        ValueError: there are no Gaussians, or a number does not fit into a half float.
    """
    if len(gaussians) == 0:
        raise ValueError("it has no Gaussians after cleaning")
    quats = torch.nn.functional.normalize(gaussians.quats_wxyz, dim=-1)
    logits = gaussians.opacity_logits[:, None].clamp(PADDING_LOGIT, -PADDING_LOGIT)
    values = torch.cat([gaussians.means, quats, gaussians.log_scales, logits, gaussians.colors], dim=1)
    values = values[: settings.gaussians].half()
    if not values.isfinite().all():
        raise ValueError("one of its numbers is not finite as a half float")
    padding = values[:1].repeat(settings.gaussians - len(values), 1)
    padding[:, _LOGIT] = PADDING_LOGIT
    near = neighbours(values[:, :3].float().numpy(), settings.groups, settings.group_size)
    return Record(len(values), torch.cat([values, padding]).numpy(), near)


def neighbours(
    means: np.ndarray,  # [N, 3], the centres of the patches first
    groups: int,
    size: int,
) -> np.ndarray:  # [g, n]
    """The neighbours that `encoder.groups.nearest` finds, from a tree; they are the same for every augmentation.

    If there are fewer rows than patches or neighbours, rows repeat from the first one on.
    """
    near = min(size, len(means))
    _, rows = cKDTree(means).query(means[np.arange(groups) % len(means)], k=np.arange(1, near + 1))
    return rows[:, np.arange(size) % near]


def unpack(
    rows: Tensor,  # [B, N, 14]
    count: Tensor,  # [B]
) -> Gaussians:  # [B, N, *]
    """The Gaussians of records, in single precision."""
    means, quats, log_scales, logits, colors = rows.float().split((3, 4, 3, 1, 3), dim=-1)
    return Gaussians(means, quats, log_scales, logits[..., 0], colors, count)


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """B objects with K images each."""

    rows: Tensor  # [B, N, 14] float16, of `unpack`
    count: Tensor  # [B] int64
    neighbours: Tensor  # [B, g, n] int16 or int32
    texts: Tensor  # [B, D] float16, unit length
    images: Tensor  # [B, K, D] float16, unit length
    scores: Tensor  # [B, K] float32, cos(text, image)
    captions: Tensor  # [B] int64, equal where captions are equal
    draws: Tensor  # [B, 9] float32, of `augment.draw`

    def gaussians(self) -> Gaussians:
        """[B, N, ...], without augmentation."""
        return unpack(self.rows, self.count)

    def to(self, device: torch.device) -> Self:
        """The batch on another device; does not wait for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The batch in pinned memory; copies only what is not pinned yet."""
        return self._map(Tensor.pin_memory)

    def __getitem__(self, part: slice) -> Self:
        return self._map(lambda tensor: tensor[part])

    def __len__(self) -> int:
        return len(self.count)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(function(getattr(self, field.name)) for field in fields(self)))


class _Places(NamedTuple):
    """The places of objects, as arrays of one length."""

    shards: np.ndarray  # number of the shard
    rows: np.ndarray  # in the shard's records and features
    counts: np.ndarray  # Gaussians
    captions: np.ndarray  # equal where captions are equal
    splits: np.ndarray  # number in _SPLITS, -1 for none


class TrainingData:
    """Mapped records and features of all objects of a run's shards that the encoder can use.

    Args:
        shards: names.
        files: their records, from `compact`.
        pin: whether batches go to a GPU.

    Attributes:
        inputs: all that training reads, as a record of JSON: hashes of each shard's splats, captions with splits, and
            features. What else the files hold is not in it.

    Raises:
        ClipgsError: features are missing, or belong to other objects or to several teachers.
    """

    def __init__(self, config: Config, shards: Sequence[str], files: Sequence[Path], pin: bool = False) -> None:
        if not shards:
            raise ClipgsError(f"there are no shards to train on; make them with: {snakemake('triplets')}")
        self._settings = config.training
        self.pin = pin
        records = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
        counts = [mapped["count"][0] for mapped in records]
        found = [features.read(config, shard) for shard in shards]
        self.teacher = {name: found[0].metadata[name] for name in ABOUT}
        self.pictures, self.dim = found[0].images.shape[1:]
        self.shards = list(shards)
        of_shards: dict[str, dict[str, Any]] = {}
        uids, places = [], []
        for index, shard in enumerate(shards):
            packed = [row for uid, row in sorted(good(table(config, "triplets", shard)).items())]
            names = [row["uid"] for row in packed]
            self._check_features(shard, names, found[index])
            of_shards[shard] = inputs_of(config, shard, packed, found[index])
            rows = np.flatnonzero(counts[index])
            captions = [hashlib.sha256(same_text(row["caption"] or "").encode()).digest()[:8] for row in packed]
            splits = [_SPLITS.index(row["split"]) if row["split"] in _SPLITS else -1 for row in packed]
            uids += [names[row] for row in rows]
            caption_ids = np.frombuffer(b"".join(captions), "<i8")
            shard_of = np.full(len(rows), index)
            places.append(_Places(shard_of, rows, counts[index][rows], caption_ids[rows], np.array(splits)[rows]))
        weights = self.teacher["weights_sha256"]
        self.inputs = {"record_format": _FORMAT, "teacher_weights": weights, "shards": of_shards}
        self.uids = np.array(uids, dtype=np.str_)
        self._places = _Places(*(np.concatenate(arrays) for arrays in zip(*places, strict=True)))
        self._rows = Rows([mapped["rows"][0] for mapped in records])  # [n, N, 14] each
        self._neighbours = Rows([mapped["neighbours"][0] for mapped in records])  # [n, g, K] each
        self._texts = Rows([one.texts.numpy() for one in found])  # [n, D] each
        self._images = Rows([one.images.flatten(0, 1).numpy() for one in found])  # [n V, D] each
        self._scores = Rows([one.scores.flatten().numpy() for one in found])  # [n V] each

    def _check_features(self, shard: str, uids: list[str], found: features.Features) -> None:
        again = snakemake("--forcerun", "embed_images", "embed_texts")
        pictures = found.images.shape[1]
        if found.uids != uids:
            raise ClipgsError(
                f"the features of shard {shard} belong to other objects than its triplets; make them again: {again}"
            )
        if pictures != self.pictures:
            raise ClipgsError(
                f"shard {shard} has features of {pictures} images per object, the first shard of {self.pictures}; "
                f"make the features of all shards again: {again}"
            )
        if self._settings.views > pictures:
            raise ClipgsError(
                f"config: training.views = {self._settings.views}, but shard {shard} has {pictures} images per object; "
                f"set training.views to {pictures} or less"
            )

    def split(self, name: str) -> np.ndarray:
        """Indices of the objects of a split."""
        return np.flatnonzero(self._places.splits == _SPLITS.index(name))

    def captions(self, objects: np.ndarray) -> int:
        """The number of different captions of these objects."""
        return len(np.unique(self._places.captions[objects]))

    def shard_of(self, uid: str) -> str:
        """The shard of an object."""
        (found,) = np.flatnonzero(self.uids == uid)
        return self.shards[self._places.shards[found]]

    def batch(
        self,
        objects: np.ndarray,  # [B], indices
        views: np.ndarray,  # [B, K]
        draws: np.ndarray,  # [B, 9]
    ) -> Batch:
        """Copies the objects' records and the features of these images."""
        shards, rows = self._places.shards[objects], self._places.rows[objects]
        shown = (rows[:, None] * self.pictures + views).ravel()
        of_each = np.repeat(shards, views.shape[1])
        batch = Batch(
            rows=self._rows(shards, rows, self.pin),
            count=torch.from_numpy(self._places.counts[objects].astype(np.int64)),
            neighbours=self._neighbours(shards, rows, self.pin),
            texts=self._texts(shards, rows, self.pin),
            images=self._images(of_each, shown, self.pin).view(*views.shape, self.dim),
            scores=self._scores(of_each, shown, self.pin).view(views.shape),
            captions=torch.from_numpy(self._places.captions[objects]),
            draws=torch.from_numpy(draws),
        )
        return batch.pinned() if self.pin else batch


class TrainingBatches:
    """The batch of a step, or one process's equal share of it; a pure function of the step.

    Args:
        objects: indices of the objects to train on.
        rank, world: this process, and the number of processes.

    Raises:
        ClipgsError: there are fewer objects than in a batch, or all have one caption, or the processes cannot share a
            batch evenly.
    """

    def __init__(self, data: TrainingData, objects: np.ndarray, config: Config, rank: int = 0, world: int = 1) -> None:
        settings, count = config.training, len(objects)
        if count < 2:
            raise ClipgsError(
                f"the split train has {count or 'no'} object, and training contrasts 2 or more; add objects"
            )
        if count < settings.batch:
            raise ClipgsError(
                f"config: training.batch = {settings.batch}, but only {count} objects are in the split train; "
                f"set training.batch to {count} or less, or add objects"
            )
        if settings.duplicate_captions == "mask" and data.captions(objects) == 1:
            raise ClipgsError(
                f"all {count} objects of the split train have the same caption, so there is none to tell it from; give "
                "the objects texts or categories of their own, or set training.duplicate_captions to paper"
            )
        if settings.batch % world:
            raise ClipgsError(
                f"config: training.batch = {settings.batch} cannot be shared evenly by {world} processes; "
                f"set training.batch to a multiple of {world}"
            )
        self._data, self._objects, self._settings = data, objects, settings
        share = settings.batch // world
        self._share = slice(rank * share, (rank + 1) * share)
        self._order = (-1, objects)  # epoch and its order, replaced together because several threads read them
        self.steps_per_epoch = len(objects) // settings.batch

    def objects(self, step: int) -> np.ndarray:
        """Indices of the objects of a step's whole batch.

        Each epoch has its own order over all shards. The last objects, fewer than a batch, are left out.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if epoch != known:
            generator = np.random.default_rng(seed_of(self._settings.seed, "order", str(epoch)))
            order = generator.permutation(self._objects)
            self._order = (epoch, order)
        return order[place * self._settings.batch :][: self._settings.batch]

    def __call__(self, step: int) -> Batch:
        """This process's share of a step, with random images and augmentation."""
        generator = np.random.default_rng(seed_of(self._settings.seed, "batch", str(step)))
        objects = self.objects(step)
        views = generator.random((len(objects), self._data.pictures)).argsort(axis=1)[:, : self._settings.views]
        draws = draw(self._settings.augmentation, len(objects), generator)
        return self._data.batch(objects[self._share], views[self._share], draws[self._share])
