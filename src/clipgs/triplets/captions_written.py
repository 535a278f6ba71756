"""Captions that a model writes from pictures, after Cap3D (Luo et al., NeurIPS 2023) without its language model.

CoCa writes several captions for each of several pictures. With `coca`, CoCa chooses among them. With `consensus`, the
teacher chooses, by the mean cosine with all pictures of the object.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import open_clip
import torch
from open_clip import coca_model
from torch import Tensor

from clipgs.config import PICTURES, Config
from clipgs.core.bundles import tar_objects
from clipgs.core.devices import choose_device
from clipgs.core.errors import ClipgsError, UsageError, describe_error
from clipgs.core.files import check
from clipgs.core.runner import Files, Results, Row, Task, good, over_objects
from clipgs.core.seeds import seed_of
from clipgs.splats.pictures import read_all
from clipgs.stages import job, path, table
from clipgs.teacher import features
from clipgs.teacher import model as teacher
from clipgs.teacher.model import Teacher
from clipgs.teacher.weights import open_model
from clipgs.triplets.captions import NO_COCA, CaptionWriter, caption_row, clean

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


def caption_writer(config: Config, shard: str) -> CaptionWriter:
    """A function that writes captions of a shard's objects from their pictures, on one CPU thread or on the GPU."""

    def write_captions(uids: Sequence[str]) -> list[Row]:
        folder = PICTURES[config.teacher.images]
        tar = path(config, folder, shard, ".tar")
        check(tar)
        members = tar_objects(tar)
        pictures = {uid: features.shown(members[uid], config) for uid in good(table(config, folder, shard))}
        vectors = _image_features(config, shard) if config.caption.writer == "consensus" else {}
        tasks = [
            Task(uid, f"{pictures[uid].digest()} {_digest(vectors.get(uid))}", (pictures[uid], vectors.get(uid)))
            for uid in uids
            if uid in pictures
        ]
        results = over_objects(job(config, "caption", shard), tasks, partial(_write_all, config))
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
    chooser = teacher.load(config) if config.caption.writer == "consensus" else None
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
        ClipgsError: transformers, which its `generate` needs, is missing, or its weights cannot be loaded.
    """
    if not coca_model._has_transformers:
        raise ClipgsError(
            f"caption.captioner = {config.caption.captioner}: CoCa needs transformers 4.55, no later version works; "
            "install it with: pip install 'transformers==4.55.*' (or clipgs[captions])"
        )
    settings = config.caption.coca
    opened = open_model(settings, precision="float32", device=choose_device(config.device), key="caption.coca")
    if not hasattr(opened.model, "generate"):
        raise UsageError(f"config: caption.coca.name = {settings.name}: {NO_COCA}")
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
    whole = np.array([not defective(image) for image in images])
    if not whole.any():
        return f"none of its {len(images)} pictures shows anything"
    fit = images[whole]
    chosen = np.unique(np.linspace(0, len(fit) - 1, min(settings.views, len(fit))).round().astype(int))
    texts = candidates(coca, fit[chosen], settings.candidates, settings.top_p, seed)
    texts = list(dict.fromkeys(text for text in (clean(text, config.caption.max_characters) for text in texts) if text))
    if not texts:
        return "CoCa wrote nothing of its pictures"
    judge = chooser or coca
    text_vectors = judge.encode_texts(texts).cpu()
    image_vectors = coca.encode_images(fit).cpu() if image_vectors is None else image_vectors.float()
    scores = (text_vectors @ image_vectors.T).mean(1)
    best = int(scores.argmax())
    row: Row = {"caption": texts[best], "candidates": texts, "scores": scores.tolist()}
    if chooser is None:
        return row | {"source": SOURCES["coca"]}, []
    return row | {"source": SOURCES["consensus"], "score": scores[best].item()}, []


def candidates(
    coca: Teacher,
    images: np.ndarray,  # [n, H, W, 3] uint8
    count: int,
    top_p: float,
    seed: int,
    max_tokens: int = MAX_TOKENS,
) -> list[str]:
    """`count` captions of each picture by nucleus sampling, picture by picture."""
    cuda = coca.device.type == "cuda"
    pictures = coca.preprocess(torch.from_numpy(images)).repeat_interleave(count, dim=0)
    with torch.random.fork_rng([coca.device] if cuda else []), torch.autocast("cuda", torch.bfloat16, enabled=cuda):
        torch.manual_seed(seed)
        tokens = coca.model.generate(pictures, generation_type="top_p", top_p=top_p, seq_len=max_tokens)
    texts = (open_clip.decode(row).split("<end_of_text>")[0] for row in tokens.cpu())
    return [text.replace("<start_of_text>", "").strip() for text in texts]


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
