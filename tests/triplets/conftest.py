from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipgs.core.bundles import write_table
from clipgs.core.runner import stage_schema
from clipgs.meshes.cameras import showing
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import to_webp
from clipgs.triplets.pack import Cameras, MeshToSplat
from tests.packed_world import VIEWS, Shard, hand_over, write_index

PIXELS = 32


def splat(rows: int, seed: int) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(rows, width, generator=generator) for width in (3, 4, 3)]
    return Gaussians(*tensors, torch.ones(rows), torch.rand(rows, 3, generator=generator))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)


def cameras() -> Cameras:
    viewmats = np.tile(np.eye(4, dtype=np.float32), (VIEWS, 1, 1))
    viewmats[:, :3, 3] = np.random.default_rng(0).normal(size=(VIEWS, 3))
    return Cameras(viewmats, np.tile(np.diag([40.0, 40.0, 1.0]).astype(np.float32), (VIEWS, 1, 1)), PIXELS)


def make_shard(folder: Path, name: str, uids: list[str]) -> Shard:
    """A shard of five small objects: three are whole, one failed in `fit`, one is a duplicate."""
    whole, tried = uids[:3], uids[:4]
    pictures = {uid: [to_webp(picture(10 * i + view), 90) for view in range(VIEWS)] for i, uid in enumerate(whole)}
    made = hand_over(folder, name, {uid: splat(5 + i, i) for i, uid in enumerate(whole)}, pictures)
    (frozen, *_), stages = made.inputs["objects"], made.inputs["stages"]
    objects = [
        frozen | {"uid": uid, "locator": f"in/{uid}.glb", "group": uid, "split": ("train", "test")[i % 2]}
        for i, uid in enumerate(uids)
    ]
    objects[4]["note"] = f"duplicate of {uids[0]}"
    stages["fetch"] += [stages["fetch"][0] | {"uid": uids[3]}]
    stages["fit"] += [{"uid": uids[3], "status": "failed", "error": "held-out PSNR is 12.3 dB, fit.min_psnr is 20 dB"}]
    stages["caption"] = [stages["caption"][0] | {"uid": uid, "caption": f"a mugé {i}"} for i, uid in enumerate(tried)]
    best = showing(cameras().viewmats)
    thumbnails = [{"uid": uid, "thumbnail": to_webp(picture(10 * i + best), 90)} for i, uid in enumerate(tried)]
    (folder / "views").mkdir(exist_ok=True)
    write_table(made.views, thumbnails, stage_schema({"thumbnail": pa.binary()}))
    terms = {"category": "mug", "license": "CC-BY-4.0"}
    made.inputs |= {
        "objects": objects,
        "labels": [
            {"uid": uid, **terms, "credit": f"A. Maker {i}", "page": f"https://example.org/{i}"}
            for i, uid in enumerate(uids)
        ],
        "mesh_to_splat": dict.fromkeys(tried, MeshToSplat([1.0, 2.0, 3.0], 0.5)),
        "cameras": cameras(),
    }
    return made


@pytest.fixture
def shard(tmp_path) -> Shard:
    return make_shard(tmp_path, "00000", ["b-mug", "a_mug", "c" * 64, "d", "e"])


@pytest.fixture
def packed(shard) -> list[Shard]:
    """Two packed shards with their index."""
    other = make_shard(shard.folder, "00001", ["f", "g", "h", "i", "j"])
    shards = [shard, other]
    for one in shards:
        one.pack()
    write_index(shard.folder)
    return shards
