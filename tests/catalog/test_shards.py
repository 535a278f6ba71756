import hashlib
import json
import logging
import subprocess
import sys
from collections import Counter

import pytest

from clipgs.catalog import stages
from clipgs.catalog.excluded import WHY_LOST, exclude
from clipgs.catalog.shards import (
    LARGE_CATALOG,
    back,
    curation,
    curation_path,
    frozen_shards,
    labels_path,
    lost,
    plan,
    shard_path,
)
from clipgs.catalog.sources.folder import path_uid
from clipgs.catalog.stages import freeze, label, objects
from clipgs.config import check
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError, ObjectError


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
            "cache": str(tmp_path / "cache"),
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
    (meshes / "late.obj").write_text("a")
    freeze_all(config)
    (late,) = [row for row in rows_of(config) if row["locator"] == "late.obj"]
    assert late["note"] == f"duplicate of {rows['a.obj']['uid']}"  # of the first, in a shard that was frozen before


def test_each_frozen_shard_is_a_line_of_the_log(tmp_path, meshes, caplog):
    caplog.set_level(logging.INFO, stages.__name__)
    freeze_all(config_of(tmp_path))
    expected = ["froze shard 00000: 2 objects", "froze shard 00001: 2 objects", "froze shard 00002: 1 objects"]
    assert caplog.messages == expected


def test_frozen_objects_keep_the_labels_of_their_own_source(tmp_path, meshes):
    (tmp_path / "m.csv").write_text("file,text\n" + "".join(f"{n}.obj,the {n}\n" for n in "abcde"))
    folder = {"path": str(meshes), "manifest": str(tmp_path / "m.csv")}
    config = config_of(tmp_path, folder=folder)
    freeze_all(config)
    before = plan(config).label_digests
    other = config_of(tmp_path, folder=folder, source="procedural", procedural={"objects": 3})
    made = plan(other)
    assert made.pending == ("00003", "00004")
    assert {shard: made.label_digests[shard] for shard in before} == before
    for shard in before:  # the last has a single object
        label(other, shard)
        locators = {row["uid"]: row["locator"] for row in read_table(shard_path(other, shard))}
        texts = {locators[row["uid"]]: row["text"] for row in read_table(labels_path(other, shard))}
        assert texts == {locator: f"the {locator[0]}" for locator in locators.values()}


GO_ON = "give Snakemake --config catalog='{allow_missing: true}'"


def allowing(config):
    return check(
        {
            "output": config.output,
            "cache": config.cache,
            "catalog": {**config.catalog.model_dump(), "allow_missing": True},
        }
    )


def test_an_object_whose_file_has_gone_is_named_and_blocks_nothing(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    before = {row["locator"]: row["uid"] for row in rows_of(config)}
    for name in "abcd":  # four of five: a small catalog may lose most
        (meshes / f"{name}.obj").unlink()
    made = plan(config)
    assert (made.pending, made.objects) == ((), 5)
    assert {locator: uid for uid, locator in made.gone} == {f"{name}.obj": before[f"{name}.obj"] for name in "abcd"}
    assert made.notes == (
        f"4 of 5 objects have gone from the source (the first: {made.gone[0][1]}); what was made of them stays; "
        "they leave with: clipgs exclude --gone",
    )
    exclude(config, [uid for uid, _ in made.gone])
    assert (plan(config).gone, plan(config).notes) == ((), ())
    (meshes / "new.obj").write_text("new")
    assert freeze_all(config) == ["00003"]


def test_a_source_that_has_gone_as_a_whole_stops_the_run(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    before = plan(config)
    for path in meshes.iterdir():
        path.unlink()
    refusal = rf"^5 of 5 known objects are missing from the source \(the first: .*\); mount it again or, .*{GO_ON}$"
    with pytest.raises(ClipgsError, match=refusal):
        plan(config)
    assert len(lost(config)["gone"]) == 5
    meshes.rmdir()
    with pytest.raises(ClipgsError, match=refusal):
        plan(config)
    made = plan(allowing(config))
    assert (made.shards, made.label_digests) == (before.shards, before.label_digests)
    assert len(made.gone) == 5
    objects(allowing(config))
    assert json.loads(curation_path(config).read_text())["taken"] == 0
    exclude(config, [uid for uid, _ in made.gone])
    with pytest.raises(ClipgsError, match=f"is not a folder or a file; .*{GO_ON}"):
        plan(config)


def test_a_missing_source_with_its_manifest_keeps_the_labels(tmp_path, meshes):
    (meshes / "m.csv").write_text("file,text\n" + "".join(f"{n}.obj,the {n}\n" for n in "dbcae"))
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(meshes / "m.csv")})
    freeze_all(config)
    for shard in frozen_shards(config):
        label(config, shard)
    before = plan(config).label_digests
    meshes.rename(tmp_path / "elsewhere")
    with pytest.raises(ClipgsError, match="5 of 5 known objects are missing"):
        plan(config)
    made = plan(allowing(config))
    assert made.label_digests == before
    assert made.notes[0].endswith("m.csv does not exist: the run goes on with what was made")


def test_more_than_half_of_a_large_catalog_stops_the_run(tmp_path):
    (tmp_path / "meshes").mkdir()
    for i in range(LARGE_CATALOG + 2):
        (tmp_path / "meshes" / f"{i:02d}.obj").write_text(str(i))
    config = config_of(tmp_path, shard_objects=20)
    freeze_all(config)
    half = LARGE_CATALOG // 2 + 1
    for i in range(half):
        (tmp_path / "meshes" / f"{i:02d}.obj").unlink()
    assert len(plan(config).gone) == half
    (tmp_path / "meshes" / f"{half}.obj").unlink()
    with pytest.raises(ClipgsError, match=f"{half + 1} of {2 * half} known objects are missing"):
        plan(config)
    assert len(plan(allowing(config)).gone) == half + 1
    exclude(config, [uid for uid, _ in lost(config)["gone"][:3]])  # what is excluded does not count
    assert len(plan(config).gone) == half - 2


def test_a_row_of_the_manifest_without_a_file_never_blocks(tmp_path, meshes):
    (tmp_path / "m.csv").write_text("file,text\na.obj,the a\nghost.obj,a ghost\n")
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    assert freeze_all(config) == ["00000"]
    made = plan(config)
    assert (made.pending, made.gone, made.replaced) == ((), (), ())
    (tmp_path / "m.csv").write_text("file,text\na.obj,the a\n")
    assert plan(config).pending == ()
    (tmp_path / "m.csv").write_text("file,text\na.obj,the a\nghost.obj,a ghost\n")
    (meshes / "ghost.obj").write_text("it came")  # a file that can be read now is a new object
    assert freeze_all(config) == ["00001"]
    (row,) = read_table(shard_path(config, "00001"))
    assert (row["locator"], row["note"]) == ("ghost.obj", None)
    assert plan(config).pending == ()


def test_a_replaced_file_is_a_new_object_and_the_old_one_stays(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    before = {shard: shard_path(config, shard).read_bytes() for shard in frozen_shards(config)}
    (old,) = [row for row in rows_of(config) if row["locator"] == "b.obj"]
    (meshes / "b.obj").write_text("another object")
    made = plan(config)
    assert made.pending == ("00003",)
    assert made.replaced == ((old["uid"], "b.obj"),)
    assert made.notes == (
        "1 of 5 objects were replaced in the source (the first: b.obj); the new files are new objects; "
        "the old ones leave with: clipgs exclude --replaced",
    )
    freeze_all(config)
    assert {shard: shard_path(config, shard).read_bytes() for shard in before} == before
    (new,) = read_table(shard_path(config, "00003"))
    assert new["uid"] == hashlib.sha256(b"another object").hexdigest()[:16]
    assert (new["locator"], new["note"], new["split"]) == ("b.obj", None, old["split"])
    assert new["group"] == old["group"]  # the same shape is not in two splits
    assert plan(config).pending == ()
    (meshes / "b.obj").touch()
    assert plan(config).replaced == ((old["uid"], "b.obj"),)
    (meshes / "b.obj").write_text("b")  # back again: no new object, but the newer one is replaced
    made = plan(config)
    assert (made.pending, made.replaced) == ((), ((new["uid"], "b.obj"),))


def test_a_replaced_material_makes_a_new_object(tmp_path, meshes):
    (meshes / "a.obj").write_text("mtllib a.mtl\n")
    (meshes / "a.mtl").write_text("map_Kd a.png\n")
    config = config_of(tmp_path)
    freeze_all(config)
    (meshes / "a.png").write_bytes(b"it was missing")
    made = plan(config)
    assert [locator for _, locator in made.replaced] == ["a.obj"]
    assert len(made.pending) == 1


def test_uids_of_files_that_are_replaced_again_and_again_are_unique(tmp_path, meshes):
    (tmp_path / "m.csv").write_text("file,uid,text\na.obj,mine,the a\nb.obj,,the b\nc.obj,,the c\nd.obj,,the d\n")
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    (meshes / "b.obj").unlink()
    freeze_all(config)
    for number in range(3):
        (meshes / "a.obj").write_text(f"version {number}")
        (meshes / "b.obj").write_text("c" if number % 2 == 0 else "d")  # a duplicate, of one and of the other
        freeze_all(config)
    rows = rows_of(config)
    uids = [row["uid"] for row in rows]
    assert len(uids) == len(set(uids)) == 4 + 3 + 2
    digests = [hashlib.sha256(f"version {number}".encode()).hexdigest()[:8] for number in range(3)]
    assert [uid for uid in uids if uid.startswith("mine")] == ["mine", *(f"mine-{digest}" for digest in digests)]
    assert len([uid for uid in uids if uid.startswith("path-")]) == 3  # of b: unreadable, and twice a duplicate
    assert [row["note"] for row in rows if row["locator"] == "a.obj"] == [None] * 4


def test_a_renamed_file_is_not_gone(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    for name in "abcde":
        (meshes / f"{name}.obj").rename(meshes / f"{name}{name}.obj")
    made = plan(config)
    assert (made.gone, len(made.pending)) == ((), 3)
    freeze_all(config)
    assert Counter(row["note"] is None for row in rows_of(config)) == {True: 5, False: 5}
    assert (plan(config).gone, plan(config).pending, plan(config).notes) == ((), (), ())


def texts_of(config):
    """Uid to its text; the labels are written."""
    found = {}
    for shard in frozen_shards(config):
        label(config, shard)
        found |= {row["uid"]: row["text"] for row in read_table(labels_path(config, shard))}
    return found


def test_files_that_change_their_names_are_no_new_objects_and_take_their_labels_along(tmp_path, meshes):
    """As where numbered files are numbered anew."""
    (tmp_path / "m.csv").write_text("file,text\n" + "".join(f"{n}.obj,the {n}\n" for n in "abcde"))
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    freeze_all(config)
    before, uids = texts_of(config), {row["locator"]: row["uid"] for row in rows_of(config)}
    digests = plan(config).label_digests
    (meshes / "a.obj").rename(meshes / "spare")
    (meshes / "b.obj").rename(meshes / "a.obj")
    (meshes / "spare").rename(meshes / "b.obj")
    assert (plan(config).replaced, plan(config).gone) == ((), ())
    (tmp_path / "m.csv").write_text(
        "file,text\na.obj,the b\nb.obj,the a\n" + "".join(f"{n}.obj,the {n}\n" for n in "cde")
    )
    assert [shard for shard in digests if plan(config).label_digests[shard] != digests[shard]] == ["00000"]
    freeze_all(config)
    rows = {row["uid"]: row for row in rows_of(config)}
    assert {rows[uid]["note"] for uid in rows.keys() - before.keys()} == {
        f"duplicate of {uids['a.obj']}",
        f"duplicate of {uids['b.obj']}",
    }
    after = texts_of(config)
    assert {uid: after[uid] for uid in before} == before
    assert (plan(config).pending, plan(config).replaced) == ((), ())


def test_an_object_whose_row_leaves_the_manifest_stays_and_is_shown(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    named = {row["locator"]: row["uid"] for row in rows_of(config)}
    first, *listed = sorted(named)
    (tmp_path / "m.csv").write_text("\n".join(["file", *listed, ""]))
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    assert lost(config) == {"replaced": [], "gone": [], "unlisted": [(named[first], first)]}
    exclude(config, [named[first]])
    assert lost(config)["unlisted"] == []


def test_an_excluded_object_is_not_shown_as_replaced(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    (meshes / "b.obj").write_text("another object")
    freeze_all(config)
    exclude(config, [uid for uid, _ in lost(config)["replaced"]])
    assert lost(config) == {"replaced": [], "gone": [], "unlisted": []}
    assert plan(config).notes == ()


def test_an_excluded_object_that_is_in_the_source_again_is_named(tmp_path, meshes):
    """Where it was, or under another name; not one that is out for another reason, nor one that is not there."""
    config = config_of(tmp_path)
    freeze_all(config)
    uids = {row["locator"]: row["uid"] for row in rows_of(config)}
    kept = {name: (meshes / name).read_bytes() for name in sorted(uids)[:4]}
    first, second, third, last = kept
    exclude(config, [uids[last]])
    for name in kept:
        (meshes / name).unlink()
    exclude(config, [uid for uid, _ in lost(config)["gone"]], WHY_LOST["gone"])
    assert plan(config).notes == ()
    assert back(config) == {"replaced": [], "gone": [], "unlisted": []}

    (meshes / first).write_bytes(kept[first])
    (meshes / last).write_bytes(kept[last])
    note = f"1 excluded object is in the source again (the first: {first}); to take them in again: "
    assert plan(config).notes == (f"{note}clipgs exclude --undo --gone",)
    (meshes / "under another name.obj").write_bytes(kept[second])
    (meshes / third).write_text("another object")
    found = sorted([(uids[first], first), (uids[second], "under another name.obj")])
    assert sorted(back(config)["gone"]) == found
    (note,) = plan(config).notes
    assert note.startswith("2 excluded objects are in the source again (the first: ")
    exclude(config, [uid for uid, _ in found], undo=True)
    assert plan(config).notes == ()


def test_an_object_that_is_listed_again_is_named(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze_all(config)
    named = {row["locator"]: row["uid"] for row in rows_of(config)}
    first, *listed = sorted(named)
    (tmp_path / "m.csv").write_text("\n".join(["file", *listed, ""]))
    with_manifest = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    exclude(with_manifest, [named[first]], WHY_LOST["unlisted"])
    assert back(with_manifest)["unlisted"] == []
    assert back(config)["unlisted"] == [(named[first], first)]


def test_a_source_that_changed_since_the_plan_is_refused(tmp_path, meshes):
    config = config_of(tmp_path)
    for path in list(meshes.iterdir())[:3]:
        path.unlink()
    with pytest.raises(
        ClipgsError, match=r"^the source changed while shards were planned; run the same command again$"
    ):
        freeze(config, ["00000", "00001", "00002"])
    assert not (tmp_path / "out").exists()


def manifest(tmp_path, rows):
    header = "file,category,group,split\n"
    (tmp_path / "m.csv").write_text(header + "".join(",".join(row) + "\n" for row in rows))
    return {"path": str(tmp_path / "meshes"), "manifest": str(tmp_path / "m.csv")}


def test_files_lie_where_the_formats_say(tmp_path):
    config = config_of(tmp_path)
    catalog = tmp_path / "out" / "catalog"
    assert shard_path(config, "00007") == catalog / "shards" / "00007.parquet"
    assert labels_path(config, "00007") == catalog / "labels" / "00007.parquet"
    assert curation_path(config) == catalog / "curation.json"


def test_a_source_without_annotations_refuses_nothing(tmp_path, meshes):
    expected = {"source": "folder", "refused": {}, "rules": {}, "taken": 5}
    assert curation(config_of(tmp_path)) == expected
    objects(config_of(tmp_path))
    assert json.loads(curation_path(config_of(tmp_path)).read_text()) == expected


def test_what_a_plan_holds(tmp_path, meshes):
    config = config_of(tmp_path)
    freeze(config, ["00000", "00001"])
    made = plan(config)
    assert (made.frozen, made.pending, made.objects) == (("00000", "00001"), ("00002",), 5)
    assert made.shards == ("00000", "00001", "00002")
    assert list(made.label_digests) == ["00000", "00001", "00002"]
    assert made.notes == ()
    assert not (tmp_path / "out" / "catalog" / "shards" / "00002.parquet").exists()
    rows = rows_of(config)
    assert [row["source"] for row in rows] == ["folder"] * 4
    for row in rows:
        data = (meshes / row["locator"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["uid"] == row["group"] == row["sha256"][:16]
        assert row["note"] is None


class Fake:
    """A source whose objects are what a test says."""

    name = "fake"

    def __init__(self, found):
        self.found = found

    def identify(self, locator):
        if isinstance(self.found, Exception):
            raise self.found
        return dict(self.found)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"uid": "a", "sha256": "1"}, {"uid": "a", "sha256": "1", "group": "a"}),
        ({"uid": "a", "sha256": "1", "group": "g"}, {"uid": "a", "sha256": "1", "group": "g"}),
        ({"uid": "a", "sha256": None}, {"uid": "a", "sha256": None, "group": "a"}),
        (
            {"uid": "a", "sha256": "known"},
            {"uid": "a", "sha256": "known", "group": "a", "note": "duplicate of owner"},
        ),
        (
            {"uid": "taken", "sha256": "known"},
            {"uid": path_uid("x.obj"), "sha256": "known", "group": path_uid("x.obj"), "note": "duplicate of owner"},
        ),
        (
            {"uid": "taken", "sha256": "1"},
            {"uid": path_uid("x.obj"), "sha256": "1", "group": path_uid("x.obj"),
             "note": "another object has the uid taken"},
        ),
        (
            {"uid": "taken", "sha256": "1", "note": "its own"},
            {"uid": path_uid("x.obj"), "sha256": "1", "group": path_uid("x.obj"), "note": "its own"},
        ),
        (
            ObjectError("it is gone"),
            {"uid": path_uid("x.obj"), "group": path_uid("x.obj"), "note": "unreadable: it is gone"},
        ),
    ],
)  # fmt: skip
def test_a_frozen_row(found, expected):
    owner, taken = {"known": "owner"}, {"taken", "owner"}
    row = stages._freeze_row(Fake(found), "x.obj", owner, taken)
    assert {key: value for key, value in row.items() if key != "note" or value} == {
        "source": "fake", "locator": "x.obj", **expected}  # fmt: skip
    assert taken == {"taken", "owner", expected["uid"]}
    new = {"1": expected["uid"]} if expected.get("sha256") == "1" and "note" not in expected else {}
    assert owner == {"known": "owner", **new}


def plain_hash(group):
    return int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12


def test_without_a_category_a_split_is_a_hash_of_the_group(tmp_path):
    config = config_of(tmp_path, test_fraction=0.3, validation_fraction=0.2)
    rows = [{"group": f"g{i}"} for i in range(200)]
    stages._Splits(config, []).assign(rows, [None] * 200)
    for row in rows:
        place = plain_hash(row["group"])
        assert row["split"] == ("test" if place < 0.3 else "validation" if place < 0.5 else "train")
    assert Counter(row["split"] for row in rows).keys() == {"train", "test", "validation"}


@pytest.mark.parametrize(("place", "split"), [(0.0, "test"), (0.25, "validation"), (0.5, "train"), (0.75, "train")])
def test_a_share_ends_before_its_bound(tmp_path, monkeypatch, place, split):
    """So that a share of 0 gets no group at all."""
    monkeypatch.setattr(stages, "unit_hash", lambda group: place)
    splits = stages._Splits(config_of(tmp_path, test_fraction=0.25, validation_fraction=0.25), [])
    assert splits._by_hash("g") == split


@pytest.mark.parametrize("already", [0, 5])
def test_in_a_category_the_split_that_lacks_most_is_next(tmp_path, already):
    """In whole numbers of tenths, with the groups in the order of their hashes; of equal lacks the test split's."""
    config = config_of(tmp_path, test_fraction=0.3, validation_fraction=0.2)
    counts = {"test": 0, "train": already, "validation": 0}
    splits = stages._Splits(config, [])
    splits._counts["chair"].update(counts)
    rows = [{"group": f"g{i}"} for i in range(41)]
    splits.assign(rows, ["chair"] * 41)
    tenths = {"test": 3, "train": 5, "validation": 2}
    found = {row["group"]: row["split"] for row in rows}
    for group in sorted(found, key=lambda group: hashlib.sha256(group.encode()).hexdigest()):
        total = sum(counts.values()) + 1
        lacks = {split: tenths[split] * total - 10 * counts[split] for split in counts}
        assert found[group] == max(lacks, key=lacks.get)
        counts[found[group]] += 1


@pytest.mark.parametrize(("groups", "already", "evenly"), [(2, 0, False), (3, 0, True), (2, 1, True), (1, 1, False)])
def test_a_category_of_three_groups_is_split_evenly(tmp_path, groups, already, evenly):
    config = config_of(tmp_path, test_fraction=0.0, validation_fraction=0.0)
    splits = stages._Splits(config, [])
    splits._fractions = {"train": 0.0, "test": 0.0, "validation": 1.0}  # the hash would give all to validation
    splits._counts["chair"]["validation"] = already
    splits._by_hash = lambda group: "by hash"
    rows = [{"group": f"g{i}"} for i in range(groups)]
    splits.assign(rows, ["chair"] * groups)
    assert {row["split"] for row in rows} == ({"validation"} if evenly else {"by hash"})


def test_groups_and_labels_of_frozen_shards_count(tmp_path, meshes):
    (tmp_path / "m.csv").write_text("file,category,split\n" + "".join(f"{n}.obj,chair,train\n" for n in "abcde"))
    config = config_of(tmp_path, folder={"path": str(meshes), "manifest": str(tmp_path / "m.csv")})
    freeze_all(config)
    label(config, "00000")
    label(config, "00001")  # the third has no labels yet
    splits = stages._Splits(config, rows_of(config))
    assert splits._counts == {"chair": {"train": 4}}
    assert splits._of_group == {row["group"]: "train" for row in rows_of(config)}
    known = [{"group": rows_of(config)[0]["group"], "split": "test"}, {"group": "new", "split": "validation"}]
    splits.assign(known, ["chair", "chair"])
    assert [row["split"] for row in known] == ["train", "validation"]


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
