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


PHRASES = """
a chair, an apple, an hourglass, a unicycle, an umbrella, a university, an SUV, a TV, an LED lamp,
a USB stick, a horse, an uninflated ball, a ukulele, a one-piece, an onesie, a house, an igloo, a euro,
an egg, an 8-ball, a utensil, an urn, a urinal, an unimpressive car, an unidentified object
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
    with pytest.raises(
        UsageError, match=r"catalogue: .* did you mean catalog\? \(there are: cap3d, catalog, coca, consensus\)"
    ):
        captions.captioner("catalogue")
