import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from clipgs.report import plots

NASTY = "<b>\"'&</svg>"
SVG = "{http://www.w3.org/2000/svg}"


def parsed(text):
    (svg,) = re.findall(r'<svg class="(?:plot|heatmap)".*?</svg>', text, re.DOTALL)
    return ElementTree.fromstring(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))


@pytest.mark.parametrize("count", [1, 2, 24, 5000])
def test_a_histogram_counts_every_value(count):
    values = np.random.default_rng(0).normal(35, 3, count)
    drawn = parsed(plots.histogram(values, NASTY))
    counts = [int(title.text.split(": ")[1].split()[0].replace(",", "")) for title in drawn.iter(f"{SVG}title")]
    assert sum(counts) == count
    heights = [float(bar.get("height")) for bar in drawn.iter(f"{SVG}rect")]
    np.testing.assert_allclose(np.array(heights) / max(heights), np.array(counts) / max(counts), atol=0.01)


def test_equal_values_make_a_histogram():
    drawn = parsed(plots.histogram([35.5, 35.5], "PSNR"))
    assert len(list(drawn.iter(f"{SVG}rect"))) == 1


def test_curves_stay_within_the_axes_and_leave_out_what_is_not_finite():
    lines = {NASTY: [(0, 1.0), (1, float("nan")), (2, 3.0)], "b": [*enumerate(np.linspace(0, 2, 9000))], "c": []}
    drawn = parsed(plots.curves(lines, "step", "loss"))
    found = [line.get("points").split() for line in drawn.iter(f"{SVG}polyline")]
    assert len(found[0]) == 2
    assert len(found[1]) <= 400
    for x, y in (point.split(",") for line in found for point in line):
        assert plots.LEFT <= float(x) <= plots.WIDTH - plots.RIGHT
        assert plots.TOP <= float(y) <= plots.HEIGHT - plots.BOTTOM
    assert plots.curves({"a": [(1, float("inf"))]}, "step", "loss") == ""


def test_a_scatter_says_what_each_point_is():
    names = [f"class {i % 14}" for i in range(100)]
    drawn = plots.scatter(np.random.default_rng(0).random((100, 2)), names, [NASTY] * 100, "map")
    assert len([mark for mark in parsed(drawn).iter(f"{SVG}circle")]) == 100
    assert drawn.count("<li>") == 10
    assert "class 5, class 6, class 7, class 8, class 9<" in drawn  # the grey ones
    many = plots.scatter(np.random.default_rng(0).random((100, 2)), [str(i) for i in range(100)], [""] * 100, "map")
    assert " and 79 more<" in many


def test_a_heatmap_has_a_cell_for_each_pair():
    drawn = parsed(plots.heatmap(np.eye(3), ["a", NASTY, "c"], "confusion"))
    assert [cell.get("fill-opacity") for cell in drawn.iter(f"{SVG}rect")][:4] == ["1.00", "0.00", "0.00", "0.00"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7), (1e-6, 2e-6), (0, 240_000), (34.9, 42)])
def test_marks_are_round_and_few(low, high):
    marks = plots._ticks(low, high)
    assert 2 <= len(marks) <= 6
    assert low - 1e-9 <= marks[0] <= marks[-1] <= high * (1 + 1e-9)
