"""What a run makes: the same bytes, whatever disturbs it and however the work is cut up."""

import csv
import os
import signal
import subprocess
import time

import pytest
import yaml
from PIL import Image

from clipgs import config as configuration
from clipgs.core.bundles import read_table, tar_objects
from clipgs.core.files import check, owner
from clipgs.operate.verify import verify

from .conftest import SETTINGS, Workspace


def objects_of(workspace, folder):
    """Uid to its files' bytes, over all shards."""
    found = {}
    for tar in sorted((workspace.output / folder).glob("*.tar")):
        found |= {uid: members.read() for uid, members in tar_objects(tar).items()}
    return found


def test_every_file_matches_its_sidecar(made):
    files = list(filter(None, map(owner, made.output.rglob("*"))))
    assert len(files) > 20
    for file in files:
        check(file)
    assert not list(made.output.rglob("*.part"))
    assert not [path for path in (made.output / "work").rglob("*") if path.is_file()]


def test_an_object_is_the_same_whatever_its_shard_and_the_number_of_processes(made, tmp_path):
    other = made.copy(tmp_path / "other")
    for folder in other.output.iterdir():
        if folder.name != "cache":
            subprocess.run(["rm", "-r", str(folder)], check=True)
    settings = configuration.merge(SETTINGS, {"catalog": {"shard_objects": 64}, "workers": {"threads": 1}})
    other.write_config(settings)
    other.make("--cores", "1")
    for folder in ("views", "splats", "renders", "triplets"):
        ours, theirs = objects_of(made, folder), objects_of(other, folder)
        assert len(ours) == 2
        if folder == "triplets":  # the shard's name stands in the json
            for files in (*ours.values(), *theirs.values()):
                del files["json"]
        assert ours == theirs


def test_killed_in_the_middle_of_a_fit_goes_on_and_ends_the_same(made, tmp_path):
    settings = configuration.merge(SETTINGS, {"catalog": {"shard_objects": 64}, "workers": {"threads": 1}})
    workspaces = [Workspace(tmp_path / name, made.checkout) for name in ("killed", "undisturbed")]
    for workspace in workspaces:
        workspace.folder.mkdir()
        workspace.write_config(settings)
        workspace.add_objects(4)
    killed, undisturbed = workspaces
    undisturbed.make()
    journal = killed.output / "work" / "fit" / "00000"
    with subprocess.Popen(
        killed.command("triplets"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        deadline = time.monotonic() + 300
        while not list(journal.glob("*.tar")):
            assert run.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
    done = {path.name: path.stat().st_mtime_ns for path in journal.glob("*.tar")}
    assert 1 <= len(done) < 4
    assert not (killed.output / "splats" / "00000.tar").exists()
    again = subprocess.run(killed.command("--unlock"), capture_output=True)
    assert again.returncode == 0
    killed.make()
    log = (killed.output / "logs" / "fit" / "00000.log").read_text()
    assert f"fit 00000: {len(done)} of 4 objects are done already" in log
    assert objects_of(killed, "triplets") == objects_of(undisturbed, "triplets")
    tar = "triplets/00000.tar"
    assert (killed.output / tar).read_bytes() == (undisturbed.output / tar).read_bytes()


def test_a_damaged_file_is_found_and_made_again(made, tmp_path):
    workspace = made.copy(tmp_path / "damaged")
    splats = workspace.output / "splats" / "00000.tar"
    whole = splats.read_bytes()
    times = splats.stat()
    splats.write_bytes(whole[:-512])
    os.utime(splats, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = workspace.run("triplets", "--forcerun", "render")
    assert done.returncode == 1
    assert "splats/00000.tar has" in done.stdout + done.stderr
    assert "make it again with: snakemake" in done.stdout + done.stderr
    workspace.make("--forcerun", "render")
    assert splats.read_bytes() == whole
    assert workspace.planned() == {}


def test_bad_objects_are_rows_and_the_others_go_on(made, tmp_path):
    workspace = Workspace(tmp_path / "bad", made.checkout)
    workspace.folder.mkdir()
    settings = configuration.merge(
        SETTINGS, {"catalog": {"shard_objects": 64, "folder": {"manifest": None}}, "fit": {"gaussians": 60, "steps": 5}}
    )
    workspace.write_config(settings)
    workspace.add_objects(1)
    meshes = workspace.folder / "meshes"
    (good,) = meshes.glob("*.glb")
    (meshes / "twin of it.glb").write_bytes(good.read_bytes())
    (meshes / "em'pty\n.obj").write_text("")
    (meshes / "cut.glb").write_bytes(good.read_bytes()[:100])
    (meshes / "nan.off").write_text("OFF\n3 1 0\nnan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    (meshes / "nothing.ply").symlink_to(meshes / "nowhere")
    workspace.make()
    rows = read_table(workspace.output / "triplets" / "00000.parquet")
    assert len(rows) == 6
    errors = {row["uid"]: f"{row['stage']}: {row['error']}" for row in rows if row["status"] != "ok"}
    assert len(errors) == 5, errors
    assert any("duplicate of" in error for error in errors.values())
    assert any("No such file" in error for error in errors.values())
    assert not any("Traceback" in error for error in errors.values())


def test_passing_files_go_when_the_splats_are_fitted(made, tmp_path):
    workspace = Workspace(tmp_path / "passing", made.checkout)
    workspace.folder.mkdir()
    workspace.write_config(SETTINGS | {"temporary": ["points", "views"]})
    workspace.add_objects(1)
    workspace.make()
    assert not list(workspace.output.glob("views/*.tar"))
    assert not list(workspace.output.glob("points/*.npz"))
    assert objects_of(workspace, "splats").items() <= objects_of(made, "splats").items()
    assert workspace.planned() == {}
    workspace.add_objects(1, text0="a mended caption")
    assert workspace.planned() == {"label": 1, "caption": 1, "pack": 1, "index": 1}


def test_the_report_is_made(made, tmp_path):
    workspace = made.copy(tmp_path / "report")
    done = workspace.run("triplets", "--report", "report.html")
    assert done.returncode == 0, done.stderr[-2000:]
    page = (workspace.folder / "report.html").read_text()
    assert len(page) > 100_000
    assert "Mesh and splat of objects of the dataset side by side" in page  # a caption
    assert "clipgs turns 3D meshes into triplets" in page


def test_the_dataset_is_described(made):
    folder = made.output / "triplets"
    shards = [read_table(folder / f"{shard}.parquet") for shard in ("00000", "00001")]
    index = read_table(folder / "index.parquet")
    assert [row["uid"] for row in index] == [row["uid"] for rows in shards for row in rows]
    uids = set(objects_of(made, "triplets"))
    assert {row["uid"] for row in index} == uids
    with open(folder / "CREDITS.csv", newline="", encoding="utf-8") as file:
        assert {row["uid"] for row in csv.DictReader(file)} == uids
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "contact_sheet.png" in card
    for name in ("contact_sheet.png", "quality.png"):
        with Image.open(folder / name) as picture:
            low, high = picture.convert("L").getextrema()
        assert low < high  # something is drawn on it


def test_settings_of_the_tests_are_valid():
    configuration.check(yaml.safe_load(yaml.safe_dump(SETTINGS)))


def test_a_packed_file_that_was_lost_is_made_again(made, tmp_path):
    workspace = made.copy(tmp_path / "lost")
    (workspace.output / "triplets" / "00001.tar").unlink()
    assert workspace.planned() == {"pack": 1, "index": 1}


@pytest.mark.parametrize("name", ["views/00001.tar", "views/00001.parquet"])
def test_a_file_that_was_set_aside_is_made_again_by_the_next_run(made, tmp_path, monkeypatch, name):
    workspace = made.copy(tmp_path / "aside")
    monkeypatch.chdir(workspace.folder)
    file = workspace.output / name
    was = file.read_bytes()
    os.truncate(file, 100)
    config = configuration.check(SETTINGS)
    _, (line,) = verify(config, 1, set_aside=True)
    assert "was set aside" in line
    _, (line,) = verify(config, 1)
    assert "is missing; make it again with: snakemake" in line
    assert workspace.planned("--config", "temporary=[views]").get("view") == (1 if name.endswith("parquet") else None)
    assert workspace.planned() == {"view": 1, "fit": 1, "render": 1, "pack": 1, "index": 1}
    workspace.make("--until", "view")
    assert file.read_bytes() == was
    assert verify(config, 1)[1] == []


def test_a_bundle_that_was_removed_by_hand_is_not_missed_and_verify_names_it(made, tmp_path, monkeypatch):
    workspace = made.copy(tmp_path / "removed")
    monkeypatch.chdir(workspace.folder)
    (workspace.output / "renders" / "00001.tar").unlink()
    assert workspace.planned() == {}
    _, (line,) = verify(configuration.check(SETTINGS), 1)
    assert "is missing; make it again with: snakemake" in line
