"""Ablations: runs that differ from each other in one thing, over several seeds, in one table.

Each row is a few settings over the configured run's, and says which row it is held against. What is finished with the
same settings is taken as it is, so a killed table goes on. Rows and seeds are trained and evaluated one after the other
where there is one GPU or none; with several, or if `workers.ablations` says so, that many at once, each in a process.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from clipgs import config as configuration
from clipgs.catalog.shards import frozen_shards, shard_path
from clipgs.config import Config
from clipgs.core.bundles import TarWriter, read_table, write_table
from clipgs.core.devices import VISIBLE, visible_gpus
from clipgs.core.errors import UsageError
from clipgs.core.files import check, write_bytes
from clipgs.core.processes import PARENT
from clipgs.core.runner import path
from clipgs.core.seeds import canonical_json
from clipgs.evaluation.embeddings import embed, read_embeddings, run_folder, write_embeddings
from clipgs.evaluation.gallery import Gallery, gallery
from clipgs.evaluation.inputs import index_rows, lvis_shapes, read_features
from clipgs.evaluation.retrieval import CONFIDENCE, interval, ranks
from clipgs.evaluation.stages import evaluate
from clipgs.evaluation.tables import write_json

log = logging.getLogger(__name__)

ABLATION = "ablation-"  # what the names of its runs begin with
METRICS = ("text to 3D R@1, %", "3D to text R@1, %", "image to 3D R@1, %", "zero-shot top-1, %")
PAIRED = "3D to text R@1"
_POINT_LOGIT, _POINT_LOG_SCALE = 4.0, -4.0  # of a surface point that stands as a Gaussian; its encoder reads neither


class Variant(NamedTuple):
    """One row: what it is called, what it is held against, and its settings over the configured ones."""

    title: str
    against: str | None
    settings: Mapping[str, Any]


def _row(title: str, against: str | None, encoder: dict[str, Any] | None = None, **training: Any) -> Variant:
    return Variant(title, against, MappingProxyType({"encoder": encoder or {}, "training": training}))


_POINTS_ONLY = {"attributes": ["position", "color"], "point_attributes": "position_color", "refinement": False}
_ONE_VIEW: dict[str, Any] = {
    "views": 1,
    "score_norm": "mean_one",
}  # one picture an object, of weight 1: Uni3D's own loss

# The paper's table 5, then what it leaves open. `start` gives the first weights, see `_start`.
ROWS: Mapping[str, Variant] = MappingProxyType(
    {
        "uni3d": _row("Uni3D as it is, on positions and colours", None, _POINTS_ONLY, **_ONE_VIEW),
        "position-color": _row("fine-tuned on positions and colours", "uni3d", _POINTS_ONLY, **_ONE_VIEW),
        "all-attributes": _row(
            "fine-tuned on all attributes",
            "position-color",
            {"refinement": False, "point_attributes": "all"},
            **_ONE_VIEW,
        ),
        "tokenizer": _row("with the GS Tokenizer", "all-attributes", **_ONE_VIEW),
        "voting": _row("with the Image Voting Loss", "tokenizer"),
        "order-xyz": _row("one order: xyz", "voting", {"orders": ["xyz"]}),
        "order-hilbert": _row("one order: Hilbert", "voting", {"orders": ["hilbert"]}),
        "order-z": _row("one order: Z", "voting", {"orders": ["z"]}),
        "orders-concatenated": _row("orders concatenated", "voting", {"order_fusion": "concatenate"}),
        "orders-sampled": _row("one order at random", "voting", {"order_fusion": "sample"}),
        "views-1": _row("K = 1", "voting", views=1),
        "views-3": _row("K = 3", "voting", views=3),
        "views-10": _row("K = 10", "voting", views=10),
        "scores-mean-one": _row("scores of mean 1", "voting", score_norm="mean_one"),
        "scores-softmax": _row("softmax of the scores", "voting", score_norm="softmax"),
        "start-none": _row("random first weights", "voting", {"initialisation": "none", "weights": None}),
        "start-eva02": _row("first weights of EVA-02", "voting", {"initialisation": "eva02", "weights": None}),
        "gaussians-1024": _row("1,024 Gaussians", "voting", {"gaussians": 1024}),
        "gaussians-4096": _row("4,096 Gaussians", "voting", {"gaussians": 4096}),
        "duplicates-paper": _row("equal captions as negatives", "voting", duplicate_captions="paper"),
    }
)


def ablations(config: Config, only: str | None = None) -> None:
    """Trains and evaluates every row and seed that is not there yet; writes `evaluation/ablations.json`.

    Args:
        only: `ROW:SEED`, to train and evaluate that one and write no table, as one job of a cluster may.

    Raises:
        UsageError: a row that is not known, or is held against one that is not in the list.
        ClipgsError: as `train` and `evaluate`.
    """
    chosen = _chosen(config.ablations.rows)
    seeds = config.ablations.seeds
    if only is not None:
        name, _, seed = only.partition(":")
        if name not in chosen or seed not in map(str, seeds):
            raise UsageError(
                f"--only {only} is no ROW:SEED of ablations.rows ({', '.join(chosen)}) and ablations.seeds"
            )
        _finish_all(config, [(name, int(seed))])
        return
    _finish_all(config, [(name, seed) for name in chosen for seed in seeds])
    rows = index_rows(config)
    first = read_embeddings(run_folder(of_row(config, chosen[0], seeds[0])) / "embeddings.safetensors")
    texts, pictures = read_features(config, rows, first.metadata)
    made = gallery(rows, config.evaluation, pictures.views)
    place = {row["uid"]: i for i, row in enumerate(rows)}
    texts = texts[[place[uid] for uid in made.uids]]
    hits = {name: np.stack([_hits(of_row(config, name, seed), made, texts) for seed in seeds]) for name in chosen}
    table = {
        "protocol": "Every row and seed trained and evaluated alike. Differences are paired: the same queries, the "
        f"same seeds, in {PAIRED}; intervals 95 %, resampled over groups of one shape.",
        "gallery": made.about(),
        **lvis_shapes(config),
        "seed": config.evaluation.seed,
        "seeds": list(seeds),
        "start": _told_start(config),
        "metrics": list(METRICS),
        "rows": [_told(config, name, seeds, hits, made) for name in chosen],
    }
    write_json(config.output_path / "evaluation" / "ablations.json", table)


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in ROWS:
            raise UsageError(f"ablations.rows: {name} is not a row (there are: {', '.join(ROWS)})")
    for name in names:
        against = ROWS[name].against
        if against is not None and against not in names:
            raise UsageError(f"ablations.rows: {name} is held against {against}, which must be in the list too")
    return [name for name in ROWS if name in names]


def of_row(config: Config, name: str, seed: int) -> Config:
    """The configuration of a row's run."""
    values = config.model_dump(mode="json")
    start = _start(config, seed)
    over = {"encoder": {**start, **ROWS[name].settings["encoder"]}, "training": dict(ROWS[name].settings["training"])}
    over["training"] |= {"run": f"{ABLATION}{name}-s{seed}", "seed": seed}
    # What the table does not show is not computed for each of its runs.
    over["evaluation"] = {"pictures": [config.teacher.images], "few_shot": [], "examples": 0}
    return configuration.check(configuration.merge(values, over), where="ablations")


def _has_uni3d(config: Config) -> bool:
    return config.encoder.initialisation == "uni3d" and config.encoder.weights is not None


def _start(config: Config, seed: int) -> dict[str, Any]:
    """First weights: Uni3D's, where the user has its checkpoint; else those of our own point encoder of this seed."""
    if _has_uni3d(config):
        return {}
    return {"initialisation": "points", "weights": str(points_output(config) / "runs" / f"points-s{seed}")}


def _told_start(config: Config) -> str:
    if _has_uni3d(config):
        return f"Uni3D's checkpoint {Path(str(config.encoder.weights)).name}"
    return (
        "no checkpoint of Uni3D: in its place the same point encoder, trained by our own code against the same teacher "
        "on the surface points of the meshes of the training split"
    )


# --- the point encoder -----------------------------------------------------------------------------------------------


def points_output(config: Config) -> Path:
    """An output beside the triplets whose "splats" are the surface points of the meshes, with the same features."""
    return config.output_path / "ablations" / "points"


def _point_run(config: Config, seed: int) -> Config:
    """The configuration of the point encoder's run."""
    values = config.model_dump(mode="json")
    training = {**_ONE_VIEW, "run": f"points-s{seed}", "seed": seed}
    encoder = {**_POINTS_ONLY, "initialisation": "none", "weights": None}
    over = {"output": str(points_output(config)), "encoder": encoder, "training": training}
    return configuration.check(configuration.merge(values, over), where="ablations")


def write_points(config: Config) -> None:
    """Writes the output of `points_output`: of every packed object a splat of its mesh's surface points.

    Raises:
        ClipgsError: the points of a shard are not kept; the text names the command that makes them again.
    """
    from clipgs.triplets.pack import merge_index, schema

    output = points_output(config)
    tables = []
    for shard in frozen_shards(config):
        source, target = (path(each, "triplets", shard, ".parquet") for each in (config, _elsewhere(config, output)))
        tables.append(target)
        sidecar = source.with_name(source.name + ".check").read_text()
        noted = target.with_name(target.name + ".from")
        if target.exists() and noted.exists() and noted.read_text() == sidecar:
            continue
        points = path(config, "points", shard, ".npz")
        check(points)
        rows = read_table(source)
        with np.load(points) as clouds, TarWriter(target.with_suffix(".tar")) as tar:
            offset = 0
            for row in (row for row in rows if row["status"] == "ok"):
                row |= _write_cloud(tar, row["uid"], clouds, config.encoder.gaussians) | {"offset": offset}
                offset += row["bytes"]
        write_table(target, rows, schema())
        write_bytes(shard_path(_elsewhere(config, output), shard), shard_path(config, shard).read_bytes())
        noted.write_text(sidecar)
    merge_index(tables, output / "triplets" / "index.parquet")
    link = output / "features"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(config.output_path / "features", output))


def _elsewhere(config: Config, output: Path) -> Config:
    return config.model_copy(update={"output": str(output)})


def _write_cloud(tar: TarWriter, uid: str, clouds: Any, count: int) -> dict[str, Any]:
    """One object's points as a splat: small, nearly opaque balls. Returns what its row says of its members."""
    import torch

    from clipgs.splats import ply
    from clipgs.splats.gaussians import Gaussians
    from clipgs.triplets.pack import TAR_BLOCK, digest

    xyz, rgb = (torch.from_numpy(clouds[f"{uid}/{name}"][: 2 * count]) for name in ("xyz", "rgb"))
    n = len(xyz)
    cloud = Gaussians(
        means=xyz,
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        log_scales=torch.full((n, 3), _POINT_LOG_SCALE),
        opacity_logits=torch.full((n,), _POINT_LOGIT),
        colors=rgb,
    )
    member = (f"{uid}.ply", ply.to_bytes(cloud))
    tar.add(*member)
    size = TAR_BLOCK + -(-len(member[1]) // TAR_BLOCK) * TAR_BLOCK
    return {"bytes": size, "sha256": digest([member]), "gaussians": n}


# --- a row -----------------------------------------------------------------------------------------------------------


def _finish_all(config: Config, tasks: list[tuple[str, int]]) -> None:
    """Brings rows and seeds, `tasks`, to their evaluation, as many at once as `workers.ablations` says."""
    from clipgs.splats.stages import device as device_of

    tasks = [task for task in tasks if not _finished(config, *task)]
    if not tasks:
        return
    on_gpu = device_of(config, config.workers.gpus) == "cuda"
    gpus = visible_gpus()[: config.workers.gpus or None] if on_gpu else []
    count = min(config.workers.ablations or len(gpus) or 1, len(tasks))
    if count <= 1:
        for name, seed in tasks:
            _finish(config, name, seed)
        return
    if not _has_uni3d(config):
        write_points(config)
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(count):
        slots.put(slot)
    settings, runtime = configuration.stage_settings(config, "ablations"), configuration.runtime_settings(config)

    def run(name: str, seed: int) -> None:
        slot = slots.get()
        try:
            command = [sys.executable, "-m", "clipgs", "ablations", "--settings", settings, "--only", f"{name}:{seed}"]
            gpu = {VISIBLE: gpus[slot % len(gpus)]} if gpus else {}
            chosen = {"WORLD_SIZE": "1", PARENT: str(os.getpid())}
            subprocess.run(command, check=True, env={**os.environ, **chosen, "CLIPGS_RUNTIME": runtime, **gpu})
        finally:
            slots.put(slot)

    # The first of each seed trains the point encoder that the others of the seed start from.
    first = list({seed: (name, seed) for name, seed in reversed(tasks)}.values())
    for some in (first, [task for task in tasks if task not in first]):
        pool = ThreadPoolExecutor(count)
        try:
            for future in [pool.submit(run, *task) for task in some]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(config: Config, name: str, seed: int) -> bool:
    done = run_folder(of_row(config, name, seed)) / "ablation.json"
    return done.exists() and json.loads(done.read_text()) == _key(config, name, seed)


def _key(config: Config, name: str, seed: int) -> str:
    """What a finished row was made with."""
    row = of_row(config, name, seed)
    return canonical_json([configuration.stage_settings(row, "train"), configuration.stage_settings(row, "evaluate"),
                           gallery_key(config)])  # fmt: skip


def _finish(config: Config, name: str, seed: int) -> None:
    """Brings one row and seed to its evaluation."""
    from clipgs.training.runs import run_path
    from clipgs.training.stages import train

    row = of_row(config, name, seed)
    folder = run_folder(row)
    log.info("ablations: %s, seed %d", name, seed)
    if not _has_uni3d(config):
        point = _point_run(config, seed)
        if not _trained(point):
            write_points(config)
            train(point)
    if name != "uni3d" and not _trained(row):
        train(row)
    if name == "uni3d" and _has_uni3d(config):
        from clipgs.evaluation.baselines import embed_uni3d

        found = embed_uni3d(config, str(config.encoder.weights))
    else:
        run = run_path(row if name != "uni3d" else _point_run(config, seed))
        found = embed(run, config.output_path / "triplets", device=config.device, split=config.evaluation.split)
    write_embeddings(folder / "embeddings.safetensors", found)
    evaluate(row)
    (folder / "ablation.json").write_text(json.dumps(_key(config, name, seed)))


def gallery_key(config: Config) -> str:
    """What says whether the packed objects are those that a row was evaluated on."""
    index = config.output_path / "triplets" / "index.parquet"
    return index.with_name(index.name + ".check").read_text().strip()


def _trained(config: Config) -> bool:
    """Whether there is a finished run of these settings; one of others is removed."""
    from clipgs.training.runs import begun_with, run_path

    folder = run_path(config)
    if begun_with(config) is None:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return (folder / "model.safetensors").exists()


def _hits(row: Config, made: Gallery, texts: np.ndarray) -> np.ndarray:
    """[n] the share of each object's 3D-to-text query that is right at the first place."""
    shapes = read_embeddings(run_folder(row) / "embeddings.safetensors").of(made.uids)
    return ranks(shapes, texts[made.captions], [[caption] for caption in made.caption_of]).hits(1)


def _told(
    config: Config, name: str, seeds: Sequence[int], hits: Mapping[str, np.ndarray], made: Gallery
) -> dict[str, Any]:
    """A row of the table."""
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for seed in seeds:
        folder = run_folder(of_row(config, name, seed))
        tables = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("retrieval", "zeroshot")}
        for row in tables["retrieval"]["rows"]:
            metric = f"{row['task']} R@1, %"
            if metric in found and not row["from"].startswith("mean"):
                found[metric].append(row["R@1"])
        found[METRICS[-1]] += [row["top1"] for row in tables["zeroshot"]["rows"][:1]]
    told: dict[str, Any] = {
        "name": ROWS[name].title,
        "key": name,
        "seeds": list(seeds),
        "settings": {key: dict(value) for key, value in ROWS[name].settings.items()},
        "metrics": {
            metric: {"mean": float(np.mean(values)), "std": float(np.std(values)), "values": values}
            for metric, values in found.items()
            if values
        },
    }
    if name == "uni3d" and not _has_uni3d(config):
        told["note"] = _told_start(config)
    against = ROWS[name].against
    if against is not None:
        change = (hits[name] - hits[against]).mean(axis=0)
        groups = np.unique(made.groups, return_inverse=True)[1].reshape(-1)
        bounds = interval(change, groups, resamples=config.evaluation.resamples, seed=config.evaluation.seed)
        told["difference"] = {
            "metric": PAIRED,
            "against": ROWS[against].title,
            "mean": float(change.mean()),
            "interval": bounds,
            "confidence": CONFIDENCE,
            "by_seed": (hits[name] - hits[against]).mean(axis=1).tolist(),
        }
    return told
