"""Lists that users write by hand: what a spreadsheet or an editor makes of them is read, and names are found again."""

import pytest

from clipgs.core.errors import UsageError
from clipgs.core.lists import Names, alike, did_you_mean, enumerated, read_lines, read_rows, read_text


def test_a_byte_order_mark_and_the_lines_of_windows_are_no_text(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("\ufefftable \r\n\r\n  chair\r\n".encode())
    assert read_text(file, "key").startswith("table")
    assert read_lines(file, "key") == [(1, "table"), (3, "chair")]


def test_rows_have_their_lines_and_empty_ones_are_passed_over(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes('\ufeffuid,text\r\n\r\na,"two\r\nlines"\r\n,,\r\nb,c\r\n'.encode())
    assert [*read_rows(file, "key")] == [(1, ["uid", "text"]), (4, ["a", "two\r\nlines"]), (6, ["b", "c"])]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_rows_of_a_spreadsheet_that_does_not_write_commas(tmp_path, separator):
    file = tmp_path / "list.csv"
    rows = [["uid", "text"], ["a", "red, and round"], ["b", "c"]]
    file.write_text("\ufeff\n" + "".join(separator.join(row) + "\r\n" for row in rows))
    assert [*read_rows(file, "key")] == [(2, rows[0]), (3, rows[1]), (4, rows[2])]
    file.write_text(f"uid,a text{separator}\na,b{separator}c\n")
    assert [*read_rows(file, "key")][1] == (2, ["a", f"b{separator}c"])
    file.write_text("")
    assert [*read_rows(file, "key")] == []


@pytest.mark.parametrize("read", [read_text, read_lines, lambda *args: [*read_rows(*args)]])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "list.csv: No such file or directory"),
        ("chair\ntürk\n".encode("latin-1"), "list.csv, line 2, is not UTF-8; save it as UTF-8"),
        ("chair\n".encode("utf-16"), "list.csv is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_with_the_place(tmp_path, read, data, words):
    file = tmp_path / "list.csv"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(UsageError) as error:
        read(file, "config: a.key")
    assert str(error.value) == f"config: a.key: {tmp_path}/{words}"


def test_wrong_quotes_are_named_with_their_line_where_they_matter(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text('a,b\n"c"d,e\n')
    assert [*read_rows(file, "key")][1] == (2, ["cd", "e"])
    with pytest.raises(UsageError, match=r"table\.csv, line 2: "):
        [*read_rows(file, "key", strict=True)]


@pytest.mark.parametrize("name", ["Teddy_Bear", "teddy bear", " TEDDY--BEAR "])
def test_names_are_compared_without_case_and_by_words(name):
    assert alike(name) == "teddy bear"
    assert Names(["sofa", "teddy_bear"]).find(name) == "teddy_bear"


def test_a_name_that_could_be_two_is_neither_unless_it_is_written_so():
    names = Names(["Polish", "polish", "sofa"])
    assert [names.find(name) for name in ("Polish", "polish", "POLISH", "SOFA", "bed", None)] == [
        "Polish", "polish", None, "sofa", None, None,
    ]  # fmt: skip
    assert names.unknown(["POLISH", "Sofa", "bed"]) == ["POLISH", "bed"]


def test_what_is_unknown_is_shown_with_what_was_meant():
    names = Names(["sofa", "teapot", "windmill"])
    assert names.shown(["Sofas"]) == "Sofas; did you mean sofa?"
    assert names.shown(["zzz"]) == "zzz"
    assert names.shown(["sofas", "zzz"]) == "sofas (did you mean sofa?), zzz"
    assert names.shown(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert enumerated(["a", "b", "c"]) == "a, b, c"
    assert did_you_mean("ViT-B-33", ["RN50", "ViT-B-32"]) == "; did you mean ViT-B-32?"
    assert did_you_mean("nothing", ["RN50"]) == ""
