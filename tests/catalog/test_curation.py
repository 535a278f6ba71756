from collections import Counter
from itertools import pairwise

import pytest
import yaml

from clipgs.catalog.shards import curation, frozen_shards, plan, shard_path
from clipgs.catalog.sources import source
from clipgs.catalog.stages import freeze
from clipgs.config import check, merge
from clipgs.core.bundles import read_table
from clipgs.core.errors import UsageError
from tests.catalog.objaverse_tree import uid_of, write_objaverse


@pytest.fixture
def package(tmp_path):
    # Faces 100 to 1000; licences by, by-nc-sa and cc0 in turn; every other one textured; two are animated.
    changes = {"object_4": {"animationCount": 2}, "object_9": {"animationCount": 1}}
    unknown = {"object_7": {"faceCount": None, "license": None, "archives": {}}}
    write_objaverse(tmp_path / "package/hf-objaverse-v1", 10, body=None, **changes, **unknown)
    return tmp_path / "package"


def config_of(tmp_path, curation, **objaverse):
    catalog = {
        "source": "objaverse",
        "objaverse": {"root": str(tmp_path / "package"), **objaverse},
        "curation": curation,
    }
    return check({"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache"), "catalog": catalog})


def taken(tmp_path, curation, **objaverse):
    objects = source(config_of(tmp_path, curation, **objaverse))
    uids = {objects.identify(locator)["uid"] for locator in objects.locators()}
    return {index for index in range(10) if uid_of(index) in uids}, objects.refusals()


@pytest.mark.parametrize(
    ("curation", "left", "refused"),
    [
        ({}, set(range(10)), {}),
        ({"licenses": ["BY", "cc0"]}, {0, 2, 3, 5, 6, 8, 9}, {"licenses": 3}),  # 7 states none
        ({"licenses": ["CC_BY_4.0", "CC0-1.0"]}, {0, 2, 3, 5, 6, 8, 9}, {"licenses": 3}),  # SPDX's names
        ({"min_faces": 300}, {2, 3, 4, 5, 6, 7, 8, 9}, {"min_faces": 2}),  # of 7 no number is known
        ({"max_faces": 300}, {0, 1, 2, 7}, {"max_faces": 6}),
        ({"max_file_mb": 0.001005}, {0, 1, 2, 3, 4, 5, 7}, {"max_file_mb": 3}),
        ({"animated": "no"}, {0, 1, 2, 3, 5, 6, 7, 8}, {"animated": 2}),
        ({"animated": "only"}, {4, 9}, {"animated": 8}),
        ({"textured": "only"}, {1, 3, 5, 7, 9}, {"textured": 5}),
        ({"textured": "no"}, {0, 2, 4, 6, 7, 8}, {"textured": 4}),
        ({"licenses": ["by"], "max_faces": 500}, {0, 3}, {"licenses": 6, "max_faces": 2}),
    ],
)
def test_each_rule_leaves_out_what_it_should_and_counts_it(tmp_path, package, curation, left, refused):
    assert taken(tmp_path, curation) == (left, refused)


TABLE = "uid,score,style,good\n" + "".join(
    f"{uid_of(i)},{i / 2 if i != 5 else ''},{('a', 'b, c', 'd')[i % 3]!r},{str(i % 2 == 0).lower()}\n".replace("'", '"')
    for i in range(8)
)


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ([], set(range(8))),
        (["score >= 2"], {4, 6, 7}),  # that of 5 is empty
        (["score<1"], {0, 1}),
        (["score in 0|2.5|3"], {0, 6}),
        (["score != 1"], {0, 1, 3, 4, 6, 7}),
        (["style = b, c"], {1, 4, 7}),
        (["style in a|d"], {0, 2, 3, 5, 6}),
        (["good = true"], {0, 2, 4, 6}),
        (["good = false", "score > 1"], {3, 7}),
    ],
)
def test_a_table_of_the_users(tmp_path, package, where, left):
    (tmp_path / "table.csv").write_text(TABLE)
    found, refused = taken(tmp_path, {"table": str(tmp_path / "table.csv"), "where": where})
    assert found == left
    assert refused["table"] == 2  # 8 and 9 are not in it
    assert sum(refused.values()) == 10 - len(left)


def test_a_table_may_name_objects_by_their_page(tmp_path, package):
    (tmp_path / "t.csv").write_text(f"file_identifier,s\nhttps://sketchfab.com/3d-models/{uid_of(3)},1\n")
    assert taken(tmp_path, {"table": str(tmp_path / "t.csv"), "key": "file_identifier"})[0] == {3}


@pytest.mark.parametrize(
    ("table", "curation", "words"),
    [
        (
            TABLE,
            {"where": ["scores > 1"]},
            "has no column scores; did you mean score? (it has uid, score, style, good)",
        ),
        (TABLE, {"where": ["score > high"]}, "score > high: the column holds numbers"),
        (TABLE, {"where": ["style > a"]}, "the column holds text: use =, != or in"),
        (TABLE, {"where": ["good = perhaps"]}, "the column holds true or false"),
        (TABLE, {"key": "sha256"}, "curation.key = sha256"),
        (TABLE + TABLE.splitlines()[1] + "\n", {}, f"lists {uid_of(0)} more than once"),
        ("uid,a\nx\n", {}, "curation.table"),
        ("", {}, "curation.table"),
        (None, {}, "No such file"),
    ],
)
def test_a_rule_that_does_not_fit_is_one_line(tmp_path, package, table, curation, words):
    if table is not None:
        (tmp_path / "table.csv").write_text(table)
    with pytest.raises(UsageError) as error:
        plan(config_of(tmp_path, {"table": str(tmp_path / "table.csv"), **curation}))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_rules_need_a_table(tmp_path, package):
    with pytest.raises(UsageError, match="names no table"):
        plan(config_of(tmp_path, {"where": ["score > 1"]}))


@pytest.mark.parametrize("rule", ["score", "score >", "> 3", "score in"])
def test_what_is_no_rule_is_refused_with_the_configuration(rule):
    with pytest.raises(UsageError, match=r"catalog.curation.where.*COLUMN OP VALUE"):
        check({"catalog": {"curation": {"where": [rule]}}})


def test_rules_that_leave_nothing_are_one_line_with_the_counts(tmp_path, package):
    with pytest.raises(UsageError, match=r"leave none of 10 objects \(refused by licenses: 10\)"):
        plan(config_of(tmp_path, {"licenses": ["by-nc-nd"]}))


def test_a_licence_that_no_object_has_and_no_source_knows_is_refused(tmp_path, package):
    with pytest.raises(UsageError, match=r"catalog\.curation\.licenses: no object has the licence zzz$"):
        plan(config_of(tmp_path, {"licenses": ["by", "zzz"]}))
    with pytest.raises(UsageError, match=r"no object has the licence by-nc-sb; did you mean by-nc-sa\?"):
        plan(config_of(tmp_path, {"licenses": ["by-nc-sb"]}))


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path, package):
    (tmp_path / "table.csv").write_bytes(f"\ufeffuid,Aesthetic Score\r\n{uid_of(3)},6\r\n{uid_of(4)},2\r\n".encode())
    found, _ = taken(tmp_path, {"table": str(tmp_path / "table.csv"), "where": ["aesthetic_score >= 5"]})
    assert found == {3}


def test_a_mended_table_is_read_again(tmp_path, package):
    curation = {"table": str(tmp_path / "t.csv")}
    (tmp_path / "t.csv").write_text(f"uid\n{uid_of(3)}\n")
    assert taken(tmp_path, curation)[0] == {3}
    (tmp_path / "t.csv").write_text(f"uid\n{uid_of(3)}\n{uid_of(4)}\n")
    assert taken(tmp_path, curation)[0] == {3, 4}


def test_a_limit_grows_without_changing_what_it_chose_and_keeps_the_test_objects(tmp_path, package):
    lvis = {1, 2, 3}
    chosen = [taken(tmp_path, {"max_objects": count})[0] for count in range(1, 8)]
    for count, objects in enumerate(chosen, start=1):
        assert lvis <= objects
        assert len(objects - lvis) == count
    assert all(few < more for few, more in pairwise(chosen))
    assert len(taken(tmp_path, {"max_objects": 2}, lvis="train")[0]) == 2
    assert taken(tmp_path, {"max_objects": 2})[1] == {"max_objects": 5}


def test_notes_tell_what_was_refused(tmp_path, package):
    notes = plan(config_of(tmp_path, {"licenses": ["by"], "max_faces": 500})).notes
    assert "2 of 10 objects are taken" in notes
    assert "catalog.curation refuses 6: licenses" in notes
    assert "catalog.curation refuses 2: max_faces" in notes


def test_the_240k_rules_take_their_limit_and_the_lvis_objects_that_pass_on_top(tmp_path, checkout):
    """The published configuration over 60 synthetic annotations, with a limit that they exceed."""
    settings = yaml.safe_load((checkout / "configs" / "objaverse_240k.yaml").read_text())
    assert settings["catalog"]["curation"]["max_objects"] == 240_000
    refused = {
        "licenses": {"license": "by-nd"},
        "min_faces": {"faceCount": 99},
        "max_faces": {"faceCount": 1_000_001},
        "max_file_mb": {"archives": {"glb": {"size": 200_000_001, "textureCount": 1}}},
    }
    # One object of each kind is an LVIS shape, which no limit saves; of the ten LVIS shapes six pass.
    changes = {f"object_{i}": change for i, change in enumerate([*refused.values()] * 2)}
    lvis = {"mug": list(range(4)), "chair": list(range(50, 56))}
    write_objaverse(tmp_path / "package/hf-objaverse-v1", 60, lvis=lvis, body=None, **changes)
    overlay = {
        "output": str(tmp_path / "out"),
        "cache": str(tmp_path / "cache"),
        "catalog": {
            "objaverse": {"root": str(tmp_path / "package"), "hashes": None},
            "curation": {"max_objects": 30},
        },
    }
    config = check(merge(settings, overlay))
    made = plan(config)
    freeze(config, list(made.pending))
    splits = Counter(row["split"] for shard in frozen_shards(config) for row in read_table(shard_path(config, shard)))
    assert splits["test"] == 6
    assert splits["train"] + splits["validation"] == 30
    counts = curation(config)
    assert (counts["taken"], counts["lvis"]) == (36, 6)
    assert counts["refused"] == dict.fromkeys(refused, 2) | {"max_objects": 16}
    for note in (
        "36 of 60 objects are taken",
        "30 objects are for training and validation; 6 are LVIS shapes, for the test split",
    ):
        assert note in made.notes
    assert {note for note in made.notes if "refuses" in note} == {
        f"catalog.curation refuses {count}: {rule}" for rule, count in counts["refused"].items()
    }


def test_another_rule_gives_another_digest_and_the_same_shards(tmp_path, package):
    config = config_of(tmp_path, {})
    freeze(config, list(plan(config).pending))
    first = plan(config)
    assert plan(config_of(tmp_path, {})).curation_digest == first.curation_digest
    other = plan(config_of(tmp_path, {"min_faces": 1}))  # leaves out nothing
    assert other.curation_digest != first.curation_digest
    assert (other.frozen, other.pending, other.label_digests) == (first.frozen, (), first.label_digests)
