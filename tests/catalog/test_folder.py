import csv
import hashlib
import os

import pytest

from clipgs.catalog.sources.folder import FolderSource, path_uid
from clipgs.config import check
from clipgs.core.errors import ObjectError, UsageError


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
        },
    )
    source = folder_source(tmp_path)
    before = [source.identify(name)["sha256"] for name in ("a.obj", "a.gltf")]
    write(tmp_path, **{"t.png": "2"})
    after = [source.identify(name)["sha256"] for name in ("a.obj", "a.gltf")]
    assert before[0] != after[0]
    assert before[1] != after[1]  # through the .mtl that it names as a buffer


def test_a_file_that_changed_is_not_taken_for_the_one_that_was_frozen(tmp_path):
    write(tmp_path, **{"a.obj": "one"})
    source = folder_source(tmp_path)
    row = {"locator": "a.obj", **source.identify("a.obj")}
    write(tmp_path, **{"a.obj": "two"})
    with pytest.raises(ObjectError, match="other bytes than when it was frozen"):
        source.fetch(row)


def test_without_a_manifest_names_are_the_labels(tmp_path):
    names = ["office_chairs/7.obj", "a-red_mug.obj", "0017.obj"]
    write(tmp_path, **dict.fromkeys(names, "x"))
    labels = folder_source(tmp_path).labels(names)
    assert [(label["category"], label["text"]) for label in labels] == [
        ("office chairs", None),
        (None, "a red mug"),
        (None, None),
    ]


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
        "1 files in the folder are not in the manifest and are left out",
        "columns of the manifest that are not used: faces",
    ]


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
        ([{"name": "a"}], {}, "no column `file`"),
        ([{"file": "a.obj"}, {"file": "./a.obj"}], {}, "line 3: a.obj is listed twice"),
        ([{"file": ""}], {}, "line 2: no file is named"),
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
    assert [source.up_axis({"locator": name}) for name in ("a.glb", "a.GLTF", "a.stl")] == ["y", "y", "z"]
