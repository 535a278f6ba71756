"""Ready splats of all formats, alone, in folders, zips and tars, and manifests that name them by uid."""

import csv
import errno
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipgs.catalog.sources.splats import SplatSource
from clipgs.config import check
from clipgs.core.errors import ObjectError, SourceMissing, UsageError
from clipgs.splats import ready
from clipgs.splats.export import to_glb, to_splat
from clipgs.splats.gaussians import Gaussians
from tests.splats import writers
from tests.splats.balls import random_gaussians

UIDS = ("1111111111111111aaaaaaaaaaaaaaaa", "2222222222222222bbbbbbbbbbbbbbbb", "3333333333333333cccccccccccccccc")


def splat(rows: int, seed: int = 0) -> Gaussians:
    random = random_gaussians(rows, seed)
    random.opacity_logits[:] = 3
    return random


# The number of Gaussians tells which object was read.
FILES = {
    "chairs/a.spz": writers.spz(splat(21), 4),
    "chairs/b.compressed.ply": writers.compressed_ply(splat(22)),
    "chairs/c.sog": writers.zipped(writers.sog(splat(23))),
    "d.splat": to_splat(splat(24)),
    "e.glb": to_glb(splat(26)),
    "f.ply": splat(27).to_ply(),
    "g.ksplat": writers.ksplat(splat(28), 1, [28]),
    **{f"h/{name}": data for name, data in writers.gsplat_folder(splat(25)).items()},
    **{f"lamps/i/{name}": data for name, data in writers.sog(splat(29)).items()},
}
OBJECTS = {
    "chairs/a.spz": 21,
    "chairs/b.compressed.ply": 22,
    "chairs/c.sog": 23,
    "d.splat": 24,
    "h/meta.json": 25,
    "e.glb": 26,
    "f.ply": 27,
    "g.ksplat": 28,
    "lamps/i/meta.json": 29,
}
BESIDE = {"README.md": b"hello", "sidecar.npz": b"x", "__MACOSX/._a.ply": b"x", ".hidden/a.ply": b"x"}


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def laid(folder, files: dict[str, bytes]):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def config_of(tmp_path, path=None, **settings):
    splats = {"path": str(path or tmp_path / "in"), **settings}
    return check({"cache": str(tmp_path / "cache"), "catalog": {"source": "splats", "splats": splats}})


def source_of(tmp_path, path=None, **settings) -> SplatSource:
    return SplatSource(config_of(tmp_path, path, **settings))


def read(tmp_path, locator: str, path=None) -> int:
    """The Gaussians of an object that went through `freeze`, `fetch` and `fit`, each in a process of its own."""
    config = config_of(tmp_path, path)
    row = {"source": "splats", "locator": locator, **SplatSource(config).identify(locator)}
    assert row["note"] is None
    assert row["uid"] == row["sha256"][:16]
    fetched = SplatSource(config).fetch(row)
    assert fetched == SplatSource(config).path(row)
    return ready._place(ready.ReadySplat(config, row, row["sha256"]))[0]["gaussians"]


WAYS = {
    "folder": lambda files: files,
    "zip": lambda files: {"set/objects.zip": writers.zipped(files | BESIDE)},
    "deflated zip": lambda files: {"set/objects.zip": writers.zipped(files | BESIDE, "", zipfile.ZIP_DEFLATED)},
    "tar": lambda files: {"set/objects.tar": tar(files | BESIDE)},
    "tar with dots": lambda files: {"set/objects.tar": tar({f"./{name}": data for name, data in files.items()})},
    "tar.gz": lambda files: {"set/objects.tar.gz": tar(files | BESIDE, "w:gz")},
    "tgz": lambda files: {"set/objects.tgz": tar(files | BESIDE, "w:gz")},
    "tar.xz": lambda files: {"set/objects.tar.xz": tar(files | BESIDE, "w:xz")},
}


@pytest.mark.parametrize("way", WAYS)
def test_all_formats_are_objects_wherever_they_lie(way, tmp_path):
    files = WAYS[way](FILES)
    laid(tmp_path / "in", files)
    before = "" if way == "folder" else f"{next(iter(files))}/"
    source = source_of(tmp_path)
    assert source.locators() == sorted(before + name for name in OBJECTS)
    assert source.notes() == []
    assert {name: read(tmp_path, before + name) for name in OBJECTS} == OBJECTS
    digests = source_of(tmp_path).digests(source.locators())
    assert digests.keys() == set(source.locators())
    assert source_of(tmp_path).gone([*source.locators(), before + "x.spz"]) == [before + "x.spz"]


@pytest.mark.parametrize("name", [name for name in OBJECTS if not name.endswith("meta.json")])
def test_one_file_alone(name, tmp_path):
    laid(tmp_path / "in", FILES)
    path = tmp_path / "in" / name
    assert source_of(tmp_path, path).locators() == [path.name]
    assert read(tmp_path, path.name, path) == OBJECTS[name]


def test_one_archive_alone_and_a_zip_file_that_is_one_splat(tmp_path):
    laid(tmp_path / "in", {"a.zip": writers.zipped({"x/1.spz": FILES["chairs/a.spz"]}), "b.zip": FILES["chairs/c.sog"]})
    path = tmp_path / "in" / "a.zip"
    assert source_of(tmp_path, path).locators() == ["a.zip/x/1.spz"]
    assert read(tmp_path, "a.zip/x/1.spz", path) == 21
    assert source_of(tmp_path).locators() == ["a.zip/x/1.spz", "b.zip"]
    assert read(tmp_path, "b.zip") == 23


def test_what_is_in_an_archive_is_called_as_in_a_folder(tmp_path):
    members = {"red-chair.compressed.ply": b"1", "lamps/a-lamp.spz": b"2"}
    pictures = {f"bird/{name}": data for name, data in writers.sog(splat(9)).items()}
    laid(tmp_path / "in", {"chairs.tar.gz": tar(members, "w:gz"), "000-001.zip": writers.zipped(pictures)})
    source = source_of(tmp_path)
    labels = {locator: source.labels([locator])[0] for locator in source.locators()}
    assert {locator: (label["category"], label["text"]) for locator, label in labels.items()} == {
        "000-001.zip/bird/meta.json": (None, "bird"),
        "chairs.tar.gz/red-chair.compressed.ply": ("chairs", None),
        "chairs.tar.gz/lamps/a-lamp.spz": ("lamps", None),
    }


def test_pictures_have_another_hash_if_one_of_them_changes(tmp_path):
    laid(tmp_path / "in", writers.sog(splat(9)))
    digests = []
    for archived in (False, True):
        files = writers.sog(splat(9))
        for change in (b"", b" "):
            files["quats.webp"] += change
            laid(
                tmp_path / "in",
                {"a.tar": tar({f"x/{name}": data for name, data in files.items()})} if archived else files,
            )
            locator = "a.tar/x/meta.json" if archived else "meta.json"
            digests.append(source_of(tmp_path).digests([locator])[locator])
    assert len(set(digests)) == 4


def test_an_archive_that_changes(tmp_path):
    laid(tmp_path / "in", {"a.tar": tar({"1.ply": splat(5).to_ply(), "2.ply": splat(6).to_ply()})})
    config = config_of(tmp_path)
    source = SplatSource(config)
    rows = {name: {"source": "splats", "locator": name, **source.identify(name)} for name in source.locators()}
    source.fetch(rows["a.tar/1.ply"])
    laid(tmp_path / "in", {"a.tar": tar({"2.ply": splat(7).to_ply(), "3.ply": splat(8).to_ply()})})
    source = SplatSource(config)
    assert source.gone(list(rows)) == ["a.tar/1.ply"]
    assert source.digests(["a.tar/2.ply"])["a.tar/2.ply"] != rows["a.tar/2.ply"]["sha256"]
    with pytest.raises(
        ObjectError, match=r"2\.ply cannot be read in a\.tar any more: it is not there, or another object is"
    ):
        source.fetch(rows["a.tar/2.ply"])
    assert (
        ready._place(ready.ReadySplat(config, rows["a.tar/1.ply"], rows["a.tar/1.ply"]["sha256"]))[0]["gaussians"] == 5
    )


def test_a_copy_that_was_deleted_is_made_again(tmp_path):
    laid(tmp_path / "in", {"a.zip": writers.zipped({"1.ply": splat(5).to_ply()})})
    config = config_of(tmp_path)
    row = {"source": "splats", "locator": "a.zip/1.ply", **SplatSource(config).identify("a.zip/1.ply")}
    SplatSource(config).fetch(row).unlink()
    assert ready._place(ready.ReadySplat(config, row, row["sha256"]))[0]["gaussians"] == 5


def test_a_name_in_an_archive_leads_nowhere(tmp_path):
    outside = {"../../evil.ply": b"x", "/etc/evil.ply": b"x", "a/../evil.ply": b"x", "good.ply": splat(5).to_ply()}
    laid(tmp_path / "in", {"a.tar": tar(outside), "b.zip": writers.zipped(outside)})
    assert source_of(tmp_path).locators() == ["a.tar/good.ply", "b.zip/good.ply"]
    assert read(tmp_path, "a.tar/good.ply") == read(tmp_path, "b.zip/good.ply") == 5
    assert not list(tmp_path.rglob("evil*"))


def test_a_name_that_is_not_utf8_is_a_failed_object(tmp_path):
    laid(tmp_path / "in", {"a.tar": tar({b"caf\xe9.ply".decode("utf-8", "surrogateescape"): splat(5).to_ply()})})
    source = source_of(tmp_path)
    assert source.locators() == ["a.tar/caf\\xe9.ply"]
    assert "cannot be read in a.tar" in source.identify(source.locators()[0])["note"]


def test_links_in_a_tar_are_no_objects(tmp_path):
    stream = io.BytesIO(tar({"good.ply": splat(5).to_ply()}))
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="a") as archive:
        link = tarfile.TarInfo("link.ply")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    laid(tmp_path / "in", {"a.tar": stream.getvalue()})
    assert source_of(tmp_path).locators() == ["a.tar/good.ply"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_is_cut_short_gives_what_is_whole(mode, tmp_path):
    files = {f"{i}.ply": splat(2000, i).to_ply() for i in range(3)}
    data = tar(files, mode)
    name = "a.tar" if mode == "w" else "a.tar.gz"
    laid(tmp_path / "in", {name: data[: len(data) // 2]})
    source = source_of(tmp_path)
    assert source.locators() == [f"{name}/0.ply", f"{name}/1.ply"]
    assert "damaged" in source.identify(f"{name}/1.ply")["note"]
    assert source.notes() == [f"1 archive is damaged or cut short: {name}"]
    assert read(tmp_path, f"{name}/0.ply") == 2000


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.zip", b"PK\x03\x04 and no more", "zip file is cut short or damaged"),
        ("a.zip", b"", "the file is empty"),
        ("a.tar", b"no tar", "no format of splats"),
        ("a.tgz", b"\x1f\x8b no gzip", "cut short or damaged"),
        ("a.zip", writers.zipped({"a.txt": b"hello"}), "holds no splats as pictures"),
    ],
)
def test_an_archive_without_a_splat_is_one_failed_object(name, data, words, tmp_path):
    laid(tmp_path / "in", {name: data})
    assert source_of(tmp_path).locators() == [name]
    with pytest.raises(ObjectError, match=words):
        read(tmp_path, name)


def test_a_member_that_is_damaged_fails_alone(tmp_path):
    data = bytearray(writers.zipped({"1.ply": splat(5).to_ply(), "2.ply": splat(6).to_ply()}))
    data[data.index(b"end_header") + 60] ^= 255  # of 1.ply
    laid(tmp_path / "in", {"a.zip": bytes(data)})
    source = source_of(tmp_path)
    assert source.locators() == ["a.zip/1.ply", "a.zip/2.ply"]
    note = source.identify("a.zip/1.ply")["note"]
    assert note == "unreadable: 1.ply cannot be read in a.zip, which is damaged or has no such file"
    assert read(tmp_path, "a.zip/2.ply") == 6


def test_a_member_over_the_limit_is_refused(tmp_path):
    laid(tmp_path / "in", {"a.zip": writers.zipped({"1.ply": bytes(2_000_001)}, "", zipfile.ZIP_DEFLATED)})
    config = config_of(tmp_path)
    config = check({**json.loads(config.model_dump_json()), "meshes": {"max_file_mb": 1}})
    source = SplatSource(config)
    row = {"source": "splats", "locator": "a.zip/1.ply", **source.identify("a.zip/1.ply")}
    with pytest.raises(ObjectError, match=r"the file has more than 1 MB, meshes\.max_file_mb is 1"):
        source.fetch(row)
    assert [path for path in (tmp_path / "cache" / "splats").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_a_full_disk_is_not_the_fault_of_an_archive(name, tmp_path, monkeypatch):
    from clipgs.catalog.sources import archives

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files = {"1.ply": splat(5).to_ply()}
    laid(
        tmp_path / "in",
        {name: {".zip": writers.zipped, ".tar": tar, ".tgz": lambda f: tar(f, "w:gz")}[name[1:]](files)},
    )
    source = source_of(tmp_path)
    row = {"source": "splats", "locator": f"{name}/1.ply", **source.identify(f"{name}/1.ply")}
    monkeypatch.setattr(archives.Archives, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        source.fetch(row)


def test_what_a_disk_failed_to_give_is_asked_for_again(tmp_path, monkeypatch):
    from clipgs.catalog.sources import archives

    def failing(archive):
        yield from ()
        raise OSError(errno.EIO, "Input/output error")

    laid(tmp_path / "in", {"a.tar": tar({"1.ply": splat(5).to_ply()})})
    with monkeypatch.context() as context:
        context.setattr(archives, "_members", failing)
        assert source_of(tmp_path).locators() == ["a.tar"]
    assert source_of(tmp_path).locators() == ["a.tar/1.ply"]
    with monkeypatch.context() as context:
        context.setattr(archives, "_members", failing)
        assert "cannot be read" in source_of(tmp_path).identify("a.tar/1.ply")["note"]
    assert source_of(tmp_path).identify("a.tar/1.ply")["note"] is None


def test_an_object_over_the_limit_does_not_keep_the_others_of_a_compressed_tar(tmp_path):
    laid(tmp_path / "in", {"a.tgz": tar({"1.ply": bytes(2_000_001), "2.ply": splat(5).to_ply()}, "w:gz")})
    config = config_of(tmp_path)
    source = SplatSource(check({**json.loads(config.model_dump_json()), "meshes": {"max_file_mb": 1}}))
    rows = [{"source": "splats", "locator": f"a.tgz/{i}.ply", **source.identify(f"a.tgz/{i}.ply")} for i in (1, 2)]
    assert source.fetch(rows[1]).stat().st_size == len(splat(5).to_ply())
    with pytest.raises(ObjectError, match=r"meshes\.max_file_mb is 1"):
        source.fetch(rows[0])


def test_an_archive_is_listed_and_hashed_once(tmp_path, monkeypatch):
    from clipgs.catalog.sources import archives

    laid(tmp_path / "in", {"a.tar": tar({"1.ply": splat(5).to_ply(), "2.ply": splat(6).to_ply()})})
    first = source_of(tmp_path)
    digests = first.digests(first.locators())
    monkeypatch.setattr(archives, "_members", lambda archive: pytest.fail("read again"))
    second = source_of(tmp_path)
    assert second.digests(second.locators()) == digests


# --- manifests ---


def written(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def of_uids(tmp_path) -> None:
    """One object by the name of its file, one in an archive, one by its folder's name."""
    laid(
        tmp_path / "in",
        {
            f"{UIDS[0]}.spz": FILES["chairs/a.spz"],
            "000-001.zip": writers.zipped({f"000-001/{UIDS[1]}.ply": FILES["f.ply"]}),
            f"{UIDS[2]}/point_cloud.ply": splat(30).to_ply(),
            "other.ply": splat(31).to_ply(),
        },
    )


EXPECTED = {
    UIDS[0]: (f"{UIDS[0]}.spz", "a chair"),
    UIDS[1]: (f"000-001.zip/000-001/{UIDS[1]}.ply", "a lamp"),
    UIDS[2]: (f"{UIDS[2]}/point_cloud.ply", "a bird"),
}
TEXTS = [[UIDS[0], "a chair"], [UIDS[1], "a lamp"], [UIDS[2], "a bird"], ["4" * 32, "a house"], ["5" * 32, "a car"]]


def joined(source: SplatSource) -> dict[str, tuple[str, str]]:
    locators = source.locators()
    labels = source.labels(locators)
    return {
        source.identify(locator)["uid"]: (locator, label["text"])
        for locator, label in zip(locators, labels, strict=True)
    }


@pytest.mark.parametrize("header", [True, False])
def test_a_table_without_files_names_them_by_uid(header, tmp_path):
    """LVIS's and Cap3D's are such; Cap3D's has no header."""
    of_uids(tmp_path)
    rows = [["uid", "caption"], *TEXTS] if header else TEXTS
    source = source_of(tmp_path, manifest=written(tmp_path / "m.csv", rows))
    assert joined(source) == EXPECTED
    assert source.notes() == [
        "1 file in the folder is not in the manifest, and left out",
        "2 rows of the manifest have the uid of no file in the folder",
    ]


def test_a_table_in_parquet(tmp_path):
    of_uids(tmp_path)
    columns = {
        "uid": [row[0] for row in TEXTS],
        "name": [row[1] for row in TEXTS],
        "split": ["train", "val", None, None, "test"],
    }
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    source = source_of(tmp_path, manifest=str(tmp_path / "all.parquet"), columns={"text": "name"})
    assert joined(source) == EXPECTED
    splits = {source.identify(locator)["uid"]: source.identify(locator)["split"] for locator in source.locators()}
    assert splits == {UIDS[0]: "train", UIDS[1]: "validation", UIDS[2]: None}


def test_a_table_with_files_may_name_members_of_archives(tmp_path):
    of_uids(tmp_path)
    rows = [["file", "text"], [EXPECTED[UIDS[1]][0], "a lamp"]]
    source = source_of(tmp_path, manifest=written(tmp_path / "m.csv", rows))
    assert source.locators() == [EXPECTED[UIDS[1]][0]]
    assert read(tmp_path, source.locators()[0]) == 27


def test_a_table_of_other_uids_is_one_line(tmp_path):
    of_uids(tmp_path)
    source = source_of(tmp_path, manifest=written(tmp_path / "m.csv", [["uid", "text"], ["4" * 32, "a house"]]))
    with pytest.raises(UsageError, match=r"m\.csv has the uid of no file in"):
        source.locators()


def test_a_table_that_is_no_parquet_is_one_line(tmp_path):
    of_uids(tmp_path)
    (tmp_path / "m.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"m\.parquet cannot be read as parquet"):
        source_of(tmp_path, manifest=str(tmp_path / "m.parquet")).locators()


def test_a_path_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SourceMissing, match="is not a folder or a file"):
        source_of(tmp_path, tmp_path / "nowhere").locators()
