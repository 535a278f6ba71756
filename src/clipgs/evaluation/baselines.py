"""Published point encoders on the same splats, and on points of the meshes: Uni3D, OpenShape, ULIP-2.

Each gets its input as in its own code, and is measured in the space of its own teacher. A row is empty if the user does
not have its checkpoint or teacher. The table also has published numbers, with their source.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipgs.config import Config, Teacher
from clipgs.core.errors import ObjectError
from clipgs.core.files import check, sha256_of
from clipgs.core.lists import Names
from clipgs.core.runner import Progress
from clipgs.evaluation.embeddings import Embeddings, run_folder
from clipgs.evaluation.gallery import Gallery, gallery
from clipgs.evaluation.inputs import class_names, index_rows, lvis_shapes, spoken_names
from clipgs.evaluation.prompts import class_embeddings, templates
from clipgs.evaluation.retrieval import retrieval
from clipgs.evaluation.rows import UNI3DS_TEACHER, check_uni3ds_space
from clipgs.evaluation.tables import zero_shot_table
from clipgs.stages import path

MISSING_COLOR = 0.4  # of points without colours, in the loaders of OpenShape and Uni3D
_BATCH = 16
_PREPARED = "splats, cleaned as for our encoder"
_SPLATS, _POINTS = ("splats", _PREPARED), "points of the meshes"  # what a baseline is asked with


class Baseline(NamedTuple):
    """A published point encoder, and the input that its own code gives it."""

    name: str
    setting: str  # key of `evaluation.baselines` with its checkpoint
    teacher: str  # open_clip's name
    pretrained: str  # open_clip's tag
    teacher_setting: str  # key of `evaluation.baselines` with the teacher's weights
    points: int
    axes: tuple[int, int, int]  # its x, y and z among our axes (Y up)


# Uni3D: data/datasets.py, scripts/inference.sh. OpenShape: src/data.py, src/models/ppat.py. ULIP-2:
# models/ULIP_models.py and its config of coloured points. ULIP-2 does not state its axes; we use ours.
BASELINES = (
    Baseline("Uni3D", "uni3d", UNI3DS_TEACHER, "laion2b_s9b_b144k", "eva02_e_14_plus", 10_000, (0, 1, 2)),
    Baseline("OpenShape-PointBERT", "openshape", "ViT-bigG-14", "laion2b_s39b_b160k", "vit_bigg_14", 10_000, (0, 2, 1)),
    Baseline("ULIP-2", "ulip2", "ViT-bigG-14", "laion2b_s39b_b160k", "vit_bigg_14", 10_000, (0, 1, 2)),
)


def _published(model: str, points: str, source: str, **numbers: Any) -> dict[str, Any]:
    return {"model": model, "input": points, **numbers, "source": f"published: {source}"}


def _table_1(model: str, *r1: float) -> dict[str, Any]:
    tasks = ("text_to_3d", "text_from_3d", "image_to_3d", "image_from_3d")
    source = "CLIP-GS (ICCV 2025), table 1, on its own Objaverse-GS; the size of its gallery is not given"
    return _published(model, "splats of the paper", source, **dict(zip(tasks, r1, strict=True)))


PUBLISHED = (
    _table_1("ULIP-2", 0.045, 0.053, 0.056, 0.250),
    _table_1("OpenShape-PointBERT", 0.244, 0.226, 0.616, 0.538),
    _table_1("Uni3D-Base", 0.278, 0.231, 0.651, 0.493),
    _table_1("CLIP-GS", 0.368, 0.300, 0.756, 0.569),
    _published("Uni3D-Base, no LVIS", "points of Objaverse-LVIS", "Uni3D's README, 10,000 points", zero_shot=0.459),
    _published("Uni3D-Base", "positions and colours of splats", "CLIP-GS, table 5, Objaverse-GS", zero_shot=0.336),
    _published("CLIP-GS", "splats of the paper", "CLIP-GS, table 5, Objaverse-GS", zero_shot=0.485),
    _published("PointRWKV", "ModelNet40", "CLIP-GS, table 3, 10-way 10-shot, deviation 2.8", few_shot=0.948),
    _published("CLIP-GS", "ModelNet40", "CLIP-GS, table 3, 10-way 10-shot, deviation 0.2", few_shot=0.954),
)


def preprocess(
    baseline: Baseline,
    xyz: Tensor,  # [P, 3], Y up
    rgb: Tensor | None,  # [P, 3] in [0, 1]
) -> tuple[Tensor, Tensor]:  # [p, 3] and [p, 3]
    """The first points in the baseline's own form: its axes, mean 0, the farthest point at radius 1."""
    xyz = xyz[: baseline.points, list(baseline.axes)]
    xyz = xyz - xyz.mean(0)
    xyz = xyz / xyz.norm(dim=1).max().clamp_min(1e-12)
    colors = torch.full_like(xyz, MISSING_COLOR) if rgb is None else rgb[: baseline.points].clamp(0, 1)
    return xyz, colors


def baselines_table(config: Config) -> dict[str, Any]:
    """Rows of our run, of the three baselines, and of published numbers; see `stages.baselines`."""
    rows = index_rows(config)
    made = gallery(rows, config.evaluation, config.views.count)
    found = [_ours(config)]
    for baseline in BASELINES:
        for source in (*_SPLATS, _POINTS):
            reason = _lacking(config, baseline, source)
            row = {"source": reason} if reason else _measured(config, baseline, source, made, rows)
            found.append({"model": baseline.name, "input": source, **row})
    return {
        "protocol": "Each model in its own teacher's space, fed as its own code feeds it; see docs/protocols.md.",
        "gallery": made.about(),
        **lvis_shapes(config),
        "seed": config.evaluation.seed,
        "rows": [*found, *PUBLISHED],
    }


def _ours(config: Config) -> dict[str, Any]:
    folder = run_folder(config)
    check(folder / "retrieval.json")
    check(folder / "zeroshot.json")
    retrieved = json.loads((folder / "retrieval.json").read_text())["rows"]
    zero = json.loads((folder / "zeroshot.json").read_text())["rows"]

    def r1(task: str, source: str) -> float | None:
        rows = (row for row in retrieved if row["task"] == task and row["from"].startswith(source))
        return next((row["R@1"] for row in rows), None)

    return {
        "model": f"CLIP-GS, run {config.training.run}",
        "input": "splats",
        "ours": True,
        "source": "measured here",
        "text_to_3d": r1("text to 3D", "captions"),
        "text_from_3d": r1("3D to text", "splats"),
        "image_to_3d": r1("image to 3D", "one"),
        "image_from_3d": r1("3D to image", "one"),
        "zero_shot": zero[0]["top1"] if zero else None,
    }


def _lacking(config: Config, baseline: Baseline, source: str) -> str | None:
    """Why a row is empty, or None."""
    for what, setting in (("checkpoint", baseline.setting), ("teacher", baseline.teacher_setting)):
        if getattr(config.evaluation.baselines, setting) is None:
            return f"no {what}: evaluation.baselines.{setting}"
    if source == _POINTS and not any((config.output_path / "points").glob("*.npz")):
        return "the points of the meshes are not kept"
    return None


def _measured(
    config: Config, baseline: Baseline, source: str, made: Gallery, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    from clipgs.core.devices import choose_device
    from clipgs.encoder import pretrained
    from clipgs.teacher import model as teachers

    settings = config.evaluation
    device = choose_device(config.device)
    model = pretrained.load(getattr(settings.baselines, baseline.setting)).to(device)
    weights = getattr(settings.baselines, baseline.teacher_setting)
    # Of its own: what the configured teacher's file or tokenizer needs is not this one's.
    chosen = Teacher(
        name=baseline.teacher,
        pretrained=baseline.pretrained if weights == "download" else weights,
        **config.teacher.model_dump(include={"images", "precision", "batch"}),
    )
    teacher = teachers.load(config.model_copy(update={"teacher": chosen}))
    if source == _POINTS:
        clouds = _mesh_points(config, made.uids, rows)
    else:
        clouds = _splats(config, made.uids, baseline.points if source == _PREPARED else None)
    shapes = embed_points(model, baseline, clouds, len(made.objects))
    texts = teacher.encode_texts([row["caption"] for row in made.objects]).cpu().numpy()
    measure = partial(retrieval, groups=made.groups, resamples=settings.resamples, seed=settings.seed)
    forth = measure(texts, shapes, made.described)
    back = measure(shapes, texts[made.captions], [[caption] for caption in made.caption_of])
    numbers: dict[str, Any] = {
        "text_to_3d": forth["R@1"],
        "text_from_3d": back["R@1"],
        "source": "measured here",
        "text_to_3d_table": forth,
        "text_from_3d_table": back,
        "checkpoint": str(getattr(settings.baselines, baseline.setting)).rsplit("/", 1)[-1],
        "weights_sha256": teacher.weights_sha256,
    }
    names = class_names(config, rows)
    known = Names(names)
    if any(known.find(row["category"]) for row in made.objects):
        classes = class_embeddings(spoken_names(config, names), templates(settings.templates), teacher.encode_texts)
        (table,) = zero_shot_table(made, {baseline.name: shapes}, classes, names, settings)["rows"]
        del table["from"]
        numbers |= {"zero_shot": table["top1"], "zero_shot_table": table}
    return numbers


@torch.no_grad()
def embed_points(
    model: torch.nn.Module,
    baseline: Baseline,
    objects: Iterator[tuple[Tensor, Tensor | None]],
    count: int,
) -> np.ndarray:  # [n, D] float32
    """Embeddings of `count` point clouds. Consecutive clouds of one size share a batch."""
    device = next(model.parameters()).device
    progress = Progress(f"baseline {baseline.name}", count)
    rows: list[np.ndarray] = []
    clouds = (preprocess(baseline, xyz, rgb) for xyz, rgb in objects)
    for _, of_one_size in groupby(clouds, key=lambda cloud: len(cloud[0])):
        while batch := list(islice(of_one_size, _BATCH)):
            xyz, rgb = (torch.stack(part).float().to(device) for part in zip(*batch, strict=True))
            rows.append(model(xyz, rgb).float().cpu().numpy())
            progress.step(count=len(batch))
    progress.close()
    return np.concatenate(rows)


def embed_uni3d(config: Config, checkpoint: str) -> Embeddings:
    """Embeddings of the splats of `evaluation.split` by the published Uni3D, from positions and colours.

    It reads the Gaussians that our rows read: a baseline that is asked with floaters would look worse than it is.
    """
    from clipgs.core.devices import choose_device
    from clipgs.encoder import pretrained
    from clipgs.teacher import features

    check_uni3ds_space(config)
    rows = [row for row in index_rows(config) if config.evaluation.split in ("all", row["split"])]
    model = pretrained.load(checkpoint).to(choose_device(config.device))
    uids = [row["uid"] for row in rows]
    shapes = embed_points(model, BASELINES[0], _splats(config, uids, config.encoder.gaussians), len(uids))
    about = features.read(config, rows[0]["shard"]).metadata
    metadata = {
        "model_sha256": sha256_of(Path(checkpoint)),
        **{name: about[name] for name in ("weights_sha256", "preprocess", "tokenizer")},
        "teacher": f"{about['teacher']} ({about['pretrained']})",
    }
    return Embeddings(uids, shapes, metadata)


def _splats(config: Config, uids: Sequence[str], prepared: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Positions and colours of each object's Gaussians, in farthest-point order.

    Args:
        prepared: only those that `encoder.prepare` keeps, at most so many; None means all of the file. A splat of which
            it keeps none is given whole.
    """
    from clipgs.encoder import prepare
    from clipgs.triplets.dataset import TripletDataset

    dataset = TripletDataset(config.output_path / "triplets")
    place = {str(uid): i for i, uid in enumerate(dataset.uids)}
    for uid in uids:
        gaussians = dataset.gaussians(place[uid])
        if prepared is not None:
            with suppress(ObjectError):
                gaussians = prepare(gaussians, config.encoder.model_copy(update={"gaussians": prepared}), uid)
        yield gaussians.means, gaussians.colors


def _mesh_points(
    config: Config, uids: Sequence[str], rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Surface points of each object's mesh, from the stage `sample`."""
    shard_of = {row["uid"]: row["shard"] for row in rows}

    @cache
    def points(shard: str) -> Any:
        file = path(config, "points", shard, ".npz")
        check(file)
        return np.load(file)

    for uid in uids:
        xyz, rgb = (torch.from_numpy(points(shard_of[uid])[f"{uid}/{name}"]) for name in ("xyz", "rgb"))
        yield xyz, rgb
