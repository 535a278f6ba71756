import csv
import hashlib
import json
import os
import time
from itertools import pairwise

import pytest

from clipgs.catalog.sources import digests
from clipgs.catalog.sources.folder import FolderSource, path_uid
from clipgs.config import check
from clipgs.core.errors import ObjectError, UsageError
from clipgs.core.files import sha256_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


def folder_source(path, **folder):
    return FolderSource(check({"catalog": {"source": "folder", "folder": {"path": str(path), **folder}}}))


def write(folder, **files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_manifest(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_mesh_files_are_found_at_any_depth(tmp_path):
    write(tmp_path, **{"b.obj": "b", "deep/er/a.GLB": "a", "notes.txt": "", ".hidden.obj": "", "deep/x.mtl": ""})
    assert folder_source(tmp_path).locators() == ["b.obj", "deep/er/a.GLB"]
    assert folder_source(tmp_path / "**" / "*.GLB").locators() == ["deep/er/a.GLB"]
    assert folder_source(tmp_path / "deep" / "*" / "a.*").locators() == ["er/a.GLB"]


def test_names_may_hold_anything(tmp_path):
    names = ["a b.obj", "quote'\".obj", "dots..obj", "new\nline.obj", "käse.obj", "-rf.obj"]
    write(tmp_path, **{name: name for name in names})
    source = folder_source(tmp_path)
    assert source.locators() == sorted(names)
    for name in names:
        row = source.identify(name)
        assert row["note"] is None
        assert row["uid"] == hashlib.sha256(name.encode()).hexdigest()[:16]
        assert source.fetch({"locator": name, **row}) == tmp_path / name


def test_a_name_that_is_no_text_is_a_failed_row(tmp_path):
    (tmp_path / os.fsdecode(b"bad\xff.obj")).write_text("x")
    source = folder_source(tmp_path)
    (locator,) = source.locators()
    row = source.identify(locator)
    assert row["note"].startswith("unreadable")
    assert row["uid"] == path_uid(locator)


def test_a_link_to_a_folder_above_is_not_walked_for_ever(tmp_path):
    write(tmp_path, **{"a/b.obj": "b"})
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert folder_source(tmp_path).locators() == ["a/b.obj"]


@pytest.mark.parametrize("path", ["empty", "missing", None])
def test_nothing_to_do_is_said_in_one_line(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as error:
        folder_source(tmp_path / path).locators() if path else FolderSource(check({}))
    assert "\n" not in str(error.value)


def test_the_files_that_a_file_names_are_part_of_it(tmp_path):
    write(
        tmp_path,
        **{
            "a.obj": "mtllib a b.mtl\n",
            "a b.mtl": "map_Kd -s 1 1 1 t.png\n",
            "t.png": "1",
            "a.gltf": '{"buffers": [{"uri": "a%20b.mtl"}], "images": [{"uri": "data:,"}, {"uri": "../out"}]}',
            "a.dae": "<image><init_from>./t.png</init_from></image>",
        },
    )
    source = folder_source(tmp_path)
    before = [source.identify(name)["sha256"] for name in ("a.obj", "a.gltf", "a.dae")]
    write(tmp_path, **{"t.png": "2"})
    after = [source.identify(name)["sha256"] for name in ("a.obj", "a.gltf", "a.dae")]
    assert before[0] != after[0]
    assert before[1] != after[1]  # through the .mtl that it names as a buffer
    assert before[2] != after[2]


def test_files_that_are_found_elsewhere_in_the_folder_are_part_of_it_too(tmp_path):
    files = {"o/models/a.obj": "mtllib a.mtl b.mtl\n", "o/models/A.mtl": "map_Kd -s 1 1 1 ../images/a b.png\n"}
    files |= {"o/models/b.mtl": "map_d C:\\x\\c.png\nbump d.png\n"}
    pictures = ["o/images/a b.png", "textures/c.png", "o/materials/textures/c.png"]
    write(tmp_path, **files, **dict.fromkeys(pictures, "1"), **{"out.png": "1"})
    source = folder_source(tmp_path)
    digests = [source.identify("o/models/a.obj")["sha256"]]
    for name in (*files, *pictures, "out.png"):
        write(tmp_path, **{name: files.get(name, "2") + "\n"})
        digests.append(source.identify("o/models/a.obj")["sha256"])
    changed = [before != after for before, after in pairwise(digests)]
    assert changed == [True, True, True, True, False, True, False]  # the file is found in the nearest folder


def test_hashes_that_were_kept_before_files_were_looked_for_are_not_used(tmp_path):
    write(tmp_path, **{"o/models/a.obj": "mtllib a.mtl\n", "o/models/a.mtl": "map_Kd ../images/a.png\n"})
    write(tmp_path, **{"o/images/a.png": "1", "b.stl": "b"})
    aged(tmp_path)
    source = folder_source(tmp_path)
    kept, names = source._digests._kept, ["o/models/a.obj", "b.stl"]
    right = source.digests(names)
    entries = json.loads(kept.read_text())
    for entry in entries.values():
        entry[0], entry[1:] = "an older hash", [entry[1]]
    kept.write_text(json.dumps(entries))
    assert folder_source(tmp_path).digests(names) == {**right, "b.stl": "an older hash"}


def test_a_file_that_changed_is_not_taken_for_the_one_that_was_frozen(tmp_path):
    write(tmp_path, **{"a.obj": "one"})
    source = folder_source(tmp_path)
    row = {"locator": "a.obj", **source.identify("a.obj")}
    write(tmp_path, **{"a.obj": "two"})
    with pytest.raises(ObjectError, match=r"^a\.obj has changed since it was frozen"):
        source.fetch(row)
    (tmp_path / "a.obj").unlink()
    with pytest.raises(ObjectError, match=r"^a\.obj has gone since it was frozen"):
        source.fetch(row)


def test_a_file_that_has_another_name_now_is_still_fetched(tmp_path):
    write(tmp_path, **{"a.obj": "one"})
    os.utime(tmp_path / "a.obj", (1, 1))
    source = folder_source(tmp_path)
    row = {"locator": "a.obj", **source.identify("a.obj")}
    (tmp_path / "a.obj").rename(tmp_path / "b.obj")
    folder_source(tmp_path).digests(["b.obj"])
    assert folder_source(tmp_path).fetch(row) == tmp_path / "b.obj"
    write(tmp_path, **{"b.obj": "two"})
    with pytest.raises(ObjectError, match=r"^a\.obj has gone since it was frozen"):
        folder_source(tmp_path).fetch(row)


LABELS = [
    ("misc/a-claw-hammer.glb", "misc", "a claw hammer"),
    ("chair/chair_0001.glb", "chair", None),
    ("chair/chair01.glb", "chair", None),
    ("chair/0001.glb", "chair", None),
    ("chair/red chair 2.glb", "chair", "red chair"),
    ("office_chairs/7.obj", "office chairs", None),
    ("Office Chairs/OFFICE.obj", "Office Chairs", None),
    ("chair/b.obj", "chair", None),
    ("chair/r2d2.obj", "chair", None),  # no word of letters
    ("chair/scene.gltf", "chair", None),  # the name of any export
    ("boats/deco_12.obj", "boats", "deco"),
    ("boats/facade_2020.obj", "boats", "facade"),
    ("chair/1a04e3eab45ca15dd86060f189eb133.obj", "chair", None),
    ("chair/550e8400-e29b-41d4-abcd-446655440000.glb", "chair", None),
    ("chair/leather-6b2c0b1f.glb", "chair", "leather"),
    ("möbel/Käse-Brett.glb", "möbel", "Käse Brett"),
    ("deep/er/a claw hammer.glb", "er", "a claw hammer"),
    ("12/lamp.glb", None, "lamp"),
    ("a-red_mug.obj", None, "a red mug"),
    ("chair_0001.obj", None, "chair"),
    ("boeing 747.obj", None, "boeing"),
    ("bed001.obj", None, "bed"),
    ("b.obj", None, "b"),
    ("b52.obj", None, "b52"),
    ("scene.gltf", None, "scene"),
    ("6b2c0b1f.obj", None, None),
    ("dQw4w9WgXcQ.obj", None, None),
    ("0017.obj", None, None),
]


@pytest.mark.parametrize(("name", "category", "text"), LABELS)
def test_without_a_manifest_names_are_the_labels(tmp_path, name, category, text):
    (label,) = folder_source(tmp_path).labels([name])
    assert (label["category"], label["text"]) == (category, text)


def test_texts_of_names_can_be_switched_off(tmp_path):
    names = ["misc/a-claw-hammer.glb", "chair_0001.glb", "0017.glb"]
    source = folder_source(tmp_path, text_from_name=False)
    labels = [(label["category"], label["text"]) for label in source.labels(names)]
    assert labels == [("misc", None), (None, "chair 0001"), (None, None)]  # as version 0.1.0 labelled
    assert source.label_digest(names) == ""  # which does not label these again
    assert folder_source(tmp_path).label_digest(names) != ""


def test_what_the_manifest_does_not_list_keeps_the_labels_of_its_name(tmp_path):
    write(tmp_path, **dict.fromkeys(["chair/red chair.obj", "chair/a.obj", "chair/new.obj"], "x"))
    manifest = write_manifest(tmp_path / "m.csv", [{"file": "chair/a.obj", "text": "a better text"}])
    source = folder_source(tmp_path, manifest=manifest)
    listed, unlisted = source.labels(["chair/a.obj", "chair/red chair.obj"])
    assert (listed["category"], listed["text"]) == (None, "a better text")
    assert (unlisted["category"], unlisted["text"]) == ("chair", "red chair")
    assert source.notes({"chair/red chair.obj"}) == [
        "1 object of this output is not in the manifest; it keeps the labels of its name",
        "1 file in the folder is not in the manifest, and left out",
    ]


def hashed(monkeypatch):
    """The names of the files that are hashed from now on."""
    names = []

    def counted(path):
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(digests, "sha256_of", counted)
    return names


def aged(folder):
    """Files that were not written just now."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1_000_000_000, 1_000_000_000))


def test_a_file_is_hashed_again_only_if_it_or_one_that_it_names_has_another_size_or_time(tmp_path, monkeypatch):
    folder = tmp_path / "m"
    write(folder, **{"a.obj": "mtllib a.mtl\n", "a.mtl": "map_Kd t.png\n", "b.stl": "b"})
    aged(folder)
    names, found = hashed(monkeypatch), ["a.obj", "b.stl"]
    first = folder_source(folder).digests(found)
    assert sorted(names) == ["a.mtl", "a.obj", "b.stl", "t.png"]
    assert first["b.stl"] == hashlib.sha256(b"b").hexdigest()
    names.clear()
    assert folder_source(folder).digests(found) == first
    assert names == []
    os.utime(folder / "a.mtl", (1_000_000_001, 1_000_000_001))
    assert folder_source(folder).digests(found) == first  # a touch is no change
    assert set(names) == {"a.mtl", "a.obj", "t.png"}
    write(folder, **{"t.png": "now it is there"})
    now = folder_source(folder).digests(found)
    assert now["a.obj"] != first["a.obj"]
    assert now["b.stl"] == first["b.stl"]


@pytest.mark.parametrize("kept", ["no json", "[]", '{"%s": 3}', '{"%s": ["x", [["%s"]]]}', None])
def test_a_cache_that_cannot_be_used_costs_time_only(tmp_path, kept):
    folder = tmp_path / "m"
    write(folder, **{"b.stl": "b"})
    aged(folder)
    source = folder_source(folder)
    file = source._digests._kept
    if kept is None:
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        file.parent.write_text("a file where the folder of hashes should be")
    else:
        file.parent.mkdir(parents=True)
        file.write_text(kept.replace("%s", str(folder / "b.stl")))
    for _ in range(2):
        assert folder_source(folder).digests(["b.stl", "gone.stl"]) == {"b.stl": hashlib.sha256(b"b").hexdigest()}


def test_a_file_that_was_written_just_now_is_hashed_again(tmp_path):
    """It may be written once more in the same step of the file system's clock."""
    write(tmp_path, **{"b.stl": "b"})
    times = (tmp_path / "b.stl").stat()
    first = folder_source(tmp_path).digests(["b.stl"])
    write(tmp_path, **{"b.stl": "c"})
    os.utime(tmp_path / "b.stl", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folder_source(tmp_path).digests(["b.stl"]) != first


def test_other_bytes_of_the_same_size_and_time_are_seen(tmp_path):
    """Splats of one size have one size of file, and files of an archive often one time."""
    write(tmp_path, **{"b.stl": "b"})
    aged(tmp_path)
    first = folder_source(tmp_path).digests(["b.stl"])
    time.sleep(0.05)  # steps of the file system's clock
    write(tmp_path, **{"b.stl": "c"})
    aged(tmp_path)
    assert folder_source(tmp_path).digests(["b.stl"]) != first


def test_a_long_hashing_is_a_line_of_the_log(tmp_path, monkeypatch, caplog):
    write(tmp_path, **{"b.stl": "b"})
    monkeypatch.setattr(digests, "_MANY_FILES", 0)
    caplog.set_level("INFO", "clipgs")
    folder_source(tmp_path).digests(["b.stl"])
    assert caplog.messages[0] == "hashing 1 files (0.0 GB), to see which have changed"


def test_a_swap_while_a_file_is_read_is_seen(tmp_path):
    write(tmp_path, **{"a.obj": "mtllib a.mtl\n", "a.mtl": "one"})
    aged(tmp_path)
    source = folder_source(tmp_path)
    row = {"locator": "a.obj", **source.identify("a.obj")}
    with digests.unchanged(source, row, row["sha256"]) as file:
        assert file == tmp_path / "a.obj"
    with pytest.raises(ObjectError, match="malformed"), digests.unchanged(source, row, row["sha256"]):
        raise ObjectError("malformed")
    with pytest.raises(ObjectError, match="replaced while it was read"), digests.unchanged(source, row, row["sha256"]):
        write(tmp_path, **{"a.mtl": "two"})


def test_a_manifest_labels_and_chooses(tmp_path):
    write(tmp_path, **{"a.obj": "a", "b.obj": "b", "c.obj": "c"})
    manifest = write_manifest(
        tmp_path / "m.csv",
        [
            {"file": "a.obj", "caption": "a chair", "licence": "CC-BY-4.0", "credit": "Ann", "geom_id": "g",
             "license_url": "u", "faces": "3"},
            {"file": "./b.obj", "caption": "", "licence": "", "credit": "", "geom_id": "", "license_url": "",
             "faces": ""},
        ],
    )  # fmt: skip
    source = folder_source(tmp_path, manifest=manifest, columns={"group": "geom_id"})
    assert source.locators() == ["a.obj", "b.obj"]
    first, second = source.labels(["a.obj", "b.obj"])
    assert first["text"] == "a chair"
    assert first["license"] == "CC-BY-4.0"
    assert first["credit"] == "Ann; license_url: u"  # licences and credit are never lost
    assert second["text"] is second["license"] is second["credit"] is None
    assert source.identify("a.obj")["group"] == "g"
    assert source.notes() == [
        "1 file in the folder is not in the manifest, and left out",
        "columns of the manifest that are not used: faces",
    ]


def test_the_columns_of_a_manifest_are_found_in_other_spellings(tmp_path):
    write(tmp_path, **{"a.obj": "a"})
    (tmp_path / "m.csv").write_bytes("\ufeffFile, Caption ,GEOM ID\r\na.obj,a chair,g\r\n,,\r\n".encode())
    source = folder_source(tmp_path, manifest=str(tmp_path / "m.csv"), columns={"group": "geom_id"})
    assert source.locators() == ["a.obj"]
    assert source.labels(["a.obj"])[0]["text"] == "a chair"
    assert source.identify("a.obj")["group"] == "g"


def test_files_of_a_manifest_that_are_not_there_are_named_before_any_job(tmp_path):
    write(tmp_path, **{"a.obj": "a", "chair.glb": "b"})
    manifest = write_manifest(tmp_path / "m.csv", [{"file": "a.obj"}, {"file": "Chair.GLB"}])
    note, *_ = folder_source(tmp_path, manifest=manifest).notes(["a.obj"])
    assert note == "1 file of the manifest is not in the folder: Chair.GLB; did you mean chair.glb?"
    write_manifest(tmp_path / "m.csv", [{"file": "zzz.obj"}])
    with pytest.raises(
        UsageError, match=r"catalog\.folder\.manifest: none of the files of .*m\.csv is in .*: zzz\.obj"
    ):
        folder_source(tmp_path, manifest=manifest).notes()
    # An output that has objects goes on with them.
    assert "1 file of the manifest is not" in folder_source(tmp_path, manifest=manifest).notes(["a.obj"])[0]


def test_a_mended_label_changes_the_digest_of_its_objects_alone(tmp_path):
    write(tmp_path, **{"a.obj": "a", "b.obj": "b"})
    rows = [{"file": name, "text": f"an {name}"} for name in ("a.obj", "b.obj")]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    before = [folder_source(tmp_path, manifest=manifest).label_digest([name]) for name in ("a.obj", "b.obj")]
    rows[1]["text"] = "a better text"
    write_manifest(tmp_path / "m.csv", rows)
    after = [folder_source(tmp_path, manifest=manifest).label_digest([name]) for name in ("a.obj", "b.obj")]
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([{"name": "a"}], {}, r"neither a column `file` nor `uid` \(it has name\)"),
        ([{"file": "a.obj"}, {"file": "./a.obj"}], {}, "line 3: a.obj is listed twice"),
        ([{"file": "a.obj", "text": "a"}, {"file": "", "text": "b"}], {}, "line 3: no file is named"),
        ([{"file": "a.obj", "split": "dev"}], {}, "split is 'dev'; allowed"),
        ([{"file": "a.obj"}], {"text": "caption"}, "has no such column"),
        ([{"file": "a.obj"}], {"words": "file"}, "catalog.folder.columns.words is not one of"),
    ],
)
def test_a_wrong_manifest_is_one_line_with_the_place(tmp_path, rows, columns, words):
    write(tmp_path, **{"a.obj": "a"})
    manifest = write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(UsageError, match=words):
        folder_source(tmp_path, manifest=manifest, columns=columns).locators()


def test_a_file_that_the_manifest_names_and_is_not_there_is_a_failed_row(tmp_path):
    write(tmp_path, **{"a.obj": "a"})
    manifest = write_manifest(tmp_path / "m.csv", [{"file": "a.obj"}, {"file": "../b.obj"}, {"file": "c.obj"}])
    source = folder_source(tmp_path, manifest=manifest)
    assert "leads out of the folder" in source.identify("../b.obj")["note"]
    assert "No such file" in source.identify("c.obj")["note"]


def test_only_formats_without_an_axis_of_their_own_are_turned(tmp_path):
    source = folder_source(tmp_path, up_axis="z")
    assert [source.up_axis({"locator": name}) for name in ("a.glb", "a.GLTF", "a.dae", "a.3mf", "a.stl")] == [*"yyyyz"]
