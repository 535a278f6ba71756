"""What a catalog of the paper's size costs: planning, freezing, appending, and Snakemake over a finished output.

    python benchmarks/workflow.py --objects 240000

Writes synthetic annotations in Objaverse's layout (48 files of 5,000 objects, of the real ones' keys and size), and
runs each step in a process of its own, whose time and peak memory are taken. Nothing is downloaded, no mesh is made:
the finished output is one of empty files, which Snakemake is told to take for made (--touch).
Writes benchmarks/results/workflow.json.
"""

import argparse
import gzip
import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record, snakemake

_log = logging.getLogger(__name__)
PER_FILE = 5_000
LVIS_EVERY = 17  # of 798,759 objects 47,000
BARS = {
    "first_plan": {"seconds": 60, "mb": 2000},
    "unchanged_plan": {"seconds": 1},
    "appended_plan": {"seconds": 5},
    "dry_run": {"seconds": 20, "mb": 500},
    "no_op_run": {"seconds": 15},
    "parsing": {"seconds_over_an_empty_snakefile": 0.5},
}
SHARD_STAGES = ("label", "fetch", "sample", "view", "fit", "render", "caption", "pack")
PLAN = """
import sys, time
from clipgs import config
from clipgs.catalog.shards import plan
start = time.perf_counter()
made = plan(config.read(sys.argv[1]))
print(len(made.frozen), len(made.pending), time.perf_counter() - start)
"""
LABEL = """
import sys
from clipgs import config
from clipgs.catalog.shards import plan
from clipgs.catalog.stages import label
settings = config.read(sys.argv[1])
for shard in plan(settings).shards:
    label(settings, shard, 1)
"""


def annotation(uid: str, dice: random.Random) -> dict[str, Any]:
    """About 4 KB of JSON, as a real entry with its thumbnails and tags."""
    faces = int(10 ** dice.uniform(1, 6))
    address = f"https://media.sketchfab.com/models/{uid}/thumbnails/"
    sizes = [(1920, 1080), (1024, 576), (720, 405), (256, 144), (64, 36)]
    images = [
        {"uid": f"{uid[:24]}{n:08x}", "size": n * 1009, "width": w, "url": f"{address}{uid}/{w}x{h}.jpeg", "height": h}
        for n, (w, h) in enumerate(sizes * 2)
    ]
    tags = [
        {"name": f"tag{n}", "slug": f"tag{n}", "uri": f"https://api.sketchfab.com/v3/tags/tag{n}"} for n in range(8)
    ]
    archives = {
        kind: {"faceCount": faces, "textureCount": dice.randrange(6), "size": faces * 40, "type": kind,
               "textureMaxResolution": 2048, "vertexCount": faces // 2}
        for kind in ("glb", "gltf", "usdz", "source")
    }  # fmt: skip
    return {
        "uri": f"https://api.sketchfab.com/v3/models/{uid}",
        "uid": uid,
        "name": f"Object {uid[:6]} of many",
        "staffpickedAt": None,
        "viewCount": dice.randrange(10_000),
        "likeCount": dice.randrange(300),
        "animationCount": int(dice.random() < 0.08),
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
        "embedUrl": f"https://sketchfab.com/models/{uid}/embed",
        "isDownloadable": True,
        "publishedAt": "2021-03-04T05:06:07.891011",
        "tags": tags,
        "categories": [{"name": "furniture-home"}],
        "thumbnails": {"images": images},
        "user": {"uid": uid[::-1], "username": f"user{uid[:3]}", "displayName": f"User {uid[:3]}", "account": "basic"},
        "description": "A description of some length that nobody reads. " * 6,
        "faceCount": faces,
        "vertexCount": faces // 2,
        "isAgeRestricted": False,
        "archives": archives,
        "license": dice.choices(["by", "by-nc", "by-nc-sa", "by-sa", "cc0"], [721, 25, 52, 16, 3.5])[0],
    }


def write_annotations(root: Path, first: int, last: int) -> None:
    """Writes or completes the tree so that it holds the objects before `last`; files before `first` are whole."""
    uids = [hashlib.md5(str(index).encode(), usedforsecurity=False).hexdigest() for index in range(last)]
    folders = [f"000-{index // PER_FILE:03d}" for index in range(last)]
    (root / "metadata").mkdir(parents=True, exist_ok=True)

    def write(name: str, value: Any) -> None:
        with gzip.open(root / f"{name}.json.gz", "wb", compresslevel=1) as file:
            file.write(json.dumps(value).encode())

    for start in range(first // PER_FILE * PER_FILE, last, PER_FILE):
        dice = random.Random(start)
        write(f"metadata/{folders[start]}", {uid: annotation(uid, dice) for uid in uids[start : start + PER_FILE]})
    write("object-paths", {uid: f"glbs/{folder}/{uid}.glb" for uid, folder in zip(uids, folders, strict=True)})
    lvis: dict[str, list[str]] = {}
    for index, uid in enumerate(uids[:last:LVIS_EVERY]):  # objects that are appended change no other's category
        lvis.setdefault(f"category_{index % 1156:04d}", []).append(uid)
    write("lvis-annotations", lvis)


def measured(command: list[str], folder: Path) -> dict[str, Any]:
    """Runs a command: its seconds, peak memory of the largest process in it, and output."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = process.stdout.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return {"seconds": round(seconds, 2), "mb": round(usage.ru_maxrss * 1024 / 1e6), "output": output}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[0-9]*.parquet")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=240_000)
    parser.add_argument("--appended", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, help="where everything is written (default: a temporary folder)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        results = run((arguments.folder or Path(temporary)).absolute(), arguments.objects, arguments.appended)
    record("workflow", {"objects": arguments.objects, "appended": arguments.appended}, results)
    return 0 if results["within_the_bars"] else 1


def run(folder: Path, objects: int, appended: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    catalog = {
        "source": "objaverse",
        "objaverse": {"root": str(folder / "package")},
        "curation": {"licenses": ["by", "by-sa", "by-nc", "by-nc-sa", "cc0"]},
    }
    settings = {"output": str(folder / "results"), "cache": str(folder / "cache"), "catalog": catalog}
    config.write_text(json.dumps(settings))  # JSON is YAML
    root = folder / "package" / "hf-objaverse-v1"
    write_annotations(root, 0, objects)
    results: dict[str, Any] = {"annotations_mb": round(sum(f.stat().st_size for f in root.rglob("*.gz")) / 1e6)}
    plan = [sys.executable, "-c", PLAN, str(config)]

    def step(name: str, command: list[str]) -> str:
        found = measured(command, folder)
        output = found.pop("output")
        results[name] = found
        _log.info("%s: %s %s", name, found, output.strip().splitlines()[-1] if output.strip() else "")
        return output

    def planned(name: str) -> list[int]:
        *counts, seconds = step(name, plan).split()[-3:]
        results[name]["plan_alone_seconds"] = round(float(seconds), 3)
        return [int(count) for count in counts]

    def freeze(name: str, first: int, count: int) -> None:
        shards = [f"{shard:05d}" for shard in range(first, first + count)]
        step(name, [sys.executable, "-m", "clipgs", "freeze", *shards, "--config", str(config)])

    _, pending = planned("first_plan")
    freeze("freeze", 0, pending)
    planned("plan_after_freezing")
    frozen, none = planned("unchanged_plan")
    before = digests(folder / "results" / "catalog" / "shards")
    workflow = [*snakemake(folder), "--configfile", str(config)]
    step("dry_run", [*workflow, "-n", "triplets", "--quiet", "all"])
    results["parsing"] = parsing(folder, workflow)
    finish(workflow, folder, config)
    said = step("no_op_run", [*workflow, "--cores", "2", "triplets"])
    results["no_op_run"]["nothing_to_do"] = "Nothing to be done" in said
    captions = folder / "captions.yaml"
    captions.write_text(json.dumps({"caption": {"max_characters": 200}}))
    said = step("changed_caption_plan", [*workflow, str(captions), "-n", "triplets", "--quiet", "rules"])
    results["changed_caption_plan"]["jobs"] = jobs(said)
    write_annotations(root, objects, objects + appended)
    _, new = planned("appended_plan")
    freeze("freeze_appended", frozen, new)
    after = digests(folder / "results" / "catalog" / "shards")
    unchanged = {name: after[name] for name in before} == before
    said = step("appended_dry_run", [*workflow, "-n", "triplets", "--quiet", "rules"])
    results["appended_dry_run"]["jobs"] = jobs(said)
    as_planned = {
        "changed_caption_plan": {"caption": frozen, "pack": frozen, "index": 1},
        "appended_dry_run": {**dict.fromkeys(SHARD_STAGES, new), "objects": 1, "index": 1},
    }
    results |= {"shards": frozen, "shards_unchanged": unchanged, "load_average": os.getloadavg(), "bars": BARS}
    within = all(results[name][unit] <= most for name, bar in BARS.items() for unit, most in bar.items())
    within = within and all(results[name]["jobs"] == planned for name, planned in as_planned.items())
    within = within and results["no_op_run"]["nothing_to_do"]
    results["within_the_bars"] = within and unchanged and none == 0 and new == -(-appended // 1024)
    return results


def finish(workflow: list[str], folder: Path, config: Path) -> None:
    """Makes every file that the workflow would, and lets Snakemake record them as made. Labels are those of the
    objects, because freezing reads them; all others are empty."""
    subprocess.run([sys.executable, "-c", LABEL, str(config)], check=True)
    said = subprocess.run([*workflow, "--summary", "triplets"], capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        if line.count("\t") == 5 and not line.startswith("output_file"):
            file = folder / line.split("\t")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    subprocess.run([*workflow, "--touch", "--forceall", "triplets"], capture_output=True, check=True)


def jobs(said: str) -> dict[str, int]:
    """Rule to its number of jobs, of a dry run's table."""
    found = re.findall(r"^(\w+) +(\d+)$", said.split("Job stats:")[-1], re.MULTILINE)
    return {rule: int(count) for rule, count in found if rule not in ("total", "triplets")}


def parsing(folder: Path, workflow: list[str]) -> dict[str, float]:
    """Seconds to list the rules of the workflow, over those of an empty one: the least of nine times each, by turns."""
    empty = folder / "Empty"
    empty.write_text("rule nothing:\n    shell: ''\n")
    small = folder / "small.yaml"
    small.write_text(json.dumps({"output": str(folder / "small"), "catalog": {"source": "procedural"}}))

    at = workflow.index("--snakefile") + 1
    nothing = [*workflow[:at], str(empty), *workflow[at + 1 :], "--list-rules"]
    whole = [*workflow, str(small), "--list-rules"]
    turns = [[measured(command, folder)["seconds"] for command in (whole, nothing)] for _ in range(9)]
    ours, empties = map(min, zip(*turns, strict=True))
    return {"seconds": ours, "seconds_over_an_empty_snakefile": round(ours - empties, 2)}


if __name__ == "__main__":
    sys.exit(main())
