"""What every benchmark writes down beside its figures."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CLIPGS_SHARED") or CHECKOUT.parent / "shared")
PACKAGES = ("numpy", "numba", "torch", "gsplat", "moderngl", "pillow")


def snakemake(folder: Path) -> list[str]:
    """The command that runs the workflow in a folder, without its target."""
    snakefile = str(CHECKOUT / "Snakefile")
    return [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", str(folder)]


def make(folder: Path, target: str) -> None:
    """Runs the workflow over the config.yaml of a folder, to a good end."""
    subprocess.run([*snakemake(folder), "--cores", "all", "--quiet", "rules", "host", "--", target], check=True)


def record(name: str, settings: dict[str, Any], results: dict[str, Any], file: Path | None = None) -> Path:
    """Writes `benchmarks/results/NAME.json`: command, settings, commit, machine, versions, results."""
    place = file or CHECKOUT / "benchmarks" / "results" / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "settings": settings,
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **_versions()},
        "results": results,
    }
    place.write_text(json.dumps(facts, indent=1) + "\n")
    return place


def commit() -> str:
    """The commit that is checked out, marked where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """Processor, cores, and the GPUs where there are any."""
    facts: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}
    if found := gpus("name"):
        facts["gpu"] = found
    return facts


def gpus(query: str) -> str:
    """What the driver says of the GPUs, one a line; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
