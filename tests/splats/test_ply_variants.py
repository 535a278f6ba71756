"""Splats as other programs write them: what is read of each, as a file to encode and as an object of the catalog."""

import dataclasses
import io
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from clipgs.catalog.sources.splats import SplatSource
from clipgs.config import Encoder, check
from clipgs.core.errors import ObjectError
from clipgs.core.ply_header import SPLAT_PROPERTIES
from clipgs.encoder.groups import prepare
from clipgs.encoder.model import ClipGS
from clipgs.splats import ply, ready
from clipgs.splats.gaussians import PARAMETERS, Gaussians
from tests.splats.balls import random_gaussians

ROWS = 60
NORMALS, COLORS = ("nx", "ny", "nz"), ("red", "green", "blue")
F_DC = SPLAT_PROPERTIES[3:6]
FLAT = np.log(1e-6)

Table = np.ndarray  # a structured array, a column a property


def own() -> Gaussians:
    # The opacities are those that pruning keeps, so that both ways in have the same rows.
    splat = random_gaussians(ROWS, seed=5)
    return Gaussians.from_ply(dataclasses.replace(splat, opacity_logits=splat.opacity_logits.abs()).to_ply())


def table(names=SPLAT_PROPERTIES, number="f4", **types) -> Table:
    """The rows of `own`, with the columns of those names; others are 0."""
    rows = np.frombuffer(own().to_ply().partition(b"end_header\n")[2], "<f4").reshape(ROWS, 14)
    made = np.zeros(ROWS, [(name, types.get(name, number)) for name in names])
    for name in set(names) & set(SPLAT_PROPERTIES):
        made[name] = rows[:, SPLAT_PROPERTIES.index(name)]
    return made


def changed(change: Callable[[Table], object], rows: Table | None = None) -> Table:
    rows = table() if rows is None else rows
    change(rows)
    return rows


def written(rows: Table, before=(), after=(), text=False, byte_order="<", **header) -> bytes:
    stream = io.BytesIO()
    elements = [*before, PlyElement.describe(rows, "vertex"), *after]
    PlyData(elements, text=text, byte_order=byte_order, **header).write(stream)
    return stream.getvalue()


def put(column: str, row: int | slice, value: float) -> Callable[[Table], object]:
    return lambda rows: rows[column].__setitem__(row, value)


def no_rotation(rows: Table) -> None:
    for name in SPLAT_PROPERTIES[10:]:
        rows[name][7] = 0


def two_bad_rows(rows: Table) -> None:
    rows["scale_1"][5], rows["x"][9] = np.nan, np.inf


def two_infinite_logits(rows: Table) -> None:
    rows["opacity"][5], rows["opacity"][6] = -np.inf, np.inf


def colored(number: str, full: float, names=SPLAT_PROPERTIES) -> Table:
    """The colours of `own` in red, green and blue, without f_dc."""
    made = table([*(name for name in names if name not in F_DC), *COLORS], **dict.fromkeys(COLORS, number))
    values = own().colors.numpy() * full
    for i, name in enumerate(COLORS):
        made[name] = values[:, i] if number in ("f4", "f8") else values[:, i].round()
    return made


def far(rows: Table) -> None:
    rows["x"] += 4e5
    rows["y"] += 5e6


def harmonics(count: int) -> list[str]:
    return [f"f_rest_{i}" for i in range(count)]


CAMERA = PlyElement.describe(np.zeros(3, [("a", "f4"), ("b", "i4")]), "camera")
SWAPPED = [*SPLAT_PROPERTIES[:3], *SPLAT_PROPERTIES[7:10], "opacity", *SPLAT_PROPERTIES[10:], *F_DC, *harmonics(45)]
WITH_ALL = [*SPLAT_PROPERTIES[:3], *NORMALS, *COLORS, *SPLAT_PROPERTIES[3:], "label"]
INRIA = [*SPLAT_PROPERTIES[:3], *NORMALS, *F_DC, *harmonics(45), *SPLAT_PROPERTIES[6:]]
WITHOUT_SCALE_2 = [name for name in SPLAT_PROPERTIES if name != "scale_2"]
HEAD = b"ply\nformat binary_little_endian 1.0\n"


def commented(comment: bytes) -> bytes:
    return written(table()).replace(HEAD, HEAD + b"comment " + comment + b"\n")


SAME = {
    "harmonics and normals": written(table(INRIA)),
    "order and comment of Brush": written(table(SWAPPED), comments=["Exported from Brush", "Vertical axis: y"]),
    "float64": written(table(number="f8")),
    "big-endian": written(table(INRIA, ">f4"), byte_order=">"),
    "text": written(table(), text=True),
    "text of float64": written(table(number="f8"), text=True),
    "red, green, blue beside f_dc": written(table(WITH_ALL, red="u1", green="u1", blue="u1", label="i4")),
    "an element behind": written(table(), after=[CAMERA]),
    "an element in front": written(table(), before=[CAMERA]),
    "obj_info": written(table(), obj_info=["made by something"]),
    "float32 words": written(table()).replace(b"property float ", b"property float32 "),
    "trailing bytes": written(table()) + b"\0" * 100,
    "UTF-8": commented("créé par Émile Å 日本".encode()),
    "Latin-1": commented("créé par Émile Å".encode("latin-1")),
    "Shift JIS": commented("日本".encode("shift-jis")),
}


@pytest.mark.parametrize("variant", SAME)
def test_the_same_splat_in_another_spelling(variant, caplog):
    loaded = Gaussians.from_ply(SAME[variant], "a.ply")
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(loaded, name), getattr(own(), name), rtol=0, atol=2e-6)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def rows_without(*dropped: int) -> Gaussians:
    kept = own()[[row for row in range(ROWS) if row not in dropped]]
    return Gaussians.from_ply(kept.to_ply())


def with_values(**values) -> Gaussians:
    splat = own()
    for name, (rows, value) in values.items():
        getattr(splat, name)[rows] = value
    return splat


FLAT_SPLAT = with_values(log_scales=((slice(None), 2), FLAT))
NO_SCALE = "flat Gaussians without scale_2, which became 1e-06"
RGB = "the colours are those of red, green and blue"
ONE_DROPPED = "1 of 60 Gaussians are dropped: 1 with values that are not finite numbers"
# Of each the rows, what is read of them, and the notes.
VARIANTS = {
    "infinite logits": (
        changed(two_infinite_logits),
        with_values(opacity_logits=([5, 6], torch.tensor([-30.0, 30.0]))),
        ["2 infinite opacity logits became 30 or -30"],
    ),
    "a double beyond float32": (
        changed(put("opacity", 6, 1e300), table(number="f8")),
        with_values(opacity_logits=(6, 30.0)),
        ["1 infinite opacity logits became 30 or -30"],
    ),
    "scales of zero": (
        changed(put("scale_2", slice(None), -np.inf)),
        FLAT_SPLAT,
        ["60 scales of zero became 1e-06"],
    ),
    "2DGS": (table(WITHOUT_SCALE_2), FLAT_SPLAT, [NO_SCALE]),
    "not finite": (
        changed(two_bad_rows),
        rows_without(5, 9),
        ["2 of 60 Gaussians are dropped: 2 with values that are not finite numbers"],
    ),
    "a position beyond float32": (
        changed(put("x", 9, 1e300), table(number="f8")),
        rows_without(9),
        [ONE_DROPPED],
    ),
    "an infinite scale": (changed(put("scale_0", 9, np.inf)), rows_without(9), [ONE_DROPPED]),
    "an infinite colour": (changed(put("f_dc_1", 9, -np.inf)), rows_without(9), [ONE_DROPPED]),
    "no rotation": (
        changed(no_rotation),
        rows_without(7),
        ["1 of 60 Gaussians are dropped: 1 with a quaternion of zeros"],
    ),
    "both": (
        changed(no_rotation, changed(two_bad_rows)),
        rows_without(5, 7, 9),
        ["3 of 60 Gaussians are dropped: 2 with values that are not finite numbers, 1 with a quaternion of zeros"],
    ),
    "bytes of colour": (colored("u1", 255), own(), [RGB]),
    "16 bits of colour": (colored("u2", 65535), own(), [RGB]),
    "shares of colour": (colored("f4", 1), own(), [RGB]),
    "colour of 255 as float": (colored("f4", 255), own(), [RGB]),
    "2DGS with bytes of colour": (
        colored("u1", 255, WITHOUT_SCALE_2),
        FLAT_SPLAT,
        [NO_SCALE, RGB],
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_of_other_values(variant, caplog, tmp_path):
    rows, expected, notes = VARIANTS[variant]
    (tmp_path / "a.ply").write_bytes(written(rows))
    loaded = Gaussians.load(tmp_path / "a.ply")
    for name in PARAMETERS:
        atol = 2.1e-3 if name == "colors" else 2e-6
        torch.testing.assert_close(getattr(loaded, name), getattr(expected, name), rtol=0, atol=atol)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("WARNING", f"{tmp_path / 'a.ply'}: {note}.") for note in notes]


def placed(path) -> tuple[dict, Gaussians]:
    """Row and splat of a file as an object of the catalog."""
    config = check({"catalog": {"source": "splats", "splats": {"path": str(path.parent), "up_axis": "z"}}})
    source = SplatSource(config)
    frozen = {"locator": path.name, "source": source.name, **source.identify(path.name)}
    source.fetch(frozen)
    row, [(_, data)] = ready._place(ready.ReadySplat(config, frozen, frozen["sha256"]))
    return row, Gaussians.from_ply(data)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_catalog_takes_them_too_and_its_row_says_so(variant, tmp_path):
    rows, expected, notes = VARIANTS[variant]
    (tmp_path / "a.ply").write_bytes(written(rows))
    (tmp_path / "b.ply").write_bytes(expected.to_ply())
    row, splat = placed(tmp_path / "a.ply")
    wanted, other = placed(tmp_path / "b.ply")
    assert row["note"] == "; ".join(notes)
    assert wanted["note"] is None
    assert row["gaussians"] == wanted["gaussians"] == len(splat)
    assert row["scale"] == pytest.approx(wanted["scale"], rel=1e-6)
    torch.testing.assert_close(splat.means, other.means, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def embed() -> Callable[[Gaussians], torch.Tensor]:
    settings = Encoder(size="tiny", gaussians=64, groups=8, group_size=8, refinement_width=16)
    torch.manual_seed(0)
    model = ClipGS(settings, 32).eval()

    @torch.no_grad()
    def embedded(splat: Gaussians) -> torch.Tensor:
        return model(Gaussians.stack([prepare(splat, settings)]))[0]

    return embedded


def test_float64_far_from_the_origin_is_as_at_the_origin(embed, caplog, tmp_path):
    here = Gaussians.from_ply(written(table(number="f8")))
    assert not caplog.records
    path = tmp_path / "far.ply"
    path.write_bytes(written(changed(far, table(number="f8"))))
    there = Gaussians.load(path)
    torch.testing.assert_close(embed(there), embed(here), rtol=0, atol=1e-5)
    moved = there.means - here.means
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=0, atol=1e-6)
    assert "is taken off its positions" in caplog.text

    (tmp_path / "near.ply").write_bytes(written(table(number="f8")))
    (far_row, far_splat), (near_row, near_splat) = placed(path), placed(tmp_path / "near.ply")
    torch.testing.assert_close(far_splat.means, near_splat.means, rtol=0, atol=1e-6)
    # Z became up: y points to the front, away from +Z.
    np.testing.assert_allclose(np.subtract(far_row["centre"], near_row["centre"]), [4e5, 0, -5e6], rtol=0, atol=1e-6)


def test_without_a_row_that_can_be_used_the_file_is_refused(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes(written(changed(put("y", slice(None), np.nan))))
    words = "none of its 60 Gaussians can be used: 60 with values that are not finite numbers"
    with pytest.raises(ValueError, match=f"a.ply: {words}"):
        Gaussians.load(path)
    with pytest.raises(ObjectError, match=words):
        placed(path)


def test_a_dropped_row_leaves_farthest_point_order(tmp_path):
    data = bytearray(own().to_ply())
    start = data.index(b"end_header\n") + len(b"end_header\n")
    data[start : start + 4] = np.float32(np.nan).tobytes()  # row 0, with which the order begins
    found = ply.read(bytes(data)).rows
    assert np.array_equal(found, ply.read(rows_without(0).to_ply()).rows)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x", "y", "z"], "no f_dc_0, f_dc_1, f_dc_2, opacity, scale_0, scale_1, scale_2, rot_0"),
        (["x", "y", "z", *COLORS], "no opacity, scale_0, scale_1, scale_2, rot_0, rot_1, rot_2, rot_3"),
        ([name for name in SPLAT_PROPERTIES if name not in ("scale_0", "f_dc_1")], "no f_dc_1, scale_0 "),
    ],
)
def test_vertices_that_are_no_gaussians_say_what_they_lack(names, words, tmp_path):
    (tmp_path / "a.ply").write_bytes(written(table(names)))
    with pytest.raises(ValueError, match=words):
        Gaussians.load(tmp_path / "a.ply")
    with pytest.raises(ObjectError, match=words):
        placed(tmp_path / "a.ply")
