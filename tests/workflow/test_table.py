"""Every rule, with every reason to run it, alone and while an earlier stage has to run: which jobs are planned.

What is expected follows from the table of stages alone: a job runs if it has a reason, or follows one that runs.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from clipgs import config as configuration
from clipgs.core.bundles import read_table
from clipgs.core.files import sidecar
from clipgs.evaluation import rows
from clipgs.operate.planned import Planned, jobs
from clipgs.stages import OF_RULE, STAGES, retriable
from clipgs.training import runs
from clipgs.workflow import Run

from .conftest import SETTINGS, Workspace

MORE = {
    "teacher": {"name": "train"},
    "ablations": {"rows": ["uni3d", "position-color"], "seeds": [0, 1]},
    "report": {"run": True},
}
SHARDS, SEEDS, ROWS = ("00000", "00001"), ("0", "1"), ("uni3d", "position-color")
TARGETS = ("triplets", "features", "evaluate", "baselines", "ablations", "report")
WITHOUT = {"embed-images": {"view"}}  # which `teacher.images: meshes` encodes
VALUES = {"shard": SHARDS, "row": ROWS, "seed": SEEDS}
Node = tuple[str, tuple[tuple[str, str], ...]]  # a stage, and the wildcards of one of its jobs


def nodes(stage: str) -> list[Node]:
    """The jobs of a stage."""
    per = [name for name in STAGES[stage].per if name != "shards"]
    found = [tuple(zip(per, values, strict=True)) for values in itertools.product(*(VALUES[name] for name in per))]
    if stage == "ablation-train":  # the row uni3d is the model that the others start from
        found = [wildcards for wildcards in found if dict(wildcards)["row"] != "uni3d"]
    return [(stage, wildcards) for wildcards in found]


def inputs(node: Node) -> set[Node]:
    """The jobs whose files a job reads."""
    stage, wildcards = node
    mine, after = dict(wildcards), set(STAGES[stage].after) - WITHOUT.get(stage, set()) - {"freeze"}
    if stage == "ablation-evaluate":
        after -= {"ablation-train" if mine["row"] == "uni3d" else "ablation-start"}
    found = {each for before in after for each in nodes(before)}
    return {each for each in found if all(mine.get(key, value) == value for key, value in each[1])}


def earlier(node: Node) -> set[Node]:
    """All jobs that a job needs, itself included."""
    reached, new = {node}, {node}
    while new:
        new = {each for one in new for each in inputs(one)} - reached
        reached |= new
    return reached


def expected(targets: list[Node], reasons: set[Node]) -> set[Node]:
    """The jobs that run to make the targets: those with a reason, and those that follow them."""
    needed = {each for target in targets for each in earlier(target)}
    return {node for node in needed if earlier(node) & reasons & needed}


class Finished(Workspace):
    """A workspace of which every file is there and up to date; most of them are empty."""

    files: dict[Node, list[Path]]

    def overlay(self, **more) -> Path:
        path = self.folder / "overlay.yaml"
        path.write_text(yaml.safe_dump(configuration.merge(SETTINGS, MORE, more)))
        return path

    def jobs(self, targets: Sequence[str], forced: Sequence[str] = (), **more) -> dict[Node, Planned]:
        overlay = self.overlay(**more)
        with chdir(self.folder), patch.dict(os.environ):
            found = jobs(self.checkout / "Snakefile", overlay, targets, forced)
        return {self.node(job): job for job in found}

    def node(self, job: Planned) -> Node:
        stage = OF_RULE[job.rule]
        return stage.name, tuple((name, job.wildcards[name]) for name in stage.per if name != "shards")

    def runs(self, *targets: Path | str, forced: Sequence[str] = (), **more) -> set[Node]:
        """The jobs that Snakemake would run."""
        names = [str(target.relative_to(self.folder)) if isinstance(target, Path) else target for target in targets]
        return {node for node, job in self.jobs(names, forced, **more).items() if job.runs}

    def finish(self) -> None:
        """Writes empty files for all jobs but those of the catalog, and has Snakemake take them for made."""
        self.make(target="results/catalog/objects.parquet")
        config = configuration.check(configuration.merge(SETTINGS, MORE))
        with chdir(self.folder):
            for seed in config.ablations.seeds:
                runs.begin(rows.of_start(config, seed), "train", SHARDS)
                for row in config.ablations.rows:
                    runs.begin(rows.of_row(config, row, seed), "train", SHARDS)
            for stage in ("train", "teacher"):
                runs.begin(config, stage, SHARDS)
        self.files = {node: [self.folder / file for file in job.files] for node, job in self.jobs(TARGETS).items()}
        timed = [self.output / "benchmarks" / f"{name}.tsv" for name in ("train/base", "teacher", *TARGETS)]
        for file in (*itertools.chain(*self.files.values()), *timed):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        self.make(*TARGETS, "--touch", "--forceall", "--configfile", str(self.overlay()), target="train")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkout):
    workspace = Finished(tmp_path_factory.mktemp("finished"), checkout)
    workspace.write_config(configuration.merge(SETTINGS, MORE))
    workspace.add_objects(2)
    workspace.finish()
    return workspace


def test_a_finished_output_plans_nothing(finished):
    assert finished.runs(*TARGETS) == set()


# --- reasons: each is a change, which is undone, and the jobs that have it -------------------------------------------


@contextmanager
def missing(workspace: Finished, node: Node) -> Iterator[set[Node]]:
    """A job's own files are gone: it was begun again, and failed. Their checksums stay."""
    with ExitStack() as stack:
        for file in workspace.files[node]:
            stack.enter_context(gone(file))
        yield {node}


@contextmanager
def gone(file: Path) -> Iterator[None]:
    """A file is gone, its checksum stays."""
    aside = file.rename(file.with_name(file.name + ".moved"))
    sidecar(file).touch()
    try:
        yield
    finally:
        aside.rename(file)
        sidecar(file).unlink()


@contextmanager
def changed_setting(workspace: Finished, node: Node) -> Iterator[set[Node]]:
    """A setting of the job's stage, or its version, is another one."""
    stage = STAGES[node[0]]
    with patch.dict(STAGES, {stage.name: replace(stage, version=stage.version + 1)}):
        yield set(nodes(stage.name))


@contextmanager
def changed_input(workspace: Finished, node: Node) -> Iterator[set[Node]]:
    """The files of one job before it have other bytes, and a new time."""
    with ExitStack() as stack:
        found = set()
        for before in sorted(inputs(node))[:1]:
            for file in workspace.files[before]:
                stack.enter_context(overwritten(file, b"other bytes"))
            found |= {each for stage in STAGES for each in nodes(stage) if before in inputs(each)}
        yield found


@contextmanager
def overwritten(file: Path, data: bytes) -> Iterator[None]:
    there, old, times = file.exists(), file.read_bytes() if file.exists() else b"", file.parent.stat()
    times = file.stat() if there else times
    file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(old)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        if not there:
            file.unlink()


@contextmanager
def excluded(workspace: Finished, node: Node) -> Iterator[set[Node]]:
    """An object of a shard must leave."""
    shard = dict(node[1]).get("shard", SHARDS[0])
    (row,) = read_table(workspace.output / "catalog" / "shards" / f"{shard}.parquet")
    listed = f"uid,shard,reason\n{row['uid']},{shard},asked to leave\n".encode()
    with overwritten(workspace.output / "catalog" / "excluded.csv", listed):
        yield {("pack", (("shard", shard),))}


@contextmanager
def retried(workspace: Finished, node: Node) -> Iterator[set[Node]]:
    """The failed objects of a stage are tried again, in one shard: of the job's stage, or of the fit."""
    stage = node[0] if node[0] in retriable() else "fit"
    shard = dict(node[1]).get("shard", SHARDS[0])
    counts = json.dumps({stage: {shard: 1}}).encode()
    with overwritten(workspace.output / "catalog" / "retries.json", counts):
        yield {(stage, (("shard", shard),))}


REASONS = (missing, changed_setting, changed_input, excluded, retried)
# A shard is frozen once: no job of it is ever planned again.
RULES = [name for name in STAGES if name != "freeze"]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
@pytest.mark.parametrize("stage", RULES)
def test_planned_jobs(finished, stage, reason):
    node = nodes(stage)[-1]
    target, before = finished.files[node][0], earlier(node) - {node}
    with reason(finished, node) as reasons:
        assert finished.runs(target) == expected([node], reasons)
        # The stage before it, and the first one of all.
        for other in {name for name, _ in sorted(inputs(node))[-1:]} | {name for name, _ in sorted(before)[:1]}:
            again = {one for one in nodes(other) if one in before}
            found = finished.runs(target, forced=[STAGES[other].rule])
            assert found == expected([node], reasons | again), f"with {other}"


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_planned_jobs_of_all_targets(finished, reason):
    node: Node = ("fit", (("shard", SHARDS[0]),))
    everything = [each for stage in RULES for each in nodes(stage)]
    with reason(finished, node) as reasons:
        assert finished.runs(*TARGETS) == expected(everything, reasons)


def test_temporary_points_that_are_gone_make_nothing_again_but_the_points_of_the_ablations(finished):
    points = [("ablation-points", (("shard", shard),)) for shard in SHARDS]
    with ExitStack() as stack:
        for shard in SHARDS:
            stack.enter_context(gone(finished.output / "points" / f"{shard}.npz"))
        found = finished.runs("ablations", temporary=["points"])
    everything = [node for stage in RULES for node in nodes(stage)]
    assert found == expected(everything, set(points)) - expected(everything, {("report", ())})


def test_an_edited_list_of_classes_is_another_input(finished):
    classes = finished.folder / "classes.txt"
    classes.write_text("chair\n")
    asked = {"evaluation": {"classes": str(classes)}}
    assert {stage for stage, _ in finished.runs("evaluate", "baselines", **asked)} == {"evaluate", "baselines"}


def test_first_weights_are_an_input_whether_a_file_or_a_runs_folder_is_named(finished):
    run = finished.folder / "points-run"
    run.mkdir()
    (run / "model.safetensors").write_text("weights")
    for weights in (run, run / "model.safetensors"):
        encoder = {"initialisation": "points", "weights": str(weights)}
        with chdir(finished.folder):
            made = Run(configuration.check(configuration.merge(SETTINGS, MORE, {"encoder": encoder})))
        assert made.first_weights == [str(run / "model.safetensors")]
