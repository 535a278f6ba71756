import gzip
import json

import pytest

from clipgs.catalog.excluded import exclude
from clipgs.catalog.records import frozen_schema
from clipgs.catalog.shards import curation, curation_path, frozen_shards, labels_path, plan, shard_path
from clipgs.catalog.sources import source
from clipgs.catalog.stages import freeze, label, objects
from clipgs.config import check, merge
from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from tests.catalog.objaverse_tree import glb_of, uid_of, write_gz, write_objaverse


@pytest.fixture
def package(tmp_path):
    """The cache of the objaverse package, with 12 objects in three annotation files."""
    root = tmp_path / "package"
    write_objaverse(root / "hf-objaverse-v1", 12)
    return root


def config_of(tmp_path, curation=None, downloads=None, **objaverse):
    return check(
        {
            "output": str(tmp_path / "out"),
            "cache": str(tmp_path / "cache"),
            "catalog": {
                "source": "objaverse",
                "shard_objects": 5,
                "objaverse": {"root": str(tmp_path / "package"), **objaverse},
                "curation": curation or {},
                # Nothing but what a test serves can be downloaded.
                "downloads": {"endpoint": (tmp_path / "nothing").as_uri(), "retries": 0, **(downloads or {})},
            },
        }
    )


def mirror_of(tmp_path, objects_in_it=12, **more):
    """A file:// mirror, and no package cache."""
    root = tmp_path / "mirror"
    uids = write_objaverse(root / "datasets/allenai/objaverse/resolve/main", objects_in_it, **more)
    return root / "datasets/allenai/objaverse/resolve/main", {"endpoint": root.as_uri()}, uids


def freeze_all(config):
    pending = list(plan(config).pending)
    if pending:
        freeze(config, pending)
    return pending


def rows_of(config):
    return [row for shard in frozen_shards(config) for row in read_table(shard_path(config, shard))]


# --- what there is ----------------------------------------------------------------------------------------------------


def test_all_objects_come_with_their_labels(tmp_path, package):
    config = config_of(tmp_path)
    assert freeze_all(config) == ["00000", "00001", "00002"]
    rows = rows_of(config)
    assert {row["uid"] for row in rows} == {uid_of(index) for index in range(12)}
    for shard in frozen_shards(config):
        label(config, shard)
    labels = {row["uid"]: row for shard in frozen_shards(config) for row in read_table(labels_path(config, shard))}
    assert labels[uid_of(4)] == {
        "uid": uid_of(4),
        "category": None,
        "text": "Thing number 4",
        "license": "CC-BY-NC-SA-4.0",
        "credit": "User 1",
        "page": f"https://sketchfab.com/3d-models/{uid_of(4)}",
    }
    assert labels[uid_of(3)]["category"] == "chair"


def test_lvis_objects_are_the_test_split_and_no_others(tmp_path, package):
    config = config_of(tmp_path)
    freeze_all(config)
    tested = {row["uid"] for row in rows_of(config) if row["split"] == "test"}
    assert tested == {uid_of(index) for index in (1, 2, 3)}
    assert {row["split"] for row in rows_of(config) if row["uid"] not in tested} <= {"train", "validation"}
    assert any(
        "9 objects are for training and validation; 3 are LVIS shapes, for the test split" in note
        for note in plan(config).notes
    )


def test_lvis_objects_may_be_trained_on(tmp_path, package):
    config = config_of(tmp_path, lvis="train")
    assert [source(config).identify(locator)["split"] for locator in source(config).locators()] == [None] * 12
    assert any("may be trained on" in note for note in plan(config).notes)


def test_the_lvis_subset_and_single_categories(tmp_path, package):
    def uids(**settings):
        objects = source(config_of(tmp_path, subset="lvis", **settings))
        return {objects.identify(locator)["uid"] for locator in objects.locators()}

    assert uids() == {uid_of(1), uid_of(2), uid_of(3)}
    assert uids(categories=["chair"]) == uids(categories=["Chair "]) == {uid_of(2), uid_of(3)}
    with pytest.raises(UsageError, match=r"LVIS has no category chairs; did you mean chair\?"):
        uids(categories=["chairs"])


def test_a_list_of_uids_and_an_unknown_one(tmp_path, package):
    listed = tmp_path / "uids.csv"
    listed.write_text(f"uid,why\n{uid_of(7)},nice\n{uid_of(3)},\n{'f' * 32},\n{uid_of(7)},again\n")
    config = config_of(tmp_path, subset="list", uids=str(listed))
    freeze_all(config)
    rows = {row["uid"]: row for row in rows_of(config)}
    assert set(rows) == {uid_of(7), uid_of(3), "f" * 32}
    assert rows["f" * 32]["note"] == f"unreadable: Objaverse has no object {'f' * 32}"
    assert rows[uid_of(7)]["note"] is None
    assert any("1 object is not available" in note for note in plan(config).notes)
    assert f"1 of 3 uids in {listed} are not in Objaverse: {'f' * 32}" in plan(config).notes
    with pytest.raises(ObjectError, match="has no object"):
        source(config).fetch(rows["f" * 32])
    # Only the annotation files of listed objects are read.
    assert {path.name for path in (tmp_path / "cache/objaverse/parts").rglob("*.parquet")} == {
        "000-000.parquet",
        "000-001.parquet",
    }


def test_a_list_that_names_no_object_at_all_is_refused(tmp_path, package):
    (tmp_path / "uids.txt").write_text("\ufeff" + f"{'e' * 32}\r\n{'f' * 32}\r\n")
    with pytest.raises(
        UsageError, match=r"catalog\.objaverse\.uids: .*uids\.txt names no object of Objaverse: e{32}, f"
    ):
        plan(config_of(tmp_path, subset="list", uids=str(tmp_path / "uids.txt")))


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "names no uid"), ("a\n../b\n", r"line 2: '../b' is not a uid"), (None, "No such file")],
)
def test_a_wrong_list_is_one_line(tmp_path, package, text, words):
    if text is not None:
        (tmp_path / "uids.txt").write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        plan(config_of(tmp_path, subset="list", uids=str(tmp_path / "uids.txt")))
    assert "\n" not in str(error.value)


def test_a_list_must_be_named(tmp_path, package):
    with pytest.raises(UsageError, match="one uid a line"):
        plan(config_of(tmp_path, subset="list"))


def test_files_of_one_hash_are_one_object_and_an_lvis_one_stays_in_the_test_split(tmp_path, package):
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Objects 0 and 3 are one file, 3 is an LVIS chair; 5 and 6 are another; 8 is not in the table.
    hashes = [{0: "a", 3: "a", 5: "b", 6: "b"}.get(index, f"{16 + index:x}") * 64 for index in range(12)]
    table = pa.table(
        {
            "fileIdentifier": [f"https://sketchfab.com/3d-models/{uid_of(i)}" for i in range(12) if i != 8],
            "sha256": [digest[:64].upper() for i, digest in enumerate(hashes) if i != 8],
        }
    )
    pq.write_table(table, tmp_path / "sketchfab.parquet")
    config = config_of(tmp_path, hashes=str(tmp_path / "sketchfab.parquet"))
    (tmp_path / "uids.txt").write_text(uid_of(0))  # alone, it is an LVIS shape still
    alone = source(config_of(tmp_path, hashes=str(tmp_path / "sketchfab.parquet"), subset="list",
                             uids=str(tmp_path / "uids.txt")))  # fmt: skip
    assert [alone.identify(locator)["split"] for locator in alone.locators()] == ["test"]
    freeze_all(config)
    rows = {row["uid"]: row for row in rows_of(config)}
    assert uid_of(0) not in rows
    assert rows[uid_of(3)]["split"] == "test"
    assert rows[uid_of(3)]["sha256"] == "a" * 64
    assert len({uid_of(5), uid_of(6)} & set(rows)) == 1
    assert rows[uid_of(8)]["sha256"] is None
    assert source(config).refusals() == {"same bytes as another object": 2}
    objects(config)
    written = json.loads(curation_path(config).read_text())
    assert written["taken"] == 10
    assert written["refused"] == {"same bytes as another object": 2}


# --- what is planned again --------------------------------------------------------------------------------------------


def test_an_unchanged_plan_reads_no_annotation(tmp_path, package, monkeypatch):
    config = config_of(tmp_path)
    freeze_all(config)
    first = plan(config)
    assert plan(config) == first
    other = config.model_copy(update={"output": str(tmp_path / "other")})  # has a plan of its own in the cache
    assert plan(other).pending == ("00000", "00001", "00002")

    def never(*arguments):
        raise AssertionError("an unchanged plan must read no table")

    monkeypatch.setattr("clipgs.catalog.sources.annotations.AnnotatedSource.table", property(never))
    monkeypatch.setattr("clipgs.catalog.sources.annotations._load_json", never)
    assert plan(config) == first


def test_another_frozen_shard_or_setting_is_planned_again(tmp_path, package):
    config = config_of(tmp_path)
    assert plan(config).pending == ("00000", "00001", "00002")
    catalog = config.catalog.model_copy(update={"shard_objects": 3})
    assert len(plan(config.model_copy(update={"catalog": catalog})).pending) == 4
    freeze_all(config)
    assert plan(config).pending == ()
    path = shard_path(config, "00002")
    write_table(path, read_table(path)[1:], frozen_schema())
    assert plan(config).pending == ("00003",)


def test_appended_objects_go_to_new_shards_and_only_their_file_is_read(tmp_path, package, monkeypatch):
    config = config_of(tmp_path)
    freeze_all(config)
    before = {shard: shard_path(config, shard).read_bytes() for shard in frozen_shards(config)}
    digests = plan(config).label_digests
    write_objaverse(package / "hf-objaverse-v1", 17, per_file=5)  # 000-002 is there, and stays
    (package / "hf-objaverse-v1/metadata/000-002.json.gz").unlink()
    write_objaverse(package / "hf-objaverse-v1", 17, per_file=5)
    read = []
    load = gzip.open
    monkeypatch.setattr(gzip, "open", lambda path, *rest: read.append(path.name) or load(path, *rest))
    assert freeze_all(config) == ["00003"]
    assert {name for name in read if name.startswith("000-")} == {"000-002.json.gz", "000-003.json.gz"}
    assert {shard: shard_path(config, shard).read_bytes() for shard in before} == before
    assert len(rows_of(config)) == 17
    assert {shard: plan(config).label_digests[shard] for shard in digests} == digests


def test_a_mended_annotation_changes_one_digest_and_no_frozen_shard(tmp_path, package):
    config = config_of(tmp_path)
    freeze_all(config)
    before = plan(config).label_digests
    file = package / "hf-objaverse-v1/metadata/000-001.json.gz"
    entries = json.loads(gzip.decompress(file.read_bytes()))
    entries[uid_of(6)]["name"] = "A mended name"
    write_gz(file, entries)
    after = plan(config).label_digests
    (changed,) = [shard for shard in after if after[shard] != before[shard]]
    assert uid_of(6) in {row["uid"] for row in read_table(shard_path(config, changed))}
    assert plan(config).pending == ()


def test_rules_that_leave_out_a_frozen_object_do_not_make_it_gone(tmp_path, package):
    freeze_all(config_of(tmp_path))
    before = plan(config_of(tmp_path))
    stricter = config_of(tmp_path, curation={"licenses": ["cc0"]})
    assert plan(stricter).curation_digest != before.curation_digest
    assert plan(stricter).pending == ()
    assert plan(stricter).frozen == ("00000", "00001", "00002")


def test_curation_tells_rules_and_counts(tmp_path, package):
    config = config_of(tmp_path, curation={"licenses": ["cc0"]}, lvis="train")
    found = curation(config)
    rules = found.pop("rules")
    assert found == {"source": "objaverse", "taken": 4, "lvis": 1, "refused": {"licenses": 8}}
    assert rules == {**config.catalog.curation.model_dump(), "lvis": "train"}


def test_another_list_leaves_frozen_objects_and_their_labels_as_they_were(tmp_path, package):
    listed = tmp_path / "uids.txt"
    listed.write_text("".join(f"{uid_of(index)}\n" for index in (1, 6, 11)))
    config = config_of(tmp_path, subset="list", uids=str(listed))
    freeze_all(config)
    before = plan(config).label_digests
    label(config, "00000")
    labels = labels_path(config, "00000").read_bytes()
    listed.write_text(f"{uid_of(8)}\n")
    assert plan(config).label_digests["00000"] == before["00000"]
    label(config, "00000")
    assert labels_path(config, "00000").read_bytes() == labels
    assert freeze_all(config) == ["00001"]
    assert {row["uid"] for row in rows_of(config)} == {uid_of(index) for index in (1, 6, 8, 11)}


def test_objects_that_objaverse_no_longer_has_are_gone(tmp_path, package):
    config = config_of(tmp_path)
    freeze_all(config)
    before = plan(config)
    assert before.gone == ()
    paths = json.loads(gzip.decompress((package / "hf-objaverse-v1/object-paths.json.gz").read_bytes()))
    write_gz(package / "hf-objaverse-v1/object-paths.json.gz", dict(list(paths.items())[:8]))
    made = plan(config)
    assert {uid for uid, _ in made.gone} == {uid_of(index) for index in range(8, 12)}
    assert plan(config) == made  # as it is kept
    assert (made.shards, made.pending) == (before.shards, ())
    exclude(config, [made.gone[0][0]])
    assert plan(config).gone == made.gone[1:]
    write_gz(package / "hf-objaverse-v1/object-paths.json.gz", {})
    with pytest.raises(ClipgsError, match="11 of 11 known objects are missing"):
        plan(config)
    allowed = check(merge(config.model_dump(), {"catalog": {"allow_missing": True}}))
    assert (len(plan(allowed).gone), plan(allowed).shards) == (11, before.shards)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("object-paths.json.gz", ["a"]),
        ("object-paths.json.gz", {"a": 3}),
        ("lvis-annotations.json.gz", {"mug": 3}),
        ("lvis-annotations.json.gz", {"mug": [None]}),
        ("metadata/000-000.json.gz", [1]),
    ],
)
def test_a_file_that_holds_something_else_is_one_line(tmp_path, package, name, value):
    write_gz(package / "hf-objaverse-v1" / name, value)
    with pytest.raises(ClipgsError) as error:
        plan(config_of(tmp_path))
    assert "\n" not in str(error.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_packages_cache_is_used_and_not_written(tmp_path, package):
    def state():
        return {path: path.stat().st_mtime_ns for path in package.rglob("*")}

    before = state()
    config = config_of(tmp_path)
    freeze_all(config)
    objects = source(config)
    for row in rows_of(config):
        path = objects.fetch(row)
        assert path == objects.path(row)
        assert path.is_relative_to(package)
    assert state() == before


def test_a_cut_glb_of_the_packages_cache_is_downloaded(tmp_path, package):
    _, mirror, _ = mirror_of(tmp_path)
    config = config_of(tmp_path, downloads=mirror)
    freeze_all(config)
    row = next(row for row in rows_of(config) if row["uid"] == uid_of(4))
    cut = package / "hf-objaverse-v1/glbs/000-000" / f"{uid_of(4)}.glb"
    cut.write_bytes(glb_of(4)[:-5])
    path = source(config).fetch(row)
    assert not path.is_relative_to(package)
    assert path.read_bytes() == glb_of(4)
    assert source(config).path(row) == path


def test_a_mirror_gives_everything(tmp_path):
    _, mirror, uids = mirror_of(tmp_path)
    config = config_of(tmp_path, downloads=mirror)
    freeze_all(config)
    rows = rows_of(config)
    assert {row["uid"] for row in rows} == set(uids)
    index = uids.index(rows[0]["uid"])
    assert source(config).fetch(rows[0]).read_bytes() == glb_of(index)


def test_a_file_that_is_not_there_or_no_whole_glb_is_the_objects_error(tmp_path):
    tree, mirror, uids = mirror_of(tmp_path)
    config = config_of(tmp_path, downloads=mirror)
    freeze_all(config)
    rows = {row["uid"]: row for row in rows_of(config)}
    (tree / "glbs/000-000" / f"{uids[0]}.glb").unlink()
    (tree / "glbs/000-000" / f"{uids[1]}.glb").write_bytes(glb_of(1)[:-1])
    with pytest.raises(ObjectError, match="not found"):
        source(config).fetch(rows[uids[0]])
    with pytest.raises(ObjectError, match="not a whole GLB"):
        source(config).fetch(rows[uids[1]])


def test_a_cut_annotation_file_is_one_line_and_is_fetched_again(tmp_path):
    tree, mirror, _ = mirror_of(tmp_path)
    file = tree / "metadata/000-001.json.gz"
    right = file.read_bytes()
    file.write_bytes(right[:-20])
    config = config_of(tmp_path, downloads=mirror)
    with pytest.raises(ClipgsError, match=r"000-001.json.gz is cut or damaged .* run the same command again") as error:
        plan(config)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache/objaverse/tables").glob("*.parquet"))
    file.write_bytes(right)
    assert len(plan(config).pending) == 3


def test_a_cut_annotation_file_of_the_packages_cache_is_passed_over(tmp_path, package, caplog):
    _, mirror, _ = mirror_of(tmp_path)
    for name in ("metadata/000-001.json.gz", "object-paths.json.gz"):
        file = package / "hf-objaverse-v1" / name
        file.write_bytes(file.read_bytes()[:-20])
    config = config_of(tmp_path, downloads=mirror)
    first = plan(config)
    assert len(first.pending) == 3
    assert caplog.text.count("is downloaded again") == 2
    assert plan(config) == first


def test_a_damaged_table_of_hashes_is_one_line(tmp_path, package):
    (package / "sketchfab").mkdir()
    table = package / "sketchfab" / "sketchfab.parquet"
    table.write_bytes(b"PAR1 and no more")
    with pytest.raises(ClipgsError, match="is cut or damaged"):
        plan(config_of(tmp_path, hashes=str(table)))
    with pytest.raises(
        ClipgsError, match=r"annotations could not be downloaded|is not a folder"
    ):  # ignored, and downloaded instead
        plan(config_of(tmp_path, hashes="https://huggingface.co/x/sketchfab/sketchfab.parquet"))


def test_annotations_that_cannot_be_had_are_one_line(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ClipgsError, match="annotations could not be downloaded") as error:
        plan(config_of(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["../../etc/passwd", "glbs/000-000/../x.glb", "/glbs/000-000/x.glb", "x.glb"])
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, package, path):
    write_gz(package / "hf-objaverse-v1/object-paths.json.gz", {uid_of(0): path})
    with pytest.raises(ClipgsError, match="which is not glbs/FOLDER/UID"):
        plan(config_of(tmp_path))


def test_an_annotation_may_hold_anything(tmp_path):
    odd = {
        "object_0": {"name": None, "user": None, "license": None, "faceCount": None, "archives": None},
        "object_1": {"name": "\ud83d", "faceCount": "many", "user": [], "archives": {"glb": 3}, "license": 7},
        "object_2": {"name": 3, "faceCount": -1, "vertexCount": 2**70, "animationCount": True, "viewerUrl": None},
        "object_3": {"license": "Some new licence", "user": {"username": "only a login"}},
    }
    root = tmp_path / "package/hf-objaverse-v1"
    write_objaverse(root, 5, **odd)
    config = config_of(tmp_path)
    freeze_all(config)
    label(config, "00000")
    labels = {row["uid"]: row for row in read_table(labels_path(config, "00000"))}
    assert labels[uid_of(0)]["license"] is None
    assert labels[uid_of(1)]["text"] == "?"
    assert labels[uid_of(2)]["page"] == f"https://sketchfab.com/3d-models/{uid_of(2)}"
    assert labels[uid_of(3)]["license"] == "Some new licence"
    assert labels[uid_of(3)]["credit"] == "only a login"
