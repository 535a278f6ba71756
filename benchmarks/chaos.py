"""Kills, full disks and cut files over a whole run, and whether its results are those of an undisturbed one.

    python benchmarks/chaos.py --disturbances 30

One run over built-in objects is left alone. Another is disturbed again and again, at random moments, and started again
each time: one of its processes is killed, or all of them at once (a power cut); its disk is filled; a file that it made
is cut short. When a run ends well before all disturbances are done, its bytes are compared, its output is removed, and
it begins anew. Writes benchmarks/results/chaos.json. A small disk of its own needs root; without it none is filled.
"""

import argparse
import hashlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from record import CHECKOUT, record

from clipgs.config import merge
from clipgs.core.files import sidecar

sys.path.append(str(CHECKOUT))  # for the tests
from tests.workflow.conftest import SETTINGS, Workspace

_log = logging.getLogger(__name__)
OVERLAY: dict[str, Any] = {  # over the settings of the tests
    "output": "disk/results",
    "cache": "disk/cache",
    "catalog": {"source": "procedural", "shard_objects": 3, "validation_fraction": 0.2, "test_fraction": 0.0},
    "fit": {"min_psnr": 1.0},
    "teacher": {"name": "train", "small": {"steps": 6, "batch": 4}},
    "encoder": {"size": "tiny", "gaussians": 96, "groups": 8, "group_size": 8, "refinement_width": 16},
    "training": {"epochs": 12, "batch": 4, "views": 2},
    "workers": {"checkpoint_steps": 2},
}
COMPARED = ("triplets/*", "features/*/*/*", "runs/*/metrics.jsonl", "runs/*/model.safetensors")
DISK_MB = 640  # a tiny encoder, its states and the small teacher take 300
RUN_SECONDS = 900  # of a run that hangs


class Disturbed(Workspace):
    """A folder in which Snakemake runs, on a disk of its own where that can be had."""

    def __init__(self, folder: Path, objects: int, target: str) -> None:
        super().__init__(folder, CHECKOUT)
        self.target = target
        (folder / "disk").mkdir(parents=True)
        self.write_config(merge(SETTINGS, OVERLAY, {"catalog": {"procedural": {"objects": objects}}}))

    @property
    def output(self) -> Path:
        return self.folder / "disk" / "results"

    def start(self, *arguments: str) -> subprocess.Popen:
        command = self.command("--cores", "2", self.target, *arguments)
        log = open(self.folder / "run.log", "ab")  # noqa: SIM115 (the child's)
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def clipgs(self, *arguments: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "clipgs", *arguments], cwd=self.folder, capture_output=True, check=False
        ).returncode

    def unlock(self) -> None:
        self.start("--unlock").wait()

    def digests(self) -> dict[str, str]:
        return {
            str(file.relative_to(self.output)): hashlib.sha256(file.read_bytes()).hexdigest()
            for pattern in COMPARED
            for file in sorted(self.output.glob(pattern))
        }

    def clear(self) -> None:
        for folder in (self.output, self.folder / "disk" / "cache", self.folder / ".snakemake"):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system in memory, small enough to be filled; yields whether there is one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=False)


def processes(run: subprocess.Popen) -> list[psutil.Process]:
    """The run and all that it started."""
    with suppress(psutil.NoSuchProcess):
        main = psutil.Process(run.pid)
        return [main, *main.children(recursive=True)]
    return []


def stage_of(found: list[psutil.Process]) -> str:
    """Which commands are at work."""
    stages = set()
    for process in found:
        with suppress(psutil.Error):
            words = process.cmdline()
            stages |= {words[i + 1] for i, word in enumerate(words[:-1]) if word.endswith("/clipgs")}
    return " ".join(sorted(stages)) or "planning"


def wait(run: subprocess.Popen) -> int:
    """How the run ended; whatever it left behind ends with it."""
    try:
        code = run.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        code = 124
    with suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return code


def kill_one(run: subprocess.Popen, dice: random.Random, workspace: Disturbed) -> str:
    victim = dice.choice(processes(run))
    name = "snakemake" if victim.pid == run.pid else "a process below it"
    with suppress(psutil.NoSuchProcess):
        victim.kill()
    return name


def kill_all(run: subprocess.Popen, dice: random.Random, workspace: Disturbed) -> str:
    os.killpg(run.pid, signal.SIGKILL)
    return "all processes at once"


def fill_disk(run: subprocess.Popen, dice: random.Random, workspace: Disturbed) -> str:
    filler = workspace.folder / "disk" / "filler"
    with open(filler, "wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    code = wait(run)
    filler.unlink()
    return f"the run ended with {code}"


def cut_file(run: subprocess.Popen, dice: random.Random, workspace: Disturbed) -> str:
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kinds = (".tar", ".parquet", ".npz", ".csv", ".json", ".safetensors")
    files = sorted(f for f in workspace.output.rglob("*") if f.suffix in kinds and f.stat().st_size > 1)
    files = [f for f in files if sidecar(f).exists()]
    if not files:
        return "there was none yet"
    file = dice.choice(files)
    times = file.stat()
    os.truncate(file, dice.randrange(1, file.stat().st_size))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk that lost blocks: nothing else tells
    return str(file.relative_to(workspace.output))


KINDS = {"kill one": kill_one, "kill all": kill_all, "fill the disk": fill_disk, "cut a file": cut_file}
WEIGHTS = {"kill one": 12, "kill all": 8, "fill the disk": 5, "cut a file": 5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=30)
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="train")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        results = run(Path(temporary), arguments)
    settings = {key: getattr(arguments, key) for key in ("disturbances", "objects", "seed", "target")}
    record("chaos", settings, results)
    return 0 if results["same_bytes"] else 1


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    dice = random.Random(arguments.seed)
    undisturbed = Disturbed(folder / "undisturbed", arguments.objects, arguments.target)
    start = time.monotonic()
    if wait(undisturbed.start()):
        raise SystemExit((undisturbed.folder / "run.log").read_text()[-3000:])
    seconds = time.monotonic() - start
    expected = undisturbed.digests()
    _log.info("undisturbed: %.0f s, %d files", seconds, len(expected))

    workspace = Disturbed(folder / "disturbed", arguments.objects, arguments.target)
    table: list[dict[str, Any]] = []
    rounds = runs = 0
    same = True
    with small_disk(workspace.folder / "disk") as has_disk:
        kinds = dice.choices([*WEIGHTS], [*WEIGHTS.values()], k=arguments.disturbances)
        kinds = [kind if has_disk or kind != "fill the disk" else "kill all" for kind in kinds]
        while kinds or rounds == 0 or workspace.output.exists():
            runs += 1
            process = workspace.start()
            # Moments lie as close together as lets about ten of them fall into one round.
            moment = dice.uniform(0, seconds / 3)
            began = time.monotonic()
            while process.poll() is None and (not kinds or time.monotonic() - began < moment):
                time.sleep(0.01)
            if process.poll() is None:
                kind = kinds.pop(0)
                at_work = stage_of(processes(process))
                what = KINDS[kind](process, dice, workspace)
                code = wait(process)
                table.append({"kind": kind, "after_seconds": round(time.monotonic() - began, 1), "during": at_work,
                              "what": what, "exit_code": code})  # fmt: skip
                _log.info("%d %s", len(table), table[-1])
                workspace.unlock()
                continue
            code = wait(process)
            if code:  # what a disturbance left was found, and set aside or named: once more
                ended = table[-1].setdefault("next_runs_ended_with", [])
                ended.append(code)
                if len(ended) > 3:
                    raise SystemExit((workspace.folder / "run.log").read_text()[-5000:])
                continue
            # A file that nobody read since it was cut is found by this, as docs/cluster.md says.
            if workspace.clipgs("verify", "--set-aside"):
                continue
            rounds += 1
            found = workspace.digests()
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            same = same and not differing
            leftovers = [str(f) for f in workspace.output.rglob("*.part")]
            kept = workspace.output / "work" / "train"  # the objects as training maps them into memory
            leftovers += [str(f) for f in (workspace.output / "work").rglob("*") if f.is_file() and f.parent != kept]
            _log.info("round %d: %s%s", rounds, differing or "the same bytes", leftovers or "")
            if differing:
                break
            workspace.clear()
    counts = Counter(row["kind"] for row in table)
    return {
        "undisturbed_seconds": round(seconds, 1),
        "files_compared": len(expected),
        "disturbances": dict(counts),
        "runs": runs,
        "rounds": rounds,
        "same_bytes": same and rounds > 0,
        "table": table,
    }


if __name__ == "__main__":
    sys.exit(main())
