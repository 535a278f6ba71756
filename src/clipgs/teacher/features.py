"""Features: the frozen teacher's embeddings of all images and captions.

Images and captions have a file each, so that a corrected caption does not encode the images again.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from clipgs.core.errors import ClipgsError, describe_error, snakemake
from clipgs.core.files import check
from clipgs.core.runner import Files, Results, Row, Task, good, over_objects
from clipgs.splats.pictures import read_all
from clipgs.stages import job, path, table
from clipgs.teacher import model as teachers
from clipgs.teacher.model import Teacher
from clipgs.teacher.names import shortened

log = logging.getLogger(__name__)

Metadata = Mapping[str, Any]
ABOUT = ("teacher", "pretrained", "weights_sha256", "preprocess", "tokenizer")  # `Teacher.about`
# Metadata that all files of a run share, as far as both files have them: the pictures have no tokenizer.
_SAME = (*ABOUT, "dim", "images")
# What a file must have besides `uids`.
_LEAST = {"texts": _SAME, "images": tuple(name for name in _SAME if name != "tokenizer")}


class Features(NamedTuple):
    """A shard's features, rows by uid."""

    uids: list[str]
    images: Tensor  # [n, V, D] float16, unit length
    texts: Tensor  # [n, D] float16, unit length
    scores: Tensor  # [n, V] float32, cosine of text and image
    metadata: Metadata


def features_path(config: Config, kind: str, shard: str) -> Path:
    """The file of a shard's features; `kind` is images or texts."""
    return config.output_path / "features" / config.teacher.slug / kind / f"{shard}.safetensors"


def embed_images(config: Config, shard: str, threads: int) -> None:
    """Encodes all images of a shard's objects with the teacher.

    Writes `features/TEACHER/images/S.safetensors`: `images` [n, V, D] float16 of unit length, rows sorted by uid, of
    the objects with images. On a CPU a row depends only on the object's images and the teacher.
    """
    folder = PICTURES[config.teacher.images]
    pictures = path(config, folder, shard, ".tar")
    check(pictures)
    members = tar_objects(pictures)
    teacher = teachers.load(config)
    seen = {uid: shown(members[uid], config) for uid in sorted(good(table(config, folder, shard)))}
    tasks = [Task(uid, f"{files.digest()} {teacher.weights_sha256}", files) for uid, files in seen.items()]
    compute = partial(embed, teacher, threads=threads, config=config)
    done = over_objects(job(config, "embed-images", shard), tasks, compute)
    found = {row["uid"]: files[0][1] for row, files in done if row["status"] == "ok"}
    images = np.frombuffer(b"".join(found.values()), np.float16).reshape(-1, config.views.count, teacher.dim)
    write_tensors(features_path(config, "images", shard), {"images": images}, _metadata(teacher, config, [*found]))


def shown(members: Members, config: Config) -> Members:
    """The object's images that the teacher sees: without the cameras and the held-out views."""
    pictures = sorted(entry for entry in members.entries if entry[0].endswith((".png", ".webp")))
    return Members(members.path, tuple(pictures[: config.views.count]))


def embed(teacher: Teacher, tasks: list[Task], threads: int, config: Config) -> Results:
    """Yields each task, whose payload are the files of an object's images, with their embeddings or an error."""
    return (on_gpu if teacher.device.type == "cuda" else on_cpu)(teacher, tasks, threads, config)


def on_cpu(teacher: Teacher, tasks: list[Task], threads: int, config: Config) -> Results:
    """Encodes one object at a time in each of `threads` threads."""

    def row(task: Task) -> tuple[Row, Files] | str:
        try:
            images = read_all(task.payload)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises them for a file that is no image
            return describe_error(error)
        return _row(teacher.encode_images(images).half().numpy(), config)

    yield from zip(tasks, _map_single_threaded(row, tasks, threads), strict=True)


def _map_single_threaded(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """`function` of each item, in order. Torch uses one thread per item, so no sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(function, items)
    finally:
        torch.set_num_threads(before)


def _row(features: np.ndarray, config: Config) -> tuple[Row, Files] | str:
    if len(features) != config.views.count:
        return f"it has {len(features)} pictures, and views.count is {config.views.count}"
    if not np.isfinite(features).all():
        return "the teacher gives numbers that are not finite for its pictures"
    return {}, [("images", features.tobytes())]


def on_gpu(teacher: Teacher, tasks: list[Task], threads: int, config: Config) -> Results:
    """Encodes many objects at once, while worker processes read and decode the next ones.

    Images and features are copied through pinned memory, in the order of the device's stream. The features of a batch
    are read after the next two batches have started, so that the GPU never waits.
    """
    timeout_seconds, memory_mb = config.workers.load_timeout_seconds, config.workers.load_memory_mb
    count = min(workers.usable_workers(threads, memory_mb), max(1, len(tasks)))
    payloads = (task.payload for task in tasks)
    decoded = workers.run(read_all, payloads, workers=count, timeout_seconds=timeout_seconds, memory_mb=memory_mb)
    in_flight: deque[_Batch] = deque()

    def collect(most: int) -> Results:
        while len(in_flight) > most:
            batch = in_flight.popleft()
            for index, features in zip(batch.indices, batch.features(), strict=True):
                yield tasks[index], _row(features, config)

    for batch in _batches(decoded, teacher.batch):
        failed = {index: result.error for index, result in batch if isinstance(result, workers.Failure)}
        yield from ((tasks[index], error) for index, error in failed.items())
        whole = [(index, result) for index, result in batch if index not in failed]
        if whole:
            in_flight.append(_Batch(teacher, whole))
        yield from collect(2)
    yield from collect(0)


def _batches(decoded: Iterable[tuple[int, Any]], size: int) -> Iterator[list[tuple[int, Any]]]:
    """Groups objects until they have `size` images, all of one shape."""
    batch: list[tuple[int, Any]] = []
    shape: list[int] = []
    count = 0
    for index, result in decoded:
        images, *one = (0,) if isinstance(result, workers.Failure) else result.shape
        if batch and ((one and shape and one != shape) or count + images > size):
            yield batch
            batch, shape, count = [], [], 0
        batch.append((index, result))
        shape, count = one or shape, count + images
    if batch:
        yield batch


class _Batch:
    """Images of several objects that the teacher is encoding."""

    def __init__(self, teacher: Teacher, objects: list[tuple[int, np.ndarray]]) -> None:
        cuda = teacher.device.type == "cuda"
        self.indices = [index for index, _ in objects]
        self.counts = [len(images) for _, images in objects]
        # Kept until the features are there: the memory of a running copy must not be freed.
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
        """[V, D] float16 of each object; waits for the GPU."""
        if self._event is not None:
            self._event.synchronize()
        return np.split(self._features.numpy(), np.cumsum(self.counts)[:-1])


def embed_texts(config: Config, shard: str, threads: int) -> None:
    """Encodes a shard's captions with the teacher, and scores each against the images of its object.

    Writes `features/TEACHER/texts/S.safetensors`: `texts` [n, D] float16 of unit length and `scores` [n, V] float32,
    the cosines of text and images, of every packed triplet whose images have features; rows sorted by uid.

    Raises:
        ClipgsError: a caption is empty, or the features of the images come from another teacher.
    """
    packed = good(table(config, "triplets", shard))
    file = features_path(config, "images", shard)
    images, metadata = _open(file)
    seen = {uid: row for row, uid in enumerate(metadata["uids"])}
    teacher = teachers.load(config)
    uids = sorted(packed.keys() & seen.keys())
    ours = {**_metadata(teacher, config, uids), "tokenizer": teacher.about["tokenizer"]}
    _check_same(file, metadata, "the configured one", ours)
    for uid in sorted(packed.keys() - seen.keys()):
        log.warning("embed-texts %s: %s is left out: it has no features of its pictures", shard, uid)
    captions = [packed[uid]["caption"] for uid in uids]
    empty = [uid for uid, caption in zip(uids, captions, strict=True) if not caption.strip()]
    if empty:
        again = snakemake("--force", path(config, "triplets", shard, ".parquet"))
        raise ClipgsError(
            f"embed-texts {shard}: the caption of {empty[0]} is empty; correct its text in the source, or pack the "
            f"shard again without it: {again}"
        )
    cut = [uids[place] for place in teacher.cut(captions)]
    length = teacher.tokenizer.context_length
    if said := said_of_cut(cut, teacher.name, length):
        log.warning("embed-texts %s: %s To cut them at a word, lower caption.max_characters.", shard, said)
    if teacher.device.type == "cuda" or not captions:
        texts = teacher.encode_texts(captions).half().cpu()
    else:  # one by one, so that a caption's embedding is the same in any shard
        texts = torch.cat([*_map_single_threaded(lambda text: teacher.encode_texts([text]).half(), captions, threads)])
    pictures = images["images"][[seen[uid] for uid in uids]]
    scores = torch.einsum("nd,nvd->nv", texts.float(), pictures.float())
    ours = {**ours, "cut": cut, "context": length}
    write_tensors(features_path(config, "texts", shard), {"texts": texts, "scores": scores}, ours)


def read_images(config: Config, shard: str) -> tuple[list[str], Tensor, Metadata]:
    """Uids, features [n, V, D] float16 and metadata of a shard's images, without its captions."""
    tensors, metadata = _open(features_path(config, "images", shard))
    return metadata["uids"], tensors["images"], metadata


def _metadata(teacher: Teacher, config: Config, uids: list[str]) -> Metadata:
    """Of the pictures: another tokenizer must not encode them again."""
    about = {name: value for name, value in teacher.about.items() if name != "tokenizer"}
    return {"uids": uids, **about, "dim": str(teacher.dim), "images": config.teacher.images}


def read(config: Config, shard: str) -> Features:
    """A shard's features of every packed triplet, rows sorted by uid.

    Raises:
        ClipgsError: a file is missing or damaged; or images and captions, or this shard and the first, come from
            different teachers. The text names both.
    """
    texts_path, images_path = (features_path(config, kind, shard) for kind in ("texts", "images"))
    texts, metadata = _open(texts_path)
    images, about = _open(images_path)
    _check_same(texts_path, metadata, str(images_path), about)
    first = min(texts_path.parent.glob("[0-9]*.safetensors"))
    if first != texts_path:
        _check_same(texts_path, metadata, str(first), _metadata_of(first))
    uids = metadata["uids"]
    rows = {uid: row for row, uid in enumerate(about["uids"])}
    missing = [uid for uid in uids if uid not in rows]
    if missing:
        again = snakemake("--force", images_path)
        raise ClipgsError(f"{images_path} has no row of {missing[0]}; make both files again: {again}")
    chosen, pictures = [rows[uid] for uid in uids], images["images"]
    if chosen != list(range(len(pictures))):  # else without a copy
        pictures = pictures[chosen]
    return Features(uids, pictures, texts["texts"], texts["scores"], metadata)


def said_of_cut(uids: Sequence[str], teacher: str, length: int) -> str:
    """What is to be said of captions that are longer than the `length` tokens that the teacher reads."""
    if not uids:
        return ""
    captions = "1 caption is" if len(uids) == 1 else f"{len(uids):,} captions are"
    first = f"the first: {uids[0]}" if len(uids) > 1 else uids[0]
    return f"{captions} longer than the {length} tokens that {teacher} reads ({first}); the rest is ignored."


def cut_captions(config: Config, shards: Sequence[str]) -> str:
    """`said_of_cut` of the shards whose captions have features; empty if none has."""
    found = [read_metadata(file) for shard in shards if (file := features_path(config, "texts", shard)).exists()]
    uids = [uid for metadata in found for uid in metadata.get("cut", ())]
    return said_of_cut(uids, found[0]["teacher"], found[0]["context"]) if uids else ""


def _open(file: Path) -> tuple[dict[str, Tensor], Metadata]:
    check(file)
    metadata = _metadata_of(file)
    return load_file(file), metadata


def _metadata_of(file: Path) -> Metadata:
    metadata = read_metadata(file)
    lacking = [key for key in ("uids", *_LEAST[file.parent.name]) if key not in metadata]
    if lacking:
        raise ClipgsError(f"{file} does not say its {lacking[0]}; make it again with: {snakemake('--force', file)}")
    return metadata


def _check_same(one: Path, ours: Metadata, other: str, theirs: Metadata) -> None:
    for key in _SAME:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            raise ClipgsError(
                f"a mixture of teachers: {one} comes from {_called(ours)}, {other} from {_called(theirs)}; "
                f"make all features with one teacher: {snakemake('features', '--force', one)}"
            )


def _called(metadata: Metadata) -> str:
    digest, images = metadata["weights_sha256"][:12], metadata["images"]
    about = f"weights {digest}, {metadata['dim']} wide, {images}, prepared as {metadata['preprocess']}"
    if tokenizer := metadata.get("tokenizer"):
        about += f", tokenizer {shortened(tokenizer)}"
    return f"{metadata['teacher']} {metadata['pretrained']} ({about})"
