"""The stages `embed-shapes`, `evaluate`, `baselines` and those of the ablations."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipgs.config import Config
from clipgs.core.lists import Names
from clipgs.core.processes import usable_cores
from clipgs.encoder import MODEL, load
from clipgs.evaluation.embeddings import Embeddings, embed, read_embeddings, run_folder, write_embeddings
from clipgs.evaluation.fewshot import Predict, logistic
from clipgs.evaluation.gallery import gallery
from clipgs.evaluation.inputs import (
    check_teacher,
    class_names,
    embed_pictures,
    has_pictures,
    index_rows,
    lvis_shapes,
    read_features,
    spoken_names,
)
from clipgs.evaluation.prompts import class_embeddings, templates, unmatched
from clipgs.evaluation.rows import has_uni3d, of_row, of_start
from clipgs.evaluation.tables import (
    few_shot_table,
    retrieval_table,
    split_rows,
    write_json,
    zero_shot_table,
    zeroed_rows,
)
from clipgs.training.runs import run_path
from clipgs.training.stages import train

log = logging.getLogger(__name__)


def embed_shapes(config: Config) -> None:
    """Embeds every packed splat with the run's encoder.

    Writes `evaluation/RUN/embeddings.safetensors`: `shapes` [n, D] float32 of unit length. Their `uids` and the hashes
    of the model and of its teacher are metadata.

    Raises:
        ClipgsError: the run is not finished, or a triplet is damaged.
    """
    found = embed(run_path(config), config.output_path / "triplets", device=config.device)
    write_embeddings(run_folder(config) / "embeddings.safetensors", found)


def baselines(config: Config) -> None:
    """Writes `evaluation/baselines.json`: our run, the baselines whose files the user has, and published numbers.

    Raises:
        ClipgsError: a checkpoint cannot be read, or the run was not evaluated.
    """
    from clipgs.evaluation.baselines import baselines_table

    write_json(config.output_path / "evaluation" / "baselines.json", baselines_table(config))


def evaluate(config: Config, threads: int | None = None) -> None:
    """Measures the configured run. Writes `evaluation/RUN/gallery.json, retrieval.json, zeroshot.json, fewshot.json`.

    Raises:
        UsageError: `evaluation.classes` names no category of the dataset.
        ClipgsError: features or embeddings are missing, or come from another teacher than the run's.
    """
    folder, settings = run_folder(config), config.evaluation
    embeddings = read_embeddings(folder / "embeddings.safetensors")
    rows = index_rows(config)
    texts, features = read_features(config, rows, embeddings.metadata)
    made = gallery(rows, settings, features.views)
    write_json(folder / "gallery.json", made.manifest())
    about = {"run": config.training.run, **embeddings.metadata, **lvis_shapes(config)}
    shapes = embeddings.of(made.uids)
    place = {row["uid"]: i for i, row in enumerate(rows)}
    places = [place[uid] for uid in made.uids]
    pictures = [features._replace(one=features.one[places], mean=features.mean[places])]
    shards = {uid: rows[place[uid]]["shard"] for uid in made.uids}
    others = [
        what for what in settings.pictures if what != features.what and has_pictures(config, what, shards.values())
    ]
    names = class_names(config, rows)
    note = unmatched(settings.classes, names, (row["category"] for row in rows))
    known = Names(names)
    has_classes = any(known.find(row["category"]) for row in made.objects)
    if others or has_classes:
        from clipgs.teacher import model as teachers

        teacher = teachers.load(config)
        check_teacher(teacher.about, embeddings.metadata)
        pictures += [embed_pictures(config, teacher, what, made, shards, threads or usable_cores()) for what in others]
    pictures = [one for one in pictures if one.what in settings.pictures]
    table = retrieval_table(made, shapes, texts[places], pictures, settings)
    by_split = split_rows(rows, texts, features, embeddings, settings)
    zeroed = zeroed_rows(made, shapes, _without(config, made.uids), texts[places], pictures)
    write_json(folder / "retrieval.json", {**about, **table, "splits": by_split, "zeroed": zeroed})
    zero: dict[str, Any] = {"rows": [], "missing": _without_classes(made.objects, names)}
    if has_classes:
        prompts = templates(settings.templates)
        said = spoken_names(config, names)
        classes = class_embeddings(said, prompts, teacher.encode_texts)
        filled = [prompt.replace("{}", name) for name in said for prompt in prompts]
        if cut := teacher.cut(filled):
            length = teacher.tokenizer.context_length
            log.warning(
                "evaluate: %d prompts are longer than the %d tokens that %s reads (the first: %s); the rest is ignored",
                len(cut), length, teacher.name, filled[cut[0]],
            )  # fmt: skip
        classified = {"splats, by the run": shapes} | {one.by_teacher: one.mean for one in pictures}
        zero = zero_shot_table(made, classified, classes, names, settings, templates=list(prompts))
    if note:
        log.info("evaluate: %s", note)
        zero["note"] = note
    write_json(folder / "zeroshot.json", {**about, **zero})
    few = few_shot_table(rows, _few_shot_classifiers(config, embeddings, list(place)), settings)
    write_json(folder / "fewshot.json", {**about, **few})
    for row in table["rows"]:
        rates = 100 * row["R@1"], row["gallery"], 100 * row["chance"]["R@1"]
        log.info("evaluate: %s, %s: R@1 %.1f %% of %d (chance %.2g %%)", row["task"], row["from"], *rates)


def _without(config: Config, uids: list[str]) -> dict[str, np.ndarray]:
    """[n, D] of these objects by the run's encoder, with each attribute of `evaluation.zeroed` set to zero in turn."""
    run = run_path(config)
    if not config.evaluation.zeroed or not (run / MODEL).exists():  # Uni3D as it is has positions and colours alone
        return {}
    encoder = load(run, None if config.device == "auto" else config.device)
    found: dict[str, np.ndarray] = {}
    for attribute in config.evaluation.zeroed:
        with encoder.model.tokenizer.without(attribute):
            again = embed(run, config.output_path / "triplets", encoder=encoder, split=config.evaluation.split)
        found[attribute] = again.of(uids)
    return found


def _without_classes(objects: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Why there is no zero-shot table of these objects."""
    if not any(row["category"] for row in objects):
        return "no object of the gallery has a category"
    return f"no object of the gallery ({len(objects):,}) has one of the {len(names):,} classes"


def _few_shot_classifiers(config: Config, embeddings: Embeddings, uids: list[str]) -> dict[str, Predict]:
    if not config.evaluation.few_shot:
        return {}
    shapes = embeddings.of(uids)
    classifiers = {"logistic regression on frozen embeddings": logistic(shapes)}
    if config.evaluation.few_shot_epochs:
        from clipgs.evaluation.finetune import fine_tuning

        classifiers["fine-tuning"] = fine_tuning(config, run_path(config), uids, shapes)
    return classifiers


def ablation_points(config: Config, shard: str, threads: int) -> None:
    """Writes the point encoder's training data of a shard: the surface points of its meshes as splats.

    Writes `ablations/points/triplets/S.tar` and `S.parquet`.
    """
    from clipgs.evaluation.ablations import write_points

    write_points(config, shard, threads)


def ablation_start(config: Config, seed: int, threads: int) -> None:
    """Trains the point encoder that the rows of a seed start from. Writes `ablations/points/runs/points-sSEED/`."""
    train(of_start(config, seed), threads)


def ablation_train(config: Config, row: str, seed: int, threads: int) -> None:
    """Trains a row of the ablation with a seed, as `train` does. Writes `runs/ablation-ROW-sSEED/`."""
    train(of_row(config, row, seed), threads)


def ablation_evaluate(config: Config, row: str, seed: int, threads: int) -> None:
    """Embeds the gallery with a row's encoder and evaluates it like the configured run.

    Writes `evaluation/ablation-ROW-sSEED/`: embeddings and tables.
    """
    own = of_row(config, row, seed)
    if row == "uni3d" and has_uni3d(config):
        from clipgs.evaluation.baselines import embed_uni3d

        found = embed_uni3d(config, str(config.encoder.weights))
    else:
        # The row uni3d has no run of its own: it is the model that the other rows start from.
        run = run_path(of_start(config, seed) if row == "uni3d" else own)
        found = embed(run, config.output_path / "triplets", device=config.device, split=own.evaluation.split)
    write_embeddings(run_folder(own) / "embeddings.safetensors", found)
    evaluate(own, threads)


def ablations(config: Config) -> None:
    """Writes `evaluation/ablations.json`: one table of the configured rows and seeds."""
    from clipgs.evaluation.ablations import write_ablations

    write_ablations(config)
