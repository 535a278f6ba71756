"""A large output over its life: failures tried again, objects that leave, a config edited while jobs wait."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from clipgs import config as configuration
from clipgs.catalog.sources import procedural
from clipgs.core.bundles import read_table, tar_objects
from clipgs.evaluation.ablations import write_points
from clipgs.operate.lock import OutputLock
from tests.catalog.objaverse_tree import write_objaverse

from .conftest import SETTINGS, Workspace


def clipgs(workspace, *arguments):
    command = [sys.executable, "-m", "clipgs", *arguments]
    return subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, timeout=120)


def said(workspace, *arguments):
    done = clipgs(workspace, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def line_of(text, name):
    return next(line for line in text.splitlines() if line.split()[:1] == [name]).split()


def test_failures_are_tried_again_and_excluded_objects_leave(tmp_path, checkout):
    """Three objects in a shard, of which the source lacks one at first."""
    workspace = Workspace(tmp_path / "life", checkout)
    mirror = workspace.folder / "mirror" / "datasets" / "allenai" / "objaverse" / "resolve" / "main"
    uids = write_objaverse(mirror, 3, body=None, lvis={"mug": [1]})
    meshes = {uid: procedural.build(procedural.locator(index, 0)) for index, uid in enumerate(uids)}
    (mirror / "glbs" / "000-000").mkdir(parents=True)
    for uid in uids[1:]:
        (mirror / "glbs" / "000-000" / f"{uid}.glb").write_bytes(meshes[uid])
    downloads = {"endpoint": (workspace.folder / "mirror").as_uri(), "retries": 0}
    catalog = {"source": "objaverse", "objaverse": {"root": "none"}, "downloads": downloads}
    workspace.write_config({**SETTINGS, "catalog": catalog})

    text = said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    assert line_of(text, "fit") == ["fit", ".", ".", ".", ".", "1"]
    assert line_of(text, "pack")[-1] == "1"
    assert [line for line in text.splitlines() if line.startswith("fit ") and "min" in line]  # what is left
    workspace.make()
    text = said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    assert line_of(text, "fit") == ["fit", "1", ".", ".", ".", "."]
    assert "objects: 2 packed, 1 failed" in text
    assert "was not found" in text
    before = {uid: members.read() for uid, members in tar_objects(workspace.output / "triplets/00000.tar").items()}
    assert set(before) == set(uids[1:])

    (mirror / "glbs" / "000-000" / f"{uids[0]}.glb").write_bytes(meshes[uids[0]])
    assert "1 failed object of fetch in 1 shard is tried again" in said(workspace, "retry", "fetch")
    assert "no object failed at fit" in said(workspace, "retry", "fit")
    stages = ("fetch", "sample", "view", "fit", "render", "caption", "pack", "index")
    assert workspace.planned() == dict.fromkeys(stages, 1)
    workspace.make()
    for stage in ("fetch", "sample", "view", "fit", "render"):
        assert "2 of 3 objects are done already" in (workspace.output / "logs" / stage / "00000.log").read_text()
    after = {uid: members.read() for uid, members in tar_objects(workspace.output / "triplets/00000.tar").items()}
    assert set(after) == set(uids)
    assert {uid: after[uid] for uid in before} == before
    assert workspace.planned() == {}

    said(workspace, "exclude", uids[2], "--reason", "its author asked")
    assert workspace.planned() == {"pack": 1, "index": 1}
    workspace.make()
    assert set(tar_objects(workspace.output / "triplets/00000.tar")) == set(uids[:2])
    assert {row["uid"] for row in read_table(workspace.output / "triplets/index.parquet")} == set(uids[:2])
    card = (workspace.output / "triplets" / "README.md").read_text()
    assert "excluded: its author asked" in card
    assert uids[2] not in card + (workspace.output / "triplets" / "CREDITS.csv").read_text()
    said(workspace, "exclude", uids[2], "--undo")
    workspace.make()
    again = {uid: members.read() for uid, members in tar_objects(workspace.output / "triplets/00000.tar").items()}
    assert again == after
    done = clipgs(workspace, "verify")
    assert done.returncode == 0
    assert "files are whole" in done.stdout
    assert not [file for file in (workspace.output / "work").rglob("*") if file.is_file()]


def test_what_is_stale_and_what_failed_is_told(made, tmp_path, checkout):
    workspace = made.copy(tmp_path / "stale")
    (workspace.output / "splats" / "00001.tar").unlink()
    mark = workspace.output / "work" / "fit" / "00001.json"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"state": "failed", "error": "the GPU is gone", "host": "n1", "process": 1}))
    settings = configuration.merge(SETTINGS, {"render": {"webp_quality": 50}})
    workspace.write_config(settings)
    assert "was edited after this run began" in said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    text = said(workspace, "status", "--config", "config.yaml", "--snakefile", str(checkout / "Snakefile"))
    assert line_of(text, "view") == ["view", "2", ".", ".", ".", "."]
    assert line_of(text, "fit") == ["fit", "1", ".", "1", ".", "."]
    assert line_of(text, "render") == ["render", ".", "2", ".", ".", "."]
    assert "fit 00001: the GPU is gone" in text
    again = said(workspace, "status", "triplets", "--config", "config.yaml")
    assert again.splitlines() == [line for line in text.splitlines() if not line.startswith("not begun")]


@pytest.mark.parametrize("folder", ["captions", "triplets"])
def test_status_answers_while_a_table_is_cut_short(made, tmp_path, checkout, folder):
    workspace = made.copy(tmp_path / "cut")
    table = workspace.output / folder / "00001.parquet"
    os.truncate(table, table.stat().st_size // 2)
    (workspace.output / "triplets" / "00001.tar").unlink()
    if folder == "captions":
        (workspace.output / "triplets" / "00001.parquet").unlink()
    done = clipgs(workspace, "status", "triplets", "--snakefile", str(checkout / "Snakefile"))
    assert done.returncode == 0, done.stderr
    assert f"{table.relative_to(workspace.folder)} cannot be read" in done.stderr
    assert line_of(done.stdout, "pack") == ["pack", "1", ".", ".", ".", "1"]
    assert "objects: 1 packed" in done.stdout


def test_a_queued_job_does_what_it_was_queued_for_whatever_became_of_the_config(made, tmp_path):
    """As an executor starts it: its own rule alone, with the environment of the run that queued it."""
    workspace = made.copy(tmp_path / "queued")
    splats = workspace.output / "splats" / "00000.tar"
    was = splats.read_bytes()
    others = [*workspace.output.glob("views/*"), *workspace.output.glob("points/*"), *workspace.output.glob("meshes/*")]
    before = {file: file.stat().st_mtime_ns for file in others}
    config = configuration.check(SETTINGS)
    environment = os.environ | {"CLIPGS_CONFIG": config.model_dump_json()}
    job = ["--mode", "subprocess", "--target-jobs", "fit:shard=00000", "--allowed-rules", "fit", "--force", "--nolock"]
    job += ["--no-hooks", "--ignore-incomplete", "--cores", "1"]
    changed = configuration.merge(SETTINGS, {"fit": {"steps": 3}, "views": {"pixels": 24}, "points": {"count": 700}})
    for text in (yaml.safe_dump(changed), "fit: [not YAML"):
        (workspace.folder / "config.yaml").write_text(text)
        splats.unlink()
        done = subprocess.run(workspace.command(*job), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert splats.read_bytes() == was
    assert {file: file.stat().st_mtime_ns for file in others} == before


def test_a_queued_job_over_all_shards_takes_those_of_its_run_whatever_came_to_the_source(made, tmp_path):
    workspace = made.copy(tmp_path / "grown")
    index = workspace.output / "triplets" / "index.parquet"
    was = index.read_bytes()
    index.unlink()
    workspace.add_objects(3)
    environment = os.environ | {"CLIPGS_CONFIG": configuration.check(SETTINGS).model_dump_json(), "CLIPGS_SHARDS": "2"}
    job = ["--mode", "subprocess", "--target-jobs", "index:", "--allowed-rules", "index", "--force", "--nolock"]
    done = subprocess.run(
        workspace.command(*job, "--no-hooks", "--ignore-incomplete", "--cores", "1"),
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert index.read_bytes() == was


def test_finished_files_that_snakemake_knows_by_other_names_are_named(made):
    """Snakemake's record of them is under the names that they had, so it would see no changed setting."""
    done = made.run("-n", "triplets", "--config", f"output={made.output}", "fit={steps: 21}")
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr
    (note,) = [line for line in done.stderr.splitlines() if "has no record of" in line]
    assert "18 finished jobs" in note
    assert f"was in {made.folder} with output = results." in note
    assert "has no record of" not in made.run("-n", "triplets").stderr


def test_a_second_run_over_the_output_is_refused_with_the_holders_name(made, tmp_path):
    workspace = made.copy(tmp_path / "second")
    (workspace.output / "triplets" / "00000.tar").unlink()
    with OutputLock(workspace.output):
        done = workspace.run("triplets")
        assert done.returncode == 1
        assert f"process {os.getpid()}, since" in done.stderr
        assert not (workspace.output / "triplets" / "00000.tar").exists()
        assert workspace.planned() == {"pack": 1, "index": 1}  # looking is free
    workspace.make()


@pytest.mark.parametrize("command", [("retry", "pack"), ("retry", "fit", "00007"), ("exclude",), ("exclude", "nobody")])
def test_wrong_usage_is_one_line(made, command):
    done = clipgs(made, *command)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_an_output_that_moved_behind_a_link_keeps_its_history(made, tmp_path):
    workspace = made.copy(tmp_path / "moved")
    workspace.output.rename(tmp_path / "elsewhere")
    workspace.output.symlink_to(tmp_path / "elsewhere")
    assert workspace.planned() == {}
    workspace.write_config({**SETTINGS, "render": {"pixels": 32, "webp_quality": 50}})
    assert workspace.planned() == {"render": 2, "pack": 2, "index": 1}


def test_temporary_points_are_sampled_again_for_the_ablations(made, tmp_path, monkeypatch):
    workspace = made.copy(tmp_path / "temporary")
    monkeypatch.chdir(workspace.folder)
    config = configuration.check(configuration.merge(SETTINGS, {"encoder": {"gaussians": 64}}))
    made_of = workspace.output / "ablations" / "points"
    write_points(config, "00000", 1)
    kept = (made_of / "triplets" / "00000.tar").read_bytes()
    (workspace.output / "points" / "00000.npz").unlink()
    write_points(config.model_copy(update={"temporary": ["points"]}), "00000", 1)
    assert (made_of / "triplets" / "00000.tar").read_bytes() == kept
    assert not list(made_of.glob("points/*.npz"))
