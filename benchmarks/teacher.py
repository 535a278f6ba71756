"""Retrieval of the small teacher over objects that it never saw, image to text and text to image.

    python benchmarks/teacher.py                                   # 240 built-in objects, fitted small, on the CPU
    python benchmarks/teacher.py --triplets DIR --bar 20 --name teacher_labelled    # packed triplets that you have

Trained on the training split, judged on the test split: one picture against all captions, one caption against one
picture of each object, averaged over the views. An object of the same caption counts as right, in chance too.
Writes benchmarks/results/NAME.json. Ends with 1 where rank 1 is under the bar, as a multiple of chance.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from record import make, record

from clipgs.config import check
from clipgs.core.processes import usable_cores

BUILT_IN: dict[str, Any] = {
    "device": "cpu",
    "catalog": {
        "source": "procedural",
        "validation_fraction": 0.0,
        "test_fraction": 0.2,
        "procedural": {"objects": 240},
    },
    "points": {"count": 4000},
    "views": {"pixels": 96},
    "fit": {"gaussians": 2000, "steps": 300, "lr_factor": 3.0, "min_psnr": 10.0},
    "render": {"pixels": 96},
}
CPU_TRAINING = {"steps": 400, "batch": 64}  # minutes on two cores
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, metavar="DIR", help="folder with index.parquet and the shards' tars")
    parser.add_argument("--bar", type=float, default=5.0, help="least rank 1, times chance")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--steps", type=int, help="default: those of config.py; for the built-in objects 400")
    parser.add_argument("--batch", type=int, help="default: that of config.py; for the built-in objects 64")
    parser.add_argument("--name", default="teacher", help="of the file of results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for speaker in (_log, logging.getLogger("clipgs")):
        speaker.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as temporary:
        return _run(arguments, Path(temporary))


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    # Not at the top: each worker process imports this file, and needs none of them.
    import torch

    from clipgs.teacher import model as teacher
    from clipgs.training import small_teacher
    from clipgs.training.small_teacher import read_pictures
    from clipgs.triplets.dataset import TripletDataset

    triplets, made = arguments.triplets, None
    if triplets is None:
        start = time.monotonic()
        triplets = _built_in(folder)
        made = time.monotonic() - start
    small = {name: value for name in ("steps", "batch") if (value := getattr(arguments, name)) is not None}
    if arguments.triplets is None:
        small = {**CPU_TRAINING, **small}
    (folder / "output").mkdir()
    (folder / "output" / "triplets").symlink_to(triplets.resolve())
    settings = {
        "output": str(folder / "output"),
        "device": arguments.device,
        "teacher": {"name": "train", "small": small},
    }
    config = check(settings)
    start = time.monotonic()
    small_teacher.teacher(config, arguments.threads)
    seconds = time.monotonic() - start
    frozen = teacher.load(config)
    dataset = TripletDataset(triplets, "test")
    pictures, captions, _ = read_pictures(dataset, range(len(dataset)), frozen.pixels, arguments.threads)
    images = torch.stack([frozen.encode_images(views) for views in pictures])  # [n, V, D]
    texts = frozen.encode_texts(captions)  # [n, D]
    results = {
        **retrieval(images.cpu().numpy(), texts.cpu().numpy(), captions),
        "bar_times_chance": arguments.bar,
        "held_out_objects": len(captions),
        "held_out_captions": len(set(captions)),
        "trained_on_objects": len(TripletDataset(triplets, "train")),
        "parameters": sum(parameter.numel() for parameter in frozen.model.parameters()),
        "seconds_training": seconds,
        "seconds_data": made,
    }
    for name in ("image_to_text", "text_to_image"):
        _log.info("%s: rank 1 %.3f, %.1f times chance", name, results[name]["rank_1"], results[name]["times_chance"])
    _log.info("chance %.4f over %d objects, trained in %.0f s", results["chance"], len(captions), seconds)
    data = BUILT_IN if arguments.triplets is None else arguments.triplets.name
    record(arguments.name, {"data": data, "teacher": config.teacher.small.model_dump()}, results)
    worst = min(results[name]["times_chance"] for name in ("image_to_text", "text_to_image"))
    return 0 if worst >= arguments.bar else 1


def retrieval(images: np.ndarray, texts: np.ndarray, captions: list[str]) -> dict[str, Any]:
    """Rank 1 and rank 5 both ways, of single pictures and of the mean over the views of an object."""
    names = np.array(captions)
    counts = Counter(captions)
    chance = float(np.mean([counts[caption] for caption in captions])) / len(captions)
    single = [_ranks(images[:, view], texts, names) for view in range(images.shape[1])]
    mean = images.mean(1)
    results: dict[str, Any] = {"chance": chance}
    for way, name in enumerate(("image_to_text", "text_to_image")):
        one, five = np.mean([ranks[way] for ranks in single], axis=0)
        all_views = _ranks(mean / np.linalg.norm(mean, axis=-1, keepdims=True), texts, names)[way]
        results[name] = {
            "rank_1": float(one),
            "rank_5": float(five),
            "times_chance": float(one) / chance,
            "rank_1_mean_of_views": float(all_views[0]),
        }
    return results


def _ranks(images: np.ndarray, texts: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rank 1, rank 5) of pictures [n, D] against texts [n, D], and of texts against pictures."""
    similarities = images @ texts.T
    return tuple(
        np.array([np.mean([names[i] in names[row[:k]] for i, row in enumerate(np.argsort(-scores, axis=1))])
                  for k in (1, 5)])
        for scores in (similarities, similarities.T)
    )  # fmt: skip


def _built_in(folder: Path) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump({**BUILT_IN, "output": "made", "cache": "cache"}))
    make(folder, "triplets")
    return folder / "made" / "triplets"


if __name__ == "__main__":
    sys.exit(main())
