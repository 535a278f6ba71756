import pytest

from clipgs.config import Caption
from clipgs.core.errors import UsageError
from clipgs.triplets.captions import captioner, listed_digest

ROWS = [
    {"uid": "a" * 32, "sha256": None},
    {"uid": "b" * 32, "sha256": "c" * 64},
    {"uid": "d" * 32, "sha256": None},
    {"uid": "e" * 32, "sha256": None},
]
LABELS = [{"uid": "d" * 32, "text": "the catalog's own"}, {"uid": "a" * 32, "text": "not this"}, {"uid": "e" * 32}]
CSV = f'{"a" * 32},"A green, old mug."\n{"f" * 32},somebody else\'s\n{"c" * 64},by  its\thash\n{"e" * 32},...\n'


def settings_of(tmp_path, text=CSV, **more):
    if text is not None:
        (tmp_path / "captions.csv").write_text(text)
    return Caption(captioner="cap3d", cap3d=str(tmp_path / "captions.csv"), **more)


def captions(settings):
    return {row["uid"][0]: row for row in captioner("cap3d")(ROWS, LABELS, settings)}


@pytest.mark.parametrize("header", ["", "uid,caption\n", "\ufeff"])
def test_listed_objects_get_their_caption_and_others_the_catalogs(tmp_path, header):
    found = captions(settings_of(tmp_path, header + CSV))
    assert (found["a"]["caption"], found["a"]["source"]) == ("A green, old mug.", "Cap3D")
    assert found["b"]["caption"] == "by its hash"
    assert (found["d"]["caption"], found["d"]["source"]) == ("the catalog's own", "catalog text")
    assert found["e"]["status"] == "failed"  # listed without words, and the catalog has none either


def test_without_a_fallback_an_unlisted_object_fails(tmp_path):
    found = captions(settings_of(tmp_path, fallback="fail"))
    assert found["a"]["status"] == "ok"
    assert found["d"]["error"] == "captions.csv has no caption of it, and caption.fallback is fail"


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file"), ("uid,two,three\n", "3 columns"), ("only one\n", "1 columns")],
)
def test_a_wrong_file_is_one_line(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as error:
        captions(settings_of(tmp_path, text))
    assert "\n" not in str(error.value)


def test_the_digest_is_the_files(tmp_path):
    assert listed_digest(Caption()) == ""
    first = listed_digest(settings_of(tmp_path))
    assert listed_digest(settings_of(tmp_path)) == first
    assert listed_digest(settings_of(tmp_path, CSV + "x,y\n")) != first
    with pytest.raises(UsageError, match="No such file"):
        listed_digest(Caption(captioner="cap3d", cap3d=str(tmp_path / "nowhere")))
