import json
import struct

import numpy as np
import pytest
import torch

from clipgs import cli
from clipgs.core.bundles import TarWriter
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.splats.export import export, to_glb, to_splat
from clipgs.splats.gaussians import Gaussians
from tests.splats import writers
from tests.splats.balls import random_gaussians

SH_C0 = 0.28209479177387814
COMPONENTS = {5121: "u1", 5123: "<u2", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@pytest.fixture
def splat() -> Gaussians:
    return random_gaussians(50, seed=5)


def unit(splat):
    return torch.nn.functional.normalize(splat.quats_wxyz.double(), dim=1).numpy()


def read_glb(data: bytes):
    """Document and accessors of a GLB, by the letter of the glTF 2.0 specification, with what it demands of both."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_bytes, json_kind = struct.unpack_from("<I4s", data, 12)
    assert json_kind == b"JSON"
    assert json_bytes % 4 == 0
    document = json.loads(data[20 : 20 + json_bytes])
    binary_bytes, binary_kind = struct.unpack_from("<I4s", data, 20 + json_bytes)
    assert binary_kind == b"BIN\0"
    assert binary_bytes % 4 == 0
    binary = data[28 + json_bytes :]
    assert len(binary) == binary_bytes >= document["buffers"][0]["byteLength"] > binary_bytes - 4
    arrays = []
    for accessor in document["accessors"]:
        view = document["bufferViews"][accessor["bufferView"]]
        number = np.dtype(COMPONENTS[accessor["componentType"]])
        width = WIDTHS[accessor["type"]]
        assert view["byteOffset"] % 4 == 0  # vertex attributes start on whole words, and so does each element
        assert (width * number.itemsize) % 4 == 0
        assert view["byteLength"] == accessor["count"] * width * number.itemsize
        assert view["byteOffset"] + view["byteLength"] <= len(binary)
        array = np.frombuffer(binary, number, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)
        arrays.append(array / np.iinfo(number).max if accessor.get("normalized") else array)
    return document, arrays


def test_glb_holds_what_the_extension_demands(splat):
    document, arrays = read_glb(to_glb(splat))
    assert document["asset"]["version"] == "2.0"
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    (primitive,) = document["meshes"][document["nodes"][document["scenes"][0]["nodes"][0]]["mesh"]]["primitives"]
    assert primitive["mode"] == 0
    extension = primitive["extensions"]["KHR_gaussian_splatting"]
    assert extension == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    found = {name: arrays[index] for name, index in primitive["attributes"].items()}
    prefix = "KHR_gaussian_splatting:"
    np.testing.assert_array_equal(found["POSITION"], splat.means)
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(position["min"], splat.means.min(dim=0).values)
    np.testing.assert_array_equal(position["max"], splat.means.max(dim=0).values)
    np.testing.assert_allclose(found[prefix + "ROTATION"], unit(splat)[:, [1, 2, 3, 0]], atol=1e-7)
    np.testing.assert_allclose(found[prefix + "SCALE"], splat.scales, rtol=1e-6)
    np.testing.assert_allclose(found[prefix + "OPACITY"][:, 0], splat.opacities, atol=1e-6)
    np.testing.assert_allclose(0.5 + SH_C0 * found[prefix + "SH_DEGREE_0_COEF_0"], splat.colors, atol=1e-6)
    linear = ((splat.colors.numpy() + 0.055) / 1.055) ** 2.4
    bright = splat.colors.numpy() > 0.05
    np.testing.assert_allclose(found["COLOR_0"][:, :3][bright], linear[bright], atol=1e-4)
    np.testing.assert_allclose(found["COLOR_0"][:, 3], splat.opacities, atol=1e-4)


def test_glb_opens_as_a_point_cloud_without_the_extension(splat):
    import io

    import trimesh

    scene = trimesh.load_scene(io.BytesIO(to_glb(splat)), file_type="glb")
    (cloud,) = scene.geometry.values()
    np.testing.assert_allclose(cloud.vertices, splat.means, atol=1e-6)


def test_splat_row_by_row(splat):
    data = to_splat(splat)
    assert len(data) == 32 * len(splat)
    weight = splat.scales.double().prod(dim=1) * splat.opacities.double()
    order = torch.argsort(-weight, stable=True)
    for row, i in enumerate(order.tolist()):
        values = struct.unpack_from("<6f8B", data, 32 * row)
        np.testing.assert_array_equal(values[:3], splat.means[i])
        np.testing.assert_allclose(values[3:6], splat.scales[i], rtol=1e-6)
        np.testing.assert_allclose(np.array(values[6:9]) / 255, splat.colors[i], atol=0.5 / 255 + 1e-6)
        assert values[9] / 255 == pytest.approx(float(splat.opacities[i]), abs=0.5 / 255 + 1e-6)
        np.testing.assert_allclose((np.array(values[10:]) - 128) / 128, unit(splat)[i], atol=1 / 128)


def test_a_colour_beyond_the_range_is_clamped_where_the_format_has_no_room(splat):
    splat.colors[0] = torch.tensor([1.5, -0.25, 0.5])
    document, arrays = read_glb(to_glb(splat))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    assert arrays[attributes["COLOR_0"]][0, :2].tolist() == [1.0, 0.0]
    kept = 0.5 + SH_C0 * arrays[attributes["KHR_gaussian_splatting:SH_DEGREE_0_COEF_0"]][0]
    np.testing.assert_allclose(kept, [1.5, -0.25, 0.5], atol=1e-6)
    rows = np.frombuffer(to_splat(splat), np.uint8).reshape(-1, 32)
    assert [255, 0, 128] in rows[:, 24:27].tolist()


def test_the_same_splat_gives_the_same_bytes(splat):
    assert to_glb(splat) == to_glb(splat)
    assert to_splat(splat) == to_splat(splat)


def test_a_batch_is_refused(splat):
    for encode in (to_glb, to_splat):
        with pytest.raises(ValueError, match="Only one object"):
            encode(Gaussians.stack([splat, splat]))


@pytest.fixture
def triplets(tmp_path, splat):
    """A folder of tars such as `pack` writes, and the splat that is in them."""
    folder = tmp_path / "triplets"
    folder.mkdir()
    for shard, uids in (("00000", ("a", "b-2")), ("00001", ("c",))):
        with TarWriter(folder / f"{shard}.tar") as tar:
            for uid in uids:
                tar.add(f"{uid}.00.webp", b"a picture")
                tar.add(f"{uid}.json", b"{}")
                tar.add(f"{uid}.ply", splat.to_ply())
    return folder


@pytest.mark.parametrize(("kind", "suffix"), [("splat", ".splat"), ("gltf", ".glb"), ("ply", ".ply")])
def test_every_splat_of_a_dataset_becomes_a_file(triplets, tmp_path, kind, suffix):
    assert export([triplets], tmp_path / "out", kind) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{uid}{suffix}" for uid in ("a", "b-2", "c")]
    assert (tmp_path / "out" / f"a{suffix}").read_bytes() == (tmp_path / "out" / f"c{suffix}").read_bytes()


def test_ply_files_and_chosen_uids(triplets, tmp_path, splat):
    splat.save(tmp_path / "mine.ply")
    assert export([triplets / "00000.tar", tmp_path / "mine.ply"], tmp_path / "out", "ply", ["a", "mine"]) == 2
    assert (tmp_path / "out" / "mine.ply").read_bytes() == (tmp_path / "mine.ply").read_bytes()
    assert not (tmp_path / "out" / "b-2.ply").exists()


def test_one_input_and_one_uid_need_no_list(triplets, tmp_path):
    for one in (triplets, str(triplets)):
        assert export(one, tmp_path / "out", "ply", "b-2") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b-2.ply"]


def test_a_bad_splat_is_named_and_the_others_are_written(tmp_path, splat):
    (tmp_path / "a.ply").write_bytes(b"ply\nnot really")
    splat.save(tmp_path / "b.ply")
    with pytest.raises(ClipgsError, match=r"1 of 2 splats could not be exported; the first: .*a\.ply: "):
        export([tmp_path], tmp_path / "out", "gltf")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.glb"]


def test_wrong_inputs_are_one_line(triplets, tmp_path, splat):
    splat.save(tmp_path / "a.ply")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 100)
    for inputs, uids, words in [
        ([tmp_path / "nowhere"], (), "nowhere does not exist"),
        ([tmp_path / "empty"], (), "no input holds a splat"),
        ([triplets], ["a", "z"], "no input holds z"),
        ([triplets, tmp_path / "a.ply"], (), "export them to two folders"),
        ([tmp_path / "no.tar"], (), "is not a tar of splats"),
    ]:
        with pytest.raises(ClipgsError, match=words):
            export(inputs, tmp_path / "out", "splat", uids)
    with pytest.raises(UsageError):
        export([tmp_path / "nowhere"], tmp_path / "out", "splat")


def test_the_command(triplets, tmp_path):
    arguments = ["export", str(triplets), "--format", "gltf", "--to", str(tmp_path / "out"), "--uid", "c"]
    assert cli.main(arguments) == 0
    read_glb((tmp_path / "out" / "c.glb").read_bytes())
    assert cli.main([*arguments[:-1], "nobody"]) == 2


@pytest.mark.parametrize("kind", ["a.spz", "a.compressed.ply", "a.sog", "a.splat", "a.ksplat", "a.glb", "a"])
def test_splats_of_other_formats_are_inputs_too(kind, splat, tmp_path):
    write = {
        "a.spz": lambda: writers.spz(splat, 4),
        "a.compressed.ply": lambda: writers.compressed_ply(splat),
        "a.sog": lambda: writers.zipped(writers.sog(splat)),
        "a.splat": lambda: to_splat(splat),
        "a.ksplat": lambda: writers.ksplat(splat, 0, [50]),
        "a.glb": lambda: to_glb(splat),
    }
    path = tmp_path / "in" / kind
    path.parent.mkdir()
    if kind == "a":
        path.mkdir()
        for name, data in writers.sog(splat).items():
            (path / name).write_bytes(data)
    else:
        path.write_bytes(write[kind]())
        assert export(path.parent, tmp_path / "all", "ply") == 1
    assert export(path, tmp_path / "out", "ply") == 1
    assert torch.equal(Gaussians.load(tmp_path / "out" / "a.ply").means, Gaussians.load(path).means)
