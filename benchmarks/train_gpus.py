"""How training speeds up with GPUs: what `snakemake train` runs, on one, two and four of one machine.

    python benchmarks/train_gpus.py                     # on two GPUs, or on four; about eight minutes
    python benchmarks/train_gpus.py --device cpu        # two processes of a small encoder, to see that it runs

Each GPU takes a share of the same size, so the batch grows with them, and the losses are those of the whole batch. The
speed is the median over windows of 20 steps, after compilation: loading, gathering, both losses and the optimizer
included. Triplets and features are made for it: as many different objects as a shard holds, in several shards.
Writes benchmarks/results/train_gpus.json. Ends with 1 where a bar is missed.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from record import record
from torch.nn.functional import normalize

from clipgs.config import Config, check
from clipgs.core.bundles import TarWriter, write_table, write_tensors
from clipgs.splats.gaussians import Gaussians
from clipgs.stages import runtime_settings, stage_settings
from clipgs.training import distributed, runs
from clipgs.triplets.pack import digest, merge_index, schema

BARS = {2: 1.8, 4: 3.4}  # times the speed of one
DIM, PICTURES = 1024, 36
ON_CPU = {"size": "tiny", "gaussians": 512, "groups": 32, "group_size": 8, "refinement_width": 32}
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="base", help="of the encoder")
    parser.add_argument("--share", type=int, default=120, help="objects a GPU and step")
    parser.add_argument("--steps", type=int, default=160, help="of each run; the first 20 are left out")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--objects", type=int, default=256, help="a shard")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    counts = [count for count in (1, 2, 4) if count <= torch.cuda.device_count()]
    if arguments.device == "cuda" and len(counts) < 2:
        parser.error(f"it compares several GPUs with one, and torch sees {torch.cuda.device_count()}")
    encoder: dict[str, Any] = {"size": arguments.size, "patch_dropout": 0.0}
    if arguments.device == "cpu":
        counts, encoder = [1, 2], ON_CPU
        arguments.share, arguments.steps, arguments.shards, arguments.objects = 8, 60, 2, 32
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output": folder, "device": arguments.device, "encoder": encoder}
        _make(check(settings), arguments)
        rows: list[dict[str, Any]] = []
        for count in counts:
            row = _timed(settings, count, arguments)
            row["times_one"] = row["samples_per_second"] / (rows or [row])[0]["samples_per_second"]
            _log.info("%(processes)d: %(samples_per_second).0f samples a second, %(times_one).2f times one", row)
            rows.append(row)
            if arguments.device == "cuda":
                record("train_gpus", {"encoder": encoder, "share": arguments.share, "bars": BARS}, {"rows": rows})
    if arguments.device == "cpu":
        return 0
    return 0 if all(row["times_one"] >= BARS.get(row["processes"], 0) for row in rows) else 1


def _timed(settings: dict[str, Any], processes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    batch = arguments.share * processes
    epochs = -(-arguments.steps // (arguments.shards * arguments.objects // batch))
    training = {"run": f"on{processes}", "batch": batch, "micro_batch": arguments.share, "epochs": epochs}
    workers = {"checkpoint_steps": 1_000_000, "gpus": processes}
    config = check({**settings, "training": training, "workers": workers})
    start = time.perf_counter()
    if config.device == "cpu":
        distributed.launch(config, processes)
    else:
        command = [sys.executable, "-m", "clipgs", "train", "--settings", stage_settings(config, "train")]
        subprocess.run(command, check=True, env={**os.environ, "CLIPGS_RUNTIME": runtime_settings(config)})
    seconds = time.perf_counter() - start
    lines = (runs.run_path(config) / "speed.jsonl").read_text().splitlines()
    windows = [json.loads(line) for line in lines][1:]  # the first compiles
    steady = windows[:-1]  # the last writes the states
    middle = {key: statistics.median(window[key] for window in steady) for key in windows[0] if key != "step"}
    return {"processes": processes, "batch": batch, **middle, "windows": windows, "seconds": seconds}


def _make(config: Config, arguments: argparse.Namespace) -> None:
    """Triplets and features as the workflow leaves them; splats are boxes of random Gaussians."""
    output, N = config.output_path, config.encoder.gaussians
    features = output / "features" / config.teacher.slug
    for folder in ("triplets", "catalog/shards"):
        (output / folder).mkdir(parents=True)
    files = []
    for _ in range(arguments.objects):
        means = (torch.rand(N, 3) - 0.5) * torch.rand(3).clamp(0.1)
        parts = (means, torch.randn(N, 4), torch.randn(N, 3) / 2 - 4.5, torch.randn(N) * 2 + 2, torch.rand(N, 3))
        files.append(Gaussians(*parts).to_ply())
    for index in range(arguments.shards):
        shard = f"{index:05d}"
        (output / "catalog" / "shards" / f"{shard}.parquet").touch()
        rows: list[dict[str, Any]] = []
        offset = 0
        with TarWriter(output / "triplets" / f"{shard}.tar") as tar:
            for number, data in enumerate(files):
                uid = f"s{shard}o{number:05d}"
                tar.add(f"{uid}.ply", data)
                size = 512 + -(-len(data) // 512) * 512
                rows.append({"uid": uid, "shard": shard, "status": "ok", "split": "train", "caption": uid,
                             "offset": offset, "bytes": size, "sha256": digest([(f"{uid}.ply", data)])})  # fmt: skip
                offset += size
        write_table(output / "triplets" / f"{shard}.parquet", rows, schema())
        texts = normalize(torch.randn(len(rows), DIM), dim=1)
        images = normalize(texts[:, None] + torch.randn(len(rows), PICTURES, DIM) / 32, dim=2)
        about = {"uids": [row["uid"] for row in rows], "teacher": "none", "pretrained": "none",
                 "weights_sha256": 64 * "0", "dim": str(DIM), "images": "splats"}  # fmt: skip
        scores = torch.einsum("nd,nvd->nv", texts, images)
        write_tensors(features / "images" / f"{shard}.safetensors", {"images": images.half().numpy()}, about)
        write_tensors(
            features / "texts" / f"{shard}.safetensors",
            {"texts": texts.half().numpy(), "scores": scores.numpy()},
            about,
        )
    merge_index(sorted((output / "triplets").glob("[0-9]*.parquet")), output / "triplets" / "index.parquet")


if __name__ == "__main__":
    sys.exit(main())
