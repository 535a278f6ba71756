"""How many objects an hour go from mesh to packed triplet, through the workflow, and what each stage does.

    python benchmarks/triplets.py                      # 1,000 objects; needs a CUDA GPU
    python benchmarks/triplets.py --objects 40 --shard 20 --device cpu --gaussians 2000 --recipe demo   # on a CPU

Writes benchmarks/results/triplets.json: the whole, and for each stage the seconds of its jobs and the objects an hour
that it would make alone.
"""

import argparse
import csv
import logging
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from quality import make_triplets
from record import SHARED, record

from clipgs.core.bundles import read_table

BAR = 8_000  # objects an hour, one H200 and 16 cores
STAGES = ("fetch", "sample", "view", "fit", "render", "caption", "pack")
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "labelled", help="folder with manifest.csv")
    parser.add_argument("--objects", type=int, default=1_000, help="the first so many by uid")
    parser.add_argument("--shard", type=int, default=250, help="objects a shard")
    parser.add_argument("--gaussians", type=int, default=16_000)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast", "demo"])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="of the JSON (default: benchmarks/results/triplets.json)")
    parser.add_argument("--keep", type=Path, help="keep the run's files there (default: a temporary folder)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        return _run(arguments, arguments.keep or Path(temporary))


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    settings: dict[str, Any] = {
        "recipe": arguments.recipe,
        "device": arguments.device,
        "catalog": {"shard_objects": arguments.shard},
        "views": {"pixels": arguments.pixels},
        "fit": {"gaussians": arguments.gaussians},
        "render": {"pixels": arguments.pixels},
    }
    objects, seconds = make_triplets(arguments.data, arguments.objects, settings, folder)
    output = folder / "results"
    rows = [row for table in sorted((output / "triplets").glob("0*.parquet")) for row in read_table(table)]
    done = [row for row in rows if row["status"] == "ok"]
    splats = [row for table in sorted((output / "splats").glob("*.parquet")) for row in read_table(table)]
    counts = [row["gaussians"] for row in splats if row["status"] == "ok"]
    results: dict[str, Any] = {
        "objects": len(objects),
        "triplets": len(done),
        "failed": {row["uid"]: row["error"] for row in rows if row["status"] != "ok"},
        "seconds": seconds,
        "objects_per_hour": 3600 * len(done) / seconds,
        "bar": BAR,
        "psnr": statistics.fmean(row["psnr"] for row in done),
        "gaussians": {"least": min(counts), "mean": statistics.fmean(counts), "most": max(counts)},
        "stages": {stage: _stage(output, stage, len(objects)) for stage in STAGES},
    }
    _log.info("%d of %d triplets in %.0f s: %.0f an hour (bar %d), %.2f dB",
              len(done), len(objects), seconds, results["objects_per_hour"], BAR, results["psnr"])  # fmt: skip
    for stage, facts in results["stages"].items():
        _log.info("%-8s %7.1f s in %d jobs, %8.0f objects an hour", stage, *facts.values())
    record("triplets", settings, results, arguments.output)
    return 0 if results["objects_per_hour"] >= BAR or arguments.device == "cpu" else 1


def _stage(output: Path, stage: str, objects: int) -> dict[str, float]:
    """From Snakemake's own benchmark files."""
    seconds = []
    for file in (output / "benchmarks" / stage).glob("*.tsv"):
        with open(file, newline="") as table:
            seconds += [float(row["s"]) for row in csv.DictReader(table, delimiter="\t")]
    return {"seconds": sum(seconds), "jobs": len(seconds), "objects_per_hour": 3600 * objects / sum(seconds)}


if __name__ == "__main__":
    sys.exit(main())
