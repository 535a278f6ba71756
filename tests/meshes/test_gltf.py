import base64

import DracoPy
import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import srgb_to_linear, surface_rgba
from clipgs.meshes.points import sample
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


def bounds(mesh) -> np.ndarray:
    """The box [2, 3] of the mesh in the file's own coordinates."""
    vertices = np.concatenate([part.vertices for part in mesh.parts]).astype(float)
    return np.stack([vertices.min(axis=0), vertices.max(axis=0)]) / mesh.scale + mesh.centre


@pytest.mark.parametrize("place", ["mesh", "node", "both"])
@pytest.mark.parametrize("kind", ["float", "sparse", "quantised"])
def test_morph_targets_have_their_default_weights(glb, loaded, place, kind):
    moves = CUBE_CORNERS * np.float32([0, 2, 0])
    if kind == "quantised":
        target = glb.accessor((moves * 63.5).astype(np.int8), normalized=True)
    elif kind == "sparse":
        target = glb.list("accessors", {"componentType": 5126, "count": 8, "type": "VEC3"})
        glb.json["accessors"][target]["sparse"] = {
            "count": 8,
            "indices": {"bufferView": glb.view(np.arange(8, dtype=np.uint8).tobytes()), "componentType": 5121},
            "values": {"bufferView": glb.view(moves.tobytes())},
        }
    else:
        target = glb.accessor(moves)
    mesh = glb.mesh()
    unused = glb.accessor(CUBE_CORNERS * np.float32(50))
    glb.json["meshes"][mesh]["primitives"][0]["targets"] = [{"POSITION": unused}, {"POSITION": target}]
    weight = 2.0 if kind == "quantised" else 1.0
    on_node = {} if place == "mesh" else {"weights": [0, weight]}
    if place != "node":
        glb.json["meshes"][mesh]["weights"] = [0, weight if place == "mesh" else 9]
    glb.node(mesh, **on_node)
    np.testing.assert_allclose(bounds(loaded(glb)), [[-1, -3, -1], [1, 3, 1]], atol=0.05)


def test_nodes_of_one_mesh_may_have_different_weights(glb, loaded):
    mesh = glb.mesh()
    glb.json["meshes"][mesh]["primitives"][0]["targets"] = [{"POSITION": glb.accessor(CUBE_CORNERS)}]
    glb.node(mesh, translation=[0, 10, 0])
    glb.node(mesh, weights=[1])
    np.testing.assert_allclose(bounds(loaded(glb)), [[-2, -2, -2], [2, 11, 2]], atol=1e-5)


def test_normals_are_morphed_and_a_skin_moves_what_was_morphed(glb, loaded):
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    weights = np.tile(np.float32([1, 0, 0, 0]), (4, 1))
    mesh = glb.mesh(QUAD, QUAD_FACES, NORMAL=normals, JOINTS_0=np.zeros((4, 4), np.uint8), WEIGHTS_0=weights)
    target = {"POSITION": glb.accessor(QUAD * np.float32(2)), "NORMAL": glb.accessor(normals[:, ::-1] - normals)}
    glb.json["meshes"][mesh] |= {"weights": [1]}
    glb.json["meshes"][mesh]["primitives"][0]["targets"] = [target]
    glb.list("skins", {"joints": [glb.node(translation=[0, 0, 5])]})
    glb.node(mesh, skin=0)
    result = loaded(glb)
    np.testing.assert_allclose(bounds(result), [[-3, -3, 5], [3, 3, 5]], atol=1e-5)
    np.testing.assert_allclose(result.parts[0].normals, np.tile([1, 0, 0], (4, 1)), atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_instances(glb, loaded, kind):
    about_z = np.float32([[0, 0, 0, 1], [0, 0, np.sqrt(0.5), np.sqrt(0.5)], [0, 0, 0, 1]])
    rotation = about_z if kind is np.float32 else glb.accessor((about_z * 32767).astype(np.int16), normalized=True)
    placed = {
        "TRANSLATION": glb.accessor(np.float32([[0, 0, 0], [0, 10, 0], [-20, 0, 0]])),
        "ROTATION": glb.accessor(rotation) if kind is np.float32 else rotation,
        "SCALE": glb.accessor(np.float32([[1, 1, 1], [3, 1, 1], [-1, 1, 1]])),
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": placed}}
    glb.node(glb.mesh(), translation=[0, 0, 7], extensions=extension)
    glb.json["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    result = loaded(glb)
    assert result.face_count == 36
    # The second one, 6 x 2 x 2, is turned by a quarter about Z.
    np.testing.assert_allclose(bounds(result), [[-21, -1, 6], [1, 13, 8]], atol=2e-3)
    volume = sum(signed_volume(part) for part in result.parts) / result.scale**3
    assert volume == pytest.approx(8 + 24 + 8, rel=1e-3)


def test_hidden_nodes_are_left_out_with_their_children(glb, loaded):
    mesh = glb.mesh()
    glb.node(mesh)
    child = glb.node(mesh, root=False, translation=[9, 0, 0], extensions={"KHR_node_visibility": {"visible": True}})
    glb.node(mesh, children=[child], scale=[5, 5, 5], extensions={"KHR_node_visibility": {"visible": False}})
    glb.json["extensionsRequired"] = ["KHR_node_visibility"]
    np.testing.assert_allclose(bounds(loaded(glb)), [[-1, -1, -1], [1, 1, 1]], atol=1e-6)


def _as_decimals(value):
    """The same JSON with every whole number written as a decimal."""
    if isinstance(value, dict):
        return {key: _as_decimals(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_decimals(item) for item in value]
    return float(value) if isinstance(value, int) else value


def test_whole_numbers_may_be_written_as_decimals(glb, loaded):
    texture = glb.texture(np.zeros((2, 2, 3), np.uint8), wrapS=33071)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(texture=texture), TEXCOORD_0=QUAD_UV))
    glb.json["buffers"] = [{"byteLength": len(glb.binary)}]
    glb.json = _as_decimals(glb.json)
    (part,) = loaded(glb).parts
    assert part.material.base_color_texture.wrap_u == "clamp"
    np.testing.assert_allclose(part.uv, QUAD_UV)


def test_a_primitive_without_positions_is_left_out(glb, loaded):
    glb.node(glb.mesh())
    glb.node(glb.mesh(None, NORMAL=CUBE_CORNERS))
    del glb.json["meshes"][glb.mesh()]["primitives"][0]["attributes"]
    glb.node(2)
    assert loaded(glb).face_count == 12


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


def _unknown_extension(glb):
    glb.node(glb.mesh())
    glb.json["extensionsRequired"] = ["EXT_of_tomorrow"]


def _unknown_texture(glb):
    texture = glb.list("textures", {"extensions": {"EXT_of_tomorrow": {"source": 0}}})
    glb.node(glb.mesh(material=glb.material(texture={"index": texture})))


def _version_1(glb):
    glb.json["asset"]["version"] = "1.0"


def _version_to_come(glb):
    glb.node(glb.mesh())
    glb.json["asset"]["minVersion"] = "2.1"


def _no_positions(glb):
    glb.node(glb.mesh(None, NORMAL=CUBE_CORNERS))


def _half_an_index(glb):
    glb.node(glb.mesh())
    glb.json["nodes"][0]["mesh"] = 0.5


def _instances_over_the_limit(glb):
    moves = glb.accessor(np.zeros((9000, 3), np.float32))
    glb.node(glb.mesh(), extensions={"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": moves}}})


def _instances_that_disagree(glb):
    attributes = {"TRANSLATION": glb.accessor(CUBE_CORNERS), "SCALE": glb.accessor(QUAD)}
    glb.node(glb.mesh(), extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}})


def _short_target(glb):
    glb.node(glb.mesh(), weights=[1])
    glb.json["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": glb.accessor(QUAD)}]


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
        (_unknown_extension, "needs the glTF extension EXT_of_tomorrow"),
        (_unknown_texture, "a texture needs the glTF extension EXT_of_tomorrow"),
        (_version_1, "glTF 1.0"),
        (_version_to_come, "needs glTF 2.1"),
        (_no_positions, "no POSITION"),
        (_half_an_index, r"meshes\[0.5\]"),
        (_instances_over_the_limit, "more triangles than the limit of 100000"),
        (_instances_that_disagree, r"\[4, 8\] placements"),
        (_short_target, "4 of POSITION for 8"),
    ],
)
def test_what_is_refused(glb, loaded, damage, message):
    damage(glb)
    with pytest.raises(ObjectError, match=message):
        loaded(glb)


def test_parts_with_vertex_colours_alone_become_one(glb, loaded):
    for x in range(5):
        glb.node(glb.mesh(QUAD + np.float32([x, 0, 0]), QUAD_FACES, COLOR_0=np.float32([[1, 0, 0]] * 4)))
    assert len(loaded(glb).parts) == 1


@pytest.mark.parametrize("wrap", [10497, 33648, 33071])
def test_coordinates_that_no_float_holds_give_a_colour(glb, loaded, wrap):
    texture = glb.texture(np.full((2, 2, 3), 255, np.uint8), wrapS=wrap, wrapT=wrap)
    texture["extensions"] = {"KHR_texture_transform": {"scale": [1e30, -1e30]}}
    uv = QUAD_UV * np.float32(1e30)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(texture=texture), TEXCOORD_0=uv))
    np.testing.assert_allclose(sample(loaded(glb), 100, 0)[1], 1, atol=1e-6)
