import hashlib
import io
import json
import re
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import trimesh

from clipgs.catalog.sources import procedural
from clipgs.config import check
from clipgs.shapes import geometry, paint
from clipgs.shapes.glb import write_glb

CATEGORIES = procedural.CATEGORIES


def gltf(glb: bytes) -> dict:
    length, kind = struct.unpack_from("<I4s", glb, 12)
    assert kind == b"JSON"
    return json.loads(glb[20 : 20 + length])


def material_kinds(glb: bytes) -> set[str]:
    document, kinds = gltf(glb), set()
    for primitive in document["meshes"][0]["primitives"]:
        surface = document["materials"][primitive["material"]]["pbrMetallicRoughness"]
        if "baseColorTexture" in surface:
            assert "TEXCOORD_0" in primitive["attributes"]
            kinds.add("texture")
        elif "COLOR_0" in primitive["attributes"]:
            kinds.add("vertex colours")
        else:
            assert "baseColorFactor" in surface
            kinds.add("factor")
    return kinds


def solid(mesh: geometry.Mesh) -> trimesh.Trimesh:
    """The mesh as trimesh welds it, for its opinion on closedness and winding."""
    points, _, _, _, faces = mesh.corners()
    return trimesh.Trimesh(points, faces).process(merge_norm=True, merge_tex=True)


# The sequence


def test_categories_take_turns():
    count = 3 * len(CATEGORIES) + 5
    chosen = Counter(procedural.describe(procedural.locator(index, 7)).category for index in range(count))
    assert set(chosen) == set(CATEGORIES)
    assert max(chosen.values()) - min(chosen.values()) == 1
    assert len(CATEGORIES) >= 14


def test_locators_and_uids_do_not_repeat():
    locators = [procedural.locator(index, seed) for seed in (0, 1) for index in range(100)]
    uids = [procedural.describe(locator).uid for locator in locators]
    assert len(set(locators)) == len(set(uids)) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", uid) for uid in uids)


def test_uid_pattern_holds_for_the_largest_seed():
    uid = procedural.describe(f"lighthouse/{10**17}/{2**64 - 1}").uid
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", uid)


@pytest.mark.parametrize(
    "locator", ["", "chair", "chair/1", "chair/1/2/3", "unicorn/1/2", "chair/-1/0", "chair/01/0", "chair/1/0\n"]
)
def test_a_wrong_locator_names_what_is_known(locator):
    with pytest.raises(ValueError, match="category/number/seed with a category of chair"):
        procedural.describe(locator)


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        procedural.locator(-1, 0)


# Captions


@pytest.mark.parametrize("category", CATEGORIES)
def test_captions_read_like_sentences(category):
    captions = [procedural.describe(f"{category}/{number}/0").text for number in range(200)]
    for text in captions:
        assert re.fullmatch(r"[a-z][a-z, -]*[a-z]", text), text
        assert "  " not in text, text
        assert " ," not in text, text
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]|\ban? (with|and|in)\b", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text
        assert 4 <= len(text.split()) <= 24, text
    assert len(set(captions)) > 80, len(set(captions))


def test_captions_mostly_differ():
    captions = [procedural.describe(procedural.locator(index, 0)).text for index in range(20 * len(CATEGORIES))]
    assert len(set(captions)) > 0.9 * len(captions)


def test_the_seed_changes_the_objects():
    one, two = ([procedural.describe(procedural.locator(index, seed)).text for index in range(48)] for seed in (0, 1))
    assert sum(a == b for a, b in zip(one, two, strict=True)) < 5


def test_a_description_is_free_and_credited():
    source = procedural.ProceduralSource(check({}))
    row, (label,) = source.identify("chair/17/0"), source.labels(["chair/17/0"])
    assert row["uid"] == row["group"] == "chair-0-00017"
    assert (label["license"], label["credit"]) == ("CC0-1.0", "clipgs procedural")


# The files


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_builds_and_loads_back(category):
    for number in range(3):
        locator = f"{category}/{number}/3"
        scene = trimesh.load(io.BytesIO(procedural.build(locator)), file_type="glb")
        mesh = scene.to_mesh()
        assert 400 <= len(mesh.faces) <= 20_000
        assert np.isfinite(mesh.vertices).all()
        assert np.isfinite(mesh.vertex_normals).all()
        assert 0.05 < mesh.extents.max() < 20
        assert mesh.area_faces.min() >= 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_piece_is_closed_and_faces_outward(category):
    for number in range(2):
        for mesh, _ in procedural.design(f"{category}/{number}/5").pieces():
            assert mesh.volume() > 0
            body = solid(mesh)
            # Directed edges: a closed skin of one winding runs along each edge once in each direction.
            edges = Counter(map(tuple, body.edges.tolist()))
            loose = sum(edges[a, b] != edges[b, a] for a, b in edges)
            assert loose == 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_stored_normals_agree_with_the_winding(category):
    document_mesh = trimesh.load(io.BytesIO(procedural.build(f"{category}/1/2")), file_type="glb", process=False)
    for part in document_mesh.geometry.values():
        corner = part.vertex_normals[part.faces].mean(axis=1)
        large = part.area_faces > np.median(part.area_faces) / 10
        assert ((corner * part.face_normals).sum(axis=1)[large] > 0.3).mean() > 0.98


def test_all_three_kinds_of_material_occur():
    kinds = Counter(
        kind
        for index in range(len(CATEGORIES))
        for kind in material_kinds(procedural.build(procedural.locator(index, 0)))
    )
    assert min(kinds[kind] for kind in ("texture", "vertex colours", "factor")) >= 5


def test_pictures_open_and_are_small():
    from PIL import Image

    seen = 0
    for category in CATEGORIES:
        glb = procedural.build(f"{category}/0/0")
        document = gltf(glb)
        start = 20 + struct.unpack_from("<I", glb, 12)[0] + 8
        for image in document.get("images", []):
            view = document["bufferViews"][image["bufferView"]]
            at = start + view["byteOffset"]
            with Image.open(io.BytesIO(glb[at : at + view["byteLength"]])) as opened:
                assert opened.mode == "RGB"
                assert max(opened.size) <= 256
                assert np.asarray(opened).std() > 0
            seen += 1
    assert seen > 10


def test_png_keeps_its_pixels():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (200, 130, 3), dtype=np.uint8)  # more than one stored block
    with Image.open(io.BytesIO(paint.png(pixels))) as opened:
        assert np.array_equal(np.asarray(opened), pixels)


def test_colours_are_written_as_linear_light():
    box = geometry.box(1, 1, 1)
    document = gltf(write_glb("box", [(box, paint.Paint(color=(188, 0, 255)))]))
    factor = document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"]
    assert factor == pytest.approx([0.50289, 0.0, 1.0, 1.0], abs=1e-4)  # IEC 61966-2-1: 188/255 is half the light
    tinted = box.tint(lambda points: np.full((len(points), 3), 188 / 255))
    scene = trimesh.load(io.BytesIO(write_glb("box", [(tinted, paint.Paint())])), file_type="glb")
    (part,) = scene.geometry.values()
    assert np.allclose(part.visual.vertex_attributes["color"], 0.50289, atol=1e-4)


# The same bytes


def test_build_is_the_same_in_another_process():
    locators = [procedural.locator(index, 11) for index in range(len(CATEGORIES))]
    here = [hashlib.sha256(procedural.build(locator)).hexdigest() for locator in locators]
    program = (
        "import hashlib, sys; from clipgs.catalog.sources.procedural import build\n"
        "for locator in reversed(sys.argv[1:]):\n"
        "    sys.stdout.write(hashlib.sha256(build(locator)).hexdigest() + '\\n')"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, *locators],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(filter(None, sys.path))},
    ).stdout.split()
    assert here == there[::-1]
    assert len(set(here)) == len(here)


def test_describing_imports_nothing_heavy():
    program = (
        "import sys; from clipgs.catalog.sources import procedural as p; p.describe(p.locator(3, 0))\n"
        "heavy = {'torch', 'numba', 'scipy', 'trimesh', 'PIL', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})


# Geometry


def test_a_box_has_its_size_and_volume():
    box = geometry.box(1.0, 2.0, 3.0, 0.01)
    assert np.allclose(np.ptp(box.points, axis=0), (1, 2, 3))
    assert box.volume() == pytest.approx(6, rel=0.001)
    assert solid(box).is_watertight


def test_a_sphere_fills_its_volume():
    ball = geometry.sphere(1.0, 60)
    assert ball.volume() == pytest.approx(4 / 3 * np.pi, rel=0.01)
    points, normals, *_ = ball.corners()
    assert ((points * normals).sum(axis=1) > 0.99).all()


@pytest.mark.parametrize("clockwise", [False, True])
def test_extruding_a_concave_outline(clockwise):
    outline = [(0, 0), (2, 0), (2, 2), (1, 2), (1, 1), (0, 1)]
    step = geometry.extrude(outline[::-1] if clockwise else outline, 0.5)
    assert step.volume() == pytest.approx(3 * 0.5)
    assert solid(step).is_watertight


def test_a_mirrored_mesh_still_faces_outward():
    mesh = geometry.rod((1, 0, 0), (2, 1, 0), 0.2, 0.1)
    mirrored = mesh.mirror()
    assert mirrored.volume() == pytest.approx(mesh.volume())
    assert mirrored.points[:, 0].max() < 0


def test_turning_follows_the_right_hand():
    dot = geometry.Mesh(np.array([[0.0, 0.0, 1.0]]), np.zeros((0, 3), int), np.zeros((0, 3, 2)))
    assert np.allclose(dot.turn(y=90).points, (1, 0, 0))
    assert np.allclose(dot.turn(x=90).points, (0, -1, 0))
    assert np.allclose(dot.turn(y=90).turn(z=90).points, (0, 1, 0))
