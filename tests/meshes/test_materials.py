import math
from dataclasses import replace

import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import decode_image
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import (
    Material,
    Part,
    Texture,
    linear_to_srgb,
    sample_texture,
    srgb_to_linear,
    surface_rgba,
)
from clipgs.meshes.views import render
from tests.meshes.glb_builder import QUAD, QUAD_FACES, QUAD_UV

PIXELS = 96
CORNER = np.eye(3)[:1]


def quad(material: Material, *, uv=QUAD_UV, colors=None) -> Part:
    colors = None if colors is None else np.asarray(colors, np.float32)
    return Part(QUAD * np.float32(0.5), QUAD_FACES.astype(np.int32), None, uv, colors, material)


def facing(distance: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A camera in front of the quad, which fills the frame but for a rim of pixels."""
    viewmat = np.diag([1.0, -1.0, -1.0, 1.0])
    viewmat[2, 3] = distance
    focal = 0.8 * PIXELS * distance
    K = np.array([[focal, 0, PIXELS / 2], [0, focal, PIXELS / 2], [0, 0, 1]])
    return viewmat[None], K[None]


def pictured(part: Part) -> np.ndarray:
    """The quad in even light of strength 1: its own colours, float [H, W, 4] in [0, 1]."""
    return render(Mesh((part,), np.zeros(3), 1.0), *facing(), PIXELS, ambient=1.0, lights=())[0] / 255


def on_quad() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Faces and barycentric coordinates under the pixels that lie inside the quad, and which pixels they
    are.
    """
    rows, columns = np.mgrid[12 : PIXELS - 12, 12 : PIXELS - 12].reshape(2, -1)
    x = (columns + 0.5 - PIXELS / 2) / (0.8 * PIXELS) + 0.5
    y = 0.5 - (rows + 0.5 - PIXELS / 2) / (0.8 * PIXELS)
    lower = x >= y  # corners 0, 1, 2; else 0, 2, 3
    barycentric = np.where(lower[:, None], np.stack([1 - x, x - y, y], 1), np.stack([1 - y, x, y - x], 1))
    return np.where(lower, 0, 1), barycentric, (rows, columns)


RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (5, 3, 3), dtype=np.uint8)  # an odd width catches rows padded to four bytes
STRETCHED = QUAD_UV * 3 - 1


@pytest.mark.parametrize(
    "part",
    [
        quad(Material((0.2, 0.5, 0.9, 1.0))),
        quad(Material((0.002, 0.01, 0.05, 1.0))),
        quad(Material((0.5, 1.0, 0.8, 1.0), Texture(NOISE))),
        quad(Material(base_color_texture=Texture(NOISE)), uv=STRETCHED),
        quad(Material(base_color_texture=Texture(NOISE, "clamp", "mirror")), uv=STRETCHED),
        quad(Material(base_color_texture=Texture(NOISE, "mirror", "clamp")), uv=STRETCHED),
        quad(Material(), colors=[[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0.2, 0.2, 0.2, 1]]),
        quad(Material(base_color_texture=Texture(NOISE)), colors=[[0.5, 0.2, 1, 1]] * 4),
        quad(Material((0.1, 0.1, 0.1, 1.0), emissive_factor=(1, 0.5, 1), emissive_texture=Texture(NOISE))),
        quad(Material(base_color_texture=Texture(NOISE, magnify="nearest"))),
        replace(
            quad(Material((0.1, 0.1, 0.1, 1.0), emissive_factor=(1, 1, 1), emissive_texture=Texture(NOISE, "mirror"))),
            glow_uv=STRETCHED,
        ),
    ],
    ids=[
        "factor",
        "dark",
        "texture",
        "repeat",
        "clamp",
        "mirror",
        "vertex",
        "texture-vertex",
        "glow",
        "nearest",
        "glow of its own layout",
    ],
)
def test_points_and_pictures_agree(part):
    faces, barycentric, pixels = on_quad()
    points = surface_rgba(part, faces, barycentric)
    difference = np.abs(points - pictured(part)[pixels])
    assert difference.mean() < 1.5 / 255
    # Where texels jump, the graphics' fixed-point filter weights differ by up to 1/256 of the jump.
    assert difference.max() < 6 / 255


def test_a_factor_is_linear():
    """The first hazard of untextured assets: half grey on the screen is 0.214 of the light."""
    part = quad(Material((0.2140411, 0.2140411, 0.2140411, 1.0)))
    np.testing.assert_allclose(surface_rgba(part, np.array([0]), CORNER)[0, :3], 0.5, atol=1e-5)
    np.testing.assert_allclose(pictured(part)[PIXELS // 2, PIXELS // 2, :3], 0.5, atol=1 / 255)


def test_transfer_curves_are_inverse():
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-9)
    assert srgb_to_linear(0.5) == pytest.approx(0.21404114)


def test_transfer_curves_are_those_of_the_standard():
    """IEC 61966-2-1, with plain numbers; both curves join at 0.04045 and 0.0031308."""
    for value in (0.0, 0.01, 0.04045, 0.0405, 0.2, 1.0):
        plain = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        assert srgb_to_linear(value) == pytest.approx(plain, abs=1e-15)
    for value in (0.0, 0.001, 0.0031308, 0.0032, 0.2, 1.0):
        plain = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
        assert linear_to_srgb(value) == pytest.approx(plain, abs=1e-15)
    assert linear_to_srgb(np.array([-1.0, 7.0])) == pytest.approx([0, 1])
    assert srgb_to_linear([0, 1]).tolist() == [0, 1]


def plain_texel(texture: Texture, u: float, v: float) -> np.ndarray:
    """The four texels around a point, one at a time, in linear light."""
    height, width, channels = texture.pixels.shape
    total = np.zeros(4)
    x, y = u * width - 0.5, v * height - 0.5
    for column, along in ((math.floor(x), 1 - x % 1), (math.floor(x) + 1, x % 1)):
        for row, down in ((math.floor(y), 1 - y % 1), (math.floor(y) + 1, y % 1)):
            place = []
            for index, size, wrap in ((row, height, texture.wrap_v), (column, width, texture.wrap_u)):
                folded = index % (2 * size)
                mirrored = folded if folded < size else 2 * size - 1 - folded
                clamped = min(max(index, 0), size - 1)
                place.append({"repeat": index % size, "mirror": mirrored, "clamp": clamped}[wrap])
            texel = np.full(4, 255.0)
            texel[:channels] = texture.pixels[tuple(place)]
            total += along * down * np.array([*srgb_to_linear(texel[:3] / 255), texel[3] / 255])
    return total


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("wrap_u", "wrap_v"), [("repeat", "mirror"), ("mirror", "clamp"), ("clamp", "repeat")])
def test_a_texture_is_read_as_texel_by_texel(channels, wrap_u, wrap_v):
    rng = np.random.default_rng(0)
    texture = Texture(rng.integers(0, 256, (5, 3, channels), dtype=np.uint8), wrap_u, wrap_v)
    uv = np.concatenate([rng.uniform(-3, 3, (300, 2)), [[0, 0], [1, 1], [2, 2], [-1, 3], [0.5, 0.5]]])
    expected = [plain_texel(texture, u, v) for u, v in uv]
    np.testing.assert_allclose(sample_texture(texture, uv), expected, atol=1e-9)


@pytest.mark.parametrize("mode", ["OPAQUE", "MASK", "BLEND"])
@pytest.mark.parametrize("lacks", ["nothing", "uv", "colors", "textures"])
def test_a_points_colour_is_factor_times_texture_times_vertex_or_its_glow(mode, lacks):
    rng = np.random.default_rng(1)
    textures = {}
    if lacks != "textures":
        base, glow = (Texture(rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)) for _ in range(2))
        textures = {"base_color_texture": base, "emissive_texture": glow}
    emissive = (0.05, 0.4, 0.02)
    material = Material((0.9, 0.7, 0.8, 0.9), emissive_factor=emissive, alpha_mode=mode, alpha_cutoff=0.3, **textures)
    uv = None if lacks == "uv" else rng.random((4, 2)).astype(np.float32)
    colors = None if lacks == "colors" else rng.random((4, 4)).astype(np.float32)
    part = Part(QUAD, QUAD_FACES.astype(np.int32), None, uv, colors, material)
    faces, barycentric = rng.integers(0, 2, 40), rng.dirichlet((1, 1, 1), 40)
    found = surface_rgba(part, faces, barycentric)
    assert found.dtype == np.float32
    for colour, face, weights in zip(found, faces, barycentric, strict=True):
        corners = part.faces[face]
        rgba, glow = np.array(material.base_color_factor), np.array(emissive)
        if uv is not None and textures:
            place = weights @ uv[corners].astype(float)
            texel = plain_texel(textures["base_color_texture"], *place)
            rgba = rgba * texel
            glow = glow * plain_texel(textures["emissive_texture"], *place)[:3]
        if colors is not None:
            rgba = rgba * (weights @ colors[corners].astype(float))
        alpha = {"OPAQUE": 1, "MASK": float(rgba[3] >= 0.3), "BLEND": rgba[3]}[mode]
        np.testing.assert_allclose(colour, [*linear_to_srgb(np.maximum(rgba[:3], glow)), alpha], atol=1e-6)


def test_a_mask_keeps_what_is_exactly_at_the_cutoff():
    part = quad(Material((1, 1, 1, 0.5), alpha_mode="MASK", alpha_cutoff=0.5))
    assert surface_rgba(part, np.array([0]), CORNER)[0, 3] == 1


def test_an_alpha_beyond_its_limits_is_cut():
    for factor, alpha in ((3.0, 1), (1.0, 0.5), (-0.5, 0)):
        part = quad(Material((1, 1, 1, factor), alpha_mode="BLEND"), colors=[[1, 1, 1, 0.5]] * 4)
        assert surface_rgba(part, np.array([0]), CORNER)[0, 3] == alpha


SEE_THROUGH = np.dstack([np.full((4, 4, 3), 200, np.uint8), np.uint8([[0, 0, 255, 255]] * 4)])


def test_opaque_ignores_alpha():
    """The texture's and the factor's alpha mean nothing in an opaque material."""
    part = quad(Material((1, 1, 1, 0.0), Texture(SEE_THROUGH)))
    picture = pictured(part)
    inside = picture[12:-12, 12:-12]
    assert (inside[..., 3] == 1).all()
    np.testing.assert_allclose(inside[..., :3], 200 / 255, atol=1.5 / 255)
    assert (surface_rgba(part, *on_quad()[:2])[:, 3] == 1).all()


def test_mask_cuts_at_the_cutoff():
    half = np.dstack([np.full((1, 1, 3), 200, np.uint8), np.uint8([[128]])])
    for cutoff, alpha in ((0.4, 1), (0.6, 0)):
        part = quad(Material(base_color_texture=Texture(half), alpha_mode="MASK", alpha_cutoff=cutoff))
        assert (pictured(part)[12:-12, 12:-12, 3] == alpha).all()
        assert surface_rgba(part, np.array([0]), CORNER)[0, 3] == alpha


def test_what_a_mask_cuts_hides_nothing():
    holes = quad(Material(base_color_texture=Texture(SEE_THROUGH), alpha_mode="MASK"))
    red = quad(Material((1, 0, 0, 1)))
    behind = Part(red.vertices - np.float32([0, 0, 0.01]), red.faces, material=red.material)
    mesh = Mesh((holes, behind), np.zeros(3), 1.0)
    picture = render(mesh, *facing(), PIXELS, ambient=1.0, lights=())[0]
    assert picture[PIXELS // 2, PIXELS // 4].tolist() == [255, 0, 0, 255]
    assert picture[PIXELS // 2, -PIXELS // 4].tolist() == [200, 200, 200, 255]


def test_blend_has_a_true_alpha():
    """Graphics' plain blending squares alpha; composited over any ground the surface must be right."""
    glass = quad(Material((1, 0, 0, 0.5), alpha_mode="BLEND"))
    np.testing.assert_allclose(pictured(glass)[PIXELS // 2, PIXELS // 2], [1, 0, 0, 0.5], atol=3 / 255)
    solid = quad(Material((0, 0, 1, 1.0)))
    behind = Part(solid.vertices - np.float32([0, 0, 0.1]), solid.faces, material=solid.material)
    mesh = Mesh((glass, behind), np.zeros(3), 1.0)
    through = render(mesh, *facing(), PIXELS, ambient=1.0, lights=())[0, PIXELS // 2, PIXELS // 2]
    np.testing.assert_allclose(through, [128, 0, 128, 255], atol=2)


def test_blend_without_transparency_is_opaque():
    opaque_texture = np.dstack([NOISE, np.full((5, 3), 255, np.uint8)])
    assert quad(Material(base_color_texture=Texture(opaque_texture), alpha_mode="BLEND")).alpha_mode == "OPAQUE"
    assert quad(Material((1, 1, 1, 0.9), alpha_mode="BLEND")).alpha_mode == "BLEND"
    assert quad(Material(alpha_mode="BLEND"), colors=[[1, 1, 1, 0.5]] * 4).alpha_mode == "BLEND"


def test_texels_stand_where_they_are_seen():
    texture = Texture(np.uint8([[[0] * 3, [255] * 3]]))  # black, white
    u = np.array([0.25, 0.5, 0.75, 0.0, 1.25, -0.25])
    values = sample_texture(texture, np.stack([u, np.full(6, 0.5)], axis=1))[:, 0]
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.5, 0, 1], atol=1e-12)
    plain = Texture(texture.pixels, magnify="nearest")
    u = np.array([0.01, 0.49, 0.51, 0.99, 1.01, -0.01])
    values = sample_texture(plain, np.stack([u, np.full(6, 0.5)], axis=1))[:, 0]
    assert values.tolist() == [0, 0, 1, 1, 0, 1]


def _png(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_every_kind_of_picture_becomes_eight_bit_colour(mode):
    data = _png(np.full((4, 6, 3), 255, np.uint8), mode, "TIFF")
    pixels = decode_image(data, "t", 1000)
    assert pixels.shape == (4, 6, 3)
    assert (pixels == 255).all()


def test_sixteen_bit_grey():
    pixels = decode_image(_png(np.full((2, 2), 0x8000, np.uint16)), "t", 1000)
    assert (pixels == 128).all()
    assert (decode_image(_png(np.full((2, 2), 200, np.uint16)), "t", 1000) == 0).all()  # of 65,535


def test_large_pictures_are_reduced_in_light_or_by_leaving_texels_out():
    checker = (255 * (np.indices((4096, 2)).sum(axis=0) % 2)).astype(np.uint8)[..., None].repeat(3, axis=2)
    mean = decode_image(_png(checker), "t", 10**6)
    assert mean.shape == (2048, 1, 3)
    assert (mean == 188).all()  # sRGB of half the light
    palette = np.uint8([[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255]]).repeat(1500, axis=0)[None]
    kept = decode_image(_png(palette), "t", 10**6, nearest=True)
    assert kept.shape == (1, 2000, 3)
    assert set(map(tuple, kept[0].tolist())) == {(255, 0, 0), (0, 0, 255)}


def test_transparency_is_kept_and_large_pictures_are_reduced():
    assert decode_image(_png(SEE_THROUGH), "t", 1000).shape == (4, 4, 4)
    assert decode_image(_png(np.zeros((2, 5000, 3), np.uint8)), "t", 10**6).shape == (1, 1667, 3)


def test_pictures_that_are_refused():
    with pytest.raises(ObjectError, match="100 x 100 pixels, more than the limit of 9999"):
        decode_image(_png(np.zeros((100, 100), np.uint8)), "t", 9999)
    with pytest.raises(ObjectError, match="'t' is damaged"):
        decode_image(_png(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8))[:2000], "t", 10**6)
    with pytest.raises(ObjectError, match="'t' is not an image"):
        decode_image(b"hello", "t", 10**6)
