"""Small outputs with packed triplets, and models of open_clip with weights at random."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch

from clipgs import config as configuration
from clipgs.catalog.records import frozen_schema
from clipgs.core.bundles import TarWriter, write_table, write_tensors
from clipgs.core.runner import stage_schema
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import to_webp
from clipgs.teacher.names import PREPROCESS
from clipgs.triplets.pack import Cameras, MeshToSplat, merge_index, pack_shard

VIEWS, PIXELS = 4, 48
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_COCA = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16,
                   "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                 "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                       "attn_pooler_heads": 2},
}  # fmt: skip
OK = {"status": "ok", "error": None}
QUALITY = {"psnr": 35.5, "psnr_foreground": 30.25, "ssim": 0.98, "alpha_iou": 0.99}


@dataclass
class Shard:
    """What the stages before packing hand over: the arguments of `pack_shard`, to be changed before `pack`."""

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


def hand_over(output: Path, name: str, splats: dict[str, Gaussians], pictures: dict[str, list[bytes]]) -> Shard:
    """Writes splats and renders of a shard, and says of each object that nothing failed: uid to splat, to pictures."""
    for folder in ("splats", "renders"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    with TarWriter(output / "splats" / f"{name}.tar") as tar:
        for uid, gaussians in splats.items():
            tar.add(f"{uid}.ply", gaussians.to_ply())
    with TarWriter(output / "renders" / f"{name}.tar") as tar:
        for uid, files in pictures.items():
            for view, data in enumerate(files):
                tar.add(f"{uid}/{view:02d}.webp", data)
    frozen = {"split": "train", "source": "folder", "sha256": 64 * "a", "note": None}
    stages = {
        "fetch": [{"uid": uid, **OK} for uid in splats],
        "fit": [{"uid": uid, **OK, **QUALITY, "gaussians": len(gaussians)} for uid, gaussians in splats.items()],
        "caption": [{"uid": uid, **OK, "caption": f"a {uid}", "source": "catalog text"} for uid in splats],
    }
    inputs = {
        "objects": [{"uid": uid, "locator": f"{uid}.glb", "group": uid, **frozen} for uid in splats],
        "labels": [{"uid": uid} for uid in splats],
        "stages": stages,
        "splats": output / "splats" / f"{name}.tar",
        "renders": output / "renders" / f"{name}.tar",
        "mesh_to_splat": dict.fromkeys(splats, MeshToSplat([0.0, 0.0, 0.0], 1.0)),
        "cameras": Cameras(*(np.tile(np.eye(n, dtype=np.float32), (VIEWS, 1, 1)) for n in (4, 3)), PIXELS),
    }
    return Shard(output, name, inputs)


def write_index(output: Path) -> None:
    """The index of all shards that are packed."""
    merge_index(sorted((output / "triplets").glob("[0-9]*.parquet")), output / "triplets" / "index.parquet")


def picture(seed: int) -> np.ndarray:
    """A picture with large patches of colour, as [PIXELS, PIXELS, 3] uint8."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.kron(colours, np.ones((PIXELS // 4, PIXELS // 4, 1), np.uint8))


def save_model(folder, architecture=TINY, seed=0, **preprocess):
    """A folder that open_clip loads as `local-dir:`, with weights at random."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        writes = "multimodal_cfg" in architecture
        model = open_clip.CoCa(**architecture) if writes else open_clip.CLIP(**architecture)
        if writes:  # open_clip leaves what makes words of its output as the memory was
            torch.nn.init.normal_(model.text_decoder.text_projection, std=architecture["text_cfg"]["width"] ** -0.5)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_tensors(folder / "open_clip_model.safetensors", weights)
    described = {**architecture, "custom_text": True} if writes else architecture
    about = {"model_cfg": described, "preprocess_cfg": {**PREPROCESS, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    return folder


class World:
    """An output whose triplets are packed."""

    def __init__(self, folder, tiny) -> None:
        self.folder = folder
        self.settings = {
            "output": str(folder / "results"),
            "device": "cpu",
            "views": {"count": VIEWS},
            "teacher": {"name": f"local-dir:{tiny}"},
        }

    @property
    def output(self):
        return self.folder / "results"

    def config(self, **more):
        return configuration.check(configuration.merge(self.settings, more))

    def add_shard(self, shard, captions, pictures=None):
        """Renders and packs one object a caption: uid to caption, None for an object that has none."""
        pictures = pictures or {}
        uids = sorted(captions)
        seen = {
            uid: pictures.get(uid) or [to_webp(picture(100 * i + v), 90) for v in range(VIEWS)]
            for i, uid in enumerate(uids)
        }
        tensors = [torch.zeros(2, width) for width in (3, 4, 3)]
        splats = dict.fromkeys(uids, Gaussians(*tensors, torch.ones(2), torch.zeros(2, 3)))
        made = hand_over(self.output, shard, splats, seen)
        write_table(self.output / "renders" / f"{shard}.parquet", [{"uid": uid, **OK} for uid in uids], stage_schema())
        for row in made.inputs["objects"]:
            row["split"] = "test" if row["uid"].startswith("test") else "train"
        for row in made.inputs["stages"]["caption"]:
            text = captions[row["uid"]]
            row |= {"caption": text} if text is not None else {"status": "failed", "error": "no text"}
        made.pack()
        frozen = self.output / "catalog" / "shards" / f"{shard}.parquet"
        if not frozen.exists():
            write_table(
                frozen, [{"uid": uid, "source": "folder", "locator": f"{uid}.glb"} for uid in uids], frozen_schema()
            )
        write_index(self.output)
