import hashlib

import pytest

from clipgs.catalog.sources import annotations
from clipgs.config import Caption, check
from clipgs.core.errors import UsageError
from clipgs.triplets.captions import caption_row, captioner, listed_digest, located

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


def test_the_fallback_may_look_at_pictures(tmp_path):
    def look(uids):
        return [caption_row(uid, "seen", "coca") for uid in uids]

    rows = captioner("cap3d")(ROWS, LABELS, settings_of(tmp_path, fallback="coca"), look)
    assert [row["caption"] for row in rows] == ["A green, old mug.", "by its hash", "seen", "seen"]


COLUMNS = "it must have two, uid and caption (quoted, if it has a comma)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ": No such file or directory"),
        ("uid,two,three\n", ", line 1: 3 columns at 'uid'; " + COLUMNS),
        ("a,b\n\nonly one\n", ", line 3: 1 columns at 'only one'; " + COLUMNS),
        ('"a\r\nb",2,3\n', ", line 2: 3 columns at 'a\\r\\nb'; " + COLUMNS),
        (f"{'x' * 80},2,3\n", f", line 1: 3 columns at {'x' * 70!r}; " + COLUMNS),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, words):
    with pytest.raises(UsageError) as error:
        captions(settings_of(tmp_path, text))
    path = tmp_path / "captions.csv"
    assert str(error.value) == f"config: caption.cap3d: {path}{words}"


def test_a_caption_may_hold_lines_and_blank_lines_are_skipped(tmp_path):
    found = captions(settings_of(tmp_path, f'\n{"a" * 32},"two\r\nlines"\n\n  \n'))
    assert found["a"]["caption"] == "two lines"


def test_a_csv_must_be_named():
    with pytest.raises(UsageError) as error:
        listed_digest(Caption(captioner="cap3d"))
    assert str(error.value) == "config: caption.captioner = cap3d: name the CSV of captions in caption.cap3d"


def test_a_csv_on_the_web_is_downloaded(monkeypatch, tmp_path):
    asked = []

    class Files:
        def __init__(self, config):
            self.config = config

        def linked(self, url):
            asked.append((self.config, url))
            return tmp_path / "here.csv"

    monkeypatch.setattr(annotations, "AnnotationFiles", Files)
    url = "https://example.org/captions.csv"
    config = check({"caption": {"captioner": "cap3d", "cap3d": url}})
    assert located(config) == config.caption.model_copy(update={"cap3d": str(tmp_path / "here.csv")})
    assert asked == [(config, url)]
    for settings in ({"captioner": "cap3d", "cap3d": "here.csv"}, {"captioner": "cap3d"}, {"captioner": "catalog",
                     "cap3d": url}):  # fmt: skip
        config = check({"caption": settings})
        assert located(config) == config.caption
    assert len(asked) == 1


def test_the_digest_is_the_files(tmp_path):
    assert listed_digest(Caption()) == ""
    first = listed_digest(settings_of(tmp_path))
    assert listed_digest(settings_of(tmp_path)) == first
    assert first == hashlib.sha256(CSV.encode()).hexdigest()[:16]
    assert listed_digest(settings_of(tmp_path, CSV + "x,y\n")) != first
    with pytest.raises(UsageError) as error:
        listed_digest(Caption(captioner="cap3d", cap3d=str(tmp_path / "nowhere")))
    assert str(error.value) == f"config: caption.cap3d: {tmp_path / 'nowhere'}: No such file or directory"
