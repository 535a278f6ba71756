"""Captions that a model writes from pictures, after Cap3D (Luo et al., NeurIPS 2023) without its language model.

CoCa writes several captions for each of several pictures. With `coca`, CoCa chooses among them. With `consensus`, the
teacher chooses, by the mean cosine with all pictures of the object.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import open_clip
import torch
from torch import Tensor

from clipgs.config import PICTURES, Config
from clipgs.core.bundles import tar_objects
from clipgs.core.devices import choose_device
from clipgs.core.errors import UsageError, describe_error
from clipgs.core.files import check
from clipgs.core.runner import Files, Results, Row, Task, good, over_objects
from clipgs.core.seeds import seed_of
from clipgs.splats.pictures import read_all
from clipgs.stages import job, path, table
from clipgs.teacher import features
from clipgs.teacher import model as teacher
from clipgs.teacher.model import Teacher
from clipgs.teacher.weights import open_model
from clipgs.triplets.captions import CaptionWriter, cannot_write, caption_row, clean
from clipgs.triplets.coca import END, START, sample

SOURCES = {"coca": "CoCa", "consensus": "CoCa, chosen by the teacher"}
MAX_TOKENS = 30  # of a caption, with its start and end; open_clip's default
_BACKGROUND = 255  # pictures are over white
_SEEN_LEVELS = 12  # of 255; a pixel that differs more from the background shows something
_SEEN_FRACTION = 0.005  # of the pixels must show something
_PLAIN_LEVELS = 2.0  # of 255; a picture with a smaller standard deviation has one colour


def defective(
    image: np.ndarray,  # [H, W, 3] uint8, over white
) -> bool:
    """The picture is empty or has one colour: a model would invent its caption."""
    shown = (np.abs(image.astype(np.int16) - _BACKGROUND) > _SEEN_LEVELS).any(-1).mean()
    return bool(shown < _SEEN_FRACTION or image.reshape(-1, 3).std(0).max() < _PLAIN_LEVELS)


def caption_writer(
    config: Config, shard: str, write_all: Callable[[Config, list[Task]], Results] | None = None
) -> CaptionWriter:
    """A function that writes captions of a shard's objects from their pictures, with `write_all` or with CoCa.

    CoCa writes on one CPU thread or on the GPU.
    """

    def write_captions(uids: Sequence[str]) -> list[Row]:
        folder = PICTURES[config.teacher.images]
        tar = path(config, folder, shard, ".tar")
        check(tar)
        members = tar_objects(tar)
        pictures = {uid: features.shown(members[uid], config) for uid in good(table(config, folder, shard))}
        vectors = _image_features(config, shard) if config.caption.teacher_chooses else {}
        tasks = [
            Task(uid, f"{pictures[uid].digest()} {_digest(vectors.get(uid))}", (pictures[uid], vectors.get(uid)))
            for uid in uids
            if uid in pictures
        ]
        results = over_objects(job(config, "caption", shard), tasks, partial(write_all or _write_all, config))
        rows = {row["uid"]: row for row, _ in results}
        missing = f"no pictures of it in {folder}/{shard}.tar"
        return [{**caption_row(uid, error=missing), **rows.get(uid, {})} for uid in uids]

    return write_captions


def _digest(array: Tensor | None) -> str:
    return "" if array is None else hashlib.sha256(array.numpy().tobytes()).hexdigest()


def _image_features(config: Config, shard: str) -> dict[str, Tensor]:  # [V, D] by uid
    uids, images, _ = features.read_images(config, shard)
    return dict(zip(uids, images, strict=True))


def _write_all(config: Config, tasks: list[Task]) -> Results:
    if not tasks:
        return
    torch.set_num_threads(1)  # the number of threads changes the order of sums, and so the sampled words
    coca = open_coca(config)
    chooser = teacher.load(config) if config.caption.teacher_chooses else None
    for task in tasks:
        pictures, vectors = task.payload
        try:
            images = read_all(pictures)
        except (OSError, ValueError, SyntaxError) as error:
            yield task, describe_error(error)
            continue
        if chooser is not None and vectors is None:
            yield task, "the teacher has no features of its pictures"
            continue
        yield task, write(config, coca, chooser, images, vectors, seed_of(config.seed, "caption", task.uid))


def open_coca(config: Config) -> Teacher:
    """The model that writes captions.

    Raises:
        UsageError: the configured model cannot write.
        ClipgsError: its weights cannot be loaded.
    """
    settings = config.caption.coca
    opened = open_model(settings, precision="float32", device=choose_device(config.device), key="caption.coca")
    if reason := cannot_write(open_clip.get_model_config(settings.name) or {}):
        raise UsageError(f"config: caption.coca.name = {settings.name}: {reason}")
    return Teacher(opened, batch=config.teacher.batch)


def write(
    config: Config,
    coca: Teacher,
    chooser: Teacher | None,
    images: np.ndarray,  # [V, H, W, 3] uint8
    image_vectors: Tensor | None,  # [V, D] by the chooser
    seed: int,
) -> tuple[Row, Files] | str:
    """The row of one object, with its candidates and their scores; or the reason why it has none.

    CoCa gets no defective pictures. A candidate's score is its mean cosine with all pictures in the chooser's space.
    Without a chooser it is the mean cosine with the pictures that are not defective, in CoCa's space.
    """
    settings = config.caption.coca
    fit = images[[not defective(image) for image in images]]
    if not len(fit):
        return f"none of its {len(images)} pictures shows anything"
    texts = candidates(coca, evenly(fit, settings.views), settings.candidates, settings.top_p, seed)
    texts = list(dict.fromkeys(text for text in (clean(text, config.caption.max_characters) for text in texts) if text))
    if not texts:
        return "CoCa wrote nothing of its pictures"
    if chooser is None:
        row = chosen(coca, texts, coca.encode_images(fit).cpu())
        return row | {"source": SOURCES["coca"], "score": None}, []
    assert image_vectors is not None
    return chosen(chooser, texts, image_vectors) | {"source": SOURCES["consensus"]}, []


def evenly(
    images: np.ndarray,  # [V, H, W, 3] uint8
    count: int,
) -> np.ndarray:
    """At most `count` of the images, evenly spread over them."""
    return images[np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))]


def chosen(
    judge: Teacher,
    texts: list[str],
    image_vectors: Tensor,  # [V, D] by the judge
) -> Row:
    """The text with the highest mean cosine with the images, its score, and all texts with theirs."""
    scores = (judge.encode_texts(texts).cpu() @ image_vectors.float().T).mean(1)
    best = int(scores.argmax())
    return {"caption": texts[best], "candidates": texts, "scores": scores.tolist(), "score": scores[best].item()}


def candidates(
    coca: Teacher,
    images: np.ndarray,  # [n, H, W, 3] uint8
    count: int,
    top_p: float,
    seed: int,
    max_tokens: int = MAX_TOKENS,
) -> list[str]:
    """`count` captions of each picture by nucleus sampling, picture by picture."""
    cuda, model = coca.device.type == "cuda", coca.model
    max_tokens = min(max_tokens, model.context_length, model.text.context_length)
    pictures = coca.preprocess(torch.from_numpy(images))
    with torch.random.fork_rng([coca.device] if cuda else []), torch.autocast("cuda", torch.bfloat16, enabled=cuda):
        torch.manual_seed(seed)
        tokens = sample(model, pictures, count, top_p, max_tokens).cpu()
    ends = (tokens == END) | (tokens == model.pad_id)
    texts = (
        open_clip.decode(row[(row != START) & (end.cumsum(0) == 0)]) for row, end in zip(tokens, ends, strict=True)
    )
    return [text.strip() for text in texts]


def judged(config: Config, shard: str, rows: list[Row]) -> list[Row]:
    """Gives each row a score if `caption.min_score` is set, and a note if its score is below that.

    A score is the mean cosine of the caption with all pictures of its object, in the teacher's space.
    """
    least = config.caption.min_score
    if least is None:
        return rows
    todo = [row for row in rows if row["status"] == "ok" and row["score"] is None]
    if todo:
        vectors = _image_features(config, shard)
        todo = [row for row in todo if row["uid"] in vectors]  # an object without features gets no score
        texts = teacher.load(config).encode_texts([row["caption"] for row in todo]).cpu()
        for row, text in zip(todo, texts, strict=True):
            row["score"] = (vectors[row["uid"]].float() @ text).mean().item()
    for row in rows:
        if row["score"] is not None and row["score"] < least:
            row["note"] = f"scores {row['score']:.3f} against its own pictures, caption.min_score is {least:g}"
    return rows
