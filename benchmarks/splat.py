"""How long `clipgs splat` takes from the shell's prompt to the file, and at what quality, with the default preset.

    python benchmarks/splat.py              # the first five meshes of core/: each by a command of its own, then all
    python benchmarks/splat.py --files 69   # all

The first command of all compiles kernels and is told apart. Seconds are those of the wall clock; beside them stand the
CPU seconds of the command, which say more on a machine that others use. Writes benchmarks/results/splat.json.
"""

import argparse
import logging
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import SHARED, gpus, record

SECONDS = {"cpu": 60.0, "gpu": 8.0}  # at most, of each mesh alone
PSNR = 33.0  # dB at least, of each mesh
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "core", help="folder of meshes")
    parser.add_argument("--files", type=int, default=5, help="the first so many by name (default: 5)")
    parser.add_argument("--preset", choices=("demo", "quick", "fast", "paper"), help="default: the command's own")
    parser.add_argument("--output", type=Path, help="of the JSON (default: benchmarks/results/splat.json)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = sorted(arguments.data.glob("*.glb"))[: arguments.files]
    preset = ["--preset", arguments.preset] if arguments.preset else []
    device = "gpu" if gpus("name") else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        first = timed([files[0]], ["-o", f"{folder}/first.ply", *preset])
        rows = [{"file": file.name, **timed([file], ["-o", f"{folder}/{file.stem}.ply", *preset])} for file in files]
        together = timed(files, ["-o", f"{folder}/together", *preset])
    seconds, psnr = [row["seconds"] for row in rows], [value for row in rows for value in row["psnr"]]
    results = {
        "device": device,
        "first": first,
        "alone": rows,
        "together": together,
        "seconds": {"median": statistics.median(seconds), "most": max(seconds)},
        "psnr": {"mean": statistics.fmean(psnr), "least": min(psnr)},
    }
    bars = {"seconds": SECONDS[device], "psnr": PSNR}
    record("splat", {"preset": arguments.preset, "files": len(files), "bars": bars}, results, arguments.output)
    for row in rows:
        tell(row["file"], row)
    tell("the first command of all", first)
    tell(f"{len(files)} at once", together)
    return 0 if max(seconds) <= SECONDS[device] and min(psnr) >= PSNR else 1


def timed(files: list[Path], options: list[str]) -> dict[str, Any]:
    """One command: seconds of the wall clock, CPU seconds of it and its processes, and the PSNR of each mesh."""
    before, begin = used(), time.perf_counter()
    command = [sys.executable, "-m", "clipgs", "splat", *map(str, files), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, after = time.perf_counter() - begin, used()
    psnr = [float(value) for value in re.findall(r": ([\d.]+) dB", done.stdout)]
    return {"seconds": seconds, "cpu_seconds": after - before, "psnr": psnr}


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tell(what: str, row: dict[str, Any]) -> None:
    values = ", ".join(f"{value:.1f}" for value in row["psnr"])
    _log.info("%s: %.1f s, %.1f s of CPU, %s dB", what, row["seconds"], row["cpu_seconds"], values)


if __name__ == "__main__":
    sys.exit(main())
