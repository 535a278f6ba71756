import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from clipgs import config as configuration
from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check, write_bytes
from clipgs.report.sections import principal_plane
from clipgs.report.stages import report
from clipgs.splats.export import SPLAT_ROW
from clipgs.triplets.pack import schema
from tests import browser

from .conftest import NASTY

VOID = {"meta", "link", "img", "br", "input"}
WAYS_OUT = [
    "http:",
    "https:",
    "//",
    "url(",
    "@import",
    "import(",
    "fetch(",
    "XMLHttpRequest",
    "WebSocket",
    "javascript:",
]


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, and who nests what."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.tags, self.ids = [], [], [], []
        self.texts, self.titles, self.scripts, self.problems = [], [], [], []
        self.feed(text)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag == "script":
            self.scripts.append(dict(attributes))
        if tag == "title":
            self.titles.append([self.open[-1], ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)
        if self.open and self.open[-1] == "title":
            self.titles[-1][1] += data

    def said(self):
        return " ".join(" ".join(self.texts).split())


def made(output):
    report(output.config)
    file = output.folder / "report" / "index.html"
    check(file)
    return file.read_text()


@pytest.fixture(params=["output", "evaluated"])
def text(request):
    return made(request.getfixturevalue(request.param))


def test_the_page_is_well_formed_and_asks_nobody_for_anything(text):
    page = Page(text)
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert {"splats", "objects", "failures", "quality", "credit"} <= set(page.ids)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style"
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value[:40])
            if value.startswith("#"):
                assert value[1:] in page.ids
    code = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
    assert len(code) == 2
    for way in WAYS_OUT:
        assert all(way not in re.sub(r"(?m)//.*$", "", block) for block in code)


def test_texts_from_the_data_are_only_text(text):
    page = Page(text)
    assert "alert" not in "".join(re.findall(r"<script>(.*?)</script>", text, re.DOTALL))
    assert page.tags.count("script") == 1 + text.count('type="text/plain"')
    assert [said for parent, said in page.titles if parent == "head"] == [f"My triplets {NASTY}"]
    assert {parent for parent, _ in page.titles} <= {"head", "rect", "circle", "polyline", "text"}
    assert any(NASTY in said for said in page.texts)
    assert "<script>alert" not in text
    assert "javascript:" not in text  # the page of an object is a link only where it is http or https


def test_the_policy_allows_just_what_is_in_the_page(text):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    blocks = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", text, re.DOTALL)
    for kind, block in zip(("style", "script"), blocks, strict=True):
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_shows_counts_failures_and_quality(output):
    said = Page(made(output)).said()
    assert "3 triplets 2 of 5 objects failed" in said
    assert "duplicate of b-mug" in said
    assert f"ObjectError: {' '.join(NASTY.split())}" in said
    assert "35.50" in said  # the mean PSNR


def test_a_run_adds_its_sections(evaluated):
    page = Page(made(evaluated))
    assert {"training", "retrieval", "zero-shot", "few-shot", "baselines", "ablations", "embedding"} <= set(page.ids)
    said = page.said()
    for words in ("10.0 to 50.0", "chance 33", "50.0 \N{PLUS-MINUS SIGN} 10.0", "+10.0", "gallery aaaaaaaaaaaa"):
        assert words in said
    assert "94.8" in said  # published, of few shots


def test_a_difference_to_another_row_than_the_one_above_names_it(evaluated):
    said = Page(made(evaluated)).said()
    assert "+10.0 \N{MINUS SIGN}10.0 to +20.0 last" in said
    assert f"\N{MINUS SIGN}25.0 \N{MINUS SIGN}30.0 to +0.0 to: {' '.join(NASTY.split())}" in said


def test_cells_of_a_wide_table_say_their_column(evaluated):
    text = made(evaluated)
    assert 'data-column="difference to the row above, R@1"' in text
    assert 'data-column="objects"' in text  # of the zero-shot table, not of the narrow one of categories
    assert "<table><thead><tr><th>category</th>" in text


def test_the_splats_are_whole(output):
    text = made(output)
    blocks = re.findall(r'<script type="text/plain" id="splat-\d">([^<]*)</script>', text)
    assert [len(base64.b64decode(block)) // SPLAT_ROW.itemsize for block in blocks] == [6, 5, 7]  # by uid
    assert len(re.findall(r'data-splat="splat-\d"', text)) == 3


def test_figures_under_the_small_teacher_are_marked_as_such(evaluated):
    words = "not those of EVA-CLIP, and say nothing about the paper"
    assert any(words in text for text in Page(made(evaluated)).texts)
    for file in (evaluated.folder / "evaluation" / "base").glob("*.json"):
        write_bytes(file, file.read_bytes().replace(b"clipgs-small", b"EVA02-E-14-plus"))
    assert not any(words in text for text in Page(made(evaluated)).texts)


def test_runs_of_an_ablation_are_only_in_its_table(evaluated):
    before = made(evaluated)
    for folder in ("evaluation", "runs"):
        base = evaluated.folder / folder / "base"
        shutil.copytree(base, base.with_name("ablation-voting-s0"))
    assert made(evaluated) == before


def test_objects_without_categories_have_no_table_of_classes(evaluated):
    file = evaluated.folder / "evaluation" / "base" / "zeroshot.json"
    write_bytes(file, json.dumps(json.loads(file.read_text()) | {"rows": []}).encode())
    assert "zero-shot" not in Page(made(evaluated)).ids


def test_the_same_bytes_again(evaluated):
    assert made(evaluated) == made(evaluated)


def test_a_page_is_made_of_an_output_in_which_every_object_failed(output):
    file = output.folder / "triplets" / "00000.parquet"
    rows = read_table(file)
    write_table(file, [row | {"status": "failed", "stage": row["stage"] or "fit"} for row in rows], schema())
    page = Page(made(output))
    assert page.problems == []
    said = page.said()
    assert "0 triplets 5 of 5 objects failed" in said
    assert "No object is packed." in said
    assert {"splats", "credit"}.isdisjoint(page.ids)


def test_of_ready_splats_no_quality_is_known(output):
    file = output.folder / "triplets" / "00000.parquet"
    write_table(file, [row | {"psnr": None} for row in read_table(file)], schema())
    assert "Not known: all objects are ready splats" in " ".join(Page(made(output)).texts)


def test_without_triplets_it_says_what_to_do(tmp_path):
    with pytest.raises(ClipgsError, match="snakemake triplets"):
        report(configuration.check({"output": str(tmp_path)}))


def test_the_projection_keeps_the_two_largest_variances():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 7)) * [9, 5, 1, 1, 1, 1, 1] + 3
    points, share = principal_plane(rows.astype(np.float32))
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    np.testing.assert_allclose(np.cov(points.T), np.diag(variances[:2]), atol=1e-3)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-4)
    assert share == pytest.approx(variances[:2].sum() / variances.sum(), abs=1e-4)


def test_the_projection_of_equal_rows_is_equal():
    rows = np.random.default_rng(1).standard_normal((20, 4))
    points, _ = principal_plane(rows)
    reversed_points, _ = principal_plane(rows[::-1])
    np.testing.assert_allclose(points, reversed_points[::-1], atol=1e-9)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
def test_a_splat_of_the_page_is_drawn_and_another_one_chosen(output):
    made(output)
    with browser.opened() as tab:
        tab.look()
        tab.go((output.folder / "report" / "index.html").as_uri())
        tab.until("document.getElementById('viewer').classList.contains('live')")
        tab.click("#viewer .choices li:nth-child(2) button")
        chosen = "document.querySelector('#viewer button[aria-pressed=true]').dataset"
        assert tab.run(f"{chosen}.splat") == "splat-1"
        assert tab.run(f"document.querySelector('#viewer .note').textContent === {chosen}.caption")
        assert tab.said == []
