"""The tables of one run, from arrays alone: retrieval, zero-shot and few-shot classification (docs/protocols.md)."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgs.config import Evaluation
from clipgs.core.errors import ClipgsError
from clipgs.core.files import write_bytes
from clipgs.core.lists import Names
from clipgs.core.runner import Progress
from clipgs.core.seeds import json_digest, seed_of
from clipgs.evaluation.differences import paired_difference
from clipgs.evaluation.embeddings import Embeddings
from clipgs.evaluation.fewshot import FOLDS, Predict, episodes, few_shot
from clipgs.evaluation.gallery import Gallery, gallery
from clipgs.evaluation.retrieval import nearest, ranks, retrieval
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
SPLIT_OBJECTS = 1000  # of each split in the table of splits: enough for a point or two, and as quick for any dataset


class Pictures(NamedTuple):
    """The teacher's embeddings of the gallery's images."""

    what: str  # splats (renders) or meshes (views)
    one: np.ndarray  # [n, D] of the seeded image
    mean: np.ndarray  # [n, D] mean over an object's images, of their unit embeddings
    views: int

    @property
    def by_teacher(self) -> str:
        """What rows of `mean` are called where the teacher is measured alone."""
        return f"the teacher itself, mean of {self.views} pictures of the {self.what}"


def retrieval_table(
    gallery: Gallery,
    shapes: np.ndarray,  # [n, D]
    texts: np.ndarray,  # [n, D] of each object's caption
    pictures: Sequence[Pictures],
    settings: Evaluation,
) -> dict[str, Any]:
    """All rows of retrieval: text and images to 3D and back, and the teacher's own images to text and back."""
    own = [[i] for i in range(len(shapes))]
    described = gallery.described
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
        rows.append(row("text to image", shown.by_teacher, texts, shown.mean, described))
        rows.append(row("image to text", shown.by_teacher, shown.mean, distinct, caption))
    for shown, other in permutations(pictures, 2):  # never pictures among themselves: the mean holds the query
        source = f"one picture of the {shown.what}, to {other.by_teacher}"
        rows.append(row("image to image", source, shown.one, other.mean, own))
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


def zeroed_rows(
    gallery: Gallery,
    shapes: np.ndarray,  # [n, D]
    without: Mapping[str, np.ndarray],  # attribute to [n, D], encoded without it
    texts: np.ndarray,  # [n, D] of each object's caption
    pictures: Sequence[Pictures],
) -> list[dict[str, Any]]:
    """What each attribute of the Gaussians is worth to a finished encoder: retrieval with it set to zero."""
    own = [[i] for i in range(len(shapes))]
    asked = [("text to 3D", "captions", texts, gallery.described)]
    asked += [("image to 3D", f"one picture of the {shown.what}", shown.one, own) for shown in pictures]
    found = []
    for task, source, queries, relevant in asked:
        whole = ranks(queries, shapes, relevant).hits(1)
        for attribute, searched in without.items():
            hits = ranks(queries, searched, relevant).hits(1)
            change = paired_difference((hits - whole)[None], gallery.groups)
            about = {"zeroed": attribute, "task": task, "from": source, "R@1": float(hits.mean())}
            found.append({**about, "difference": change})
    return found


def split_rows(
    rows: Sequence[Mapping[str, Any]],  # [n], of the index
    texts: np.ndarray,  # [n, D] of each object's caption
    pictures: Pictures,  # of these objects
    embeddings: Embeddings,
    settings: Evaluation,
) -> list[dict[str, Any]]:
    """Text to 3D by the run, and text to image by the teacher alone, for each split in a gallery of its own.

    A teacher or an encoder that knows its training captions by heart shows here. A split has at most `SPLIT_OBJECTS`
    objects. Splits without embeddings, and those of one object, are left out.
    """
    known, place = set(embeddings.uids), {row["uid"]: i for i, row in enumerate(rows)}
    found = []
    for split in ("train", "validation", "test"):
        own = [dict(row) for row in rows if row["split"] == split and row["uid"] in known]
        own = sorted(own, key=lambda row: seed_of(settings.seed, "splits", row["uid"]))[:SPLIT_OBJECTS]
        if len({row["group" if settings.per == "group" else "uid"] for row in own}) < 2:
            continue
        made = gallery(own, settings.model_copy(update={"split": split}), pictures.views)
        places = [place[uid] for uid in made.uids]
        options: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
        for what, searched in (("the run", embeddings.of(made.uids)), (pictures.by_teacher, pictures.mean[places])):
            numbers = retrieval(texts[places], searched, made.described, groups=made.groups, **options)
            found.append({"split": split, "from": what, **numbers})
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
    objects: Sequence[Mapping[str, Any]],  # uid, split, category, group, sha256 of each row
    classifiers: Mapping[str, Predict],  # name to what labels an episode of these rows
    settings: Evaluation,
) -> dict[str, Any]:
    """Rows of few-shot classification, one per kind of episode and classifier.

    `missing` has the kinds of episodes for which there are too few classes. `drawn_from` has the number and the hash of
    all objects with a category: episodes are drawn from these, whatever the gallery is.
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
        "drawn_from": {
            "objects": len(known),
            "sha256": json_digest(
                [[objects[i].get(key) for key in ("uid", "split", "category", "group", "sha256")] for i, _, _ in known]
            ),
        },
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
