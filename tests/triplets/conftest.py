from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipgs.core.bundles import TarWriter, write_table
from clipgs.core.runner import stage_schema
from clipgs.meshes.cameras import showing
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import to_webp
from clipgs.triplets.pack import Cameras, MeshToSplat, merge_index, pack_shard

VIEWS, PIXELS = 4, 32


@dataclass
class Shard:
    """What the rooms before packing hand over."""

    folder: Path
    name: str
    inputs: dict

    @property
    def tar(self) -> Path:
        return self.folder / "triplets" / f"{self.name}.tar"

    @property
    def table(self) -> Path:
        return self.tar.with_suffix(".parquet")

    @property
    def views(self) -> Path:
        return self.folder / "views" / f"{self.name}.parquet"

    def pack(self) -> list[dict]:
        return pack_shard(self.tar, self.table, shard=self.name, **self.inputs)


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
    frozen = {"source": "folder", "sha256": 64 * "a", "note": None}
    objects = [{"uid": uid, "group": uid, "split": ("train", "test")[i % 2], **frozen} for i, uid in enumerate(uids)]
    objects[4]["note"] = f"duplicate of {uids[0]}"
    whole, tried = uids[:3], uids[:4]
    quality = {"psnr": 35.5, "psnr_foreground": 30.25, "ssim": 0.98, "alpha_iou": 0.99}
    ok = {"status": "ok", "error": None}
    fit = [{"uid": uid, "gaussians": 5 + i, **ok, **quality} for i, uid in enumerate(whole)]
    fit.append({"uid": uids[3], "status": "failed", "error": "held-out PSNR is 12.3 dB, fit.min_psnr is 20 dB"})
    caption = [{"uid": uid, **ok, "caption": f"a mugé {i}", "source": "catalog text"} for i, uid in enumerate(tried)]
    for kind in ("splats", "renders", "views"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    with TarWriter(folder / "splats" / f"{name}.tar") as tar:
        for i, uid in enumerate(whole):
            tar.add(f"{uid}.ply", splat(5 + i, i).to_ply())
    with TarWriter(folder / "renders" / f"{name}.tar") as tar:
        for i, uid in enumerate(whole):
            for view in range(VIEWS):
                tar.add(f"{uid}/{view:02d}.webp", to_webp(picture(10 * i + view), 90))
    best = showing(cameras().viewmats)
    thumbnails = [{"uid": uid, "thumbnail": to_webp(picture(10 * i + best), 90)} for i, uid in enumerate(tried)]
    write_table(folder / "views" / f"{name}.parquet", thumbnails, stage_schema({"thumbnail": pa.binary()}))
    terms = {"category": "mug", "license": "CC-BY-4.0"}
    labels = [
        {"uid": uid, **terms, "credit": f"A. Maker {i}", "page": f"https://example.org/{i}"}
        for i, uid in enumerate(uids)
    ]
    fetch = [{"uid": uid, **ok} for uid in tried]
    stages = {"fetch": fetch, "fit": fit, "caption": caption}
    inputs = {
        "objects": objects,
        "labels": labels,
        "stages": stages,
        "splats": folder / "splats" / f"{name}.tar",
        "renders": folder / "renders" / f"{name}.tar",
        "mesh_to_splat": dict.fromkeys(tried, MeshToSplat([1.0, 2.0, 3.0], 0.5)),
        "cameras": cameras(),
    }
    return Shard(folder, name, inputs)


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
    merge_index([one.table for one in shards], shard.tar.parent / "index.parquet")
    return shards
