"""Splats in other programs' formats: each is the right splat to the format's step, or refused with the right reason."""

import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from clipgs.splats.export import to_glb, to_splat
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.read import read
from clipgs.splats.rows import ANTIALIASED, Limit, moved
from tests.splats import writers
from tests.splats.balls import random_gaussians

ROWS = 400


def splat(rows: int = ROWS) -> Gaussians:
    """Random Gaussians, among them an opaque and a transparent one, in farthest-point order."""
    random = random_gaussians(rows, seed=11)
    random.opacity_logits[:2] = torch.tensor([30.0, -30.0])[:rows]
    return Gaussians.from_ply(random.to_ply())


def errors(found: Gaussians, expected: Gaussians) -> dict[str, float]:
    """The greatest error of each kind, between each Gaussian and the nearest of the expected ones."""
    distance, near = cKDTree(expected.means.double().numpy()).query(found.means.double().numpy())
    assert sorted(near) == list(range(len(expected)))
    other = expected[torch.from_numpy(near)]
    one, two = (torch.nn.functional.normalize(splat.quats_wxyz.double(), dim=1) for splat in (found, other))
    cosines = (one * two).sum(dim=1).abs().clamp(max=1)
    return {
        "position": float(distance.max()),
        "log-scale": float((found.log_scales - other.log_scales).abs().max()),
        "degrees": float(torch.rad2deg(2 * cosines.acos()).max()),
        "opacity": float((found.opacities - other.opacities).abs().max()),
        "color": float((found.colors - other.colors).abs().max()),
    }


def assert_near(found: Gaussians, expected: Gaussians, *steps: float) -> None:
    """`steps`: of position, log-scale, angle in degrees, opacity and colour."""
    wrong = errors(found, expected)
    least = (2e-6, 2e-5, 0.05, 2e-6, 2e-6)
    assert all(error <= step + slack for error, step, slack in zip(wrong.values(), steps, least, strict=True)), (
        wrong,
        steps,
    )


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path / "meta.json"


HALF = 0.5 / 255
# Of each format its bytes and its steps.
SPZ_STEPS = (np.sqrt(3) / 8192, 1 / 32, 0.25, HALF, HALF / 0.15 * writers.SH_C0)
FILES: dict[str, tuple[str, Callable[[Gaussians], bytes], tuple[float, ...]]] = {
    "SPZ 1": ("a.spz", lambda s: writers.spz(s, 1), (0.002, 1 / 32, 12, *SPZ_STEPS[3:])),
    "SPZ 2": ("a.spz", lambda s: writers.spz(s, 2), (*SPZ_STEPS[:2], 12, *SPZ_STEPS[3:])),
    "SPZ 3": ("a.spz", lambda s: writers.spz(s, 3), SPZ_STEPS),
    "SPZ 3 of degree 3": ("a.spz", lambda s: writers.spz(s, 3, degree=3), SPZ_STEPS),
    "SPZ 4": ("a.spz", lambda s: writers.spz(s, 4), SPZ_STEPS),
    "SPZ 4 of degree 4": ("a.spz", lambda s: writers.spz(s, 4, degree=4), SPZ_STEPS),
    "SPZ with an unknown extension": (
        "a.spz",
        lambda s: writers.spz(s, 4, extensions=writers.extension(0x00010001, b"abcde")),
        SPZ_STEPS,
    ),
    "SPZ 3 with an extension behind": (
        "a.spz",
        lambda s: writers.spz(s, 3, extensions=writers.extension(0x00010001, b"abcde")),
        SPZ_STEPS,
    ),
    "compressed PLY": ("a.compressed.ply", writers.compressed_ply, (0.01, 0.01, 0.25, HALF, HALF)),
    "compressed PLY of old": (
        "a.ply",
        lambda s: writers.compressed_ply(s, colors_of_chunks=False),
        (0.01, 0.01, 0.25, HALF, HALF),
    ),
    "compressed PLY of degree 3": (
        "a.ply",
        lambda s: writers.compressed_ply(s, harmonics=45),
        (0.01, 0.01, 0.25, HALF, HALF),
    ),
    ".splat": ("a.splat", to_splat, (0, 0, 1, HALF, HALF)),
    ".ksplat 0": ("a.ksplat", lambda s: writers.ksplat(s, 0, [ROWS]), (0, 0, 0, HALF, HALF)),
    ".ksplat 1": ("a.ksplat", lambda s: writers.ksplat(s, 1, [ROWS - 3, 3]), (0.001, 0.001, 0.2, HALF, HALF)),
    ".ksplat 2": ("a.ksplat", lambda s: writers.ksplat(s, 2, [ROWS], degree=2), (0.001, 0.001, 0.2, HALF, HALF)),
    ".ksplat of sections": (
        "a.ksplat",
        lambda s: writers.ksplat(s, 1, [100, 0, 33, ROWS - 133], bucket=7),
        (0.001, 0.001, 0.2, HALF, HALF),
    ),
    "SOG": ("a.sog", lambda s: writers.zipped(writers.sog(s)), (0.001, 0.03, 1.6, HALF, 0.003)),
    "SOG in a folder of the zip file": (
        "a.zip",
        lambda s: writers.zipped(writers.sog(s, bands=2), "chair/", zipfile.ZIP_DEFLATED),
        (0.001, 0.03, 1.6, HALF, 0.003),
    ),
    "gsplat's pictures in a zip file": (
        "a.zip",
        lambda s: writers.zipped(writers.gsplat_folder(s)),
        (0.001, 0.03, 1, 0.06, HALF),
    ),
    "GLB of ours": ("a.glb", to_glb, (0, 0, 0, 0, 0)),
    "GLB": ("a.glb", lambda s: writers.glb(writers.attributes(s)), (0, 0, 0, 0, 0)),
    "GLB of the release candidate": ("a.glb", lambda s: writers.glb(log_scaled(s)), (0, 0, 0, 0, 0)),
    "GLB of integers": ("a.glb", lambda s: writers.glb(in_integers(s)), (0, 0, 0.7, HALF, 0)),
    "GLB around SPZ": ("a.glb", lambda s: glb_around(writers.spz(s, 2)), (*SPZ_STEPS[:2], 12, *SPZ_STEPS[3:])),
    "tensor": ("a.pt", lambda s: of_torch(table(s)), (0, 0, 0, 0, 0)),
    "UniGS": ("a.pkl", lambda s: of_torch(unigs(s)), (0, 0, 0, 0, 0)),
    "an old file of torch": (
        "a.pth",
        lambda s: of_torch({"3dgs": table(s)}, _use_new_zipfile_serialization=False),
        (0, 0, 0, 0, 0),
    ),
    "checkpoint of gsplat": ("a.ckpt", lambda s: of_torch(checkpoint(s)), (0, 0, 0, 0, 0)),
}


def log_scaled(s: Gaussians) -> dict[str, np.ndarray]:
    return writers.attributes(s) | {"KHR_gaussian_splatting:SCALE": s.log_scales.numpy()}


def in_integers(s: Gaussians) -> dict[str, np.ndarray]:
    v = writers.values(s)
    return writers.attributes(s) | {
        "KHR_gaussian_splatting:ROTATION": (v["quats"][:, [1, 2, 3, 0]] * 127).round().astype("i1"),
        "KHR_gaussian_splatting:OPACITY": (v["opacities"][:, None] * 255).round().astype("u1"),
    }


def glb_around(data: bytes) -> bytes:
    """A GLB whose primitive names a buffer view with SPZ, and accessors without data."""
    packed = {"extensions": {"KHR_gaussian_splatting_compression_spz_2": {"bufferView": 0}}}
    array = np.frombuffer(data.ljust(len(data) + -len(data) % 4, b"\0"), "<f4")[:, None]
    return writers.glb({"POSITION": array}, extension=packed)


def table(s: Gaussians) -> torch.Tensor:  # [N, 14]
    f_dc = (s.colors.double() - 0.5) / writers.SH_C0
    return torch.cat([s.means, f_dc.float(), s.opacity_logits[:, None], s.log_scales, s.quats_wxyz], dim=1)


def unigs(s: Gaussians) -> dict:
    image = np.zeros((8, 8, 3), np.uint8)
    name = np.str_("chair")
    return {
        "3dgs": table(s).numpy(),
        "img": image,
        "name": name,
        "machine_prompt": "a chair",
        "human_prompt": ["chair"],
    }


def checkpoint(s: Gaussians) -> dict:
    rows = table(s)
    parts = {"means": rows[:, :3], "sh0": rows[:, None, 3:6], "opacities": rows[:, 6], "scales": rows[:, 7:10]}
    parts |= {"quats": rows[:, 10:], "shN": torch.zeros(len(s), 15, 3)}
    splats = {name: torch.nn.Parameter(part.clone()) for name, part in parts.items()}
    return {"step": 29999, "splats": splats}


def of_torch(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FILES)
def test_a_format_gives_the_splat_to_its_step(kind, tmp_path):
    name, write, steps = FILES[kind]
    (tmp_path / name).write_bytes(write(splat()))
    assert_near(Gaussians.load(tmp_path / name), splat(), *steps)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != ".splat"])
def test_the_content_decides_and_not_the_suffix(kind, tmp_path):
    _, write, steps = FILES[kind]
    (tmp_path / "a.bin").write_bytes(write(splat()))
    assert_near(Gaussians.load(tmp_path / "a.bin"), splat(), *steps)


@pytest.mark.parametrize(
    ("files", "steps"),
    [(writers.sog, (0.001, 0.03, 1.6, HALF, 0.003)), (writers.gsplat_folder, (0.001, 0.03, 1, 0.06, HALF))],
)
def test_pictures_in_a_folder(files, steps, tmp_path):
    meta = folder_of(tmp_path / "chair", files(splat()))
    for path in (meta, meta.parent):
        assert_near(Gaussians.load(path), splat(), *steps)


@pytest.mark.parametrize("rows", [1, 2, 256, 257])
@pytest.mark.parametrize("kind", ["SPZ 2", "SPZ 4", "compressed PLY", ".splat", "SOG"])
def test_any_number_of_gaussians(kind, rows, tmp_path):
    name, write, steps = FILES[kind]
    (tmp_path / name).write_bytes(write(splat(rows)))
    assert_near(Gaussians.load(tmp_path / name), splat(rows), *steps)


@pytest.mark.parametrize("kind", FILES)
def test_opaque_and_transparent_stay_so_without_a_note(kind, tmp_path):
    name, write, _ = FILES[kind]
    (tmp_path / name).write_bytes(write(splat()))
    found = read(tmp_path / name)
    assert np.isfinite(found.rows).all()
    assert found.rows[:, 6].max() >= 20 or kind.startswith("gsplat")
    assert [note for note in found.notes if "logit" in note or "scale of" in note] == []


@pytest.mark.parametrize(
    ("kind", "harmonics"),
    [("SPZ 3 of degree 3", 45), ("SPZ 4 of degree 4", 72), ("compressed PLY of degree 3", 45), (".ksplat 2", 24),
     ("SOG in a folder of the zip file", 24), ("checkpoint of gsplat", 45), ("SPZ 3", 0)],
)  # fmt: skip
def test_harmonics_are_counted(kind, harmonics, tmp_path):
    name, write, _ = FILES[kind]
    (tmp_path / name).write_bytes(write(splat()))
    assert read(tmp_path / name).harmonics == harmonics


@pytest.mark.parametrize("version", [2, 4])
def test_spz_says_that_it_is_antialiased(version, tmp_path):
    (tmp_path / "a.spz").write_bytes(writers.spz(splat(), version, flags=1))
    assert read(tmp_path / "a.spz").notes == [ANTIALIASED]


@pytest.mark.parametrize(("system", "name"), [(6, "RDF"), (4, "RUB"), (7, "LUF"), (12, "RFU"), (8, "RUF")])
def test_spz_in_the_axes_that_it_names(system, name, tmp_path):
    """The same splat, written in axes of which an extension tells: it comes out right, up and back."""
    to = {"R": [1, 0, 0], "L": [-1, 0, 0], "U": [0, 1, 0], "D": [0, -1, 0], "B": [0, 0, 1], "F": [0, 0, -1]}
    matrix = np.eye(4)
    matrix[:3, :3] = [to[letter] for letter in name]  # from right, up, back to the file's axes
    there = Gaussians.from_rows(moved(table(splat()).numpy(), matrix))
    extensions = writers.extension(0x00010001, b"skip") + writers.extension(0xADBE0003, struct.pack("<I", system))
    (tmp_path / "a.spz").write_bytes(writers.spz(there, 4, extensions=extensions))
    found = read(tmp_path / "a.spz")
    assert found.notes == ([] if name == "RUB" else [f"its axes are {name}, turned to RUB"])
    here, expected = Gaussians.from_rows(found.rows), splat()
    np.testing.assert_allclose(covariances(here), covariances_near(expected, here), rtol=0, atol=0.05 * 0.3)


def covariances(s: Gaussians) -> np.ndarray:
    v = writers.values(s)
    halves = Rotation.from_quat(v["quats"], scalar_first=True).as_matrix() * np.exp(v["log_scales"])[:, None]
    return halves @ halves.transpose(0, 2, 1)


def covariances_near(expected: Gaussians, found: Gaussians) -> np.ndarray:
    _, near = cKDTree(expected.means.double().numpy()).query(found.means.double().numpy())
    assert sorted(near) == list(range(len(expected)))
    return covariances(expected)[near]


NODES = {
    "turned": {"rotation": [0, 0, 1, 0]},
    "moved and scaled": {"translation": [1, 2, 3], "scale": [2, 2, 2], "rotation": [0.6, 0, 0, 0.8]},
    "mirrored": {"scale": [-1, 1, 1]},
    "stretched": {"scale": [1, 3, 0.5], "rotation": [0, 0.6, 0, 0.8]},
    "sheared": {"matrix": [1, 0, 0, 0, 0.5, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]},
}


@pytest.mark.parametrize("node", NODES)
def test_a_node_moves_its_gaussians_as_space(node, tmp_path):
    (tmp_path / "a.glb").write_bytes(writers.glb(writers.attributes(splat()), NODES[node]))
    found = Gaussians.load(tmp_path / "a.glb")
    about = NODES[node]
    linear = Rotation.from_quat(about.get("rotation", [0, 0, 0, 1])).as_matrix() * np.array(
        about.get("scale", [1, 1, 1])
    )
    if "matrix" in about:
        linear = np.array(about["matrix"]).reshape(4, 4).T[:3, :3]
    means = splat().means.double().numpy() @ linear.T + about.get("translation", [0, 0, 0])
    distance, near = cKDTree(means).query(found.means.double().numpy())
    assert distance.max() < 1e-5
    expected = linear @ covariances(splat())[near] @ linear.T
    np.testing.assert_allclose(covariances(found), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("node", NODES)
def test_a_row_that_is_none_is_dropped_under_a_node_too(node, tmp_path):
    bad = splat()
    bad.quats_wxyz[3], bad.log_scales[4, 1], bad.means[5, 2] = torch.nan, torch.inf, torch.nan
    given = writers.attributes(bad)
    given["KHR_gaussian_splatting:ROTATION"][6] = 0
    (tmp_path / "a.glb").write_bytes(writers.glb(given, NODES[node]))
    found = read(tmp_path / "a.glb")
    assert len(found.rows) == ROWS - 4
    assert found.notes[-1].startswith("4 of 400 Gaussians are dropped")


def test_linear_colours_become_those_of_a_screen(tmp_path):
    about = {"kernel": "ellipse", "colorSpace": "lin_rec709_display"}
    half = splat()
    half.colors[:] = 0.2140411
    (tmp_path / "a.glb").write_bytes(writers.glb(writers.attributes(half), extension=about))
    found = read(tmp_path / "a.glb")
    assert found.notes == ["its colours were linear"]
    np.testing.assert_allclose(Gaussians.from_rows(found.rows).colors, 0.5, atol=1e-5)


def test_a_mask_of_the_foreground_leaves_the_background_out(tmp_path):
    mask = np.arange(ROWS) % 4 > 0
    meta = folder_of(tmp_path / "a", writers.gsplat_folder(splat(), mask))
    found = read(meta)
    assert found.notes == ["100 of 400 Gaussians are background by fg_mask.npz, and left out"]
    assert_near(Gaussians.from_rows(found.rows), splat()[torch.from_numpy(mask)], 0.001, 0.03, 1, 0.06, HALF)


def test_a_zero_quaternion_and_a_scale_of_zero_are_told(tmp_path):
    rows = np.frombuffer(bytearray(to_splat(splat())), "<f4,<f4,<f4,<f4,<f4,<f4,V4,V4").copy()
    rows["f7"][3] = bytes([128] * 4)
    rows["f5"][4] = 0
    rows["f4"][5] = -1
    (tmp_path / "a.splat").write_bytes(rows.tobytes())
    assert read(tmp_path / "a.splat").notes == [
        "1 scales of zero became 1e-06",
        "2 of 400 Gaussians are dropped: 1 with values that are not finite numbers, 1 with a quaternion of zeros",
    ]


def test_a_tag_that_is_no_rotation_drops_its_gaussian(tmp_path):
    files = writers.sog(splat())
    pixels = np.full((ROWS, 4), 200)
    pixels[:, 3] = 252
    pixels[7, 3] = 251
    files["quats.webp"] = writers.picture(pixels, "WEBP")
    found = read(folder_of(tmp_path / "a", files))
    assert found.notes == ["1 of 400 Gaussians are dropped: 1 with a quaternion of zeros"]


# --- what is refused -------------------------------------------------------------------------------------------------


def changed_meta(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    return {**files, "meta.json": json.dumps({**json.loads(files["meta.json"]), **changes}).encode()}


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {other: data for other, data in files.items() if other != name}


class Runs:
    """What a pickle can do to its reader."""

    def __reduce__(self):
        return os.system, ("touch " + os.environ["CLIPGS_TOUCHED"],)


def huge_picture() -> bytes:
    return writers.picture(np.zeros((700 * 700, 4)), "WEBP")


S = splat()
PRIMITIVE = {"attributes": {"POSITION": 0}, "extensions": {"KHR_gaussian_splatting": {}}}
ATTRIBUTES = writers.attributes(S)
BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.spz", b"", "the file is empty"),
    "unknown": ("a.spz", b"\x01\x02\x03\x04" * 20, "no format of splats that is read"),
    "a page": ("a.splat", b"<!doctype html><html><body>Not found</body></html>".ljust(96), "no .splat file"),
    "half a row": ("a.splat", to_splat(S)[:-5], "cut short"),
    "gzip of something": ("a.spz", gzip.compress(b"hello" * 100), "no SPZ in it"),
    "SPZ 3 cut short": ("a.spz", writers.spz(S, 3)[:-200], "cut short or damaged"),
    "SPZ 3 changed": ("a.spz", writers.spz(S, 3)[:-8] + b"\0" * 8, "cut short or damaged"),
    "SPZ 4 cut short": ("a.spz", writers.spz(S, 4)[:-20], "cut short or damaged"),
    "SPZ 4 without table": ("a.spz", writers.spz(S, 4)[:32], "cut short or damaged"),
    "SPZ 4 changed": (
        "a.spz",
        writers.spz(S, 4)[:130] + b"\xff" * 40 + writers.spz(S, 4)[170:],
        "cut short or damaged",
    ),
    "SPZ 3 of fewer": ("a.spz", writers.spz(S, 3, count=ROWS + 1), "cut short or damaged"),
    "SPZ 4 of fewer": ("a.spz", writers.spz(S, 4, count=ROWS + 1), "cut short or damaged"),
    "SPZ 3 of 4 billion": ("a.spz", writers.spz(S, 3, count=2**32 - 1), "has 4294967295 Gaussians"),
    "SPZ 4 of 4 billion": ("a.spz", writers.spz(S, 4, count=2**32 - 1), "has 4294967295 Gaussians"),
    "SPZ of none": ("a.spz", writers.spz(S, 3, count=0), "no Gaussians"),
    "SPZ 9": ("a.spz", b"NGSP" + struct.pack("<II", 9, 3) + bytes(40), "version of SPZ is 9"),
    "ksplat cut short": ("a.ksplat", writers.ksplat(S, 1, [ROWS])[:-1], "cut short"),
    "ksplat's header": ("a.ksplat", writers.ksplat(S, 1, [ROWS])[:4096], "cut short"),
    "compressed PLY cut short": (
        "a.ply",
        writers.compressed_ply(S)[:-1],
        "cannot be read .element 'vertex': row 399: early end",
    ),
    "compressed PLY without its bounds": (
        "a.ply",
        writers.compressed_ply(S).replace(b"chunk 2", b"chunk 1"),
        "only 1 chunks of 256",
    ),
    "zip cut short": ("a.sog", writers.zipped(writers.sog(S))[:-30], "zip file is cut short or damaged"),
    "zip of something": ("a.zip", writers.zipped({"a.txt": b"hello"}), "holds no splats as pictures"),
    "zip of two": (
        "a.zip",
        writers.zipped({f"{x}/{name}": data for x in "ab" for name, data in writers.sog(S).items()}),
        "holds 2 splats",
    ),
    "SOG without a picture": ("a.sog", writers.zipped(without(writers.sog(S), "quats.webp")), "has no quats.webp"),
    "SOG 1": ("a.sog", writers.zipped(changed_meta(writers.sog(S), version=1)), "SOG 1; only SOG 2"),
    "SOG of text": ("a.sog", writers.zipped(writers.sog(S) | {"meta.json": b"{hello"}), "Expecting property name"),
    "SOG without a codebook": (
        "a.sog",
        writers.zipped(changed_meta(writers.sog(S), sh0={"files": ["sh0.webp"]})),
        "damaged .KeyError: 'codebook'",
    ),
    "SOG with a short codebook": (
        "a.sog",
        writers.zipped(changed_meta(writers.sog(S), sh0={"files": ["sh0.webp"], "codebook": [0.0]})),
        "damaged .IndexError",
    ),
    "SOG of 4 billion": (
        "a.sog",
        writers.zipped(changed_meta(writers.sog(S), count=2**32)),
        "has 4294967296 Gaussians",
    ),
    "SOG of more than its pictures": (
        "a.sog",
        writers.zipped(changed_meta(writers.sog(S), count=5000)),
        "pixels for 5000 Gaussians",
    ),
    "a huge picture": (
        "a.sog",
        writers.zipped(writers.sog(S) | {"scales.webp": huge_picture()}),
        "700 x 700 pixels for 400 Gaussians",
    ),
    "a picture that is none": ("a.sog", writers.zipped(writers.sog(S) | {"sh0.webp": b"hello"}), "damaged"),
    "gsplat of other shapes": (
        "a.zip",
        writers.zipped(changed_meta(writers.gsplat_folder(S), quats={"shape": [3, 4], "mins": [0], "maxs": [1]})),
        "quats have the shape",
    ),
    "GLB of a mesh": (
        "a.glb",
        writers.glb(ATTRIBUTES, meshes=[{"primitives": [{"attributes": {}}]}]),
        "a mesh, and no splat",
    ),
    "GLB cut short": ("a.glb", writers.glb(ATTRIBUTES)[:-100], "cut short"),
    "GLB without scales": (
        "a.glb",
        writers.glb({name: array for name, array in ATTRIBUTES.items() if not name.endswith("SCALE")}),
        "has no KHR_gaussian_splatting:SCALE",
    ),
    "GLB of different lengths": (
        "a.glb",
        writers.glb(ATTRIBUTES | {"POSITION": ATTRIBUTES["POSITION"][1:]}),
        "differ in length",
    ),
    "GLB without data": (
        "a.glb",
        writers.glb(
            {},
            accessors=[{"componentType": 5126, "count": 2**40, "type": "VEC3"}],
            meshes=[{"primitives": [PRIMITIVE]}],
        ),
        "claims 1099511627776 elements without data",
    ),
    "torch of something": ("a.pt", of_torch({"weight": torch.zeros(3, 3)}), "no tensor of 14 columns"),
    "torch of two": ("a.pt", of_torch([table(S), table(S)]), "holds 2 splats"),
    "torch of a billion": ("a.pt", of_torch(torch.zeros(1, 14).expand(10**9, 14)), "has 1000000000 Gaussians"),
    "torch of text": ("a.pt", of_torch({"3dgs": np.full((3, 14), "x")}), "instead of numbers"),
    "torch cut short": ("a.pt", of_torch(table(S))[:-200], "cut short or damaged"),
    "uneven checkpoint": (
        "a.pt",
        of_torch({**checkpoint(S)["splats"], "means": torch.zeros(3, 3)}),
        "differ in length",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_says_why(kind, tmp_path):
    name, data, words = BAD[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        Gaussians.load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_nothing_in_a_file_of_torch_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPGS_TOUCHED", str(tmp_path / "touched"))
    for old in (True, False):
        data = of_torch({"3dgs": table(S), "more": Runs()}, _use_new_zipfile_serialization=not old)
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read without running what is in it"):
            Gaussians.load(tmp_path / "a.pt")
    assert not (tmp_path / "touched").exists()


def test_a_name_in_a_folder_of_pictures_leads_nowhere_else(tmp_path):
    files = writers.sog(S)
    (tmp_path / "scales.webp").write_bytes(files.pop("scales.webp"))
    book = json.loads(files["meta.json"])["scales"]["codebook"]
    files = changed_meta(files, scales={"codebook": book, "files": ["../scales.webp"]})
    meta = folder_of(tmp_path / "a", files)
    with pytest.raises(ValueError, match=r"leads out of its own folder"):
        Gaussians.load(meta)


@pytest.mark.parametrize("kind", FILES)
def test_the_limit_holds_for_every_format(kind, tmp_path):
    name, write, _ = FILES[kind]
    (tmp_path / name).write_bytes(write(splat()))
    with pytest.raises(ValueError, match=r"it has 400 Gaussians, the\.limit is 399"):
        read(tmp_path / name, Limit(399, "the.limit"))
    assert len(read(tmp_path / name, Limit(400, "the.limit")).rows) == 400


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_or_changed_file_is_a_reason_and_never_another_error(kind, tmp_path):
    """Ten cuts and forty changed bytes: whatever is read has finite numbers."""
    name, write, _ = FILES[kind]
    data = write(splat(64) if kind.startswith("gsplat") else splat())
    random = np.random.default_rng(0)
    cases = [data[: len(data) * cut // 10] for cut in range(10)]
    for place in random.integers(0, min(len(data), 6000), 40):
        cases.append(data[:place] + bytes([random.integers(256)]) + data[place + 1 :])
    for case in cases:
        (tmp_path / name).write_bytes(case)
        try:
            found = read(tmp_path / name)
        except ValueError:
            continue
        assert np.isfinite(found.rows).all()


# --- what other programs write ---------------------------------------------------------------------------------------

CUT = 1 / 255  # what is cut to a byte instead of rounded is wrong by up to a step
WRITTEN = {
    "splat-transform.ply": (0, 0, 0, 0, 0),
    "splat-transform.compressed.ply": (0.001, 0.002, 0.25, HALF, HALF),
    "splat-transform-3.spz": SPZ_STEPS,
    "splat-transform-4.spz": SPZ_STEPS,
    "splat-transform.sog": (0.001, 0.02, 1.6, CUT, 0.004),
    "gaussforge.compressed.ply": (0.001, 0.002, 0.25, HALF, HALF),
    "gaussforge.spz": SPZ_STEPS,
    "gaussforge.sog": (0.001, 0.02, 1.6, HALF, 0.004),
    "gaussforge.splat": (0, 0, 1, CUT, CUT),
    "gaussforge.ksplat": (0, 0, 0, CUT, CUT),
    "gaussian-splats-3d-0.ksplat": (0, 0, 0, CUT, CUT),
    "gaussian-splats-3d-1.ksplat": (0.001, 0.001, 0.2, CUT, CUT),
    "gaussian-splats-3d-2.ksplat": (0.001, 0.001, 0.2, CUT, CUT),
    "gsply.spz": SPZ_STEPS,
    "spz-js.spz": (*SPZ_STEPS[:2], 12, *SPZ_STEPS[3:]),
    "spz-js.compressed.ply": (0.001, 0.003, 0.25, HALF, HALF),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_another_program_wrote_of_the_same_splat(name, vectors):
    given = Gaussians.load(vectors / "splats" / "given.ply")
    found = read(vectors / "splats" / name)
    assert_near(Gaussians.from_rows(found.rows), given, *WRITTEN[name])
    assert found.harmonics == (0 if name == "gaussforge.splat" else 9)
    assert found.notes == []


def test_the_glb_of_splat_transform_is_turned_about_z(vectors):
    """It takes a PLY for one with Y down."""
    given = Gaussians.load(vectors / "splats" / "given.ply")
    turned = Gaussians.from_rows(moved(table(given).numpy(), np.diag([-1.0, -1, 1, 1])))
    found = read(vectors / "splats" / "splat-transform.glb")
    assert_near(Gaussians.from_rows(found.rows), turned, 0, 0, 0, 0, 0)
    assert (found.harmonics, found.notes) == (9, [])
