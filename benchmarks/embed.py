"""How near embedding pictures comes to the teacher's own bare forward pass, reading and decoding included.

    python benchmarks/embed.py                      # EVA02-E-14-plus, bfloat16, one GPU: under three minutes
    python benchmarks/embed.py --smoke              # the same way with a small model on the CPU, to see that it runs

Makes a shard of WebP pictures itself, and the model with weights at random. The stage `embed_images` runs as in the
workflow: it reads and hashes the tar, decodes in worker processes, encodes, keeps its journal and writes the file.
Before and after, the bare model encodes random tensors that lie on the GPU; the better of the two is the measure.
Writes benchmarks/results/embed.json. Ends with 1 where the stage has less than 90 % of it.
"""

import argparse
import logging
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from clipgs.config import check
from clipgs.core.bundles import TarWriter, read_tar, write_table
from clipgs.core.processes import usable_cores
from clipgs.core.runner import stage_schema
from clipgs.splats.pictures import from_image, to_webp
from clipgs.stages import path

BAR = 0.9  # of the bare forward pass
VIEWS = 36
DISTINCT = 96  # pictures; each object shows others of them
_WARM_UP, _BARE_SECONDS = 3, 10.0
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EVA02-E-14-plus", help="of open_clip")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=252, help="pictures at once; 36 an object")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--smoke", action="store_true", help="the small teacher on the CPU, 6 objects")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.model, arguments.precision, arguments.objects, arguments.batch = "clipgs-small", "float32", 6, 72
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for speaker in (_log, logging.getLogger("clipgs")):
        speaker.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as temporary:
        return _run(arguments, Path(temporary))


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    # Not at the top: each worker process imports this file, and needs none of them.
    import torch

    from clipgs.teacher import features

    device = "cpu" if arguments.smoke else "cuda"
    settings = {"output": str(folder), "device": device, "views": {"count": VIEWS}, "teacher": {"name": "train"}}
    config = check(settings)
    start = time.monotonic()
    _make_shard(config, arguments.objects, arguments.pixels)
    _log.info("made %d pictures in %.0f s", arguments.objects * VIEWS, time.monotonic() - start)
    start = time.monotonic()
    teacher = _random_teacher(arguments, device)
    seconds_building = time.monotonic() - start
    parameters = sum(parameter.numel() for parameter in teacher.model.parameters())
    _log.info("built %s, %.2f G parameters, in %.0f s", arguments.model, parameters / 1e9, seconds_building)
    before = _bare(teacher, arguments.batch, 0.5 if arguments.smoke else _BARE_SECONDS)
    features.teachers.load = lambda config: teacher  # its weights are at random, and in no file
    if arguments.smoke:
        features.on_cpu = features.on_gpu
    start = time.monotonic()
    features.embed_images(config, "00000", arguments.threads)
    seconds = time.monotonic() - start
    after = _bare(teacher, arguments.batch, 0.5 if arguments.smoke else _BARE_SECONDS)
    bare, stage = max(before, after), arguments.objects * VIEWS / seconds
    results: dict[str, Any] = {
        "bare_pictures_a_second": {"before": before, "after": after},
        "stage_pictures_a_second": stage,
        "share_of_bare": stage / bare,
        "bar": BAR,
        "seconds_of_stage": seconds,
        "seconds_building_the_model": seconds_building,
        "parameters": parameters,
        "least_cosine_with_open_clip": _agreement(config, teacher),
        "gpu_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }
    _log.info("bare %.0f and %.0f pictures a second, the stage %.0f: %.1f %%; least cosine with open_clip's own %.5f",
              before, after, stage, 100 * stage / bare, results["least_cosine_with_open_clip"])  # fmt: skip
    if arguments.smoke:
        return 0
    names = ("model", "precision", "objects", "pixels", "batch", "threads")
    record("embed", {name: getattr(arguments, name) for name in names}, results)
    return 0 if stage >= BAR * bare else 1


def _make_shard(config: Any, objects: int, pixels: int) -> None:
    """`renders/00000.tar` with WebP pictures of something coloured in front of white, as large as real ones."""
    draw = np.random.default_rng(0)
    ys, xs = np.mgrid[:pixels, :pixels] / pixels - 0.5
    pictures = []
    for _ in range(DISTINCT):
        image = np.full((pixels, pixels, 3), 255.0)
        for _ in range(12):
            x, y, size = *draw.uniform(-0.25, 0.25, 2), draw.uniform(0.05, 0.2)
            stripes = 0.8 + 0.2 * np.sin(draw.uniform(20, 120) * (xs + draw.uniform(-1, 1) * ys))
            inside = (xs - x) ** 2 + (ys - y) ** 2 < size**2
            image[inside] = (draw.uniform(40, 255, 3) * stripes[..., None])[inside]
        pictures.append(to_webp(image.round().astype(np.uint8), 90))
    uids = [f"object-{index:05d}" for index in range(objects)]
    with TarWriter(path(config, "renders", "00000", ".tar")) as tar:
        for index, uid in enumerate(uids):
            for view in range(VIEWS):
                tar.add(f"{uid}/{view:02d}.webp", pictures[(7 * index + view) % DISTINCT])
    rows = [{"uid": uid, "status": "ok", "error": None} for uid in uids]
    write_table(path(config, "renders", "00000", ".parquet"), rows, stage_schema())


def _random_teacher(arguments: argparse.Namespace, device: str) -> Any:
    import open_clip
    import torch

    from clipgs.teacher.model import Teacher
    from clipgs.teacher.names import ARCHITECTURE
    from clipgs.teacher.tokenizers import small_tokenizer
    from clipgs.teacher.weights import Opened

    open_clip.add_model_config(ARCHITECTURE)
    low = arguments.precision == "bfloat16"
    called, dtype = ("bf16", torch.bfloat16) if low else ("fp32", torch.float32)
    with torch.device(device):
        model = open_clip.create_model(arguments.model, precision=called, device=device).eval().requires_grad_(False)
    own = arguments.model == ARCHITECTURE.stem
    tokenizer = small_tokenizer() if own else open_clip.get_tokenizer(arguments.model)
    opened = Opened(model, tokenizer, arguments.model, "random", "0" * 64, dtype, None, "")
    return Teacher(opened, batch=arguments.batch)


def _bare(teacher: Any, batch: int, least_seconds: float) -> float:
    """Pictures a second of the model alone, on tensors that lie where it computes."""
    import torch

    pictures = torch.randn(batch, 3, teacher.pixels, teacher.pixels, device=teacher.device).to(teacher.dtype)
    wait = torch.cuda.synchronize if teacher.device.type == "cuda" else (lambda: None)
    with torch.no_grad():
        for _ in range(_WARM_UP):
            teacher.model.encode_image(pictures)
        wait()
        done, start = 0, time.monotonic()
        while time.monotonic() - start < least_seconds:
            for _ in range(4):
                teacher.model.encode_image(pictures)
            wait()
            done += 4 * batch
    return done / (time.monotonic() - start)


def _agreement(config: Any, teacher: Any) -> float:
    """The least cosine between what the stage wrote and open_clip's own way, picture by picture, for 16 pictures."""
    import torch
    from open_clip.transform import image_transform_v2
    from PIL import Image

    from clipgs.teacher import features

    preprocess = image_transform_v2(teacher.preprocessing, is_train=False)
    _, images, _ = features.read_images(config, "00000")
    cosines = []
    members = islice(read_tar(path(config, "renders", "00000", ".tar")), 16)
    for (_, data), ours in zip(members, images.flatten(0, 1)[:16], strict=True):
        picture = preprocess(Image.fromarray(from_image(data)))[None].to(teacher.device, teacher.dtype)
        with torch.no_grad():
            theirs = teacher.model.encode_image(picture)[0].float().cpu()
        cosines.append(torch.nn.functional.cosine_similarity(ours.float(), theirs, dim=0).item())
    return min(cosines)


if __name__ == "__main__":
    sys.exit(main())
