import pytest

from clipgs.catalog.excluded import exclude, excluded, excluded_digests, excluded_path
from clipgs.catalog.shards import frozen_shards, plan, shard_path
from clipgs.catalog.stages import freeze
from clipgs.config import check
from clipgs.core.bundles import read_table
from clipgs.core.errors import UsageError


@pytest.fixture
def config(tmp_path):
    catalog = {"shard_objects": 3, "procedural": {"objects": 6}}
    config = check({"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache"), "catalog": catalog})
    freeze(config, list(plan(config).pending))
    return config


def uids_of(config):
    return [[row["uid"] for row in read_table(shard_path(config, shard))] for shard in frozen_shards(config)]


def test_only_the_shard_of_an_excluded_object_changes(config):
    (first, second), frozen = uids_of(config), plan(config)
    assert excluded_digests(config) == {}
    assert exclude(config, [first[1]], "the author\nasked for it") == ["00000"]
    assert excluded(config) == {"00000": {first[1]: "the author asked for it"}}
    one = excluded_digests(config)
    assert set(one) == {"00000"}
    exclude(config, [second[0], first[0]])
    assert set(excluded_digests(config)) == {"00000", "00001"}
    assert excluded_digests(config)["00000"] != one["00000"]
    assert exclude(config, [second[0], first[0]], undo=True) == ["00000", "00001"]
    assert excluded_digests(config) == one
    assert plan(config) == frozen


def test_an_unknown_object_changes_nothing(config):
    ((first, *_), _) = uids_of(config)
    with pytest.raises(UsageError, match=r"nobody is in no shard of .* \(and 1 more\); nothing was changed"):
        exclude(config, ["nobody", first, "nothing"])
    with pytest.raises(UsageError, match=f"{first} is not excluded"):
        exclude(config, [first], undo=True)
    assert not excluded_path(config).exists()


def test_a_file_names_its_object_where_it_has_one(tmp_path):
    (tmp_path / "meshes").mkdir()
    catalog = {"source": "folder", "folder": {"path": str(tmp_path / "meshes")}}
    config = check({"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache"), "catalog": catalog})
    files = {name: tmp_path / "meshes" / name for name in ("a.obj", "b.obj")}
    for name, file in files.items():
        file.write_text(name)
    freeze(config, list(plan(config).pending))
    (first, second), *_ = uids_of(config)
    of = {row["uid"]: row["locator"] for row in read_table(shard_path(config, "00000"))}
    exclude(config, [of[first]], "on a whim")
    assert excluded(config) == {"00000": {first: "on a whim"}}
    exclude(config, [of[first]], undo=True)
    with pytest.raises(UsageError, match="obj is not excluded"):
        exclude(config, [of[second]], undo=True)
    assert excluded(config) == {}

    files[of[first]].write_text("another")
    freeze(config, list(plan(config).pending))
    (_, (new,)) = uids_of(config)
    with pytest.raises(UsageError, match=f"{of[first]} is the file of 2 objects: {first}, {new}; name one of these"):
        exclude(config, [of[first]])
    exclude(config, [first])
    exclude(config, [of[first]], undo=True)
    assert excluded(config) == {}


def test_a_list_that_is_none_is_one_line(config):
    excluded_path(config).write_text("name,why\na,b\n")
    with pytest.raises(UsageError, match=r"excluded\.csv, line 2: it is not a CSV file of uid, shard, reason"):
        excluded(config)


def test_a_list_that_a_spreadsheet_saved_is_read(config):
    excluded_path(config).write_text("\ufeffuid,shard,reason\r\na,00000,\r\n,,\r\n")
    assert excluded(config) == {"00000": {"a": "on request"}}
