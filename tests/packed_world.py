"""A small output with packed triplets, and models of open_clip with weights at random."""

import json

import numpy as np
import open_clip
import torch

from clipgs import config as configuration
from clipgs.core.bundles import TarWriter, write_safetensors, write_table
from clipgs.core.runner import stage_schema
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import to_webp
from clipgs.splats.ply import to_bytes
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


def picture(seed: int) -> np.ndarray:
    """A picture with large patches of colour, as [PIXELS, PIXELS, 3] uint8."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.kron(colours, np.ones((PIXELS // 4, PIXELS // 4, 1), np.uint8))


def save_model(folder, architecture=TINY, seed=0):
    """A folder that open_clip loads as `local-dir:`, with weights at random."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        writes = "multimodal_cfg" in architecture
        model = open_clip.CoCa(**architecture) if writes else open_clip.CLIP(**architecture)
        if writes:  # open_clip leaves what makes words of its output as the memory was
            torch.nn.init.normal_(model.text_decoder.text_projection, std=architecture["text_cfg"]["width"] ** -0.5)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_safetensors(folder / "open_clip_model.safetensors", weights, {})
    described = {**architecture, "custom_text": True} if writes else architecture
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": {}}))
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
        for folder in ("splats", "renders"):
            (self.output / folder).mkdir(parents=True, exist_ok=True)
        with TarWriter(self.output / "renders" / f"{shard}.tar") as tar:
            for uid, files in seen.items():
                for view, data in enumerate(files):
                    tar.add(f"{uid}/{view:02d}.webp", data)
        write_table(self.output / "renders" / f"{shard}.parquet", [{"uid": uid, **OK} for uid in uids], stage_schema())
        with TarWriter(self.output / "splats" / f"{shard}.tar") as tar:
            for uid in uids:
                tensors = [torch.zeros(2, width) for width in (3, 4, 3)]
                tar.add(f"{uid}.ply", to_bytes(Gaussians(*tensors, torch.ones(2), torch.zeros(2, 3))))
        quality = dict.fromkeys(("psnr", "psnr_foreground", "ssim", "alpha_iou"), 30.0) | {"gaussians": 2}
        rows = {
            "fit": [{"uid": uid, **OK, **quality} for uid in uids],
            "render": [{"uid": uid, **OK} for uid in uids],
            "caption": [
                {"uid": uid, **OK, "caption": text, "source": "catalog text"}
                if text is not None
                else {"uid": uid, "status": "failed", "error": "no text"}
                for uid, text in captions.items()
            ],
        }
        objects = [
            {"uid": uid, "group": uid, "split": "test" if uid.startswith("test") else "train", "source": "folder",
             "sha256": 64 * "a", "note": None} for uid in uids
        ]  # fmt: skip
        viewmats = np.tile(np.eye(4, dtype=np.float32), (VIEWS, 1, 1))
        pack_shard(
            self.output / "triplets" / f"{shard}.tar",
            self.output / "triplets" / f"{shard}.parquet",
            shard=shard,
            objects=objects,
            labels=[{"uid": uid} for uid in uids],
            stages=rows,
            splats=self.output / "splats" / f"{shard}.tar",
            renders=self.output / "renders" / f"{shard}.tar",
            mesh_to_splat=dict.fromkeys(uids, MeshToSplat([0.0, 0.0, 0.0], 1.0)),
            cameras=Cameras(viewmats, np.tile(np.eye(3, dtype=np.float32), (VIEWS, 1, 1)), PIXELS),
        )
        tables = sorted((self.output / "triplets").glob("[0-9]*.parquet"))
        merge_index(tables, self.output / "triplets" / "index.parquet")
