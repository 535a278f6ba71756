import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.points import sample
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES, QUAD, QUAD_FACES, QUAD_UV


def test_points_are_even_by_area(glb, loaded):
    glb.node(glb.mesh(CUBE_CORNERS * np.float32([1, 1, 3])))
    xyz, rgb, normals = sample(loaded(glb), 20_000, seed=1)
    assert xyz.shape == rgb.shape == normals.shape == (20_000, 3)
    assert xyz.dtype == rgb.dtype == normals.dtype == np.float32
    on_end = np.abs(xyz[:, 2]) > 0.5 - 1e-6
    assert on_end.mean() == pytest.approx(2 / 14, abs=0.01)  # two squares of four sides three times as long
    np.testing.assert_allclose(xyz.mean(axis=0), 0, atol=0.01)
    assert np.abs(xyz[~on_end, 2]).mean() == pytest.approx(0.25, abs=0.01)
    # Every point lies in a face, whose outward normal it has.
    np.testing.assert_allclose((xyz * normals).sum(axis=1), np.where(on_end, 1 / 2, 1 / 6), atol=1e-6)


def test_the_same_seed_gives_the_same_bytes(glb, loaded):
    glb.node(glb.mesh())
    mesh = loaded(glb)
    first, second, other = (sample(mesh, 500, seed) for seed in (7, 7, 8))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    assert first[0].tobytes() != other[0].tobytes()
    assert len(sample(mesh, 1, seed=(1 << 64) - 1)[0]) == 1


def test_colours_are_those_of_the_part(glb, loaded):
    linear = {-3: (0.2140411, 0, 0), 3: (0, 0, 1)}
    for x, color in linear.items():
        material = glb.material(factor=(*color, 1))
        glb.node(glb.mesh(material=material), translation=[x, 0, 0])
    xyz, rgb, _ = sample(loaded(glb), 1000, seed=0)
    left = xyz[:, 0] < 0
    assert left.mean() == pytest.approx(0.5, abs=0.06)
    np.testing.assert_allclose(rgb[left], np.tile([0.5, 0, 0], (left.sum(), 1)), atol=1e-5)
    np.testing.assert_allclose(rgb[~left], np.tile([0, 0, 1], ((~left).sum(), 1)), atol=1e-5)


@pytest.mark.parametrize("mode", ["MASK", "BLEND"])
def test_what_is_invisible_has_no_points(glb, loaded, mode):
    half = np.dstack([np.full((8, 8, 3), 200), np.tile([0, 0, 0, 0, 255, 255, 255, 255], (8, 1))]).astype(np.uint8)
    material = glb.material(texture=glb.texture(half, wrapS=33071), alphaMode=mode)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    xyz, _, _ = sample(loaded(glb), 1000, seed=0)
    assert len(xyz) == 1000
    assert xyz[:, 0].min() > -0.07  # filtering spreads the edge over one texel, an eighth


def test_translucent_surfaces_have_fewer_points(glb, loaded):
    for x, alpha in ((-3, 0.25), (3, 1.0)):
        material = glb.material(factor=(1, 1, 1, alpha), alphaMode="BLEND")
        glb.node(glb.mesh(material=material), translation=[x, 0, 0])
    xyz, _, _ = sample(loaded(glb), 4000, seed=0)
    assert (xyz[:, 0] < 0).mean() == pytest.approx(0.2, abs=0.03)


def test_a_ghost(glb, loaded):
    material = glb.material(factor=(1, 1, 1, 0.002), alphaMode="BLEND")
    glb.node(glb.mesh(material=material))
    assert len(sample(loaded(glb), 300, seed=0)[0]) == 300
    glb.json["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"][3] = 0
    with pytest.raises(ObjectError, match="invisible"):
        sample(loaded(glb), 300, seed=0)


def test_triangles_without_area_have_no_points(glb, loaded):
    faces = np.concatenate([[[0, 0, 1]], QUAD_FACES, [[1, 1, 1]]]).astype(np.uint16)
    glb.node(glb.mesh(QUAD, faces))
    _, _, normals = sample(loaded(glb), 500, seed=0)
    np.testing.assert_allclose(normals, np.tile([0, 0, 1], (500, 1)), atol=1e-6)


@pytest.mark.parametrize("first", ["outside", "inside"])
@pytest.mark.parametrize("moved", [0, 3], ids=["one node", "rounded otherwise"])
def test_a_lining_has_no_points(glb, loaded, first, moved):
    """Each side of a box twice, as SketchUp exports it: the inner faces lie at the place of the outer ones."""
    sides = {"outside": (CUBE_FACES, (1, 0, 0, 1)), "inside": (CUBE_FACES[:, ::-1], (1, 1, 1, 1))}
    for name in sorted(sides, key=lambda name: name != first):
        faces, factor = sides[name]
        corners = CUBE_CORNERS + np.float32(moved if name == "inside" else 0)
        mesh = glb.mesh(corners, faces, material=glb.material(factor=factor))
        glb.node(mesh, translation=[-moved if name == "inside" else 0] * 3)
    xyz, rgb, normals = sample(loaded(glb), 2000, seed=0)
    np.testing.assert_allclose(rgb, np.tile([1, 0, 0], (2000, 1)), atol=1e-5)
    assert ((xyz * normals).sum(axis=1) > 0).all()


def test_a_lining_in_a_hollow_has_no_points(glb, loaded):
    """Three sides of a box that is open to the front, and thick: its hollow looks to the middle of the box."""
    outline = np.float32([(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)])
    corners = np.concatenate([np.column_stack([outline, np.full(8, z, np.float32)]) for z in (0, 1)])
    walls = [(i, (i + 1) % 8, 8 + (i + 1) % 8, 8 + i) for i in range(8)]
    ends = [(8 + a, 8 + b, 8 + c) for a, b, c in ((0, 1, 5), (0, 5, 6), (0, 6, 7), (1, 2, 3), (1, 3, 4), (1, 4, 5))]
    faces = np.array([*ends, *((c - 8, b - 8, a - 8) for a, b, c in ends),
                      *(half for a, b, c, d in walls for half in ((a, b, c), (a, c, d)))], np.uint16)  # fmt: skip
    for order, factor in ((faces, (1, 0, 0, 1)), (faces[:, ::-1], (1, 1, 1, 1))):
        glb.node(glb.mesh(corners, order, material=glb.material(factor=factor)))
    _, rgb, _ = sample(loaded(glb), 2000, seed=0)
    np.testing.assert_allclose(rgb, np.tile([1, 0, 0], (2000, 1)), atol=1e-5)


def test_a_sheet_keeps_the_colours_of_both_its_faces(glb, loaded):
    for faces, factor in ((QUAD_FACES, (1, 0, 0, 1)), (QUAD_FACES[:, ::-1], (0, 0, 1, 1))):
        glb.node(glb.mesh(QUAD, faces, material=glb.material(factor=factor)))
    _, rgb, _ = sample(loaded(glb), 2000, seed=0)
    assert rgb[:, 0].mean() == pytest.approx(0.5, abs=0.05)
