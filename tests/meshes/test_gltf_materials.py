"""What the materials of glTF say of colour and opacity."""

import numpy as np
import pytest

from clipgs.meshes.materials import linear_to_srgb, srgb_to_linear, surface_rgba
from tests.meshes.glb_builder import QUAD, QUAD_FACES, QUAD_UV

GOLD = (1.0, 0.766, 0.336)
GLOSSY, SHEEN = "KHR_materials_pbrSpecularGlossiness", "KHR_materials_sheen"
TRANSMISSION, VOLUME = "KHR_materials_transmission", "KHR_materials_volume"


def flat(color) -> np.ndarray:
    return np.full((2, 2, 3), color, np.uint8)


def middle(part) -> np.ndarray:
    """Linear colour and alpha in the middle of the quad's first face."""
    rgba = surface_rgba(part, np.array([0]), np.full((1, 3), 1 / 3))[0].astype(float)
    return np.array([*srgb_to_linear(rgba[:3]), rgba[3]])


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        # A metal has no diffuse colour, and paint may have a white specular one.
        ({GLOSSY: {"diffuseFactor": [0, 0, 0, 1], "specularFactor": GOLD}}, GOLD),
        ({GLOSSY: {"diffuseFactor": [0, 0, 0, 1], "specularFactor": [0.2, 0.2, 0.2]}}, (0, 0, 0)),
        ({GLOSSY: {"diffuseFactor": [0, 0, 0, 1]}}, (0, 0, 0)),
        ({GLOSSY: {"diffuseFactor": [0.15, 0.08, 0.04, 1], "specularFactor": [1, 1, 1]}}, (0.15, 0.08, 0.04)),
        # Cloth that is nearly black has the colour of its fibres; other cloth keeps its own.
        ({"factor": (0.01, 0.01, 0.01, 1), SHEEN: {"sheenColorFactor": [0.05, 0.17, 0.5]}}, (0.05, 0.17, 0.5)),
        ({"factor": (0.3, 0.1, 0.1, 1), SHEEN: {"sheenColorFactor": [0.05, 0.17, 0.5]}}, (0.3, 0.1, 0.1)),
        ({"factor": (0.01, 0.01, 0.01, 1), SHEEN: {}}, (0.01, 0.01, 0.01)),
        # Strength goes to a glow before it is cut at white.
        (
            {
                "factor": (0, 0, 0, 1),
                "emissiveFactor": [0.1, 0.05, 0],
                "KHR_materials_emissive_strength": {"emissiveStrength": 10},
            },
            (1, 0.5, 0),
        ),
        # What is not lit does not glow.
        ({"factor": (0, 0, 0, 1), "emissiveFactor": [1, 1, 1], "KHR_materials_unlit": {}}, (0, 0, 0)),
    ],
)
def test_factors(glb, loaded, described, expected):
    extensions = {name: value for name, value in described.items() if name.startswith("KHR_")}
    fields = {name: value for name, value in described.items() if name not in extensions}
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(extensions=extensions, **fields)))
    (part,) = loaded(glb).parts
    np.testing.assert_allclose(middle(part), [*expected, 1], atol=2e-3)
    assert part.material.unlit == ("KHR_materials_unlit" in extensions)


@pytest.mark.parametrize(("double_sided", "single"), [(True, False), (False, True), (None, True)])
def test_sides(glb, loaded, double_sided, single):
    fields = {} if double_sided is None else {"doubleSided": double_sided}
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(**fields)))
    glb.node(glb.mesh(QUAD, QUAD_FACES), translation=[3, 0, 0])  # without a material: single-sided too
    assert [part.material.single_sided for part in loaded(glb).parts] == [single, True]


def test_a_colour_that_is_written_twice_is_the_core_one(glb, loaded):
    srgb = np.array([202, 167, 133]) / 255
    linear = srgb_to_linear(srgb)
    for base, expected in ((linear, linear), (linear * 0.9, srgb)):
        builder = type(glb)()
        extension = {"diffuseFactor": [*srgb.tolist(), 1], "specularFactor": [0.2, 0.2, 0.2]}
        material = builder.material(factor=(*base.tolist(), 1), extensions={GLOSSY: extension})
        builder.node(builder.mesh(QUAD, QUAD_FACES, material=material))
        (part,) = loaded(builder).parts
        np.testing.assert_allclose(middle(part)[:3], expected, atol=1e-3)


@pytest.mark.parametrize("diffuse", [None, 0, 120])
def test_the_metal_of_a_picture(glb, loaded, diffuse):
    """Only texels whose diffuse colour is black are metal."""
    specular = glb.texture(flat((255, 200, 100)))
    extension = {"specularGlossinessTexture": specular, "diffuseFactor": [0 if diffuse is None else 1] * 3 + [1]}
    if diffuse is not None:
        extension["diffuseTexture"] = glb.texture(flat(diffuse))
    material = glb.material(extensions={GLOSSY: extension})
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    (part,) = loaded(glb).parts
    expected = (120, 120, 120) if diffuse else (255, 200, 100)
    np.testing.assert_allclose(255 * linear_to_srgb(middle(part)[:3]), expected, atol=1)


def test_glass_lets_through_and_has_the_colour_of_its_volume(glb, loaded):
    clear = {TRANSMISSION: {"transmissionFactor": 1}}
    amber = {VOLUME: {"thicknessFactor": 2, "attenuationDistance": 1, "attenuationColor": [0.9, 0.5, 0.1]}}
    found = []
    opaque, white = {TRANSMISSION: {"transmissionFactor": 0}}, (1, 1, 1, 1)
    for factor, extensions in ((white, clear), (white, clear | amber), (white, opaque | amber), ((0, 0, 0, 1), clear)):
        builder = type(glb)()
        builder.node(builder.mesh(QUAD, QUAD_FACES, material=builder.material(factor=factor, extensions=extensions)))
        (part,) = loaded(builder).parts
        found.append((part.alpha_mode, *middle(part)))
    assert [mode for mode, *_ in found] == ["BLEND", "BLEND", "OPAQUE", "OPAQUE"]
    (clear, amber, opaque, black) = (values for _, *values in found)
    np.testing.assert_allclose(clear, [1, 1, 1, 0.25], atol=1e-3)
    np.testing.assert_allclose(amber[:3], [0.81, 0.25, 0.01], atol=2e-3)
    assert 0.25 < amber[3] < 1  # what takes light away is seen
    np.testing.assert_allclose(opaque, 1, atol=1e-3)
    np.testing.assert_allclose(black, [0, 0, 0, 1], atol=1e-3)  # sunglasses


@pytest.mark.parametrize(
    ("base", "offset", "left", "right"),
    [(None, 0, 1, 0.25), (200, 0, 1, 0.567), (200, 0.25, 0.783, 0.783)],  # of another layout: the mean
)
def test_a_picture_of_what_is_glass(glb, loaded, base, offset, left, right):
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[:, 4:] = 255
    glass = glb.texture(mask, wrapS=33071) | {"extensions": {"KHR_texture_transform": {"offset": [offset, 0]}}}
    texture = None if base is None else glb.texture(np.full((4, 4, 3), base, np.uint8), wrapS=33071)
    extension = {TRANSMISSION: {"transmissionFactor": 1, "transmissionTexture": glass}}
    material = glb.material(texture=texture, extensions=extension)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV))
    (part,) = loaded(glb).parts
    corners = surface_rgba(part, np.array([0, 0]), np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]))
    np.testing.assert_allclose(corners[:, 3], [left, right], atol=0.02)


@pytest.mark.parametrize(
    "way",
    ["another set", "another place", "without a colour's texture", "without coordinates", "a set that is missing"],
)
def test_a_glow_has_its_own_layout(glb, loaded, way):
    sign = np.zeros((8, 8, 3), np.uint8)
    sign[:, :4] = (0, 255, 0)
    glow, base = glb.texture(sign, wrapS=33071), glb.texture(flat(20))
    uvs = {"TEXCOORD_0": QUAD_UV * 3, "TEXCOORD_1": QUAD_UV}
    if way == "another place":
        base |= {"extensions": {"KHR_texture_transform": {"scale": [3, 3]}}}
        uvs = {"TEXCOORD_0": QUAD_UV}
    elif way != "without coordinates":
        glow |= {"texCoord": 1}
    if way == "without coordinates":
        base, uvs = None, {}
    if way == "a set that is missing":
        glow |= {"texCoord": 2}
    if way == "without a colour's texture":
        base, uvs = None, {"TEXCOORD_1": QUAD_UV}
    material = glb.material(factor=(0.01, 0.01, 0.01, 1), texture=base, emissiveFactor=[1, 1, 1], emissiveTexture=glow)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, **uvs))
    (part,) = loaded(glb).parts
    green = surface_rgba(part, np.array([0, 0]), np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]))[:, 1]
    assert green[1] < 0.2
    assert green[0] < 0.2 if way in ("without coordinates", "a set that is missing") else green[0] > 0.9


@pytest.mark.parametrize(
    ("sampler", "filters"),
    [
        ({}, ("linear", "mipmaps")),
        ({"magFilter": 9728, "minFilter": 9728}, ("nearest", "nearest")),
        ({"magFilter": 9729, "minFilter": 9729}, ("linear", "linear")),
        ({"magFilter": 9728, "minFilter": 9987}, ("nearest", "mipmaps")),
    ],
)
def test_filters_are_the_samplers(glb, loaded, sampler, filters):
    texture = glb.texture(flat(9), **sampler)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(texture=texture), TEXCOORD_0=QUAD_UV))
    (part,) = loaded(glb).parts
    used = part.material.base_color_texture
    assert (used.magnify, used.minify) == filters


def test_a_volume_without_a_distance_takes_no_light(glb, loaded):
    extensions = {TRANSMISSION: {"transmissionFactor": 1}, VOLUME: {"thicknessFactor": 1, "attenuationDistance": 0}}
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(extensions=extensions)))
    np.testing.assert_allclose(middle(loaded(glb).parts[0]), [1, 1, 1, 0.25], atol=1e-3)
