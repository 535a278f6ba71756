"""A source that changes under an output: files that are replaced, repaired, renamed or deleted, and wrong manifests."""

import hashlib
import json
import shutil

from clipgs import config as configuration
from clipgs.catalog.sources import procedural
from clipgs.core.bundles import read_table, tar_objects

from .conftest import SETTINGS, Workspace
from .test_operate import said

FOLDER = {"catalog": {"shard_objects": 64, "folder": {"manifest": None}}}


def workspace_of(folder, checkout, settings=FOLDER):
    workspace = Workspace(folder, checkout)
    (folder / "meshes").mkdir(parents=True)
    workspace.write_config(configuration.merge(SETTINGS, settings))
    return workspace


def mesh(index):
    return procedural.build(procedural.locator(index, 0))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def packed(workspace):
    """Uid to `uid.json` and caption of each packed object, with the file's row of the index."""
    found = {}
    for tar in sorted((workspace.output / "triplets").glob("*.tar")):
        for uid, members in tar_objects(tar).items():
            files = members.read()
            found[uid] = {**json.loads(files["json"]), "text": files["txt"].decode()}
    index = {row["uid"]: row["file"] for row in read_table(workspace.output / "triplets" / "index.parquet")}
    assert index == {uid: meta["file"] for uid, meta in found.items()}
    return found


def errors(workspace):
    tables = sorted((workspace.output / "triplets").glob("[0-9]*.parquet"))
    return {row["uid"]: f"{row['stage']}: {row['error']}" for table in tables for row in read_table(table)
            if row["status"] != "ok"}  # fmt: skip


def test_a_replaced_file_is_never_mixed_with_what_it_replaced(tmp_path, checkout):
    workspace = workspace_of(tmp_path / "w", checkout)
    meshes = workspace.folder / "meshes"
    apple, burger, whole = mesh(6), mesh(0), mesh(1)
    (meshes / "ghost.glb").write_bytes(apple)
    (meshes / "broken.glb").write_bytes(whole[:500])
    workspace.make()
    old, broken = sha256(apple)[:16], sha256(whole[:500])[:16]
    assert set(packed(workspace)) == {old}
    assert set(errors(workspace)) == {broken}

    # One is replaced, and the other is repaired in place.
    (meshes / "ghost.glb").write_bytes(burger)
    (meshes / "broken.glb").write_bytes(whole)
    new, repaired = sha256(burger)[:16], sha256(whole)[:16]
    done = workspace.make()
    assert "note: 2 of 2 objects were replaced in the source" in done.stderr
    found = packed(workspace)
    assert {uid: meta["mesh"]["sha256"] for uid, meta in found.items()} == {
        old: sha256(apple),
        new: sha256(burger),
        repaired: sha256(whole),
    }
    assert {meta["file"] for meta in found.values()} == {"ghost.glb", "broken.glb"}
    assert found[old]["split"] == found[new]["split"]
    assert workspace.planned() == {}
    text = said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    assert "replaced: 2: " in text
    assert f"{old} (ghost.glb)" in text

    # A stage that reads the old file again refuses the new one.
    said(workspace, "retry", "sample")
    workspace.write_config(configuration.merge(SETTINGS, FOLDER, {"views": {"pixels": 40}}))
    workspace.make()
    assert set(packed(workspace)) == {new, repaired}
    assert "ghost.glb has changed since it was frozen" in errors(workspace)[old]
    assert errors(workspace)[old].startswith("view: ")
    assert "broken.glb has changed since it was frozen" in errors(workspace)[broken]

    text = said(workspace, "exclude", "--replaced")
    assert f"{old} its file was replaced: ghost.glb" in text
    assert "no object of this output is replaced" in said(workspace, "exclude", "--replaced")
    assert workspace.planned() == {"pack": 1, "index": 1}


def test_a_file_that_has_gone_blocks_nothing_and_what_was_made_of_it_stays(tmp_path, checkout):
    workspace = workspace_of(tmp_path / "w", checkout)
    meshes = workspace.folder / "meshes"
    for index, name in enumerate(("misc/a-claw-hammer", "misc/bottle", "chair/chair_0001")):
        (meshes / name).parent.mkdir(exist_ok=True)
        (meshes / f"{name}.glb").write_bytes(mesh(index))
    workspace.make()
    before = packed(workspace)
    assert {meta["file"]: (meta["category"], meta["text"]) for meta in before.values()} == {
        "misc/a-claw-hammer.glb": ("misc", "a claw hammer"),
        "misc/bottle.glb": ("misc", "bottle"),
        "chair/chair_0001.glb": ("chair", "a chair"),
    }
    uids = {meta["file"]: uid for uid, meta in before.items()}
    hammer, bottle = uids["misc/a-claw-hammer.glb"], uids["misc/bottle.glb"]

    (meshes / "misc" / "bottle.glb").unlink()
    (meshes / "misc" / "a-claw-hammer.glb").rename(meshes / "hammer.glb")
    done = workspace.make()
    assert "note: 1 of 3 objects have gone from the source (the first: misc/bottle.glb)" in done.stderr
    after = packed(workspace)
    assert after[bottle] == before[bottle]
    assert (after[hammer]["file"], after[hammer]["text"]) == ("misc/a-claw-hammer.glb", "hammer")  # of its new name
    assert {uid: meta["mesh"] for uid, meta in after.items()} == {uid: meta["mesh"] for uid, meta in before.items()}
    (duplicate,) = errors(workspace).values()
    assert duplicate == f"catalog: duplicate of {hammer}"
    text = said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    assert f"source gone: 1: {bottle} (misc/bottle.glb); clipgs exclude --gone takes them out" in text

    # It fails only where its file is needed again; the renamed one is found under its new name.
    workspace.make("--forcerun", "fetch")
    assert set(packed(workspace)) == set(before) - {bottle}
    assert "fetch: ObjectError: misc/bottle.glb has gone since it was frozen" in errors(workspace)[bottle]
    assert f"{bottle} its file has gone: misc/bottle.glb" in said(workspace, "exclude", "--gone")
    assert workspace.planned() == {"pack": 1, "index": 1}

    # It is put back.
    none = "no object that was excluded as gone is in the source again"
    assert none in said(workspace, "exclude", "--undo", "--gone")
    (meshes / "misc" / "bottle.glb").write_bytes(mesh(1))
    text = said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    command = "clipgs exclude --undo --gone takes them in again"
    assert f"excluded, there again: 1: {bottle} (misc/bottle.glb); {command}" in text
    assert f"{bottle} is in the source again" in said(workspace, "exclude", "--undo", "--gone")
    (meshes / "misc" / "bottle.glb").unlink()
    said(workspace, "exclude", "--gone")

    # The source as a whole.
    meshes.rename(workspace.folder / "elsewhere")
    done = workspace.run("triplets")
    assert done.returncode == 2
    assert "clipgs: 2 of 2 known objects are missing from the source" in done.stderr
    # Where nothing is there, the renamed file has its first name again.
    jobs = {"label": 1, "caption": 1, "pack": 1, "index": 1}
    assert workspace.planned("--config", "catalog={allow_missing: true}") == jobs


def test_a_wrong_row_of_a_manifest_blocks_nothing(tmp_path, checkout):
    settings = {"catalog": {"shard_objects": 64, "folder": {"manifest": "m.csv"}}}
    workspace = workspace_of(tmp_path / "w", checkout, settings)
    (workspace.folder / "meshes" / "b.glb").write_bytes(mesh(0))
    (workspace.folder / "m.csv").write_text("file,text\nb.glb,a burger\nghost.glb,a ghost\n")
    workspace.make()
    assert workspace.planned() == {}
    assert [meta["text"] for meta in packed(workspace).values()] == ["a burger"]
    assert [error[:20] for error in errors(workspace).values()] == ["catalog: unreadable:"]
    named = "1 catalog: unreadable: No such file or directory (ghost.glb)"
    assert named in said(workspace, "status", "--snakefile", str(checkout / "Snakefile"))
    assert "| ghost.glb | 1 |" in (workspace.output / "triplets" / "README.md").read_text()
    (workspace.folder / "m.csv").write_text("file,text\nb.glb,a burger\n")
    assert set(workspace.planned()) <= {"label", "caption", "pack", "index"}

    # Files that are packed and not listed any more keep the labels of their names.
    shutil.copy(workspace.folder / "meshes" / "b.glb", workspace.folder / "c.glb")
    (workspace.folder / "meshes" / "a chair.glb").write_bytes(mesh(1))
    (workspace.folder / "m.csv").write_text("file,text\na chair.glb,a chair that is new\n")
    done = workspace.make()
    assert "1 object of this output is not in the manifest; it keeps the labels of its name" in done.stderr
    assert {meta["file"]: meta["text"] for meta in packed(workspace).values()} == {
        "b.glb": "b",
        "a chair.glb": "a chair that is new",
    }
