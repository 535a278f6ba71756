import csv
import hashlib

import pytest

from clipgs.catalog.shards import frozen_shards, plan, shard_path
from clipgs.catalog.sources import source
from clipgs.catalog.stages import freeze
from clipgs.config import check
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from tests.catalog.objaverse_tree import glb_of, uid_of, write_objaverse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COLUMNS = ("fileIdentifier", "source", "license", "fileType", "sha256", "metadata")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def github(path: str) -> str:
    return f"https://github.com/org/repo/blob/{COMMIT}/{path}"


@pytest.fixture
def mirror(tmp_path):
    """Objaverse 1.0 and two hosts behind one file:// endpoint."""
    root = tmp_path / "mirror"
    write_objaverse(root / "datasets/allenai/objaverse/resolve/main", 6)
    for path, data in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


FILES = {
    f"org/repo/{COMMIT}/models/old oak tree.obj": b"an oak",
    f"org/repo/{COMMIT}/models/RedCar_v2.glb": b"a car",
    f"org/repo/{COMMIT}/print.stl": b"a print",
    f"org/repo/{COMMIT}/changed.ply": b"other bytes than the table says",
    "content/document/skull.glb": b"a skull",
}
ROWS = [
    (github("models/old%20oak%20tree.obj"), "github", "MIT License", "obj", sha(b"an oak")),
    (github("models/RedCar_v2.glb"), "github", None, "glb", sha(b"a car")),
    (github("print.stl"), "github", None, "stl", sha(b"a print")),
    (github("changed.ply"), "github", None, "ply", sha(b"as it was")),
    (github("gone.ply"), "github", None, "ply", sha(b"gone")),
    (github("scene.max"), "github", None, "glb", sha(b"max")),  # the address says what it is
    ("https://github.com/org/repo/blob/main/x.glb", "github", None, "glb", sha(b"x")),
    ("https://3d-api.si.edu/content/document/skull.glb", "smithsonian", "CC0", "glb", sha(b"a skull")),
    ("https://www.thingiverse.com/thing:1/files?fileId=2", "thingiverse", None, "stl", sha(b"thing")),
    (f"https://sketchfab.com/3d-models/{uid_of(1)}", "sketchfab", "by", "glb", sha(glb_of(1))),
    (f"https://sketchfab.com/3d-models/{uid_of(4)}", "sketchfab", "by", "glb", sha(glb_of(4))),
    (f"https://sketchfab.com/3d-models/{'e' * 32}", "sketchfab", "by", "glb", sha(b"no such")),
    (github("copy/of/a/mug.glb"), "github", None, "glb", sha(glb_of(1))),  # object 1 is an LVIS mug
    (github("zebra/car again.glb"), "github", None, "glb", sha(b"a car")),
    (github("nohash.glb"), "github", None, "glb", ""),
]
REFUSED = {
    "a kind of file that is not read": 1,
    "no single file at a commit": 1,
    "thingiverse gives no file without an account": 1,
    "not in Objaverse 1.0": 1,
    "same bytes as another object": 2,
    "no SHA-256 in the table": 1,
}


def write_csv(path, rows=ROWS, columns=COLUMNS):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([*row, "{}"][: len(columns)] for row in rows)
    return str(path)


def write_parquet(path, rows=ROWS):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([dict(zip(COLUMNS, [*row, "{}"], strict=True)) for row in rows]), path)
    return str(path)


def config_of(tmp_path, tables, **curation):
    catalog = {
        "source": "objaverse_xl",
        "objaverse": {"root": str(tmp_path / "package")},
        "objaverse_xl": {"tables": tables},
        "curation": curation,
        "downloads": {"endpoint": (tmp_path / "mirror").as_uri(), "retries": 0},
    }
    return check({"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache"), "catalog": catalog})


def rows_of(config):
    freeze(config, list(plan(config).pending))
    return [row for shard in frozen_shards(config) for row in read_table(shard_path(config, shard))]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_each_source_is_taken_or_refused_with_a_reason(tmp_path, mirror, write):
    table = tmp_path / ("t.csv" if write is write_csv else "t.parquet")
    config = config_of(tmp_path, [write(table)])
    rows = {row["locator"]: row for row in rows_of(config)}
    objects = source(config)
    assert objects.refusals() == REFUSED
    assert len(rows) == len(ROWS) - sum(REFUSED.values())
    oak = rows[ROWS[0][0]]
    assert oak["uid"] == oak["sha256"] == sha(b"an oak")
    assert f"sketchfab:000-000/{uid_of(4)}" in rows


def test_files_come_from_their_hosts_and_are_held_against_their_hash(tmp_path, mirror):
    config = config_of(tmp_path, [write_csv(tmp_path / "t.csv")])
    rows = {row["locator"]: row for row in rows_of(config)}
    objects = source(config)
    for locator, data, suffix in [
        (ROWS[0][0], b"an oak", ".obj"),
        (ROWS[1][0], b"a car", ".glb"),
        (ROWS[7][0], b"a skull", ".glb"),
        (f"sketchfab:000-000/{uid_of(4)}", glb_of(4), ".glb"),
    ]:
        path = objects.fetch(rows[locator])
        assert path.read_bytes() == data
        assert path.suffix == suffix
        assert objects.path(rows[locator]) == path
    assert objects.up_axis(rows[ROWS[2][0]]) == "z"
    assert objects.up_axis(rows[ROWS[0][0]]) == "auto"
    with pytest.raises(ObjectError, match="other bytes"):
        objects.fetch(rows[ROWS[3][0]])
    with pytest.raises(ObjectError, match="not found"):
        objects.fetch(rows[ROWS[4][0]])


def test_a_copy_of_an_lvis_object_is_never_trained_on(tmp_path, mirror):
    config = config_of(tmp_path, [write_csv(tmp_path / "t.csv")])
    rows = {row["locator"]: row for row in rows_of(config)}
    mug = rows[f"sketchfab:000-000/{uid_of(1)}"]
    assert mug["split"] == "test"
    assert github("copy/of/a/mug.glb") not in rows
    # Where the LVIS object itself is left out, its copy is a test object still.
    table = write_csv(tmp_path / "list.csv", [(sha(glb_of(1)),)], ["sha256"])
    (tmp_path / "list.csv").write_text(f"file_identifier\n{github('copy/of/a/mug.glb')}\n")
    objects = source(config_of(tmp_path, [str(tmp_path / "t.csv")], table=table, key="file_identifier"))
    (locator,) = objects.locators()
    assert locator == github("copy/of/a/mug.glb")
    assert objects.identify(locator)["split"] == "test"


def test_labels_name_licence_author_and_page(tmp_path, mirror):
    objects = source(config_of(tmp_path, [write_csv(tmp_path / "t.csv")]))
    oak, car = objects.labels([ROWS[0][0], ROWS[1][0]])
    assert oak == {
        "category": None,
        "text": "old oak tree",
        "license": "MIT License",
        "credit": "org/repo on GitHub",
        "page": ROWS[0][0],
    }
    assert car["text"] == "Red Car v2"
    assert car["license"] is None
    (mug,) = objects.labels([f"sketchfab:000-000/{uid_of(1)}"])
    assert (mug["category"], mug["page"]) == ("mug", f"https://sketchfab.com/3d-models/{uid_of(1)}")


def test_a_table_of_scores_chooses_by_hash(tmp_path, mirror):
    (tmp_path / "scores.csv").write_text(f"sha256,aesthetic_score\n{sha(b'an oak')},6.1\n{sha(b'a car')},4.2\n")
    rules = {"table": str(tmp_path / "scores.csv"), "key": "sha256", "where": ["aesthetic_score >= 5.5"]}
    objects = source(config_of(tmp_path, [write_csv(tmp_path / "t.csv")], **rules))
    assert objects.locators() == [ROWS[0][0]]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ([], "names no table"),
        (["nowhere.csv"], "nowhere.csv is not a file"),
        (["columns.csv"], "has no column source, license, sha256"),
        (["cut.parquet"], "is cut or damaged"),
        (["empty.csv"], "list no object"),
        (["https://example.org/xl/github.parquet"], "annotations could not be downloaded"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, mirror, tables, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "columns.csv", columns=["fileIdentifier"])
    write_csv(tmp_path / "empty.csv", rows=[])
    write_parquet(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-100])
    with pytest.raises((UsageError, ClipgsError)) as error:
        plan(config_of(tmp_path, tables))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_tables_come_from_the_mirror_too(tmp_path, mirror):
    (mirror / "datasets/x").mkdir(parents=True)
    write_parquet(mirror / "datasets/x/github.parquet")
    config = config_of(tmp_path, ["https://huggingface.co/datasets/x/github.parquet"])
    assert len(rows_of(config)) == len(ROWS) - sum(REFUSED.values())
    assert plan(config) == plan(config)
