"""The stages `embed-shapes` and `evaluate`: from a run to its tables."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgs.config import PICTURES, Config
from clipgs.core.bundles import read_table, tar_objects, write_safetensors
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import check, write_bytes
from clipgs.core.processes import usable_cores
from clipgs.core.runner import Progress, Task
from clipgs.evaluation.fewshot import logistic
from clipgs.evaluation.gallery import Gallery, gallery, seeded_view
from clipgs.evaluation.prompts import class_embeddings, templates
from clipgs.evaluation.tables import Pictures, few_shot_table, retrieval_table, zero_shot_table
from clipgs.stages import path
from clipgs.triplets.captions import spoken

log = logging.getLogger(__name__)

_COLUMNS = ["uid", "shard", "split", "group", "category", "caption", "sha256"]
_MODEL = "model.safetensors"


def run_folder(config: Config) -> Path:
    """Where the evaluation of the configured run lies."""
    return config.output_path / "evaluation" / config.training.run


class Embeddings(NamedTuple):
    """Splats in the teacher's space, as one run's encoder puts them there."""

    uids: list[str]
    shapes: np.ndarray  # [n, D] float32, unit length
    metadata: dict[str, str]  # model_sha256, weights_sha256 and teacher

    def of(self, uids: Sequence[str]) -> np.ndarray:
        """[len(uids), D] rows of these objects."""
        place = {uid: i for i, uid in enumerate(self.uids)}
        missing = [uid for uid in uids if uid not in place]
        if missing:
            raise ClipgsError(f"{len(missing)} objects are not embedded (the first: {missing[0]}); embed them again: "
                              "snakemake --forcerun embed_shapes evaluate")  # fmt: skip
        return self.shapes[[place[uid] for uid in uids]]


def embed_shapes(config: Config) -> None:
    """Puts every packed splat into the teacher's space with the run's encoder.

    Writes `evaluation/RUN/embeddings.safetensors`: `shapes` [n, D] float32 of unit length, in the metadata their `uids`
    and the hashes of the model and of its teacher.

    Raises:
        ClipgsError: the run is not finished, or a triplet is damaged.
    """
    run = config.output_path / "runs" / config.training.run
    found = embed(run, config.output_path / "triplets", device=config.device)
    write_embeddings(run_folder(config) / "embeddings.safetensors", found)


def embed(run: Path, triplets: Path, *, device: str = "auto", encoder: Any = None, split: str = "all") -> Embeddings:
    """The splats of a folder of triplets through the encoder of a run, which is `encoder`, if it is loaded already."""
    from clipgs.core.files import sha256_of
    from clipgs.training import checkpoints
    from clipgs.triplets.dataset import TripletDataset

    if encoder is None:
        encoder = checkpoints.load(run, None if device == "auto" else device)
    dataset = TripletDataset(triplets, None if split == "all" else split)
    progress = Progress("embed-shapes", len(dataset))
    shapes = encoder.encode_dataset(dataset, lambda count: progress.step(count=count)).numpy()
    progress.close()
    if not np.isfinite(shapes).all():
        raise ClipgsError(f"{run} did not stay finite on a splat; train it again")
    teacher = encoder.notes["teacher"]
    metadata = {
        "model_sha256": sha256_of(run / _MODEL),
        "weights_sha256": teacher["weights_sha256"],
        "teacher": f"{teacher['teacher']} ({teacher['pretrained']})",
    }
    order = np.argsort(dataset.uids)
    return Embeddings([str(dataset.uids[i]) for i in order], shapes[order], metadata)


def write_embeddings(file: Path, found: Embeddings) -> None:
    """Keeps embeddings, for `read_embeddings`."""
    write_safetensors(file, {"shapes": found.shapes}, {**found.metadata, "uids": json.dumps(found.uids)})


def read_embeddings(file: Path) -> Embeddings:
    """What `embed_shapes` wrote."""
    from safetensors import safe_open

    check(file)
    with safe_open(file, "np") as stored:
        metadata = dict(sorted(stored.metadata().items()))  # the package gives them in an order of chance
        return Embeddings(json.loads(metadata.pop("uids")), stored.get_tensor("shapes"), metadata)


def evaluate(config: Config, threads: int | None = None) -> None:
    """Measures the configured run. Writes `evaluation/RUN/gallery.json, retrieval.json, zeroshot.json, fewshot.json`.

    Raises:
        ClipgsError: features or embeddings are missing, or are of another teacher than the run's.
    """
    folder, settings = run_folder(config), config.evaluation
    embeddings = read_embeddings(folder / "embeddings.safetensors")
    rows = index_rows(config)
    texts, seen = read_features(config, rows, embeddings.metadata)
    made = gallery(rows, settings, seen.views)
    write_json(folder / "gallery.json", made.manifest())
    about = {"run": config.training.run, **embeddings.metadata, **lvis_shapes(config)}
    shapes = embeddings.of(made.uids)
    own = {row["uid"]: i for i, row in enumerate(rows)}
    places = [own[uid] for uid in made.uids]
    shown = [seen._replace(one=seen.one[places], mean=seen.mean[places])]
    shards = {uid: rows[own[uid]]["shard"] for uid in made.uids}
    others = [what for what in settings.pictures if what != seen.what and _kept(config, what, shards.values())]
    names = class_names(config, rows)
    named = bool(names) and any(row["category"] in names for row in made.objects)
    if others or named:
        from clipgs.teacher import model as teachers

        teacher = teachers.load(config)
        _same_teacher(teacher.weights_sha256, embeddings.metadata)
        shown += [embed_pictures(config, teacher, what, made, shards, threads or usable_cores()) for what in others]
    shown = [one for one in shown if one.what in settings.pictures]
    table = retrieval_table(made, shapes, texts[places], shown, settings)
    write_json(folder / "retrieval.json", {**about, **table})
    if named:
        prompts = templates(settings.templates)
        classes = class_embeddings(
            said(config, names), prompts, lambda texts: teacher.encode_texts(texts).cpu().numpy()
        )
        what = {"splats, by the run": shapes} | {
            f"the teacher itself, mean of {one.views} pictures of the {one.what}": one.mean for one in shown
        }
        zero = zero_shot_table(made, what, classes, names, settings, templates=list(prompts))
        write_json(folder / "zeroshot.json", {**about, **zero})
    else:
        write_json(
            folder / "zeroshot.json", {**about, "rows": [], "missing": "no object of the gallery has a category"}
        )
    classifiers = {}
    if settings.few_shot:
        of_all = embeddings.of([row["uid"] for row in rows])
        classifiers["logistic regression on frozen embeddings"] = logistic(of_all)
        if settings.few_shot_epochs:
            from clipgs.evaluation.finetune import fine_tuning

            run = config.output_path / "runs" / config.training.run
            classifiers["fine-tuning"] = fine_tuning(config, run, [row["uid"] for row in rows], of_all)
    few = few_shot_table(rows, classifiers, settings)
    write_json(folder / "fewshot.json", {**about, "gallery": made.about(), **few})
    for row in table["rows"]:
        log.info("evaluate: %s, %s: R@1 %.1f %% of %d (chance %.2g %%)", row["task"], row["from"], 100 * row["R@1"],
                 row["gallery"], 100 * row["chance"]["R@1"])  # fmt: skip


def _pictures_of(config: Config, what: str, shards: Iterable[str]) -> dict[str, Path]:
    """The tar with each shard's pictures of the splats or of the meshes."""
    return {shard: path(config, PICTURES[what], shard, ".tar") for shard in sorted(set(shards))}


def _kept(config: Config, what: str, shards: Iterable[str]) -> bool:
    lost = [tar for tar in _pictures_of(config, what, shards).values() if not tar.exists()]
    if lost:
        log.info("evaluate: not asked with pictures of the %s: %s is not kept", what, lost[0])
    return not lost


def embed_pictures(
    config: Config, teacher: Any, what: str, made: Gallery, shards: Mapping[str, str], threads: int
) -> Pictures:
    """The gallery's pictures of the splats or of the meshes through the teacher.

    Args:
        shards: of each object, by uid.

    Raises:
        ClipgsError: a picture cannot be read.
    """
    from clipgs.teacher import features

    embed = features.on_gpu if teacher.device.type == "cuda" else features.on_cpu
    members = {}
    for shard, tar in _pictures_of(config, what, shards.values()).items():
        check(tar)
        members[shard] = tar_objects(tar)
    tasks = [Task(uid, "", features.shown(members[shards[uid]][uid], config)) for uid in made.uids]
    progress = Progress(f"pictures of the {what}", len(tasks))
    view = {row["uid"]: row["view"] for row in made.objects}
    one, mean = {}, {}
    for task, result in embed(teacher, tasks, threads=threads, config=config):
        if isinstance(result, str):
            raise ClipgsError(f"{task.payload.path}: the pictures of {task.uid} cannot be read: {result}")
        images = np.frombuffer(result[1][0][1], np.float16).reshape(config.views.count, -1).astype(np.float32)
        one[task.uid], mean[task.uid] = images[view[task.uid]], images.mean(axis=0)
        progress.step()
    progress.close()
    stacked = [np.stack([values[uid] for uid in made.uids]) for values in (one, mean)]
    return Pictures(what, *stacked, config.views.count)


def lvis_shapes(config: Config) -> dict[str, str]:
    """What every table over a source with LVIS shapes says of them."""
    if config.catalog.source not in ("objaverse", "objaverse_xl"):
        return {}
    return {"lvis_shapes": "never trained on" if config.catalog.objaverse.lvis == "test" else "may be trained on"}


def index_rows(config: Config) -> list[dict[str, Any]]:
    """What the triplets' index says of every object, by uid."""
    rows = read_table(config.output_path / "triplets" / "index.parquet", _COLUMNS)
    return sorted(({**row, "group": row["group"] or row["uid"]} for row in rows), key=lambda row: row["uid"])


def said(config: Config, names: Sequence[str]) -> list[str]:
    """The names of classes as prompts hold them."""
    return [spoken(name) if config.evaluation.class_names == "spoken" else name for name in names]


def read_features(
    config: Config, rows: Sequence[dict[str, Any]], metadata: dict[str, str]
) -> tuple[np.ndarray, Pictures]:
    """Of each row the teacher's embedding of its caption [n, D], and of its pictures: the seeded one and the mean.

    Raises:
        ClipgsError: an object has no features, or they are of another teacher than `metadata` names.
    """
    from clipgs.teacher import features

    texts, one, mean, what, views = {}, {}, {}, "splats", 0
    for shard in sorted({row["shard"] for row in rows}):
        found = features.read(config, shard)
        _same_teacher(found.metadata["weights_sha256"], metadata)
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
        raise ClipgsError(f"{len(missing)} objects have no features (the first: {missing[0]}); make them: "
                          "snakemake evaluate")  # fmt: skip
    stacked = [np.stack([values[row["uid"]] for row in rows]) for values in (texts, one, mean)]
    return stacked[0], Pictures(what, stacked[1], stacked[2], views)


def _same_teacher(sha256: str, metadata: dict[str, str]) -> None:
    if sha256 != metadata["weights_sha256"]:
        raise ClipgsError(
            f"the run was trained with {metadata['teacher']}, weights {metadata['weights_sha256'][:12]}, and the "
            f"configured teacher has the weights {sha256[:12]}; set `teacher` to the run's"
        )


def class_names(config: Config, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the classes, as categories are written: of the user's file, of LVIS, or of all packed objects.

    Raises:
        UsageError: the user's file cannot be read or is empty.
    """
    if config.evaluation.classes:
        try:
            lines = Path(config.evaluation.classes).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"evaluation.classes: {config.evaluation.classes} cannot be read ({error})") from None
        names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not names:
            raise UsageError(f"evaluation.classes: {config.evaluation.classes} is empty")
        return names
    if config.catalog.source in ("objaverse", "objaverse_xl"):
        from clipgs.catalog.sources.annotations import AnnotationFiles, lvis_categories

        return sorted(set(lvis_categories(AnnotationFiles(config)).values()))
    return sorted({row["category"] for row in rows if row["category"]})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a table of numbers, whole."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
