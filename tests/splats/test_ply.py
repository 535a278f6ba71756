import io
import logging
import re
import struct

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from clipgs.splats import ply
from clipgs.splats.gaussians import PARAMETERS, Gaussians
from clipgs.splats.order import farthest_point_order
from tests.splats.balls import random_gaussians

NAMES = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2")
NAMES += ("rot_0", "rot_1", "rot_2", "rot_3")


@pytest.fixture
def splat() -> Gaussians:
    return random_gaussians(20, seed=3)


def vertices(splat: Gaussians, names=NAMES, number="f4") -> np.ndarray:
    """The splat's rows as another program would write them, other columns filled with 7."""
    table = np.zeros(len(splat), [(name, number) for name in names])
    for name in names:
        table[name] = 7
    for i in range(3):
        table["xyz"[i]] = splat.means[:, i]
        table[f"f_dc_{i}"] = (splat.colors[:, i].double() - 0.5) / 0.28209479177387814
        table[f"scale_{i}"] = splat.log_scales[:, i]
    for i in range(4):
        table[f"rot_{i}"] = splat.quats_wxyz[:, i]
    table["opacity"] = splat.opacity_logits
    return table


def assert_same(one: Gaussians, other: Gaussians) -> None:
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6)


def test_layout_byte_by_byte(tmp_path, splat):
    splat.save(tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    header, body = data.split(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "comment clipgs 1 order=fps frame=y-up"]
    assert lines[3] == "element vertex 20"
    assert lines[4:] == [f"property float {name}" for name in NAMES]
    first = struct.unpack_from("<14f", body)
    assert first[:3] == tuple(splat.means[0].tolist())
    assert first[6] == splat.opacity_logits[0].item()
    assert first[10:] == tuple(splat.quats_wxyz[0].tolist())  # w first
    np.testing.assert_allclose(0.5 + 0.28209479 * np.array(first[3:6]), splat.colors[0], atol=1e-6)
    read = PlyData.read(io.BytesIO(data))  # as other programs do
    assert written(read) == data
    assert read["vertex"].data[0].tolist() == first


def test_round_trip_in_farthest_point_order(tmp_path, splat):
    splat.save(tmp_path / "a.ply")
    loaded = Gaussians.load(tmp_path / "a.ply")
    assert_same(splat[farthest_point_order(splat.means.numpy())], loaded)
    assert farthest_point_order(loaded.means.numpy()).tolist() == list(range(20))
    assert splat.to_ply() == (tmp_path / "a.ply").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.ply"]


def with_comment(rows: np.ndarray) -> bytes:
    return written(PlyData([PlyElement.describe(rows, "vertex")], comments=[ply.COMMENT]))


def test_our_file_is_not_ordered_again(splat):
    rows = vertices(Gaussians.from_ply(splat.to_ply()))
    rows[2:] = rows[:1:-1].copy()  # the first two are the farthest apart still
    assert Gaussians.from_ply(with_comment(rows)).means[2:, 0].tolist() == rows["x"][2:].tolist()


def test_a_comment_that_was_kept_in_another_order_is_not_believed(splat):
    own = Gaussians.from_ply(splat.to_ply())
    rows = vertices(own)[::-1].copy()
    for data in (with_comment(rows), with_comment(rows).replace(b"float x", b"float32 x")):
        loaded = Gaussians.from_ply(data)
        assert farthest_point_order(loaded.means.numpy()).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("comments", "mode"),
    [
        (["SplatRenderMode: mip"], "mip"),
        (["splatrendermode: MIP", "Exported from Brush"], "mip"),
        (["antialiased 1"], "mip"),
        (["antialiased 1", "SplatRenderMode: default"], "default"),
        (["antialiased 0"], "default"),
        (["SplatRenderMode: 2dgs"], "2dgs"),
        (["antialiased 12", "a SplatRenderMode: mip"], "default"),
    ],
)
def test_how_a_splat_is_to_be_drawn_is_noted(splat, comments, mode, caplog):
    data = written(PlyData([PlyElement.describe(vertices(splat), "vertex")], comments=comments))
    assert ply.drawn_as(comments) == mode
    assert_same(Gaussians.from_ply(splat.to_ply()), Gaussians.from_ply(data))
    assert ("antialiased drawing" in caplog.text) == (mode == "mip")


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_line_ends_and_a_comment_of_the_last_word(splat, end):
    header, body = splat.to_ply().split(b"end_header\n")
    data = (header + b"comment end_header\nend_header\n").replace(b"\n", end) + body
    assert_same(Gaussians.from_ply(splat.to_ply()), Gaussians.from_ply(data))


def written(data: PlyData) -> bytes:
    stream = io.BytesIO()
    data.write(stream)
    return stream.getvalue()


@pytest.mark.parametrize("number", ["f4", "f8"])
@pytest.mark.parametrize("form", [{"text": True}, {"byte_order": "<"}, {"byte_order": ">"}])
def test_files_of_other_programs(splat, form, number, caplog):
    names = [*reversed(NAMES), "nx", "ny", "nz", *(f"f_rest_{i}" for i in range(9))]
    other = PlyData([PlyElement.describe(vertices(splat, names, number), "vertex")], **form)
    with caplog.at_level(logging.INFO):
        loaded = Gaussians.from_ply(written(other), "other.ply")
    assert_same(splat[farthest_point_order(splat.means.numpy())], loaded)
    assert "other.ply: 9 spherical harmonics above degree 0 are dropped" in caplog.text


def test_another_element_beside_the_vertices(splat):
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    for elements in (["vertex", "face"], ["face", "vertex"]):
        parts = {"vertex": vertices(splat), "face": faces}
        data = PlyData([PlyElement.describe(parts[name], name) for name in elements], byte_order="<")
        assert len(Gaussians.from_ply(written(data))) == 20


def test_crlf_header(splat):
    header, body = splat.to_ply().split(b"end_header\n")
    data = (header + b"end_header\n").replace(b"\n", b"\r\n") + body
    assert torch.equal(Gaussians.from_ply(data).means, Gaussians.from_ply(splat.to_ply()).means)


def damaged(splat: Gaussians) -> dict[str, tuple[bytes, str]]:
    good = splat.to_ply()
    mesh = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4")])
    packed = np.zeros(3, [("packed_position", "u4"), ("packed_color", "u4")])
    nan = vertices(splat)
    nan["scale_1"] = np.nan
    text = written(PlyData([PlyElement.describe(vertices(splat), "vertex")], text=True))
    listed = good.replace(b"property float x", b"property list uchar float x")

    def of(table: np.ndarray) -> bytes:
        return written(PlyData([PlyElement.describe(table, "vertex")], byte_order="<"))

    return {
        "empty file": (b"", "empty"),
        "text": (b"# not a ply\n", "not a PLY"),
        "header only": (good[:100], "cut short"),
        "truncated": (good[:-1], "cut short"),
        "truncated text": (text[:-400], "PLY cannot be read"),
        "a claim of 2^31": (good.replace(b"vertex 20", b"vertex 2147483647"), "claims 2147483647 rows"),
        "a negative claim": (good.replace(b"vertex 20", b"vertex -5"), "claims -5 rows"),
        "no number": (good.replace(b"vertex 20", b"vertex many"), "header cannot be read"),
        "unknown type": (good.replace(b"float y", b"vec3 y"), "header cannot be read"),
        "no rows": (of(vertices(splat[:0])), "no Gaussians"),
        "mesh": (of(mesh), "no f_dc_0, f_dc_1, f_dc_2, opacity, scale_0"),
        "compressed": (of(packed), "no packed_rotation, packed_scale, min_x"),
        "nan": (of(nan), "none of its 20 Gaussians can be used"),
        "list": (listed, "cannot be read"),
    }


ANY = Gaussians(*[torch.ones(20, width) for width in (3, 4, 3)], torch.ones(20), torch.ones(20, 3))


@pytest.mark.parametrize("case", damaged(ANY))
def test_bad_files_say_why(case, splat, tmp_path):
    data, message = damaged(splat)[case]
    (tmp_path / "bad.ply").write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "bad.ply")) + f".*({message})"):
        Gaussians.load(tmp_path / "bad.ply")


def test_a_bad_splat_is_not_saved_and_leaves_the_old_file(tmp_path, splat):
    splat.save(tmp_path / "a.ply")
    before = (tmp_path / "a.ply").read_bytes()
    splat.means[3, 1] = float("inf")
    with pytest.raises(ValueError, match="y of row 3"):
        splat.save(tmp_path / "a.ply")
    with pytest.raises(ValueError, match="not a batch"):
        Gaussians.stack([splat]).save(tmp_path / "b.ply")
    with pytest.raises(ValueError, match="no Gaussians"):
        splat[:0].save(tmp_path / "b.ply")
    assert (tmp_path / "a.ply").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ply"]
