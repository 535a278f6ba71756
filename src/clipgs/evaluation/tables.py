"""The tables of one run, from arrays alone: retrieval, zero-shot and few-shot classification (docs/protocols.md)."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgs.config import Evaluation
from clipgs.core.errors import ClipgsError
from clipgs.core.files import write_bytes
from clipgs.core.lists import Names
from clipgs.core.runner import Progress
from clipgs.evaluation.fewshot import FOLDS, Predict, episodes, few_shot
from clipgs.evaluation.gallery import Gallery
from clipgs.evaluation.retrieval import nearest, retrieval
from clipgs.evaluation.zeroshot import zero_shot

RETRIEVAL_PROTOCOL = (
    "Cosine of unit vectors, exact. Every object with the same caption is a right answer to it; the gallery of texts "
    "holds each caption once. Equal scores share. Intervals: 95 %, resampled over groups of one shape."
)
ZERO_SHOT_PROTOCOL = (
    "The class whose text is nearest; a class's text is the mean of its prompts' unit embeddings. Equal scores share. "
    "Intervals: 95 %, resampled over groups of one shape."
)
FEW_SHOT_PROTOCOL = (
    "Ten episodes: classes drawn at random among those with enough objects, then objects; mean and standard deviation "
    "of the top-1 accuracy."
)
NEAREST = 5


class Pictures(NamedTuple):
    """The teacher's embeddings of the gallery's images."""

    what: str  # splats (renders) or meshes (views)
    one: np.ndarray  # [n, D] of the seeded image
    mean: np.ndarray  # [n, D] mean over an object's images, of their unit embeddings
    views: int


def retrieval_table(
    gallery: Gallery,
    shapes: np.ndarray,  # [n, D]
    texts: np.ndarray,  # [n, D] of each object's caption
    pictures: Sequence[Pictures],
    settings: Evaluation,
) -> dict[str, Any]:
    """All rows of retrieval: text and images to 3D and back, and the teacher's own images to text and back."""
    own = [[i] for i in range(len(shapes))]
    described = [gallery.of_caption[caption] for caption in gallery.caption_of]
    caption = [[place] for place in gallery.caption_of]
    distinct = texts[gallery.captions]
    measure = partial(retrieval, groups=gallery.groups, resamples=settings.resamples, seed=settings.seed)

    def row(task: str, source: str, queries: np.ndarray, searched: np.ndarray, relevant: list[list[int]]) -> Any:
        return {"task": task, "from": source, **measure(queries, searched, relevant)}

    rows = [
        row("text to 3D", "captions", texts, shapes, described),
        row("3D to text", "splats", shapes, distinct, caption),
    ]
    for shown in pictures:
        one, mean = f"one picture of the {shown.what}", f"mean of {shown.views} pictures of the {shown.what}"
        for how, images in ((one, shown.one), (mean, shown.mean)):
            rows.append(row("image to 3D", how, images, shapes, own))
            rows.append(row("3D to image", how, shapes, images, own))
    for shown in pictures:
        how = f"the teacher itself, mean of {shown.views} pictures of the {shown.what}"
        rows.append(row("text to image", how, texts, shown.mean, described))
        rows.append(row("image to text", how, shown.mean, distinct, caption))
    tasks = [("text to 3D", texts, described)] + [("image to 3D", shown.one, own) for shown in pictures[:1]]
    return {
        "protocol": RETRIEVAL_PROTOCOL,
        "gallery": gallery.about(),
        "seed": settings.seed,
        "rows": rows,
        "examples": [
            example for task in tasks for example in _examples(gallery, shapes, *task, count=settings.examples)
        ],
    }


def _examples(
    gallery: Gallery, shapes: np.ndarray, task: str, queries: np.ndarray, relevant: list[list[int]], *, count: int
) -> list[dict[str, Any]]:
    """Queries at even distances in the gallery, each with its nearest objects, for the report."""
    chosen = np.unique(np.linspace(0, len(shapes) - 1, min(count, len(shapes))).round().astype(int)).tolist()
    if not chosen:
        return []
    found = []
    scores, rows = nearest(queries[chosen], shapes, NEAREST)
    for query, near, cosines in zip(chosen, rows.tolist(), scores.tolist(), strict=True):
        about = gallery.objects[query]
        image = {"uid": about["uid"], "view": about["view"]} if task.startswith("image") else {}
        listed = [
            {
                "uid": gallery.objects[i]["uid"],
                "text": gallery.objects[i]["caption"],
                "score": round(cosine, 6),
                "right": i in relevant[query],
            }
            for i, cosine in zip(near, cosines, strict=True)
        ]
        found.append({"task": task, "query": about["caption"], **image, "nearest": listed})
    return found


def zero_shot_table(
    gallery: Gallery,
    embeddings: Mapping[str, np.ndarray],  # name of a row to [n, D], of all objects of the gallery
    classes: np.ndarray,  # [C, D]
    names: Sequence[str],  # [C], as the catalog writes them
    settings: Evaluation,
    **about: Any,
) -> dict[str, Any]:
    """Rows of zero-shot classification of the gallery's objects whose category is among the names.

    Raises:
        ClipgsError: no object has one of the classes.
    """
    place, known = {name: i for i, name in enumerate(names)}, Names(names)
    found = [known.find(row["category"]) for row in gallery.objects]
    kept = [i for i, name in enumerate(found) if name is not None]
    if not kept:
        raise ClipgsError("no object of the gallery has one of the classes; name its categories in evaluation.classes")
    labels = [place[name] for name in found if name is not None]
    groups = [gallery.objects[i]["group"] for i in kept]
    measure = partial(zero_shot, groups=groups, resamples=settings.resamples, seed=settings.seed)
    return {
        "protocol": ZERO_SHOT_PROTOCOL,
        "gallery": gallery.about(),
        "seed": settings.seed,
        "class_names": list(names),
        **about,
        "rows": [{"from": what, **measure(rows[kept], classes, labels, names)} for what, rows in embeddings.items()],
    }


def few_shot_table(
    objects: Sequence[Mapping[str, Any]],  # uid, split, category, group of each row
    classifiers: Mapping[str, Predict],  # name to what labels an episode of these rows
    settings: Evaluation,
) -> dict[str, Any]:
    """Rows of few-shot classification, one per kind of episode and classifier.

    `missing` has the kinds of episodes for which there are too few classes.
    """
    known = [(i, row["category"], row["group"]) for i, row in enumerate(objects) if row["category"]]
    queries = [one for one in known if settings.split in ("all", objects[one[0]]["split"])]
    learn_of = settings.few_shot_support
    support = queries if learn_of == "same" else [one for one in known if objects[one[0]]["split"] == learn_of]
    draw = partial(
        episodes, queries_a_class=settings.few_shot_queries, strict=settings.few_shot_strict, seed=settings.seed
    )
    rows, missing = [], []
    progress = Progress("few-shot", len(settings.few_shot) * len(classifiers) * FOLDS, "episode")
    for kind in settings.few_shot:
        ways, shots = (int(part.split("-")[0]) for part in kind.split())
        try:
            drawn, eligible = draw(support, queries, ways, shots)
        except ClipgsError as error:
            missing.append({"ways": ways, "shots": shots, "reason": str(error)})
            continue
        for name, predict in classifiers.items():
            rows.append({"classifier": name, **few_shot(drawn, eligible, predict, progress.step)})
    progress.close()
    return {
        "protocol": FEW_SHOT_PROTOCOL,
        "support": learn_of,
        "queries": settings.split,
        "queries_a_class": settings.few_shot_queries,
        "strict": settings.few_shot_strict,
        "seed": settings.seed,
        "rows": rows,
        "missing": missing,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a table as JSON, with a checksum."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
