"""A new stage is a function in its package's stages.py, a line in STAGES and a rule; all else follows."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from .conftest import SETTINGS, Workspace

FUNCTION = '''

def polish(config: Config, shard: str, threads: int) -> None:
    """Copies every splat; the one that is named in the environment fails."""
    import os

    from clipgs.core.bundles import tar_objects
    from clipgs.core.runner import Task, write_objects
    from clipgs.stages import job, path

    splats = path(config, "splats", shard, ".tar")
    members = tar_objects(splats)
    tasks = [Task(uid, members[uid].digest(), uid) for uid in sorted(members)]

    def compute(tasks):
        for task in tasks:
            if task.uid == os.environ.get("UNPOLISHED"):
                yield task, "ValueError: it will not shine"
            else:
                yield task, ({}, [("ply", members[task.uid].read()["ply"])])

    write_objects(job(config, "polish", shard), tasks, compute, {}, member="{uid}.{name}")
'''
STAGE = """    Stage("polish", "splats", "polish the splats",
          keys=("seed", "fit.min_psnr"), folder="polished", bundle=".tar", after=("fit",), by_object=True),
    Stage("render", "splats","""
RULE = """

rule polish:
    input:
        splats=out("splats/{shard}.tar"),
    output:
        splats=out("polished/{shard}.tar"),
        table=out("polished/{shard}.parquet"),
    params:
        settings=RUN.of_shard("polish"),
    shell:
        "clipgs polish {wildcards.shard} --settings {params.settings:q}"
"""


@pytest.fixture(scope="module")
def extended(made, tmp_path_factory, checkout):
    """A checkout with a stage more, and a workspace whose splats are made."""
    copy = tmp_path_factory.mktemp("extended") / "checkout"
    for name in ("src/clipgs", "workflow", "profiles", "envs"):
        shutil.copytree(checkout / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout / "Snakefile", copy)
    with open(copy / "src/clipgs/splats/stages.py", "a") as file:
        file.write(FUNCTION)
    table = copy / "src/clipgs/stages.py"
    text = table.read_text()
    assert text.count('    Stage("render", "splats",') == 1
    table.write_text(text.replace('    Stage("render", "splats",', STAGE))
    with open(copy / "workflow/rules/splats.smk", "a") as file:
        file.write(RULE)
    workspace = made.copy(tmp_path_factory.mktemp("polished") / "workspace")
    return Workspace(workspace.folder, copy)


def run(workspace, *command, **environment):
    path = os.pathsep.join([str(workspace.checkout / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True, timeout=300)


def clipgs(workspace, *arguments):
    done = run(workspace, sys.executable, "-m", "clipgs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def line_of(text, name):
    return next(line for line in text.splitlines() if line.split()[:1] == [name]).split()


def test_all_that_is_made_from_the_table_knows_a_new_stage(extended):
    targets = ["results/polished/00000.tar", "results/polished/00001.tar"]
    assert "polish the splats" in clipgs(extended, "--help").lower()
    assert "example: clipgs polish 00000" in clipgs(extended, "polish", "--help")
    assert line_of(clipgs(extended, "plan", "--config", "config.yaml"), "polish") == ["polish", "2"]

    uid = next(iter((extended.output / "splats").glob("*.parquet"))).stem
    done = run(extended, *extended.command(*targets))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (extended.output / "polished" / f"{uid}.tar").exists()
    status = clipgs(extended, "status", targets[0], "--snakefile", str(extended.checkout / "Snakefile"))
    assert line_of(status, "polish") == ["polish", "1", ".", ".", ".", "."]
    verified = clipgs(extended, "verify")
    assert len(list((extended.output / "polished").glob(".*.check"))) == 4
    (extended.output / "polished" / "00000.tar").write_bytes(b"")
    assert "polished/00000.tar has 0 bytes" in run(extended, sys.executable, "-m", "clipgs", "verify").stdout
    assert "files are whole" in verified


def test_its_settings_run_it_again_and_a_retry_its_failures_only(extended, tmp_path):
    from clipgs.core.bundles import read_table

    workspace = Workspace(shutil.copytree(extended.folder, tmp_path / "again"), extended.checkout)
    target = "results/polished/00001.tar"
    run(workspace, *workspace.command(target))
    (uid,) = [row["uid"] for row in read_table(workspace.output / "splats" / "00001.parquet")]

    settings = {**SETTINGS, "fit": {**SETTINGS["fit"], "min_psnr": 4.0}}
    workspace.write_config(settings)
    done = run(workspace, *workspace.command("-n", target))
    assert re.search(r"fit +1 +fit.min_psnr 5.0 -> 4.0\n +polish +1 +new splats", done.stdout)
    workspace.write_config(SETTINGS)

    done = run(workspace, *workspace.command(target, "--forcerun", "polish"), UNPOLISHED=uid)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = read_table(workspace.output / "polished" / "00001.parquet")
    assert (row["status"], row["error"]) == ("failed", "ValueError: it will not shine")
    assert "1 failed object of polish in 1 shard is tried again" in clipgs(workspace, "retry", "polish", "00001")
    assert json.loads((workspace.output / "catalog" / "retries.json").read_text())["polish"] == {"00001": 1}
    done = run(workspace, *workspace.command(target))
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = read_table(workspace.output / "polished" / "00001.parquet")
    assert row["status"] == "ok"
