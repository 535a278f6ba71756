import pytest

from clipgs.config import Caption
from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import UsageError
from clipgs.triplets import captions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red mug", "a red mug"),
        ("  a\tred\n\n mug\u00a0 ", "a red mug"),
        ("A red mug.", "A red mug."),
        ("A red mug.....", "A red mug..."),
        ("wait...", "wait..."),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeffa\u200b mug\x00\x1b[31m", "a mug [31m"),
        ("\u202emug", "mug"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("\U0001f468\u200d\U0001f680 x", "\U0001f468\u200d\U0001f680 x"),
        ("\u9ec4\u8272\u7684\u6905\u5b50", "\u9ec4\u8272\u7684\u6905\u5b50"),
        ("<b>mug</b> & co", "<b>mug</b> & co"),
        ("a lone \ud800 surrogate", "a lone surrogate"),
        ("", ""),
        (None, ""),
        ("?!... _", ""),
    ],
)
def test_clean(text, expected):
    assert captions.clean(text, 100) == expected


def test_clean_cuts_at_a_word():
    assert captions.clean("a tall blue lamp", 16) == "a tall blue lamp"
    assert captions.clean("a tall blue lamp", 15) == "a tall blue"
    assert captions.clean("a tall blue lamp", 11) == "a tall blue"
    assert captions.clean("a tall, blue lamp", 8) == "a tall"
    assert captions.clean("x" * 50, 20) == "x" * 20
    assert captions.clean("xxxxx\u0331\u0331\u0331yy", 7) == "xxxx"  # the accents stay with their letter
    assert captions.clean("1.5 m", 5) == "1.5 m"
    assert captions.clean("Xylophone, X, ;:-rest", 15) == "Xylophone, X"  # the letter X is no mark
    assert captions.clean("Xy ,;:-X rest", 7) == "Xy"
    assert captions.clean("a box XX y", 8) == "a box XX"


def test_clean_cuts_nothing_in_two_that_is_joined():
    joined = "x\u0331"  # no character of its own
    assert captions.clean(f"ab{joined}cd", 3) == "ab"
    assert captions.clean(f"a{joined}", 1) == "a"
    assert captions.clean(f"{joined}y", 1) == ""  # not even the first letter fits with its accent
    assert captions.clean(f"{joined}y\u200d", 1) == ""  # whatever the text ends with
    assert captions.clean("\u0331\u0331x", 1) == ""  # accents without a letter
    assert captions.clean("ab\u200dcd", 2) == "a"  # neither before a joiner
    assert captions.clean("ab\u200dcd", 3) == "a"  # nor behind it
    assert captions.clean("abc\u200dde", 5) == "abc\u200dd"


PHRASES = """
a chair, an apple, an hourglass, a unicycle, an umbrella, a university, an SUV, a TV, an LED lamp,
a USB stick, a horse, an uninflated ball, a ukulele, a one-piece, an onesie, a house, an igloo, a euro,
an egg, an 8-ball, a utensil, an urn, a urinal, an unimpressive car, an unidentified object,
an honest man, an honour guard, an honor guard, an heirloom, an MP3 player, an RGB LED, an NASA suit,
a UNICEF box, an ASCII art, a HOUSE, an APPLE, an 11, an 18, a 12, a XYLOPHONE, an X, an X ray machine, a Q, a Xylophone
"""


@pytest.mark.parametrize("phrase", [phrase.strip() for phrase in PHRASES.split(",")])
def test_article(phrase):
    assert captions.with_article(phrase.split(" ", 1)[1]) == phrase


def test_catalog_captioner():
    rows = [{"uid": uid} for uid in "abcd"]
    labels = [
        {"uid": "b", "text": None, "category": "arrow_sign"},
        {"uid": "a", "text": " a  blue chair ", "category": "chair"},
        {"uid": "c", "text": "...", "category": " "},
    ]
    result = captions.captioner("catalog")(rows, labels, Caption())
    assert [row["uid"] for row in result] == ["a", "b", "c", "d"]
    assert [row["caption"] for row in result] == ["a blue chair", "an arrow sign", None, None]
    assert [row["source"] for row in result] == ["catalog text", "catalog category", None, None]
    assert [row["status"] for row in result] == ["ok", "ok", "failed", "failed"]
    assert result[3]["error"].startswith("no text")


def test_rows_fit_the_schema(tmp_path):
    rows = captions.catalog([{"uid": "a"}, {"uid": "b"}], [{"uid": "a", "text": "mug"}], Caption())
    write_table(tmp_path / "captions.parquet", rows, captions.schema())
    read = read_table(tmp_path / "captions.parquet")
    assert [{name: row[name] for name in given} for row, given in zip(read, rows, strict=True)] == rows


def test_unknown_captioner():
    with pytest.raises(UsageError) as error:
        captions.captioner("catalogue")
    assert str(error.value) == (
        "caption.captioner = catalogue: there is no such captioner; did you mean catalog?"
        " (there are: cap3d, catalog, coca, consensus, http)"
    )
    with pytest.raises(UsageError, match=r"did you mean"):
        captions.captioner("zzz")  # like none of them


@pytest.mark.parametrize("name", ["coca", "consensus"])
def test_captions_of_a_model_are_asked_for_by_uid(name):
    asked = []

    def look(uids):
        asked.append(uids)
        return [captions.caption_row(uid, f"a {uid}", name) for uid in uids]

    rows = captions.captioner(name)([{"uid": "a"}, {"uid": "b"}], [], Caption(), look)
    assert [row["caption"] for row in rows] == ["a a", "a b"]
    assert captions.captioner(name)([], [], Caption(), look) == []
    assert asked == [["a", "b"]]


def test_without_pictures_the_stage_is_named():
    with pytest.raises(UsageError) as error:
        captions.captioner("coca")([{"uid": "a"}, {"uid": "b"}], [], Caption())
    assert str(error.value) == ("caption: 2 objects need a captioner that looks at pictures: run the stage `caption`")


def test_a_captions_row():
    empty = {"candidates": [], "scores": [], "score": None, "note": None}
    good = {"uid": "a", "status": "ok", "error": None, "caption": "a mug", "source": "Cap3D"}
    assert captions.caption_row("a", "a mug", "Cap3D") == good | empty
    bad = {"uid": "a", "status": "failed", "error": "no text", "caption": None, "source": None}
    assert captions.caption_row("a", error="no text") == bad | empty
