"""The inputs of evaluation: rows of the index, class names, the teacher's embeddings of captions and images."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipgs.config import PICTURES, Config
from clipgs.core.bundles import read_table, tar_objects
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.core.files import check
from clipgs.core.lists import counted
from clipgs.core.runner import Progress, Task
from clipgs.evaluation.gallery import Gallery, seeded_view
from clipgs.evaluation.prompts import listed_classes
from clipgs.evaluation.tables import Pictures
from clipgs.stages import path
from clipgs.teacher.names import shortened
from clipgs.triplets.captions import spoken

if TYPE_CHECKING:
    from clipgs.teacher.model import Teacher

log = logging.getLogger(__name__)

_COLUMNS = ["uid", "shard", "split", "group", "category", "caption", "sha256"]


def lvis_shapes(config: Config) -> dict[str, str]:
    """A note for the tables of a source with LVIS shapes: whether they may be in the training split."""
    if config.catalog.source not in ("objaverse", "objaverse_xl"):
        return {}
    return {"lvis_shapes": "never trained on" if config.catalog.objaverse.lvis == "test" else "may be trained on"}


def index_rows(config: Config) -> list[dict[str, Any]]:
    """Rows of the triplets' index, sorted by uid. An object without a group is a group of its own."""
    rows = read_table(config.output_path / "triplets" / "index.parquet", _COLUMNS)
    return sorted(({**row, "group": row["group"] or row["uid"]} for row in rows), key=lambda row: row["uid"])


def spoken_names(config: Config, names: Sequence[str]) -> list[str]:
    """The names of classes as prompts use them: in plain words, or unchanged (`evaluation.class_names`)."""
    return [spoken(name) if config.evaluation.class_names == "spoken" else name for name in names]


def read_features(
    config: Config, rows: Sequence[dict[str, Any]], metadata: Mapping[str, Any]
) -> tuple[np.ndarray, Pictures]:
    """The teacher's embeddings of each row's caption [n, D] and images (the seeded one, and the mean).

    Raises:
        ClipgsError: an object has no features, or they come from another teacher than that of `metadata`.
    """
    from clipgs.teacher import features

    texts, one, mean, what, views = {}, {}, {}, "splats", 0
    for shard in sorted({row["shard"] for row in rows}):
        found = features.read(config, shard)
        check_teacher(found.metadata, metadata)
        what = found.metadata["images"]
        images = np.asarray(found.images)
        views = images.shape[1]
        means = images.astype(np.float32).mean(axis=1)
        for i, uid in enumerate(found.uids):
            texts[uid] = np.asarray(found.texts[i], np.float32)
            one[uid] = images[i, seeded_view(config.evaluation, uid, views)].astype(np.float32)
            mean[uid] = means[i]
    missing = [row["uid"] for row in rows if row["uid"] not in texts]
    if missing:
        what = counted(len(missing), "object has no features", "objects have no features")
        raise ClipgsError(f"{what} (the first: {missing[0]}); make them: {snakemake('evaluate')}")
    captions, ones, means = (np.stack([values[row["uid"]] for row in rows]) for values in (texts, one, mean))
    return captions, Pictures(what, ones, means, views)


def check_teacher(found: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Raises a ClipgsError if a teacher's weights, preprocessing or tokenizer are not those in a run's `metadata`."""
    if found["weights_sha256"] != metadata["weights_sha256"]:
        raise ClipgsError(
            f"the run was trained with {metadata['teacher']}, weights {metadata['weights_sha256'][:12]}, but the "
            f"configured teacher has weights {found['weights_sha256'][:12]}; set `teacher` to the run's"
        )
    for name, what in (("preprocess", "pictures prepared as"), ("tokenizer", "the tokenizer")):
        trained, now = metadata.get(name), found.get(name)  # runs of earlier versions do not say it
        if trained and now and trained != now:
            raise ClipgsError(
                f"the run was trained with {what} {shortened(trained)}, and the configured teacher has "
                f"{shortened(now)}; set teacher.{name} to the run's"
            )


def class_names(config: Config, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the classes, written as categories: from the user's file, LVIS, or all packed objects.

    Raises:
        UsageError: the user's file cannot be read or is empty.
    """
    if config.evaluation.classes:
        return listed_classes(config.evaluation.classes)
    if config.catalog.source in ("objaverse", "objaverse_xl"):
        from clipgs.catalog.sources.annotations import AnnotationFiles, lvis_categories

        return sorted(set(lvis_categories(AnnotationFiles(config)).values()))
    return sorted({row["category"] for row in rows if row["category"]})


def _pictures_of(config: Config, what: str, shards: Iterable[str]) -> dict[str, Path]:
    return {shard: path(config, PICTURES[what], shard, ".tar") for shard in sorted(set(shards))}


def has_pictures(config: Config, what: str, shards: Iterable[str]) -> bool:
    """Whether the renders of the splats, or the views of the meshes, were kept; logs what is missing."""
    missing = [tar for tar in _pictures_of(config, what, shards).values() if not tar.exists()]
    if missing:
        log.info("evaluate: no queries from images of the %s: %s was not kept", what, missing[0])
    return not missing


def embed_pictures(
    config: Config, teacher: "Teacher", what: str, made: Gallery, shards: Mapping[str, str], threads: int
) -> Pictures:
    """The teacher's embeddings of the gallery's renders (splats) or views (meshes).

    Args:
        shards: uid to shard.

    Raises:
        ClipgsError: an image cannot be read.
    """
    from clipgs.teacher import features

    members = {}
    for shard, tar in _pictures_of(config, what, shards.values()).items():
        check(tar)
        members[shard] = tar_objects(tar)
    tasks = [Task(uid, "", features.shown(members[shards[uid]][uid], config)) for uid in made.uids]
    progress = Progress(f"pictures of the {what}", len(tasks))
    view = {row["uid"]: row["view"] for row in made.objects}
    one, mean = {}, {}
    for task, result in features.embed(teacher, tasks, threads, config):
        if isinstance(result, str):
            raise ClipgsError(f"{task.payload.path}: the images of {task.uid} cannot be read: {result}")
        images = np.frombuffer(result[1][0][1], np.float16).reshape(config.views.count, -1).astype(np.float32)
        one[task.uid], mean[task.uid] = images[view[task.uid]], images.mean(axis=0)
        progress.step()
    progress.close()
    ones, means = (np.stack([images[uid] for uid in made.uids]) for images in (one, mean))
    return Pictures(what, ones, means, config.views.count)
