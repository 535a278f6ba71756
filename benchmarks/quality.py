"""Held-out quality of real objects, mesh to splat through the workflow.

    python benchmarks/quality.py                      # the first 8 objects of core by uid, on the CPU

Writes benchmarks/results/quality.json and, beside the run's own files, a contact sheet.
"""

import argparse
import csv
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from record import SHARED, make, record

from clipgs.core.bundles import read_table

BAR_DB = 35.0  # the mean over the first 8 objects of core at 128 px, 10,000 Gaussians, 5,000 steps
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8, help="the first so many by uid")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--gaussians", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="keep the run's files there (default: a temporary folder)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        return _run(arguments, arguments.output or Path(temporary))


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    settings: dict[str, Any] = {
        "device": arguments.device,
        "views": {"pixels": arguments.pixels},
        "fit": {"gaussians": arguments.gaussians, "steps": arguments.steps},
        "render": {"pixels": arguments.pixels},
    }
    objects, seconds = make_triplets(SHARED / "data" / "core", arguments.objects, settings, folder)
    names = {row["uid"]: Path(row["file"]).stem for row in objects}
    rows = read_table(folder / "results" / "triplets" / "00000.parquet")
    done = [row for row in rows if row["status"] == "ok"]
    table = [
        {
            "object": names[row["uid"]],
            **{key: row[key] for key in ("uid", "psnr", "psnr_foreground", "ssim", "alpha_iou")},
        }
        for row in done
    ]
    for row in table:
        _log.info("%-45s %5.2f dB  foreground %5.2f dB  SSIM %.4f", row["object"][:45], row["psnr"],
                  row["psnr_foreground"], row["ssim"])  # fmt: skip
    mean = statistics.fmean(row["psnr"] for row in table)
    _log.info("mean %.2f dB over %d objects (bar %.1f), %.0f s in all", mean, len(table), BAR_DB, seconds)
    results = {
        "mean_psnr": mean,
        "bar_psnr": BAR_DB,
        "seconds_mesh_to_triplets": seconds,
        "failed": {names[row["uid"]]: row["error"] for row in rows if row["status"] != "ok"},
        "objects": table,
    }
    record("quality", {"objects": arguments.objects, **settings}, results)
    return 0 if mean >= BAR_DB and len(table) == arguments.objects else 1


def make_triplets(data: Path, count: int, settings: dict[str, Any], folder: Path) -> tuple[list[dict[str, str]], float]:
    """Runs the workflow over the first objects by uid of a folder with a manifest.csv, in `folder`/results.

    Returns the manifest's rows, and the seconds that it took.
    """
    with open(data / "manifest.csv", newline="") as file:
        objects = sorted(csv.DictReader(file), key=lambda row: row["uid"])[:count]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(objects[0]))
        writer.writeheader()
        writer.writerows(objects)
    catalog = {"source": "folder", "folder": {"path": str(data), "manifest": str(folder / "manifest.csv")}}
    catalog |= settings.get("catalog", {})
    places = {"output": str(folder / "results"), "catalog": catalog}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | places))
    start = time.monotonic()
    make(folder, "triplets")
    return objects, time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
