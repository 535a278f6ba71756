"""Features: what the frozen teacher sees in every picture and reads in every caption, once.

Pictures and captions lie in two files, so that a mended caption sends no picture through the teacher again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipgs.config import PICTURES, Config
from clipgs.core import workers
from clipgs.core.bundles import Members, read_metadata, tar_objects, write_tensors
from clipgs.core.errors import ClipgsError, describe_error
from clipgs.core.files import check
from clipgs.core.runner import Files, Row, Task, good, over_objects
from clipgs.splats.pictures import read_all
from clipgs.stages import job, path, table
from clipgs.teacher import model as teachers
from clipgs.teacher.model import Teacher

log = logging.getLogger(__name__)

Metadata = Mapping[str, Any]
Results = Iterator[tuple[Task, tuple[Row, Files] | str]]
_SAME = ("teacher", "pretrained", "weights_sha256", "dim", "images")  # of one teacher's features, in every file


class Features(NamedTuple):
    """A shard's features, rows by uid."""

    uids: list[str]
    images: Tensor  # [n, V, D] float16, unit length
    texts: Tensor  # [n, D] float16, unit length
    scores: Tensor  # [n, V] float32, cosine of text and picture
    metadata: Metadata


def features_path(config: Config, kind: str, shard: str) -> Path:
    """Where a shard's features lie; `kind` is images or texts."""
    return config.output_path / "features" / config.teacher.slug / kind / f"{shard}.safetensors"


def embed_images(config: Config, shard: str, threads: int) -> None:
    """Puts all pictures of a shard's objects through the teacher.

    Writes `features/TEACHER/images/S.safetensors`: `images` [n, V, D] float16 of unit length, rows by uid, of every
    object that has its pictures. On a CPU an object's row depends on nothing but its pictures and the teacher.
    """
    folder = PICTURES[config.teacher.images]
    pictures = path(config, folder, shard, ".tar")
    check(pictures)
    members = tar_objects(pictures)
    teacher = teachers.load(config)
    embed = on_gpu if teacher.device.type == "cuda" else on_cpu
    seen = {uid: shown(members[uid], config) for uid in sorted(good(table(config, folder, shard)))}
    tasks = [Task(uid, f"{files.digest()} {teacher.weights_sha256}", files) for uid, files in seen.items()]
    uids, rows = [], []
    compute = partial(embed, teacher, threads=threads, config=config)
    for row, files in over_objects(job(config, "embed-images", shard), tasks, compute):
        if row["status"] == "ok":
            uids.append(row["uid"])
            rows.append(np.frombuffer(files[0][1], np.float16).reshape(config.views.count, -1))
    images = np.stack(rows) if rows else np.empty((0, config.views.count, teacher.dim), np.float16)
    write_tensors(features_path(config, "images", shard), {"images": images}, _metadata(teacher, config, uids))


def shown(members: Members, config: Config) -> Members:
    """The pictures of the object that the teacher sees: not the cameras, nor the views that fits are judged by."""
    pictures = sorted(entry for entry in members.entries if entry[0].endswith((".png", ".webp")))
    return Members(members.path, tuple(pictures[: config.views.count]))


def on_cpu(teacher: Teacher, tasks: list[Task], threads: int, config: Config) -> Results:
    """One object at a time in each of `threads` threads."""
    yield from zip(tasks, _map_single_threaded(lambda task: _seen(teacher, task, config), tasks, threads), strict=True)


def _map_single_threaded(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """`function` of each item, in order, each in a thread that computes alone: no sum depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(function, items)
    finally:
        torch.set_num_threads(before)


def _seen(teacher: Teacher, task: Task, config: Config) -> tuple[Row, Files] | str:
    try:
        images = read_all(task.payload)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's for a file that is no picture
        return describe_error(error)
    return _row(teacher.encode_images(images).half().numpy(), config)


def _row(features: np.ndarray, config: Config) -> tuple[Row, Files] | str:
    if len(features) != config.views.count:
        return f"it has {len(features)} pictures, and views.count is {config.views.count}"
    if not np.isfinite(features).all():
        return "the teacher did not stay finite on its pictures"
    return {}, [("images", features.tobytes())]


def on_gpu(teacher: Teacher, tasks: list[Task], threads: int, config: Config) -> Results:
    """Many objects at once, while worker processes read and decode the next; nothing waits for a batch to end.

    A batch's pictures go up from pinned memory and its features come down into pinned memory, both in the order of the
    device's stream; the features are looked at when the next two batches are on their way.
    """
    timeout_seconds, memory_mb = config.workers.load_timeout_seconds, config.workers.load_memory_mb
    count = min(workers.usable_workers(threads, memory_mb), max(1, len(tasks)))
    payloads = (task.payload for task in tasks)
    decoded = workers.run(read_all, payloads, workers=count, timeout_seconds=timeout_seconds, memory_mb=memory_mb)
    in_flight: list[_Batch] = []
    for batch in _batches(decoded, teacher.batch):
        failed = {index: result.error for index, result in batch if isinstance(result, workers.Failure)}
        yield from ((tasks[index], error) for index, error in failed.items())
        whole = [(index, result) for index, result in batch if index not in failed]
        if whole:
            in_flight.append(_Batch(teacher, whole))
        if len(in_flight) > 2:
            yield from _collect(in_flight.pop(0), tasks, config)
    for waiting in in_flight:
        yield from _collect(waiting, tasks, config)


def _batches(decoded: Iterable[tuple[int, Any]], size: int) -> Iterator[list[tuple[int, Any]]]:
    """Objects together until they have `size` pictures, all of one shape."""
    batch: list[tuple[int, Any]] = []
    shape, pictures = None, 0
    for index, result in decoded:
        one = None if isinstance(result, workers.Failure) else result.shape
        if batch and ((one and shape and one[1:] != shape[1:]) or pictures + (one[0] if one else 0) > size):
            yield batch
            batch, shape, pictures = [], None, 0
        batch.append((index, result))
        shape, pictures = one or shape, pictures + (one[0] if one else 0)
    if batch:
        yield batch


class _Batch:
    """Pictures of several objects on their way through the teacher."""

    def __init__(self, teacher: Teacher, objects: list[tuple[int, np.ndarray]]) -> None:
        cuda = teacher.device.type == "cuda"
        self.indices = [index for index, _ in objects]
        self.counts = [len(images) for _, images in objects]
        # Kept until the features are down: memory of a copy that is under way must not go.
        shape = (sum(self.counts), *objects[0][1].shape[1:])
        self._pictures = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        np.concatenate([images for _, images in objects], out=self._pictures.numpy())
        features = teacher.encode_images(self._pictures).half()
        self._features = torch.empty(features.shape, dtype=torch.float16, pin_memory=cuda)
        self._features.copy_(features, non_blocking=True)
        self._event = torch.cuda.Event() if cuda else None
        if self._event is not None:
            self._event.record()

    def features(self) -> list[np.ndarray]:
        """[V, D] float16 of each object; waits until they are down."""
        if self._event is not None:
            self._event.synchronize()
        return np.split(self._features.numpy(), np.cumsum(self.counts)[:-1])


def _collect(batch: _Batch, tasks: list[Task], config: Config) -> Results:
    for index, features in zip(batch.indices, batch.features(), strict=True):
        yield tasks[index], _row(features, config)


def embed_texts(config: Config, shard: str, threads: int) -> None:
    """Puts a shard's captions through the teacher, and scores each against the pictures of its object.

    Writes `features/TEACHER/texts/S.safetensors`: `texts` [n, D] float16 of unit length and `scores` [n, V] float32,
    the cosine of text and picture, of every packed triplet whose pictures have features; rows by uid.

    Raises:
        ClipgsError: the pictures went through another teacher.
    """
    packed = good(table(config, "triplets", shard))
    place, images, metadata = _open(features_path(config, "images", shard))
    seen = {uid: row for row, uid in enumerate(metadata["uids"])}
    teacher = teachers.load(config)
    uids = sorted(packed.keys() & seen.keys())
    ours = _metadata(teacher, config, uids)
    _check_same(place, metadata, "the configured one", ours)
    for uid in sorted(packed.keys() - seen.keys()):
        log.warning("embed-texts %s: %s is left out: it has no features of its pictures", shard, uid)
    captions = [packed[uid]["caption"] for uid in uids]
    empty = [uid for uid, caption in zip(uids, captions, strict=True) if not caption.strip()]
    if empty:
        raise ClipgsError(
            f"embed-texts {shard}: the caption of {empty[0]} is empty; mend its text in the source, or pack the shard "
            f"again without it: snakemake --force {path(config, 'triplets', shard, '.parquet')}"
        )
    cut = teacher.cut(captions)
    if cut:
        log.warning(
            "embed-texts %s: %d captions are longer than the %d tokens that %s reads (the first: %s); what is behind "
            "is not read, a lower caption.max_characters cuts at a word",
            shard, len(cut), teacher.tokenizer.context_length, teacher.name, uids[cut[0]],
        )  # fmt: skip
    texts = _encoded(teacher, captions, threads)
    pictures = images["images"][[seen[uid] for uid in uids]]
    scores = torch.einsum("nd,nvd->nv", texts.float(), pictures.float())
    write_tensors(features_path(config, "texts", shard), {"texts": texts, "scores": scores}, ours)


def _encoded(teacher: Teacher, captions: list[str], threads: int) -> Tensor:
    """[n, D] float16 on the CPU. Computed there, each caption goes alone: its vector is the same in any shard."""
    if teacher.device.type == "cuda" or not captions:
        return teacher.encode_texts(captions).half().cpu()
    alone = _map_single_threaded(lambda caption: teacher.encode_texts([caption]).half(), captions, threads)
    return torch.cat(list(alone))


def read_images(config: Config, shard: str) -> tuple[list[str], Tensor, Metadata]:
    """Uids, features [n, V, D] float16 and metadata of a shard's pictures, without those of its captions."""
    _, tensors, metadata = _open(features_path(config, "images", shard))
    return metadata["uids"], tensors["images"], metadata


def _metadata(teacher: Teacher, config: Config, uids: list[str]) -> Metadata:
    return {
        "uids": uids,
        "teacher": teacher.name,
        "pretrained": teacher.pretrained,
        "weights_sha256": teacher.weights_sha256,
        "dim": str(teacher.dim),
        "images": config.teacher.images,
    }


def read(config: Config, shard: str) -> Features:
    """A shard's features of every packed triplet, rows by uid.

    Raises:
        ClipgsError: a file is missing or damaged; or pictures and captions, or this shard and the first, went through
            different teachers, both of which are named.
    """
    texts_path, texts, metadata = _open(features_path(config, "texts", shard))
    images_path, images, about = _open(features_path(config, "images", shard))
    _check_same(texts_path, metadata, str(images_path), about)
    first = min(texts_path.parent.glob("[0-9]*.safetensors"))
    if first != texts_path:
        _check_same(texts_path, metadata, str(first), _metadata_of(first))
    uids = metadata["uids"]
    rows = {uid: row for row, uid in enumerate(about["uids"])}
    missing = [uid for uid in uids if uid not in rows]
    if missing:
        raise ClipgsError(f"{images_path} has no row of {missing[0]}; make both again: snakemake --force {images_path}")
    chosen = [rows[uid] for uid in uids]
    pictures = images["images"]
    return Features(
        uids,
        pictures if chosen == list(range(len(pictures))) else pictures[chosen],
        texts["texts"],
        texts["scores"],
        metadata,
    )


def _open(file: Path) -> tuple[Path, dict[str, Tensor], Metadata]:
    check(file)
    metadata = _metadata_of(file)
    return file, load_file(file), metadata


def _metadata_of(file: Path) -> Metadata:
    metadata = read_metadata(file)
    lacking = [key for key in ("uids", *_SAME) if key not in metadata]
    if lacking:
        raise ClipgsError(f"{file} does not say its {lacking[0]}; make it again with: snakemake --force {file}")
    return metadata


def _check_same(one: Path, ours: Metadata, other: str, theirs: Metadata) -> None:
    for key in _SAME:
        if ours[key] != theirs[key]:
            raise ClipgsError(
                f"a mixture of teachers: {one} is of {_called(ours)}, {other} of {_called(theirs)}; "
                f"make all of one: snakemake features --force {one}"
            )


def _called(metadata: Metadata) -> str:
    digest, images = metadata["weights_sha256"][:12], metadata["images"]
    return f"{metadata['teacher']} {metadata['pretrained']} (weights {digest}, {metadata['dim']} wide, {images})"
