import warnings
import zipfile

import numpy as np
import pytest

from clipgs.catalog import shards, stages
from clipgs.catalog.records import UID_PATTERN
from clipgs.catalog.sources import source
from clipgs.config import check
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.meshes.load import load

# A box 1 x 2 x 4 with Z up, its header as in many files of ModelNet: no line end after OFF.
BOX = """OFF8 6 0
0 0 0
1 0 0
1 2 0
0 2 0
0 0 4
1 0 4
1 2 4
0 2 4
4 0 3 2 1
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""
NAMES = ["chair/test/chair_0890.off", "chair/train/chair_0001.off", "night_stand/train/night_stand_0001.off"]


def modelnet(path, cache, name="modelnet40", **settings):
    config = {"cache": str(cache), "output": str(cache / "out"), **settings}
    return source(check({**config, "catalog": {"source": name, "modelnet": {"path": str(path) if path else None}}}))


@pytest.fixture
def folder(tmp_path):
    """The unpacked archive."""
    for name in NAMES:
        path = tmp_path / "ModelNet40" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BOX)
    return tmp_path / "ModelNet40"


@pytest.fixture
def archive(tmp_path):
    """The archive as it was published: with its own folder, and a Mac's shadow files."""
    with zipfile.ZipFile(tmp_path / "ModelNet40.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("ModelNet40/", "")
        bundle.writestr("ModelNet40/.DS_Store", "x")
        for name in NAMES:
            bundle.writestr(f"ModelNet40/{name}", BOX)
            bundle.writestr(f"__MACOSX/ModelNet40/{name.replace('/c', '/._c')}", "x")
        bundle.writestr("ModelNet40/chair/train/._chair_0001.off", "x")
    return tmp_path / "ModelNet40.zip"


def row_of(objects, locator):
    return {"locator": locator, **objects.identify(locator)}


def test_folder_and_archive_hold_the_same_objects(folder, archive, tmp_path):
    for path in (folder, folder.parent, archive):
        objects = modelnet(path, tmp_path / "cache")
        assert objects.locators() == NAMES
        assert objects.gone([*NAMES, "chair/train/chair_9999.off"]) == ["chair/train/chair_9999.off"]
        for name in NAMES:
            file = objects.fetch(row_of(objects, name))
            assert file == objects.path(row_of(objects, name))
            assert file.read_text() == BOX


def test_rows_and_labels(folder, tmp_path):
    objects = modelnet(folder, tmp_path / "cache")
    row = objects.identify(NAMES[2])
    assert row["uid"] == row["group"] == "modelnet40-night_stand_0001"
    assert UID_PATTERN.fullmatch(row["uid"])
    assert objects.identify(NAMES[0])["split"] == "test"
    label = objects.labels(NAMES)[2]
    assert label["category"] == "night_stand"
    assert label["text"] is None  # the captions say "a night stand"
    assert label["license"].startswith("academic research only")
    assert "Princeton ModelNet" in label["credit"]
    assert objects.up_axis(row) == "z"


def test_validation_is_a_share_of_train_and_test_stays_whole(tmp_path):
    objects = modelnet(tmp_path, tmp_path / "cache")
    train = [objects.identify(f"chair/train/chair_{i:04d}.off")["split"] for i in range(2000)]
    assert set(train) == {"train", "validation"}
    assert train.count("validation") / 2000 == pytest.approx(0.1, abs=0.02)
    assert {objects.identify(f"chair/test/chair_{i:04d}.off")["split"] for i in range(2000)} == {"test"}


def test_objects_are_frozen_with_the_published_split(archive, tmp_path):
    settings = {"cache": str(tmp_path / "cache"), "output": str(tmp_path / "out")}
    config = check({**settings, "catalog": {"source": "modelnet40", "modelnet": {"path": str(archive)}}})
    assert shards.plan(config).pending == ("00000",)
    stages.freeze(config, ["00000"])
    stages.label(config, "00000")
    rows = read_table(shards.shard_path(config, "00000"))
    assert [row["note"] for row in rows] == [None] * 3  # equal files are no doubles in a benchmark
    assert {row["uid"]: row["split"] for row in rows}["modelnet40-chair_0890"] == "test"
    assert shards.plan(config).pending == ()


def test_the_header_without_a_line_end_loads_upright_in_the_neutral_colour(folder, tmp_path):
    limits = {"max_faces": 1000, "max_texture_pixels": 1000}
    mesh = load(folder / NAMES[0], up_axis="z", neutral_color=(0.5, 0.5, 0.5), **limits)
    assert mesh.face_count == 12
    extent = np.ptp(np.concatenate([part.vertices for part in mesh.parts]), axis=0)
    np.testing.assert_allclose(extent, [0.25, 1, 0.5], atol=1e-6)
    assert mesh.parts[0].material.base_color_factor[0] == pytest.approx(0.2140, abs=1e-3)  # linear of sRGB 0.5


def test_a_member_is_unpacked_once_and_again_if_it_was_damaged(archive, tmp_path):
    objects = modelnet(archive, tmp_path / "cache")
    row = row_of(objects, NAMES[0])
    file = objects.fetch(row)
    first = file.stat().st_mtime_ns
    assert objects.fetch(row).stat().st_mtime_ns == first
    file.write_text("cut")
    assert modelnet(archive, tmp_path / "cache").fetch(row).read_text() == BOX


def test_two_archives_do_not_share_a_place_in_the_cache(archive, tmp_path):
    other = tmp_path / "other.zip"
    other.write_bytes(archive.read_bytes())
    one, two = modelnet(archive, tmp_path / "cache"), modelnet(other, tmp_path / "cache")
    assert one.path(row_of(one, NAMES[0])) != two.path(row_of(two, NAMES[0]))


def test_a_damaged_member_is_the_objects_fault(tmp_path):
    path = tmp_path / "ModelNet40.zip"
    with zipfile.ZipFile(path, "w") as bundle:  # stored: its text stands in the file
        for name in NAMES:
            bundle.writestr(name, BOX if name != NAMES[1] else BOX + "# damage me\n")
    path.write_bytes(path.read_bytes().replace(b"# damage me", b"# DAMAGE ME", 1))
    objects = modelnet(path, tmp_path / "cache")
    with pytest.raises(ObjectError, match=r"chair_0001\.off is damaged in the archive"):
        objects.fetch(row_of(objects, NAMES[1]))
    assert not objects.path(row_of(objects, NAMES[1])).exists()
    assert objects.fetch(row_of(objects, NAMES[0])).exists()


def test_a_member_over_the_limit_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(f"ModelNet40/{NAMES[0]}", b"0" * 1_100_000)
    objects = modelnet(tmp_path / "bomb.zip", tmp_path / "cache", meshes={"max_file_mb": 1})
    with pytest.raises(ObjectError, match=r"max_file_mb is 1"):
        objects.fetch(row_of(objects, NAMES[0]))
    assert not objects.path(row_of(objects, NAMES[0])).exists()


def test_names_that_lead_elsewhere_are_no_objects(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "evil.zip", "w") as bundle:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name in (*NAMES, "ModelNet40/" + NAMES[0], "../../chair/train/x.off", "/a/b/chair/train/x.off", "x.off"):
            bundle.writestr(name, BOX)
        bundle.writestr("chair/train/../x.off", BOX)
    objects = modelnet(tmp_path / "evil.zip", tmp_path / "cache")
    assert objects.locators() == NAMES
    assert objects.notes()[1].startswith("5 OFF files do not stand")
    for locator in ("../../x.off", "chair/train/../x.off", "/chair/train/x.off", "chair/valid/x.off"):
        with pytest.raises(ObjectError, match="is not CLASS"):
            objects.path({"locator": locator})


def test_a_number_of_objects_that_was_not_published_is_noted(folder, tmp_path):
    assert "holds 3 objects; ModelNet40 has 12311" in modelnet(folder, tmp_path / "cache").notes()[0]
    assert "ModelNet10 has 4899" in modelnet(folder, tmp_path / "cache", "modelnet10").notes()[0]


def test_what_is_not_modelnet_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(UsageError, match=r"holds no CLASS/train/NAME\.off"):
        modelnet(tmp_path / "empty", tmp_path / "cache").locators()
    with pytest.raises(UsageError, match=r"nowhere\.zip is not there"):
        modelnet(tmp_path / "nowhere.zip", tmp_path / "cache").locators()
    with pytest.raises(ClipgsError, match=r"cut\.zip is no whole zip archive"):
        modelnet(tmp_path / "cut.zip", tmp_path / "cache").locators()


def test_the_archive_is_downloaded_once(archive, tmp_path):
    objects = modelnet(archive.as_uri(), tmp_path / "cache")
    assert objects.locators() == NAMES
    archive.unlink()
    again = modelnet(archive.as_uri(), tmp_path / "cache")
    assert again.fetch(row_of(again, NAMES[0])).read_text() == BOX


def test_a_mirror_of_the_published_archive(archive, tmp_path):
    downloads = {"endpoint": tmp_path.as_uri(), "retries": 0}
    config = {"catalog": {"source": "modelnet40", "downloads": downloads}, "cache": str(tmp_path / "cache")}
    assert source(check(config)).locators() == NAMES
    archive.unlink()
    config["cache"] = str(tmp_path / "another")
    with pytest.raises(ClipgsError, match=r"download it yourself and name it in catalog\.modelnet\.path"):
        source(check(config)).locators()
