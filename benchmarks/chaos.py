"""What goes wrong over months, in random order: does a rerun always end as if nothing had happened?

    python benchmarks/chaos.py --disturbances 60 --worlds 6

A world is an output over a folder of meshes with a manifest, three shards at first, with training. Between runs and
during them it is disturbed: meshes are replaced, removed, added and touched; rows of the manifest are broken and
mended; settings are changed and changed back; the teacher is replaced; objects are excluded; stages are retried or
forced. Runs are killed, in part or as a whole (a power cut), their disk is filled, and finished files are cut short.
After each disturbance the same command runs again, and nothing else. Before each run `clipgs status` is asked what it
will do.

At the end of a world these are compared:

- with a fresh run over the final sources: every object's files. Renderers may draw a pixel of a view differently by one
  level. Such objects are listed, and must be equal in the next comparison.
- with a run that starts from the frozen shards and is given the same views: every object's files, and whole tars of
  shards of which no object was replaced, removed or excluded.
- with a training from nothing on a copy of the output: features, curves, weights.

Several worlds run side by side and share the disturbances; every second one has a teacher in a folder instead of one
that is trained. Writes benchmarks/results/chaos.json. A small disk of its own needs root; without it none is filled.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from record import CHECKOUT, record

from clipgs import config as configuration
from clipgs.catalog.excluded import excluded, excluded_path
from clipgs.catalog.shards import frozen_shards, lost, shard_path
from clipgs.catalog.sources import procedural
from clipgs.config import Config, merge
from clipgs.core.bundles import read_table, read_tar
from clipgs.core.files import sidecar
from clipgs.core.processes import usable_cores
from clipgs.stages import OF_RULE, job

sys.path.append(str(CHECKOUT))  # for the tests
from tests.packed_world import save_model
from tests.workflow.conftest import SETTINGS, Workspace

_log = logging.getLogger(__name__)
OVERLAY: dict[str, Any] = {  # over the settings of the tests
    "output": "disk/results",
    "cache": "disk/cache",
    "catalog": {"shard_objects": 4},
    "fit": {"min_psnr": 1.0},
    "teacher": {"name": "train", "small": {"steps": 6, "batch": 4}},
    "encoder": {"size": "tiny", "gaussians": 96, "groups": 8, "group_size": 8, "refinement_width": 16},
    "training": {"epochs": 6, "batch": 4, "views": 2},
    "evaluation": {"split": "all", "resamples": 100, "few_shot_epochs": 5},
    "workers": {"checkpoint_steps": 2},
}
# A key of each stage: another value, and the rule that runs for it (none: it changes no result).
KEYS: dict[str, tuple[Any, str | None]] = {
    "meshes.max_file_mb": (200, "fetch"),
    "points.count": (500, "sample"),
    "views.held_out": (3, "view"),
    "fit.steps": (24, "fit"),
    "render.webp_quality": (80, "render"),
    "caption.max_characters": (30, "caption"),
    "pack.title": ("Another", "index"),
    "teacher.images": ("meshes", "embed_images"),
    "encoder.refinement_width": (24, "train"),
    "training.lr": (0.002, "train"),
    "evaluation.resamples": (200, "evaluate"),
    "workers.checkpoint_steps": (3, None),
}
SPLITS = ("train", "train", "train", "validation", "train", "test")
FEWEST = 8  # objects: a batch of the training split must be left
DISK_MB = 900
RUN_SECONDS = 1800  # of a run that hangs; on two cores a training beside two other runs takes 15 minutes
MOMENTS = (4, 25)  # seconds after its start, of a disturbance to a run
MOST_BAD_ENDS = 4  # of runs in a row that nothing disturbed
COLUMNS = ("file", "category", "text", "split")
TRAINED = ("teacher/*.safetensors", "teacher/inputs.json", "features/*/*/*.safetensors", "runs/*/inputs.json",
           "runs/*/metrics.jsonl", "runs/*/model.safetensors", "evaluation/*/*.json")  # fmt: skip
EVERYTHING = "every rule"


@dataclass
class Done:
    """What was done to a world: in words, rules that must run for it, and rules that must not."""

    what: str
    must: set[str]
    never: set[str]


def done(what: str, must: str = "", never: str = "") -> Done:
    return Done(what, set(must.split()), {EVERYTHING} if never == EVERYTHING else set(never.split()))


class World(Workspace):
    """A folder in which Snakemake runs: meshes, manifest, settings; the output on a disk of its own if that can be."""

    def __init__(self, folder: Path, target: str, cores: int) -> None:
        super().__init__(folder, CHECKOUT)
        self.target, self.cores = target, cores
        (folder / "disk").mkdir(parents=True, exist_ok=True)

    @property
    def output(self) -> Path:
        return self.folder / "disk" / "results"

    @property
    def meshes(self) -> Path:
        return self.folder / "meshes"

    @property
    def config(self) -> Config:
        """The configuration, with absolute paths of source and output."""
        source = {"path": str(self.meshes), "manifest": str(self.meshes / "manifest.csv")}
        absolute = {"output": str(self.output), "catalog": {"folder": source}}
        return configuration.check(merge(configuration.read_layers(self.folder / "config.yaml"), absolute))

    def start(self, *arguments: str, log: str = "run.log", target: str = "") -> subprocess.Popen:
        # With -p, the log has Snakemake's own text.
        command = self.command("-p", "--cores", str(self.cores), *arguments, "--", target or self.target)
        with open(self.folder / log, "wb") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def clipgs(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "clipgs", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def unlock(self) -> None:
        self.start("--unlock", log="unlock.log").wait()

    def text(self, log: str = "run.log") -> str:
        return (self.folder / log).read_text(errors="replace")

    # --- the sources ---

    def rows(self) -> list[dict[str, str]]:
        with open(self.meshes / "manifest.csv", newline="") as file:
            return list(csv.DictReader(file))

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        (self.meshes / "manifest.csv").write_text(text.getvalue())

    def sources_from(self, other: "World") -> None:
        """Another world's meshes, manifest, settings and teacher."""
        for name in ("meshes", "teacher"):
            if (other.folder / name).exists():
                shutil.copytree(other.folder / name, self.folder / name)
        shutil.copyfile(other.folder / "config.yaml", self.folder / "config.yaml")

    # --- what was made ---

    def objects(self, folder: str) -> dict[str, dict[str, bytes]]:
        """Uid to its files in the tars of a folder of the output, by name.

        Shard and group are left out: a fresh run freezes in another order, and a file that replaced another is in the
        group of the old one.
        """
        found: dict[str, dict[str, bytes]] = {}
        for tar in sorted((self.output / folder).glob("[0-9]*.tar")):
            for name, data in read_tar(tar):
                uid, member = re.split(r"[/.]", name, maxsplit=1)
                if member == "json" and folder == "triplets":
                    data = json.dumps(json.loads(data) | {"shard": None, "group": None}).encode()
                found.setdefault(uid, {})[member] = data
        return found

    def frozen(self) -> dict[str, str]:
        """Uid to shard."""
        shards = frozen_shards(self.config)
        return {row["uid"]: shard for shard in shards for row in read_table(shard_path(self.config, shard), ["uid"])}

    def packed(self) -> set[str]:
        tables = (self.output / "triplets").glob("[0-9]*.parquet")
        return {row["uid"] for table in tables for row in read_table(table, ["uid", "status"]) if row["status"] == "ok"}

    def errors_of(self, uid: str) -> str:
        """Why the object failed, by the stages' tables."""
        rows = ((table, row) for table in sorted(self.output.glob("*/[0-9]*.parquet")) for row in read_table(table))
        errors = [f"{table}: {row['error']}" for table, row in rows if row["uid"] == uid and row.get("error")]
        return "; ".join(errors) or "no stage says that it failed"

    def digests(self) -> dict[str, str]:
        return {
            str(file.relative_to(self.output)): hashlib.sha256(file.read_bytes()).hexdigest()
            for pattern in TRAINED
            for file in sorted(self.output.glob(pattern))
        }


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system in memory, small enough to be filled; yields whether there is one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


# --- blows: to a run that is at work ---------------------------------------------------------------------------------


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
            stages |= {words[i + 1] for i, word in enumerate(words[:-1]) if Path(word).name == "clipgs"}
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


def kill_one(run: subprocess.Popen, dice: random.Random, world: World) -> str:
    victim = dice.choice(processes(run) or [psutil.Process(run.pid)])
    name = "snakemake" if victim.pid == run.pid else "a process below it"
    with suppress(psutil.NoSuchProcess):
        victim.kill()
    return name


def kill_all(run: subprocess.Popen, dice: random.Random, world: World) -> str:
    os.killpg(run.pid, signal.SIGKILL)
    return "all processes at once"


def fill_disk(run: subprocess.Popen, dice: random.Random, world: World) -> str:
    filler = world.folder / "disk" / "filler"
    with open(filler, "wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    code = wait(run)
    filler.unlink()
    return f"the run ended with {code}"


def cut_file(run: subprocess.Popen, dice: random.Random, world: World) -> str:
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kinds = (".tar", ".parquet", ".npz", ".csv", ".json", ".safetensors")
    files = sorted(f for f in world.output.rglob("*") if f.suffix in kinds and f.stat().st_size > 1)
    files = [f for f in files if not f.name.startswith(".") and sidecar(f).exists()]
    if not files:
        return "there was none yet"
    file = dice.choice(files)
    times = file.stat()
    os.truncate(file, dice.randrange(1, file.stat().st_size))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk that lost blocks: nothing else tells
    return str(file.relative_to(world.output))


BLOWS = {"kill one": kill_one, "kill all": kill_all, "fill the disk": fill_disk, "cut a file": cut_file}


# --- edits: what users do --------------------------------------------------------------------------------------------


class Editor:
    """Edits a world's sources and settings; remembers what was there."""

    def __init__(self, world: World, dice: random.Random, objects: int, own_teacher: bool, new: int) -> None:
        self.world, self.dice, self.own_teacher = world, dice, own_teacher
        self._new = new  # number of the next object that no world has seen
        self._names = 0
        self._old: dict[str, list[bytes]] = {}  # file to what it held before
        self._broken: dict[str, str] = {}  # the name that a row should have, by the wrong one
        world.meshes.mkdir(parents=True)
        rows = [self._add_file() for _ in range(objects)]
        world.write_rows(rows)
        self.settings = merge(SETTINGS, OVERLAY)
        if own_teacher:
            save_model(world.folder / "teacher", seed=0)
            self.settings = merge(self.settings, {"teacher": {"name": "local-dir:teacher"}})
        self._first = self.settings
        world.write_config(self.settings)

    def _next(self) -> tuple[bytes, procedural.Description]:
        locator = procedural.locator(self._new, 0)
        self._new += 1
        return procedural.build(locator), procedural.describe(locator)

    def _add_file(self) -> dict[str, str]:
        data, about = self._next()
        name, split = f"object-{self._names:02d}.glb", SPLITS[self._names % len(SPLITS)]
        self._names += 1
        (self.world.meshes / name).write_bytes(data)
        return {"file": name, "category": about.category, "text": about.text, "split": split}

    def _listed(self) -> list[str]:
        return [row["file"] for row in self.world.rows() if (self.world.meshes / row["file"]).exists()]

    def replace(self) -> Done:
        """Another mesh under an object's name; at times one that was there before, or one that is damaged."""
        name = self.dice.choice(self._listed())
        file, kind = self.world.meshes / name, self.dice.random()
        old = self._old.setdefault(name, [])
        now = file.read_bytes()
        if kind < 0.2 and old:
            file.write_bytes(old.pop())
            what, must = f"{name} by what it was", ""
        elif kind < 0.4:
            file.write_bytes(self._next()[0][:3000])
            what, must = f"{name} by a damaged one", "freeze fetch sample pack index"
        else:
            file.write_bytes(self._next()[0])
            what, must = f"{name} by another", "freeze fetch fit pack index"
        old.append(now)
        return done(what, must, "train")

    def remove(self) -> Done:
        listed = self._listed()
        if len(listed) <= FEWEST:
            return self.add()
        name = self.dice.choice(listed)
        (self.world.meshes / name).unlink()
        if self.dice.random() < 0.5:
            return done(f"{name}, its row stays", never="fit train")
        self.world.write_rows([row for row in self.world.rows() if row["file"] != name])
        return done(f"{name} and its row", never="fit")

    def add(self) -> Done:
        row = self._add_file()
        self.world.write_rows([*self.world.rows(), row])
        return done(row["file"], "freeze fetch sample view fit render pack index", "train")

    def touch(self) -> Done:
        files = sorted(self.world.meshes.iterdir())
        for file in self.dice.sample(files, 3):
            os.utime(file)
        return done("three files of the source", never=EVERYTHING)

    def row(self) -> Done:
        """Breaks a row of the manifest, or mends the one that is broken."""
        rows = self.world.rows()
        if self._broken:
            wrong, right = self._broken.popitem()
            self.world.write_rows([{**row, "file": right if row["file"] == wrong else row["file"]} for row in rows])
            return done(f"{wrong} is {right} again", never="fit")
        row = self.dice.choice([row for row in rows if (self.world.meshes / row["file"]).exists()])
        wrong = f"wrong-{self.dice.randrange(10**6)}-{row['file']}"
        self._broken[wrong], row["file"] = row["file"], wrong
        self.world.write_rows(rows)
        return done(f"a row names {wrong}", "freeze fetch")

    def caption(self) -> Done:
        rows = self.world.rows()
        row = self.dice.choice([row for row in rows if (self.world.meshes / row["file"]).exists()])
        row["text"] = f"{row['category']} number {self.dice.randrange(1000)}"
        self.world.write_rows(rows)
        return done(f"of {row['file']}", "label caption pack index", "fit view")

    def key(self) -> Done:
        """Changes a setting, or changes it back."""
        name = self.dice.choice(sorted(KEYS))
        other, rule = KEYS[name]
        return self._set(name, other, rule or "", "" if rule else EVERYTHING)

    def _set(self, name: str, other: Any, must: str, never: str = "") -> Done:
        section, *rest = name.split(".")
        layer: Any = other
        for part in reversed(rest):
            layer = {part: layer}
        changed = merge(self.settings, {section: layer})
        if changed == self.settings:
            changed = json.loads(json.dumps(self.settings))
            target, first = changed, self._first
            *parents, last = name.split(".")
            for part in parents:
                target, first = target[part], first.get(part, {})
            if last in first:
                target[last] = first[last]
            else:
                del target[last]
            self.settings = changed
            what = f"{name} back"
        else:
            self.settings, what = changed, f"{name}: {other}"
        self.world.write_config(self.settings)
        return done(what, must, never)

    def teacher(self) -> Done:
        if not self.own_teacher:
            return self._set("teacher.small.steps", 8, "teacher embed_images embed_texts train")
        seed = self.dice.randrange(1, 1000)
        save_model(self.world.folder / "teacher", seed=seed)
        return done(f"the folder's weights by those of seed {seed}", "embed_images embed_texts train")

    def exclude(self) -> Done:
        listed = sorted(uid for uids in excluded(self.world.config).values() for uid in uids)
        packed = sorted(self.world.packed() - set(listed))
        undo = bool(listed) and (len(packed) <= FEWEST or self.dice.random() < 0.5)
        if not undo and len(packed) <= FEWEST:
            return done("no object: too few are packed")
        uid = self.dice.choice(listed if undo else packed)
        ended = self.world.clipgs("exclude", uid, *(["--undo"] if undo else ["--reason", "a takedown"]))
        what = f"{uid}{' no more' if undo else ''}" + (f": {ended.stderr.strip()}" if ended.returncode else "")
        return done(what, "" if ended.returncode else "pack index", "fit view render")

    def retry(self) -> Done:
        stage = self.dice.choice(["fetch", "sample", "view", "fit"])
        ended = self.world.clipgs("retry", stage)
        said = " ".join((ended.stdout or ended.stderr).split())
        return done(f"{stage}: {said[:150]}", stage if "tried again" in said else "")

    def force(self) -> Done:
        """A rule that the next run is told to run."""
        return done(self.dice.choice(["sample", "render", "pack", "embed_texts"]))


EDITS = ("replace", "remove", "add", "touch", "row", "caption", "key", "teacher", "exclude", "retry", "force")
WORK = ("replace", "add", "key")  # what gives a run something to do, for a blow to meet
SOURCES = ("replace", "remove", "add", "touch")  # also done while a run is at work
WEIGHTS = {"replace": 7, "remove": 4, "add": 4, "touch": 3, "row": 5, "caption": 3, "key": 9, "teacher": 4,
           "exclude": 5, "retry": 3, "force": 1, "kill one": 4, "kill all": 3, "fill the disk": 2,
           "cut a file": 3}  # fmt: skip


# --- a run, and what was said of it ----------------------------------------------------------------------------------


def announced(world: World) -> tuple[dict[str, int] | None, str]:
    """Rule to the jobs that `clipgs status` expects of a run, or None if it does not answer; and its text."""
    asked = world.clipgs("status", "--config", "config.yaml", world.target)
    if asked.returncode:
        return None, asked.stderr
    found = {}
    for rule, numbers in re.findall(r"^(\w+) ((?: *(?:[\d,]+|\.)){5})$", asked.stdout, re.MULTILINE):
        _, *others = (0 if word == "." else int(word.replace(",", "")) for word in numbers.split())
        found[rule] = sum(others)
    if found.get("freeze"):
        found["freeze"] = 1  # one job freezes all new shards
    return {rule: count for rule, count in found.items() if count}, asked.stdout


def ran(text: str) -> dict[str, int]:
    """Rule to the jobs that a run started, from its log."""
    return dict(Counter(rule for rule in re.findall(r"^(?:local)?rule (\w+):$", text, re.MULTILINE) if rule in OF_RULE))


def judge(expected: dict[str, int] | None, found: dict[str, int], whole: bool) -> str:
    """What status said that was not so; empty if it told the truth. A run that was stopped may lack jobs."""
    if expected is None:
        return "" if not found and not whole else "status did not answer"
    wrong = [
        f"{rule}: {found.get(rule, 0)} jobs, not {expected.get(rule, 0)}"
        for rule in sorted(expected.keys() | found.keys())
        if (found.get(rule, 0) != expected.get(rule, 0) if whole else found.get(rule, 0) > expected.get(rule, 0))
    ]
    return "; ".join(wrong)


def _ended_well(run: dict[str, Any]) -> bool:
    return run["exit_code"] == 0 and not run["disturbed"]


class Story:
    """One world from an empty output to the last comparison."""

    def __init__(self, number: int, folder: Path, deck: list[str], arguments: argparse.Namespace, cores: int) -> None:
        self.number, self.deck = number, deck
        self.dice = random.Random(f"{arguments.seed} {number}")
        self.world = World(folder / f"world-{number}", arguments.target, cores)
        self.editor = Editor(self.world, self.dice, arguments.objects, number % 2 == 1, 1000 * number)
        self.table: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.left_out: list[str] = []  # disturbances for which there was no time
        self.compared: dict[str, Any] = {}
        self.began, self.seconds = time.monotonic(), 0  # 0: not at its end
        self.last_moment = self.began + 60 * arguments.minutes

    def tell(self) -> None:
        """Plays the deck, then compares. What this script cannot do is a fault of the world too."""
        try:
            with small_disk(self.world.folder / "disk") as has_disk:
                self.deck = [kind if has_disk or kind != "fill the disk" else "kill all" for kind in self.deck]
                if self._play():
                    self._compare()
        except Exception:
            self._fault(traceback.format_exc())
        self.seconds = round(time.monotonic() - self.began)

    def told(self) -> dict[str, Any]:
        """What is known so far."""
        return {
            "teacher": "a folder" if self.editor.own_teacher else "trained",
            "seconds": self.seconds,
            "not_dealt": [*self.left_out, *self.deck],
            "disturbances": self.table,
            "runs": self.runs,
            "faults": self.faults,
            **self.compared,
        }

    def _play(self) -> bool:
        """Whether all was made in the end."""
        bad_ends = 0
        while bad_ends <= MOST_BAD_ENDS:
            if time.monotonic() > self.last_moment:
                self.left_out, self.deck = [*self.left_out, *self.deck], []
            edit, force, settled = None, [], bool(self.runs) and _ended_well(self.runs[-1])
            during = bool(self.deck) and (
                self.deck[0] in BLOWS or (self.deck[0] in SOURCES and self.dice.random() < 0.25)
            )
            if settled and self.deck and self.deck[0] in BLOWS:
                edit = self._edit(self.dice.choice(WORK))
            elif self.runs and self.deck and not during:
                edit = self._edit(self.deck.pop(0))
                force = ["--forcerun", edit.what] if self.table[-1]["kind"] == "force" else []
            expected, _ = announced(self.world)
            run, began = self.world.start(*force), time.monotonic()
            disturbed = during and self._disturb(run, began)
            code = wait(run)
            jobs = ran(self.world.text())
            about = {"seconds": round(time.monotonic() - began, 1), "exit_code": code, "disturbed": disturbed}
            whole = code == 0 and not disturbed
            wrong = "" if force else judge(expected, jobs, whole)
            self.runs.append({**about, "jobs": sum(jobs.values()), "forced": bool(force), "status_was_wrong": wrong})
            self._say(f"run {len(self.runs)}: {about}, {jobs}{'; STATUS WAS WRONG: ' + wrong if wrong else ''}")
            if edit and settled and whole:
                self._expect(edit, jobs)
            if disturbed:
                self.world.unlock()
            elif code or not self.deck:
                # A file that nobody read since it was cut is found by this, as docs/cluster.md says.
                if code == 0 and self.world.clipgs("verify", "--set-aside").returncode == 0:
                    return True
                bad_ends += 1
                continue
            bad_ends = 0
        self._fault(f"reruns do not end well: {self.world.text()[-3000:]}")
        return False

    def _edit(self, kind: str, during: str = "") -> Done:
        edit = getattr(self.editor, kind)()
        self.table.append({"kind": kind, "what": edit.what, **({"during": during} if during else {})})
        self._say(f"{len(self.table)} {kind}: {edit.what}{' during ' + during if during else ''}")
        return edit

    def _disturb(self, run: subprocess.Popen, began: float) -> bool:
        """Deals the next disturbance to the run, unless that ends too early; whether it did."""
        moment = self.dice.uniform(*MOMENTS)
        while run.poll() is None and time.monotonic() - began < moment:
            time.sleep(0.02)
        if run.poll() is not None:
            return False
        kind, at_work = self.deck.pop(0), stage_of(processes(run))
        if kind in SOURCES:
            self._edit(kind, at_work)
            return True
        what = BLOWS[kind](run, self.dice, self.world)
        code = wait(run)
        self.table.append({"kind": kind, "what": what, "during": at_work, "exit_code": code})
        self._say(f"{len(self.table)} {kind}: {what} during {at_work}")
        return True

    def _expect(self, edit: Done, jobs: dict[str, int]) -> None:
        if missing := edit.must - jobs.keys():
            self._fault(f"{self.table[-1]}: {', '.join(sorted(missing))} did not run")
        if more := jobs.keys() if EVERYTHING in edit.never else edit.never & jobs.keys():
            self._fault(f"{self.table[-1]}: {', '.join(sorted(more))} ran")

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        self._say(f"FAULT {text}")

    def _say(self, text: str) -> None:
        _log.info("%s world %d: %s", time.strftime("%H:%M:%S"), self.number, text)

    # --- the comparisons ---

    def _compare(self) -> None:
        world = self.world
        expected, text = announced(world)
        if expected:
            self._fault(f"after the last run, status still expects {expected}")
        leftovers = [str(file) for file in world.output.rglob("*.part")]
        kept = world.output / "work" / "train"  # the objects as training maps them into memory
        leftovers += [str(f) for f in (world.output / "work").rglob("*") if f.is_file() and kept not in f.parents]
        if leftovers:
            self._fault(f"left behind: {leftovers}")
        ours = world.objects("triplets")
        with ThreadPoolExecutor(3) as pool:
            fresh, given, trained = pool.map(lambda make: make(), (self._fresh, self._given, self._trained))
        theirs, views = fresh.objects("triplets"), (world.objects("views"), fresh.objects("views"))
        same = given.objects("triplets")
        drawn: list[str] = []
        for uid in sorted(theirs):
            if uid not in ours:
                self._fault(f"{uid} is packed by a fresh run alone: {world.errors_of(uid)}")
            elif uid not in same:
                self._fault(f"{uid} is not packed from the frozen shards")
            elif ours[uid] != same[uid]:
                self._fault(f"{uid} differs, from the same views: {_differing(ours[uid], same[uid])}")
            elif ours[uid] != theirs[uid]:
                if (pixels := pixels_apart(views[0].get(uid, {}), views[1].get(uid, {}))) is None:
                    self._fault(f"{uid} differs from a fresh run's: {_differing(ours[uid], theirs[uid])}")
                else:
                    drawn.append(f"{uid}: {pixels} pixels of its views differ by one level")
        surplus = sorted(ours.keys() - theirs.keys())
        named = {uid for objects in lost(world.config).values() for uid, _ in objects}
        if unnamed := sorted(set(surplus) - named):
            self._fault(f"packed, not by a fresh run, and neither replaced nor gone: {unnamed}")
        shown = re.findall(r"^(?:replaced|source gone|no longer listed): ([\d,]+): ", text, re.MULTILINE)
        if sum(int(count.replace(",", "")) for count in shown) != len(named):
            self._fault(f"status shows {shown} objects that are replaced, gone or not listed, not {len(named)}")
        shard_of = world.frozen()
        apart = {shard_of.get(uid) for uid in ours.keys() ^ theirs.keys()}
        whole = [shard for shard in frozen_shards(world.config) if shard not in apart]
        for shard in whole:
            tars = [one.output / "triplets" / f"{shard}.tar" for one in (world, given)]
            if len({tar.read_bytes() if tar.exists() else b"" for tar in tars}) > 1:
                self._fault(f"triplets/{shard}.tar differs from that of the frozen shards")
        ours_trained, theirs_trained = world.digests(), trained.digests()
        differing = sorted(n for n in ours_trained.keys() | theirs_trained.keys()
                           if ours_trained.get(n) != theirs_trained.get(n))  # fmt: skip
        if differing:
            self._fault(f"not what the recorded inputs give: {differing}")
        self.compared = {
            "objects_compared": len(theirs),
            "objects_with_other_views": drawn,
            "surplus_objects": len(surplus),
            "whole_tars_compared": len(whole),
            "trained_files_compared": len(ours_trained),
        }
        self._say(f"compared: {self.compared}")

    def _beside(self, name: str) -> World:
        beside = World(self.world.folder.parent / f"{name}-{self.number}", self.world.target, self.world.cores)
        beside.sources_from(self.world)
        return beside

    def _make(self, world: World, target: str) -> World:
        if code := wait(world.start(target=target)):
            self._fault(f"{world.folder.name} ends with {code}: {world.text()[-2000:]}")
        return world

    def _fresh(self) -> World:
        """A run over the sources and settings as they are now, without the excluded objects."""
        fresh = self._make(self._beside("fresh"), "disk/results/catalog/objects.parquet")
        out = {uid for uids in excluded(self.world.config).values() for uid in uids} & fresh.frozen().keys()
        if out:
            fresh.clipgs("exclude", *sorted(out))
        return self._make(fresh, "triplets")

    def _given(self) -> World:
        """A run that starts from the frozen shards, and is given the views."""
        given = self._beside("given")
        shutil.copytree(self.world.output / "catalog" / "shards", given.output / "catalog" / "shards")
        with suppress(FileNotFoundError):
            shutil.copyfile(excluded_path(self.world.config), excluded_path(given.config))
        drawn = self.world.objects("views")
        for shard in frozen_shards(given.config):
            journal = job(given.config, "view", shard).journal
            for row in read_table(self.world.output / "views" / f"{shard}.parquet"):
                if row["status"] == "ok":
                    own = {name: value for name, value in row.items() if name not in ("uid", "status", "error", "key")}
                    pictures = [(name, own.pop(name)) for name, value in row.items() if isinstance(value, bytes)]
                    journal.put(row["uid"], row["key"], own, [*drawn[row["uid"]].items(), *pictures])
        return self._make(given, "triplets")

    def _trained(self) -> World:
        """A copy of the output, with teacher, features and run made from nothing, of the shards that are recorded."""
        copy = World(self.world.folder.parent / f"trained-{self.number}", self.world.target, self.world.cores)
        shutil.copytree(self.world.folder, copy.folder, dirs_exist_ok=True)
        for file in [*copy.output.glob("runs/*/inputs.json"), *copy.output.glob("teacher/inputs.json")]:
            recorded = json.loads(file.read_text())
            shutil.rmtree(file.parent)
            file.parent.mkdir()
            # That it began with these shards; what it found in them it must find again.
            file.write_text(json.dumps({name: recorded[name] for name in ("settings", "shards")}))
        for folder in ("features", "work", "evaluation"):
            shutil.rmtree(copy.output / folder, ignore_errors=True)
        return self._make(copy, self.world.target)


def _differing(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def pixels_apart(ours: dict[str, bytes], theirs: dict[str, bytes]) -> int | None:
    """How many pixels of two sets of pictures differ, if some do, and each by one level in one channel; else None."""
    count = 0
    if ours.keys() != theirs.keys():
        return None
    for name in ours:
        if ours[name] == theirs[name]:
            continue
        if not name.endswith(".png"):
            return None
        first, second = (np.asarray(Image.open(io.BytesIO(one[name]))).astype(int) for one in (ours, theirs))
        apart = np.abs(first - second)
        if first.shape != second.shape or apart.max(initial=0) > 1 or (apart.sum(axis=-1) > 1).any():
            return None
        count += int(apart.any(axis=-1).sum())
    return count or None


def deal(disturbances: int, worlds: int, seed: int) -> list[list[str]]:
    """The disturbances of each world, in random order; of all together each kind has its share."""
    deck = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
    random.Random(seed).shuffle(deck)
    dealt = [deck[i % len(deck)] for i in range(disturbances)]
    return [dealt[number::worlds] for number in range(worlds)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=60, help="of all worlds together")
    parser.add_argument("--worlds", type=int, default=max(1, usable_cores() // 3), help="default: one for three cores")
    parser.add_argument("--objects", type=int, default=12, help="of a world at first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="evaluate", help="all else is made for it")
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no world is disturbed any more")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _log.setLevel(logging.INFO)
    cores = max(1, usable_cores() // arguments.worlds)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.worlds) as pool:
        decks = deal(arguments.disturbances, arguments.worlds, arguments.seed)
        stories = [Story(i, Path(temporary), deck, arguments, cores) for i, deck in enumerate(decks)]
        results = write(arguments, stories)
        for ended in as_completed([pool.submit(story.tell) for story in stories]):
            ended.result()
            results = write(arguments, stories)
    _log.info("%s", json.dumps({key: value for key, value in results.items() if key != "worlds"}))
    good = all(story.compared for story in stories) and not results["faults"]
    return 0 if good and results["status_was_right"] == results["status_asked"] else 1


def write(arguments: argparse.Namespace, stories: list[Story]) -> dict[str, Any]:
    """Writes the result file: after each world, so that little is lost with this process."""
    worlds = [story.told() for story in stories]
    runs = [run for world in worlds for run in world["runs"]]
    asked = [run for run in runs if not run["forced"]]
    results = {
        "seconds": round(time.monotonic() - stories[0].began),
        "disturbances": dict(Counter(row["kind"] for world in worlds for row in world["disturbances"])),
        "runs": len(runs),
        "status_asked": len(asked),
        "status_was_right": sum(not run["status_was_wrong"] for run in asked),
        "faults": sum(len(world["faults"]) for world in worlds),
        "worlds_compared": sum(bool(story.compared) for story in stories),
        "worlds": worlds,
    }
    names = ("disturbances", "worlds", "objects", "seed", "target", "minutes")
    record("chaos", {name: getattr(arguments, name) for name in names}, results)
    return results


if __name__ == "__main__":
    sys.exit(main())
