import subprocess
import sys
from collections import Counter

import pytest

from clipgs.catalog.shards import frozen_shards, plan, shard_path
from clipgs.catalog.stages import freeze, label, objects
from clipgs.config import check
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.obj").write_text(name)
    return folder


def config_of(tmp_path, **catalog):
    folder = {"path": str(tmp_path / "meshes")}
    return check(
        {
            "output": str(tmp_path / "out"),
            "catalog": {"source": "folder", "shard_objects": 2, "folder": folder} | catalog,
        }
    )


def freeze_all(config):
    pending = list(plan(config).pending)
    if pending:
        freeze(config, pending)
    return pending


def rows_of(config):
    return [row for shard in frozen_shards(config) for row in read_table(shard_path(config, shard))]


def test_planning_writes_nothing(tmp_path, meshes):
    config = config_of(tmp_path)
    assert plan(config).pending == ("00000", "00001", "00002")
    assert plan(config).frozen == ()
    assert not (tmp_path / "out").exists()


def test_freezing_changes_no_label(tmp_path, meshes):
    (tmp_path / "m.csv").write_text(
        "file,uid,text\n" + "".join(f"{n}.obj,uid-{u},the {n}\n" for n, u in zip("abcde", "edcba", strict=True))
    )
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    before = plan(config).label_digests
    freeze_all(config)
    assert [row["locator"] for row in rows_of(config)][:2] == ["b.obj", "a.obj"]
    assert plan(config).label_digests == before


def test_new_objects_go_to_new_shards_and_old_ones_keep_their_bytes(tmp_path, meshes):
    config = config_of(tmp_path)
    assert freeze_all(config) == ["00000", "00001", "00002"]
    assert freeze_all(config) == []
    before = {shard: shard_path(config, shard).read_bytes() for shard in frozen_shards(config)}
    (meshes / "0.obj").write_text("first in the listing, last in the catalog")
    assert freeze_all(config) == ["00003"]
    assert all(shard_path(config, shard).read_bytes() == data for shard, data in before.items())
    assert [row["locator"] for row in read_table(shard_path(config, "00003"))] == ["0.obj"]
    assert len({row["uid"] for row in rows_of(config)}) == 6


def test_a_second_copy_is_a_row_of_its_own(tmp_path, meshes):
    (meshes / "copy.obj").write_text("a")
    config = config_of(tmp_path)
    freeze_all(config)
    rows = {row["locator"]: row for row in rows_of(config)}
    assert rows["a.obj"]["note"] is None
    assert rows["copy.obj"]["note"] == f"duplicate of {rows['a.obj']['uid']}"
    assert rows["copy.obj"]["uid"] != rows["a.obj"]["uid"]


def test_a_folder_that_is_not_mounted_stops_the_run(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    for name in "ab":
        (meshes / f"{name}.obj").unlink()
    with pytest.raises(ClipgsError, match=r"2 of 5 known objects are missing .* is it mounted\?"):
        plan(config)


def test_a_source_that_changed_since_the_plan_is_refused(tmp_path, meshes):
    config = config_of(tmp_path)
    for path in list(meshes.iterdir())[:3]:
        path.unlink()
    with pytest.raises(ClipgsError, match="run the same command again"):
        freeze(config, ["00000", "00001", "00002"])
    assert not (tmp_path / "out").exists()


def manifest(tmp_path, rows):
    header = "file,category,group,split\n"
    (tmp_path / "m.csv").write_text(header + "".join(",".join(row) + "\n" for row in rows))
    return {"path": str(tmp_path / "meshes"), "manifest": str(tmp_path / "m.csv")}


def test_splits_hold_groups_together_and_stay(tmp_path):
    (tmp_path / "meshes").mkdir()
    rows = []
    for i in range(40):
        (tmp_path / "meshes" / f"{i:02d}.obj").write_text(str(i))
        rows.append((f"{i:02d}.obj", "chair" if i < 30 else "lamp", f"g{i // 2}", ""))
    config = config_of(tmp_path, shard_objects=16, folder=manifest(tmp_path, rows[:30]))
    freeze_all(config)
    for shard in frozen_shards(config):
        label(config, shard)
    first = {row["locator"]: row["split"] for row in rows_of(config)}
    config = config_of(tmp_path, shard_objects=16, folder=manifest(tmp_path, rows))
    freeze_all(config)
    splits = {row["locator"]: row["split"] for row in rows_of(config)}
    assert {key: splits[key] for key in first} == first
    for i in range(0, 40, 2):
        assert splits[f"{i:02d}.obj"] == splits[f"{i + 1:02d}.obj"]
    chairs = Counter(splits[f"{i:02d}.obj"] for i in range(0, 30, 2))
    assert chairs == {"train": 11, "test": 3, "validation": 1}  # of 15 groups: 70, 20 and 10 %, in whole groups
    lamps = Counter(splits[f"{i:02d}.obj"] for i in range(30, 40, 2))
    assert lamps["test"] >= 1  # every category of three groups or more can be tested


def test_a_split_of_the_source_stands(tmp_path):
    (tmp_path / "meshes").mkdir()
    rows = [(f"{i}.obj", "chair", "", "test" if i % 2 else "train") for i in range(6)]
    for row in rows:
        (tmp_path / "meshes" / row[0]).write_text(row[0])
    config = config_of(tmp_path, folder=manifest(tmp_path, rows))
    freeze_all(config)
    assert {row["locator"]: row["split"] for row in rows_of(config)} == {row[0]: row[3] for row in rows}


def test_built_in_objects_can_be_added(tmp_path):
    settings = {"output": str(tmp_path), "catalog": {"shard_objects": 16, "procedural": {"objects": 20}}}
    freeze_all(check(settings))
    before = rows_of(check(settings))
    settings["catalog"]["procedural"]["objects"] = 25
    assert freeze_all(check(settings)) == ["00002"]
    assert rows_of(check(settings))[:20] == before
    objects(check(settings))
    table = read_table(tmp_path / "catalog" / "objects.parquet")
    assert len(table) == len({row["uid"] for row in table}) == 25


def test_parsing_imports_nothing_heavy():
    script = (
        "import sys; from clipgs import config; from clipgs.catalog.shards import plan\n"
        "plan(config.check({'output': '/nonexistent'}))\n"
        "heavy = {'torch', 'numba', 'scipy', 'trimesh', 'PIL', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
