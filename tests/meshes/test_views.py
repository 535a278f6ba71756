import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from clipgs.core.errors import ObjectError
from clipgs.core.workers import run
from clipgs.meshes.cameras import canonical, look_at_origin
from clipgs.meshes.load import load
from clipgs.meshes.materials import linear_to_srgb
from clipgs.meshes.points import sample
from clipgs.meshes.views import AMBIENT, LIGHTS, check, lit, render
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES, QUAD, QUAD_FACES, QUAD_UV

PIXELS = 64


def drawn(mesh, count=4, pixels=PIXELS, **options):
    return render(mesh, *canonical(count, pixels=pixels), pixels, **options)


def test_a_point_is_drawn_where_its_camera_says(glb, loaded):
    """Also holds up the handedness: a mirrored picture would put the small cube elsewhere."""
    tiny, spot = CUBE_CORNERS * np.float32(0.02), np.array([0.3, -0.4, 0.2])
    unseen = glb.material(factor=(1, 1, 1, 0), alphaMode="MASK")
    glb.node(glb.mesh(tiny + spot.astype(np.float32)))
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(0.5), material=unseen))  # sets the frame
    mesh = loaded(glb)
    viewmats, Ks = canonical(8, pixels=128)
    rgba = render(mesh, viewmats, Ks, 128)
    for view, viewmat, K in zip(rgba, viewmats, Ks, strict=True):
        x, y, z = K @ (viewmat[:3, :3] @ spot + viewmat[:3, 3])
        rows, columns = np.nonzero(view[..., 3])
        np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], [x / z, y / z], atol=0.4)


def test_rim_pixels_hold_the_colour_of_the_surface(glb, loaded):
    """Composited over any ground, a half covered pixel is half surface and half ground."""
    material = glb.material(factor=(0.8, 0.1, 0.3, 1))
    glb.node(glb.mesh(material=material))
    rgba = drawn(loaded(glb), ambient=1.0, lights=())
    partial = (rgba[..., 3] > 0) & (rgba[..., 3] < 255)
    assert partial.sum() > 100
    expected = 255 * linear_to_srgb(np.array([0.8, 0.1, 0.3]))
    assert np.abs(rgba[rgba[..., 3] > 0][:, :3] - expected).max() <= 3
    assert (rgba[rgba[..., 3] == 0] == 0).all()


def test_supersampling_smooths_edges_and_moves_nothing(glb, loaded):
    material = glb.material(factor=(0.8, 0.1, 0.3, 1))
    glb.node(glb.mesh(material=material))
    mesh = loaded(glb)
    once, twice = (drawn(mesh, ambient=1.0, lights=(), supersample=factor) for factor in (1, 2))
    assert len(np.unique(twice[..., 3])) > 2 * len(np.unique(once[..., 3]))
    difference = twice[..., 3].astype(float) - once[..., 3]
    assert np.abs(difference).mean() < 1.5  # of 255
    assert abs(difference.mean()) < 0.1
    inside = twice[..., 3] > 0
    assert np.abs(twice[inside][:, :3] - 255 * linear_to_srgb(np.array([0.8, 0.1, 0.3]))).max() <= 3
    assert (twice[~inside] == 0).all()


def test_metalness_at_its_default_is_not_black(glb, loaded):
    for metallic in (None, 1.0, 0.0):
        material = glb.material(factor=(0.5, 0.5, 0.5, 1), metallic=metallic)
        glb.node(glb.mesh(material=material), translation=[3 * len(glb.json["materials"]), 0, 0])
    mesh = loaded(glb)
    alone = [render(type(mesh)((part,), mesh.centre, mesh.scale), *canonical(4, pixels=64), 64) for part in mesh.parts]
    means = [view[view[..., 3] == 255][:, :3].mean() for view in alone]
    assert max(means) - min(means) < 6  # only their places differ
    assert min(means) > 140


@pytest.mark.parametrize("with_normals", [True, False])
def test_faces_are_drawn_and_lit_from_both_sides(glb, loaded, with_normals):
    """A mesh of inverted winding would otherwise show its inside."""
    corners = CUBE_CORNERS[CUBE_FACES.ravel()]
    a, b, c = corners.reshape(-1, 3, 3).transpose(1, 0, 2)
    normals = np.repeat(np.cross(b - a, c - a) / 4, 3, axis=0)
    faces = np.arange(36, dtype=np.uint16).reshape(-1, 3)
    views = []
    for sign, order in ((1, faces), (-1, faces[:, ::-1])):
        builder = type(glb)()
        extra = {"NORMAL": np.float32(sign * normals)} if with_normals else {}
        both = builder.material(doubleSided=True)
        builder.node(builder.mesh(corners, order, material=both, **extra))
        views.append(drawn(loaded(builder)).astype(int))
    # Where a near and a far face meet at the outline, either may cover a sample.
    assert (np.abs(views[0] - views[1]).max(axis=-1) > 2).mean() < 1e-3
    assert np.abs(views[0] - views[1]).max() <= 8
    middle = views[0][:, PIXELS // 2, PIXELS // 2]
    assert (middle[:, 3] == 255).all()


def test_a_plane_is_seen_from_behind(glb, loaded):
    glb.node(glb.mesh(QUAD, QUAD_FACES))
    _, Ks = canonical(1, pixels=PIXELS)
    for z in (-2.54, 2.54):
        view = render(loaded(glb), look_at_origin(np.array([0, 0, z]))[None], Ks, PIXELS)[0]
        assert view[PIXELS // 2, PIXELS // 2, 3] == 255


RED, WHITE, BLACK = (1, 0, 0, 1), (1, 1, 1, 1), (0, 0, 0, 1)


def middles(mesh, count=6):
    """The colour in the middle of each view, without light: [V, 4]."""
    return drawn(mesh, count, ambient=1.0, lights=())[:, PIXELS // 2, PIXELS // 2]


@pytest.mark.parametrize("double_sided", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_faces_at_one_place_the_front_is_seen(glb, loaded, double_sided, order):
    sides = [(CUBE_FACES, RED), (CUBE_FACES[:, ::-1], WHITE)]
    for faces, factor in (sides[i] for i in order):
        material = glb.material(factor=factor, doubleSided=double_sided)
        glb.node(glb.mesh(CUBE_CORNERS, faces, material=material))
    rgba = drawn(loaded(glb), 6, ambient=1.0, lights=())
    opaque = rgba[rgba[..., 3] == 255].astype(int)
    off = np.abs(opaque - [255, 0, 0, 255]).max(axis=1)
    assert (off > 0).mean() < 0.01  # at the outline, where a far face meets a near one
    assert off.max() < 100


@pytest.mark.parametrize("mode", ["OPAQUE", "BLEND"])
def test_an_inside_out_shell_shows_its_far_side_alone(glb, loaded, mode):
    """The outline of toon models: a rim around the body, and nothing before it."""
    glb.node(glb.mesh(material=glb.material(factor=RED)))
    black = glb.material(factor=(0, 0, 0, 1 if mode == "OPAQUE" else 0.5), alphaMode=mode)
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(1.2), CUBE_FACES[:, ::-1], material=black))
    mesh = loaded(glb)
    assert (middles(mesh) == [255, 0, 0, 255]).all()
    rgba = drawn(mesh, 6, ambient=1.0, lights=())
    rim = (rgba[..., 3] > 100) & (rgba[..., 0] < 30)
    assert 0.05 < rim.sum() / (rgba[..., 3] > 100).sum() < 0.5


@pytest.mark.parametrize("mode", ["OPAQUE", "BLEND"])
def test_a_room_is_seen_from_its_corner(glb, loaded, mode):
    """The walls before the eye are the nearest of all that is drawn, and still hide nothing."""
    walls = glb.material(factor=(1, 1, 1, 1 if mode == "OPAQUE" else 0.5), alphaMode=mode)
    glb.node(glb.mesh(CUBE_CORNERS, CUBE_FACES[:, ::-1], material=walls))
    chair = CUBE_CORNERS * np.float32(0.15) - np.float32(0.8)
    glb.node(glb.mesh(chair, material=glb.material(factor=RED)))
    mesh, (_, Ks) = loaded(glb), canonical(1, pixels=PIXELS)
    eye = 2.54 * np.array([0.6, 0.6, 0.53])
    view = render(mesh, look_at_origin(eye)[None], Ks, PIXELS, ambient=1.0, lights=())[0].astype(int)
    assert (np.abs(view - [255, 0, 0, 255]).max(axis=2) < 5).sum() > 15


@pytest.mark.parametrize("factor", [(0, 0, 0, 0.5), (0, 0, 1, 0.5), (1, 1, 1, 0.5)])
def test_a_pane_of_any_colour_is_seen_once(glb, loaded, factor):
    """A box of glass has fronts before its backs, which are left out, whatever its colour."""
    glb.node(glb.mesh(material=glb.material(factor=factor, alphaMode="BLEND")))
    np.testing.assert_allclose(middles(loaded(glb))[:, 3], 128, atol=2)


def test_what_a_front_cuts_out_hides_no_back(glb, loaded):
    """Alpha under the cutoff is no surface, also where backs look for fronts beside what blends."""
    glass = glb.material(factor=(1, 1, 1, 0.5), alphaMode="BLEND")
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(0.01) + np.float32([0.9, 0.9, 0]), material=glass))
    leaf = glb.material(factor=(1, 1, 0, 0.3), alphaMode="MASK")
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=leaf))
    glb.node(glb.mesh(QUAD - np.float32([0, 0, 0.2]), QUAD_FACES[:, ::-1], material=glb.material(factor=RED)))
    mesh, (_, Ks) = loaded(glb), canonical(1, pixels=PIXELS)
    view = render(mesh, look_at_origin(np.array([0, 0, 2.54]))[None], Ks, PIXELS, ambient=1.0, lights=())[0]
    assert view[PIXELS // 2, PIXELS // 2].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize("mode", ["OPAQUE", "MASK", "BLEND"])
def test_the_back_of_a_single_sided_face_is_seen_beside_fronts(glb, loaded, mode):
    alpha = 0.6 if mode == "BLEND" else 1
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(factor=(0, 0, 1, alpha), alphaMode=mode)))
    mesh, (_, Ks) = loaded(glb), canonical(1, pixels=PIXELS)
    for z in (-2.54, 2.54):
        view = render(mesh, look_at_origin(np.array([0, 0, z]))[None], Ks, PIXELS, ambient=1.0, lights=())[0]
        np.testing.assert_allclose(view[PIXELS // 2, PIXELS // 2], [0, 0, 255, 255 * alpha], atol=1)


@pytest.mark.parametrize("parts", ["core first", "shell first", "one part"])
@pytest.mark.parametrize("double_sided", [False, True])
def test_what_blends_is_drawn_from_far_to_near(glb, loaded, parts, double_sided):
    """A red core in a pale shell: the core is seen through it from everywhere."""
    both = {"alphaMode": "BLEND", "doubleSided": double_sided}
    core = CUBE_CORNERS * np.float32(0.5)
    if parts == "one part":
        colors = np.repeat(np.float32([[1, 1, 1, 0.2], [1, 0, 0, 1]]), 8, axis=0)
        corners, faces = np.concatenate([CUBE_CORNERS, core]), np.concatenate([CUBE_FACES, CUBE_FACES + 8])
        glb.node(glb.mesh(corners, faces.astype(np.uint16), material=glb.material(**both), COLOR_0=colors))
    else:
        meshes = [(core, (1, 0, 0, 0.99)), (CUBE_CORNERS, (1, 1, 1, 0.2))]
        for corners, factor in meshes if parts == "core first" else meshes[::-1]:
            glb.node(glb.mesh(corners, material=glb.material(factor=factor, **both)))
    found = middles(loaded(glb)).astype(int)
    assert (found[:, 3] > 250).all()
    assert (np.abs(found[:, 0] - 255) < 5).all()
    assert ((found[:, 1] > 40) & (found[:, 1] < 70)).all()  # a fifth of white over red


def test_many_parts_that_blend_in_turn(glb, loaded):
    """More changes of part than are drawn one by one: slabs of equal depth are right to within a slab."""
    rng = np.random.default_rng(0)
    for factor in ((1, 0, 0, 0.5), (0, 0, 1, 0.5)):
        corners = np.concatenate([QUAD + np.float32([0, 0, z]) for z in rng.uniform(-1, 1, 200)])
        faces = np.concatenate([QUAD_FACES + 4 * i for i in range(200)]).astype(np.uint16)
        glb.node(glb.mesh(corners, faces, material=glb.material(factor=factor, alphaMode="BLEND", doubleSided=True)))
    view = render(loaded(glb), *canonical(2, pixels=32), 32, ambient=1.0, lights=())
    assert (view[:, 16, 16, 3] >= 254).all()  # a GPU rounds each of 200 layers


def test_more_parts_that_blend_than_are_drawn_in_turn(glb, loaded):
    """Each is a pane of its own material, in the file from near to far, and they are drawn from far to near."""
    for i in range(300):
        factor = (1, 0, 0, 0.5) if i < 150 else (0, 0, 1, 0.5)
        material = glb.material(factor=factor, alphaMode="BLEND", doubleSided=True)
        glb.node(glb.mesh(QUAD + np.float32([0, 0, 1 - i / 150]), QUAD_FACES, material=material))
    mesh, (_, Ks) = loaded(glb), canonical(1, pixels=32)
    for z, color in ((2.54, [255, 0, 0]), (-2.54, [0, 0, 255])):
        view = render(mesh, look_at_origin(np.array([0, 0, z]))[None], Ks, 32, ambient=1.0, lights=())[0]
        np.testing.assert_allclose(view[16, 16, :3], color, atol=3)


@pytest.mark.parametrize("size", [64, 512, 2048])
def test_cut_outs_keep_their_coverage_at_any_size_of_the_texture(glb, loaded, size):
    wires = np.arange(size) % 16 < 2
    fence = np.full((size, size, 4), (40, 120, 40, 0), np.uint8)
    fence[..., 3] = 255 * (wires[None] | wires[:, None])
    material = glb.material(texture=glb.texture(fence), alphaMode="MASK", doubleSided=True)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    mesh, (_, Ks) = loaded(glb, max_texture_pixels=1 << 23), canonical(1, pixels=PIXELS)
    view = render(mesh, look_at_origin(np.array([0, 0, 2.54]))[None], Ks, PIXELS, supersample=2)[0]
    square = (Ks[0, 0, 0] / 2.54) ** 2
    assert view[..., 3].sum() / 255 / square == pytest.approx((wires[None] | wires[:, None]).mean(), rel=0.1)


def test_unlit_is_the_colour_itself(glb, loaded):
    glb.node(glb.mesh(material=glb.material(factor=(1, 0.2176, 0, 1), extensions={"KHR_materials_unlit": {}})))
    rgba = drawn(loaded(glb))
    expected = 255 * linear_to_srgb(np.array([1, 0.2176, 0]))
    assert np.abs(rgba[rgba[..., 3] == 255][:, :3] - expected).max() <= 1


def test_texels_smaller_than_a_pixel_are_averaged_as_light(glb, loaded):
    checker = (255 * (np.indices((512, 512)).sum(axis=0) % 2)).astype(np.uint8)[..., None].repeat(3, axis=2)
    material = glb.material(texture=glb.texture(checker), doubleSided=True)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    mesh, (_, Ks) = loaded(glb), canonical(1, pixels=PIXELS)
    view = render(mesh, look_at_origin(np.array([0, 0, 2.54]))[None], Ks, PIXELS, ambient=1.0, lights=())[0]
    middle = view[PIXELS // 2 - 8 : PIXELS // 2 + 8, PIXELS // 2 - 8 : PIXELS // 2 + 8, :3]
    assert middle.mean() == pytest.approx(255 * linear_to_srgb(np.array(0.5)), abs=2)


def test_light_does_not_follow_the_camera(glb, loaded):
    """What is fitted has one colour a point: it must look the same from everywhere."""
    glb.node(glb.mesh(QUAD, QUAD_FACES))
    mesh = loaded(glb)
    _, Ks = canonical(1, pixels=PIXELS)
    eyes = np.array([[0, 0, 2.54], [1.2, 0.5, 2.2], [-1.5, -1, 1.8]])
    rgba = render(mesh, np.stack([look_at_origin(eye) for eye in eyes]), np.repeat(Ks, 3, axis=0), PIXELS)
    middles = rgba[:, PIXELS // 2, PIXELS // 2, :3].astype(int)
    assert np.abs(middles - middles[0]).max() <= 1


def test_points_can_have_the_colours_of_the_pictures(glb, loaded):
    """What a point encoder learns from must not differ from pictures by the light."""
    glb.node(glb.mesh(material=glb.material(factor=(0.8, 0.1, 0.3, 1))))
    mesh = loaded(glb)
    _xyz, rgb, normals = sample(mesh, 400, seed=0)
    colours = lit(rgb, normals)
    pictures = drawn(mesh, count=36)
    seen = {tuple(pixel[:3]) for pixel in pictures.reshape(-1, 4)[pictures.reshape(-1, 4)[:, 3] == 255]}
    for colour in np.unique((255 * colours).round(), axis=0):
        assert min(np.abs(np.array(pixel, float) - colour).max() for pixel in seen) <= 1
    assert np.abs(colours - rgb).max() > 0.05


def test_white_does_not_clip_and_grey_stays_grey():
    directions = np.random.default_rng(0).normal(size=(20_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    light = np.full(len(directions), AMBIENT)
    for direction, strength in LIGHTS:
        light += strength * np.clip(directions @ (np.array(direction) / np.linalg.norm(direction)), 0, None)
    assert 0.95 < light.max() <= 1
    grey = linear_to_srgb(0.2140411 * light)
    assert 0.42 < grey.mean() < 0.5
    assert grey.max() - grey.min() > 0.1  # and the shape is still to be seen


def test_invisible_objects_are_caught(glb, loaded):
    material = glb.material(factor=(1, 0, 0, 0), alphaMode="BLEND")
    glb.node(glb.mesh(material=material))
    rgba = drawn(loaded(glb))
    assert (rgba[..., 3] == 0).all()
    with pytest.raises(ObjectError, match="invisible"):
        check(rgba)


def test_an_opaque_texture_with_alpha_is_not_see_through(glb, loaded):
    """On real vehicles this cost 9 dB and all their colour."""
    clear = np.dstack([np.full((4, 4, 3), 200), np.zeros((4, 4))]).astype(np.uint8)
    material = glb.material(texture=glb.texture(clear))
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    view = drawn(loaded(glb), 1)[0]
    assert set(np.unique(view[PIXELS // 2 - 4 : PIXELS // 2 + 4, PIXELS // 2, 3])) == {255}


def test_check(glb, loaded):
    glb.node(glb.mesh())
    mesh = loaded(glb)
    rgba = drawn(mesh, 36, 32)
    check(rgba)
    blank = rgba.copy()
    blank[5] = 0
    with pytest.raises(ObjectError, match="view 5 is blank"):
        check(blank)
    cut = rgba.copy()
    cut[7, 10:20, 0] = 255
    with pytest.raises(ObjectError, match="view 7 is cut off"):
        check(cut)
    viewmats, Ks = canonical(3, distance=1.5, pixels=32)
    with pytest.raises(ObjectError, match="view 0 is cut off"):
        render(mesh, viewmats, Ks, 32)


def test_what_reaches_over_the_frame_by_a_thread_is_cut_off(glb, loaded):
    needle = CUBE_CORNERS * np.float32([0.004, 1, 0.004])
    glb.node(glb.mesh(needle))
    _, Ks = canonical(1, distance=1.2, pixels=PIXELS)
    with pytest.raises(ObjectError, match="cut off"):
        render(loaded(glb), look_at_origin(np.array([1.2, 0, 0]))[None], Ks, PIXELS)


def test_the_same_mesh_gives_the_same_bytes(glb, loaded):
    glb.node(glb.mesh(NORMAL=CUBE_CORNERS))
    mesh = loaded(glb)
    assert drawn(mesh).tobytes() == drawn(mesh).tobytes()


def test_renderers_do_not_grow(glb, loaded):
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    material = glb.material(texture=glb.texture(noise))
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    mesh = loaded(glb)
    process = psutil.Process()
    for _ in range(5):
        drawn(mesh, 1)
    before = process.memory_info().rss
    for _ in range(25):
        drawn(mesh, 1)
    assert process.memory_info().rss - before < 25 << 20  # one renderer kept for 40 objects grew by 136 MB


def test_drawing_needs_no_display():
    code = (
        "from clipgs.meshes.headless import context\n"
        "context().framebuffer([context().renderbuffer((8, 8))]).clear()\n"
        "assert context() is context()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True, timeout=120)


def test_a_device_that_is_not_there():
    code = (
        "import pytest\n"
        "from clipgs.meshes.headless import context\n"
        "from clipgs.core.errors import ClipgsError\n"
        "with pytest.raises(ClipgsError, match='EGL_DEVICE_ID is 99'):\n"
        "    context()\n"
    )
    environment = os.environ | {"EGL_DEVICE_ID": "99"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, clipgs.meshes\nsys.exit(len({'moderngl', 'PIL', 'scipy', 'torch', 'numba'} & set(sys.modules)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def digest_of(path: Path) -> str:
    mesh = load(path, max_faces=1000, max_texture_pixels=1 << 20)
    viewmats, Ks = canonical(3, pixels=PIXELS)
    arrays = [render(mesh, viewmats, Ks, PIXELS), *sample(mesh, 500, seed=3)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_a_worker_gives_the_same_bytes_as_this_process(glb, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 63, 3), dtype=np.uint8)
    material = glb.material(texture=glb.texture(noise))
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    glass = glb.material(factor=(0.1, 0.4, 0.8, 0.5), alphaMode="BLEND")
    glb.node(glb.mesh(material=glass), translation=[0.5, 0.5, 1])
    path = glb.save(tmp_path / "object.glb")
    results = run(digest_of, [path] * 3, workers=2, timeout_seconds=120, memory_mb=1000)
    assert {digest for _, digest in results} == {digest_of(path)}


def test_a_fork_of_what_has_drawn_is_refused():
    """It would wait for ever for threads that it does not have."""
    program = """if True:
        import os
        from clipgs.core.errors import ClipgsError
        from clipgs.meshes.headless import context
        context()
        child = os.fork()
        if child == 0:
            try:
                context()
            except ClipgsError as error:
                os._exit(3 if "forked" in str(error) else 4)
            os._exit(0)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 3
