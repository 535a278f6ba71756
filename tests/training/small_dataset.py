"""A dataset that training can learn from in seconds: packed splats of a few kinds, and features made for them."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from clipgs import config as configuration
from clipgs.config import Config
from clipgs.core.bundles import write_tensors
from clipgs.encoder.transformer import Shape
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import to_webp
from clipgs.training.runs import run_path
from tests.packed_world import hand_over, picture, write_index

PREPARED = "{mean: [0.5, 0.5, 0.5]}"  # how pictures are prepared, as features say it
DIM, PICTURES, KINDS = 12, 6, 4
PICTURE = to_webp(picture(0), 90)  # of every object: training looks at features
SHAPE = Shape(width=32, depth=2, heads=2, hidden=48, gated=True, hidden_norm=True)
SETTINGS = {
    "device": "cpu",
    "encoder": {
        "size": "tiny",
        "gaussians": 96,
        "groups": 8,
        "group_size": 8,
        "refinement_width": 16,
        "drop_path": 0.0,
        "patch_dropout": 0.0,
        "batch_norm": "local",
    },
    "training": {
        "choose_from": 1,
        "epochs": 3,
        "batch": 8,
        "micro_batch": 8,
        "views": 2,
        "warmup_epochs": 1.0,
        "lr": 2e-3,
    },
    "workers": {"checkpoint_steps": 2, "loaders": 2},
}


def settings(folder: Path, **more) -> Config:
    """The configuration of a small run, with `output` in `folder`; `more` as nested mappings."""
    return configuration.check(configuration.merge(SETTINGS, {"output": str(folder / "results")}, more))


def unit(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def splat(kind: int, seed: int, rows: int = 80) -> Gaussians:
    """An ellipsoid of Gaussians; its proportions and colour tell the kind."""
    generator = torch.Generator().manual_seed(seed)
    sphere = functional.normalize(torch.randn(rows, 3, generator=generator), dim=-1)
    axes = torch.tensor([[1, 1, 1], [1, 0.2, 0.2], [1, 1, 0.2], [0.4, 1, 0.4]])[kind % 4]
    color = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.3, 0.9], [0.8, 0.8, 0.1]])[kind % 4]
    return Gaussians(
        means=sphere * axes * (0.4 + 0.1 * torch.rand(1, generator=generator)),
        quats_wxyz=torch.randn(rows, 4, generator=generator),
        log_scales=torch.full((rows, 3), -3.0) + 0.3 * torch.randn(rows, 3, generator=generator),
        opacity_logits=torch.full((rows,), 3.0),
        colors=(color + 0.1 * torch.randn(rows, 3, generator=generator)).clamp(0, 1),
    )


def make(
    config: Config, shards: int = 2, objects: int = 16, splits=("train",) * 6 + ("validation", "test")
) -> list[str]:
    """Writes shards, triplets and features under the configuration's output; the uids, in order."""
    uids = []
    for index in range(shards):
        uids += make_shard(config, f"{index:05d}", [f"s{index}o{i:03d}" for i in range(objects)], splits)
    return uids


def make_shard(config: Config, shard: str, uids: list[str], splits=("train",)) -> list[str]:
    """One shard; object i has rows 60 + i, kind i mod 4, and the split at i of `splits`, over and over."""
    output = config.output_path
    kinds = [i % KINDS for i in range(len(uids))]
    seeds = [hash_of(uid) for uid in uids]
    splats = {uid: splat(kind, seed, rows=60 + seed % 50) for uid, kind, seed in zip(uids, kinds, seeds, strict=True)}
    made = hand_over(output, shard, splats, {uid: [PICTURE] for uid in uids})
    inputs = made.inputs
    rows = zip(inputs["objects"], inputs["labels"], inputs["stages"]["caption"], strict=True)
    for i, (frozen, label, caption) in enumerate(rows):
        frozen["split"] = splits[i % len(splits)]
        label["category"] = f"kind {kinds[i]}"
        caption["caption"] = f"kind {kinds[i]} number {i}"
    made.pack()
    write_index(output)
    (output / "catalog" / "shards").mkdir(parents=True, exist_ok=True)
    (output / "catalog" / "shards" / f"{shard}.parquet").touch()
    centres = unit(KINDS, DIM, seed=0)[kinds]
    own = torch.stack([unit(DIM, seed=seed) for seed in seeds])
    texts = functional.normalize(centres + 0.3 * own, dim=-1)
    images = functional.normalize(texts[:, None] + 0.2 * unit(len(uids), PICTURES, DIM, seed=1), dim=-1)
    write_features(config, shard, uids, images.half(), texts.half())
    return uids


def write_features(config: Config, shard: str, uids: list[str], images, texts, **metadata: str) -> None:
    """Features as the teacher's stages write them."""
    scores = torch.einsum("nd,nvd->nv", texts.float(), images.float())
    about = {"uids": uids, "teacher": "small", "pretrained": "none", "weights_sha256": 64 * "0",
             "preprocess": PREPARED, "tokenizer": "numbers", "dim": str(texts.shape[1]), "images": "splats",
             **metadata}  # fmt: skip
    folder = config.output_path / "features" / config.teacher.slug
    for name, tensors in {"images": {"images": images}, "texts": {"texts": texts, "scores": scores}}.items():
        write_tensors(folder / name / f"{shard}.safetensors", {k: v.numpy() for k, v in tensors.items()}, about)


def hash_of(uid: str) -> int:
    return int(np.frombuffer(uid.encode().ljust(8)[:8], "<u4").sum() % 100_003)


def lines(config: Config, name: str = "metrics.jsonl") -> list[dict]:
    """The lines of a file of the run."""
    return [json.loads(line) for line in (run_path(config) / name).read_text().splitlines()]
