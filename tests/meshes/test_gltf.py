import base64

import DracoPy
import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import srgb_to_linear, surface_rgba
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES, QUAD, QUAD_FACES, QUAD_UV


def signed_volume(part) -> float:
    a, b, c = (part.vertices[part.faces[:, i]].astype(float) for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_nested_mirrored_and_instanced_nodes(glb, loaded):
    mesh = glb.mesh()
    child = glb.node(mesh, root=False, translation=[4, 0, 0], scale=[-1, 1, 1])
    half_turn = [0, 1, 0, 0]
    glb.node(None, rotation=half_turn, children=[child])
    glb.node(mesh)
    result = loaded(glb)
    assert result.face_count == 24
    # Turned half round Y, the child stands at x = -4: the two cubes span [-5, 1].
    np.testing.assert_allclose(result.centre, [-2, 0, 0], atol=1e-6)
    assert result.scale == pytest.approx(1 / 6)
    # A mirrored cube keeps its outside outside.
    assert sum(signed_volume(part) for part in result.parts) == pytest.approx(2 * (2 / 6) ** 3, rel=1e-5)


def test_normals_turn_with_their_node(glb, loaded):
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    quarter_about_y = [0, np.sqrt(0.5), 0, np.sqrt(0.5)]
    glb.node(glb.mesh(QUAD, QUAD_FACES, NORMAL=normals), rotation=quarter_about_y, scale=[1, 3, -0.1])
    (part,) = loaded(glb).parts
    np.testing.assert_allclose(part.normals, np.tile([-1, 0, 0], (4, 1)), atol=1e-6)
    a, b, c = part.vertices[part.faces[0]].astype(float)
    cross = np.cross(b - a, c - a)
    np.testing.assert_allclose(cross / np.linalg.norm(cross), [-1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "indices"),
    [(5, [0, 1, 3, 2]), (6, [0, 1, 2, 3]), (4, [0, 1, 2, 0, 2, 3]), (5, [0, 0, 0, 1, 3, 2, 2])],
)
def test_strips_and_fans_wind_as_lists_do(glb, loaded, mode, indices):
    glb.node(glb.mesh(QUAD, np.array(indices, np.uint8), mode=mode))
    (part,) = loaded(glb).parts
    a, b, c = (part.vertices[part.faces[:, i]].astype(float) for i in range(3))
    np.testing.assert_allclose(np.cross(b - a, c - a), [[0, 0, 1], [0, 0, 1]], atol=1e-6)


def test_without_indices(glb, loaded):
    glb.node(glb.mesh(CUBE_CORNERS[CUBE_FACES.ravel()], None))
    assert loaded(glb).face_count == 12


def test_sparse_accessor(glb, loaded):
    moved = np.float32([[-1, 3, 0]])
    position = glb.accessor(QUAD)
    glb.json["accessors"][position]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": glb.view(np.uint16([3]).tobytes()), "componentType": 5123},
        "values": {"bufferView": glb.view(moved.tobytes())},
    }
    glb.node(glb.mesh(position, QUAD_FACES))
    assert loaded(glb).scale == pytest.approx(1 / 4)


def test_interleaved_and_quantised(glb, loaded):
    rows = np.zeros(4, [("position", "<i2", 3), ("pad", "<i2"), ("uv", "<u2", 2)])
    rows["position"], rows["uv"] = QUAD * 100, QUAD_UV * 65535
    view = glb.view(rows.tobytes(), byteStride=rows.itemsize)
    position = glb.list("accessors", {"bufferView": view, "componentType": 5122, "count": 4, "type": "VEC3"})
    uv = glb.list(
        "accessors",
        {"bufferView": view, "byteOffset": 8, "componentType": 5123, "count": 4, "type": "VEC2", "normalized": True},
    )
    texture = glb.texture(np.zeros((2, 2, 3), np.uint8))
    glb.node(glb.mesh(position, QUAD_FACES, material=glb.material(texture=texture), TEXCOORD_0=uv))
    glb.json["extensionsRequired"] = ["KHR_mesh_quantization"]
    result = loaded(glb)
    assert result.scale == pytest.approx(1 / 200)
    np.testing.assert_allclose(result.parts[0].uv, QUAD_UV, atol=1e-4)


def test_second_uv_set_and_texture_transform(glb, loaded):
    texture = glb.texture(np.zeros((2, 2, 3), np.uint8))
    turn = {"offset": [0.5, 0.25], "rotation": np.pi / 2, "scale": [2, 3], "texCoord": 1}
    texture["extensions"] = {"KHR_texture_transform": turn}
    glb.node(
        glb.mesh(QUAD, QUAD_FACES, material=glb.material(texture=texture), TEXCOORD_0=QUAD_UV * 9, TEXCOORD_1=QUAD_UV)
    )
    (part,) = loaded(glb).parts
    u, v = (QUAD_UV * [2, 3]).T  # counter-clockwise as one sees it, with v down: u goes to -v
    np.testing.assert_allclose(part.uv, np.stack([v + 0.5, -u + 0.25], axis=1), atol=1e-6)


def test_draco(glb, loaded):
    colors = np.tile(np.uint8([255, 0, 0]), (8, 1))
    data = DracoPy.encode(CUBE_CORNERS, CUBE_FACES.astype(np.uint32), quantization_bits=14, colors=colors)
    kinds = {0: "POSITION", 2: "COLOR_0"}  # Draco's numbers of attribute types
    ids = {kinds[a["attribute_type"]]: a["unique_id"] for a in DracoPy.decode(data).attributes}
    accessors = {
        "POSITION": glb.list("accessors", {"componentType": 5126, "count": 8, "type": "VEC3"}),
        "COLOR_0": glb.list("accessors", {"componentType": 5121, "count": 8, "type": "VEC3", "normalized": True}),
    }
    indices = glb.list("accessors", {"componentType": 5123, "count": 36, "type": "SCALAR"})
    extension = {"KHR_draco_mesh_compression": {"bufferView": glb.view(data), "attributes": ids}}
    glb.list("meshes", {"primitives": [{"attributes": accessors, "indices": indices, "extensions": extension}]})
    glb.node(0)
    glb.json["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    result = loaded(glb)
    assert result.face_count == 12
    assert result.scale == pytest.approx(0.5, rel=1e-3)
    np.testing.assert_allclose(result.parts[0].colors, np.tile([1, 0, 0, 1], (8, 1)), atol=1e-6)


def test_draco_that_is_damaged(glb, loaded):
    position = glb.list("accessors", {"componentType": 5126, "count": 8, "type": "VEC3"})
    extension = {"KHR_draco_mesh_compression": {"bufferView": glb.view(b"DRACO" * 9), "attributes": {"POSITION": 0}}}
    glb.list("meshes", {"primitives": [{"attributes": {"POSITION": position}, "extensions": extension}]})
    glb.node(0)
    with pytest.raises(ObjectError, match="Draco"):
        loaded(glb)


@pytest.mark.parametrize("weight", [1.0, np.nan])
def test_skinned_mesh_stands_as_its_joints_do(glb, loaded, weight):
    weights = np.tile(np.float32([weight, 0, 0, 0]), (8, 1))
    mesh = glb.mesh(JOINTS_0=np.zeros((8, 4), np.uint8), WEIGHTS_0=weights)
    joint = glb.node(scale=[1, 2, 1], translation=[5, 0, 0])
    inverse_bind = glb.accessor(np.eye(4, dtype=np.float32).reshape(1, 16))
    glb.list("skins", {"joints": [joint], "inverseBindMatrices": inverse_bind})
    glb.node(mesh, skin=0, translation=[0, 7, 0])
    result = loaded(glb)
    # Weights that are no numbers leave the mesh at its node.
    np.testing.assert_allclose(result.centre, [5, 0, 0] if weight == 1 else [0, 7, 0], atol=1e-6)
    assert result.scale == pytest.approx(1 / 4 if weight == 1 else 1 / 2)


def test_specular_glossiness_gives_the_colour_where_it_names_one(glb, loaded):
    red = {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}}
    gloss_only = {"KHR_materials_pbrSpecularGlossiness": {"glossinessFactor": 0.1}}
    for x, extensions in ((0, red), (3, gloss_only)):
        material = glb.material(factor=(0, 1, 0, 1), extensions=extensions)
        glb.node(glb.mesh(material=material), translation=[x, 0, 0])
    colors = [part.material.base_color_factor for part in loaded(glb).parts]
    assert colors == [(1, 0, 0, 1), (0, 1, 0, 1)]


def test_glow(glb, loaded):
    """An even glow over a colour is a converter's ambient light; on black, or as a picture, it is what one
    sees.
    """
    picture = glb.texture(np.full((2, 2, 3), 255, np.uint8))
    for x, factor, fields in (
        (0, (0.5, 0, 0, 1), {"emissiveFactor": [0.4, 0.4, 0.4]}),
        (3, (0, 0, 0, 1), {"emissiveFactor": [0, 0, 1]}),
        (6, (0.5, 0, 0, 1), {"emissiveFactor": [0, 1, 0], "emissiveTexture": picture}),
    ):
        material = glb.material(factor=factor, **fields)
        glb.node(glb.mesh(QUAD, QUAD_FACES, material=material, TEXCOORD_0=QUAD_UV), translation=[x, 0, 0])
    middle = np.full((1, 3), 1 / 3)
    colors = [srgb_to_linear(surface_rgba(part, np.array([0]), middle)[0, :3]) for part in loaded(glb).parts]
    np.testing.assert_allclose(colors, [[0.5, 0, 0], [0, 0, 1], [0.5, 1, 0]], atol=1e-6)


def test_parts_of_one_material_are_one_part(glb, loaded):
    material, other = glb.material(), glb.material(factor=(1, 0, 0, 1))
    for index in range(6):
        glb.node(glb.mesh(material=material if index % 2 else other), translation=[3 * index, 0, 0])
    assert sorted(len(part.faces) for part in loaded(glb).parts) == [36, 36]


def test_data_uri(glb, loaded, tmp_path):
    import json

    glb.node(glb.mesh())
    uri = "data:application/octet-stream;base64," + base64.b64encode(glb.binary).decode()
    glb.json["buffers"] = [{"byteLength": len(glb.binary), "uri": uri}]
    path = tmp_path / "object.gltf"
    path.write_text(json.dumps(glb.json))
    assert loaded(path).face_count == 12


def test_a_mesh_without_a_colour_is_neutral(glb, loaded):
    glb.node(glb.mesh())
    (part,) = loaded(glb, neutral_color=(0.5, 0.5, 0.5)).parts
    np.testing.assert_allclose(surface_rgba(part, np.array([0]), np.eye(3)[:1])[0, :3], 0.5, atol=1e-6)


def _bad_index(glb):
    glb.node(glb.mesh(faces=np.array([0, 1, 8], np.uint8)))


def _view_outside(glb):
    glb.node(glb.mesh())
    glb.json["bufferViews"][0]["byteLength"] = 10_000


def _huge_count(glb):
    glb.node(glb.mesh())
    glb.json["accessors"][0]["count"] = 2**31


def _huge_count_without_data(glb):
    position = glb.list("accessors", {"componentType": 5126, "count": 2**31, "type": "VEC3"})
    glb.node(glb.mesh(position))


def _negative(glb):
    glb.node(glb.mesh())
    glb.json["bufferViews"][0]["byteOffset"] = -4


def _negative_reference(glb):
    glb.node(glb.mesh())
    glb.json["nodes"][0]["mesh"] = -1


def _cut_buffer(glb):
    glb.node(glb.mesh())
    glb.json["buffers"] = [{"byteLength": 10**9}]


def _ring(glb):
    glb.node(glb.mesh(), children=[0])


def _shared_branches(glb):
    """Forty doublings: a tera of instances from a few hundred bytes."""
    glb.node(glb.mesh(), root=False)
    for index in range(40):
        glb.node(root=index == 39, children=[index, index])


def _many_instances(glb):
    mesh = glb.mesh()
    for _ in range(9000):
        glb.node(mesh)


def _not_json_types(glb):
    glb.node(glb.mesh())
    glb.json["accessors"][0]["bufferView"] = "zero"


def _lengths_differ(glb):
    glb.node(glb.mesh(NORMAL=np.zeros((3, 3), np.float32)))


def _infinite(glb):
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(np.inf)))


def _point(glb):
    glb.node(glb.mesh(CUBE_CORNERS * 0))


def _line(glb):
    glb.node(glb.mesh(CUBE_CORNERS * np.float32([1, 0, 0])))


def _enormous(glb):
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(1e38)))


def _overflowing(glb):
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(1e38)), scale=[1e300, 1, 1])


def _points(glb):
    glb.node(glb.mesh(faces=None, mode=0))


def _nan_colors(glb):
    glb.node(glb.mesh(COLOR_0=np.full((8, 3), np.nan, np.float32)))


def _meshopt(glb):
    glb.node(glb.mesh())
    glb.json["extensionsRequired"] = ["EXT_meshopt_compression"]


def _ktx(glb):
    texture = glb.list("textures", {"extensions": {"KHR_texture_basisu": {"source": 0}}})
    glb.node(glb.mesh(material=glb.material(texture={"index": texture})))


def _version_1(glb):
    glb.json["asset"]["version"] = "1.0"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_bad_index, "names vertex 8, of which there are 8"),
        (_view_outside, "outside its buffer"),
        (_huge_count, "2147483648 elements needs"),
        (_huge_count_without_data, "2147483648 elements without data"),
        (_negative, "outside its buffer"),
        (_negative_reference, r"meshes\[-1\]"),
        (_cut_buffer, "instead of 1000000000"),
        (_ring, "two parents"),
        (_shared_branches, "two parents"),
        (_many_instances, "more triangles than the limit of 100000"),
        (_not_json_types, "refers to bufferViews"),
        (_lengths_differ, "8 positions but 3 of NORMAL"),
        (_infinite, "not finite"),
        (_point, "no size"),
        (_line, "no surface"),
        (_enormous, "not the size of an object"),
        (_overflowing, "not finite"),
        (_points, "no faces"),
        (_nan_colors, "colours are not finite"),
        (_meshopt, "EXT_meshopt_compression"),
        (_ktx, "KHR_texture_basisu"),
        (_version_1, "glTF 1.0"),
    ],
)
def test_what_is_refused(glb, loaded, damage, message):
    damage(glb)
    with pytest.raises(ObjectError, match=message):
        loaded(glb)
