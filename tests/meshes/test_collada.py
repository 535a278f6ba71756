import random

import collada
import numpy as np
import pytest
from collada import asset, geometry, material, scene, source
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import srgb_to_linear
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES
from tests.meshes.three_objects import OBJECTS, PICTURE, check_same, write_glb


def bounds(mesh) -> np.ndarray:
    """The box [2, 3] of the mesh in the reader's coordinates."""
    vertices = np.concatenate([part.vertices for part in mesh.parts]).astype(float)
    return np.stack([vertices.min(axis=0), vertices.max(axis=0)]) / mesh.scale + mesh.centre


def area(mesh) -> float:
    total = 0.0
    for part in mesh.parts:
        a, b, c = (part.vertices[part.faces[:, i]].astype(float) for i in range(3))
        total += np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    return total / mesh.scale**2


def save_with_pycollada(folder, up: str):
    document = collada.Collada()
    document.assetInfo.upaxis = asset.UP_AXIS.Z_UP if up == "z" else asset.UP_AXIS.Y_UP
    document.assetInfo.unitmeter, document.assetInfo.unitname = 0.01, "centimeter"
    back = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]) if up == "z" else np.eye(4)
    Image.fromarray(PICTURE).save(folder / "the picture.png")
    image = material.CImage("picture", "./the%20picture.png")
    document.images.append(image)
    nodes = []
    for each in OBJECTS:
        surface = material.Surface(f"{each.name}-surface", image)
        sampler = material.Sampler2D(f"{each.name}-sampler", surface)
        textured = each.uv is not None
        diffuse = material.Map(sampler, "UV") if textured else (*(np.array(each.color) / 255), 1.0)
        params = [surface, sampler] if textured else []
        effect = material.Effect(f"{each.name}-effect", params, "lambert", diffuse=diffuse)
        paint = material.Material(f"{each.name}-material", each.name, effect)
        document.effects.append(effect)
        document.materials.append(paint)
        inputs, sources, columns = source.InputList(), [], 1
        sources.append(source.FloatSource(f"{each.name}-xyz", each.vertices.reshape(-1), ("X", "Y", "Z")))
        inputs.addInput(0, "VERTEX", f"#{each.name}-xyz")
        if textured:
            sources.append(source.FloatSource(f"{each.name}-uv", (each.uv * (1, -1) + (0, 1)).reshape(-1), ("S", "T")))
            inputs.addInput(1, "TEXCOORD", f"#{each.name}-uv", "0")
            columns += 1
        if each.colors is not None:
            rgba = (each.colors / 255).reshape(-1)
            sources.append(source.FloatSource(f"{each.name}-rgba", rgba, ("R", "G", "B", "A")))
            inputs.addInput(1, "COLOR", f"#{each.name}-rgba")
            columns += 1
        shape = geometry.Geometry(document, f"{each.name}-mesh", each.name, sources)
        indices = np.repeat(each.faces.reshape(-1), columns).astype(np.int32)
        shape.primitives.append(shape.createTriangleSet(indices, inputs, "paint"))
        document.geometries.append(shape)
        bound = scene.MaterialNode("paint", paint, inputs=[("UV", "TEXCOORD", "0")] if textured else [])
        instance = scene.GeometryNode(shape, [bound])
        placed = scene.MatrixTransform((back @ each.matrix).reshape(-1))
        nodes.append(scene.Node(each.name, children=[instance], transforms=[placed]))
    document.scenes.append(scene.Scene("scene", nodes))
    document.scene = document.scenes[0]
    with (folder / "object.dae").open("wb") as file:
        document.write(file)
    return folder / "object.dae"


@pytest.mark.parametrize("up", ["y", "z"])
def test_the_library_s_own_files_are_like_gltf(tmp_path, loaded, glb, up):
    result = loaded(save_with_pycollada(tmp_path, up))
    wanted = loaded(write_glb(glb))
    check_same(result, wanted)
    assert result.scale == pytest.approx(wanted.scale * 100)  # metres, of a file in centimetres


def numbers(values) -> str:
    return " ".join(f"{value:g}" for value in np.ravel(values))


SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
CUBE = f"""<triangles count="12" material="paint"><input semantic="VERTEX" source="#all" offset="0"/>
<p>{numbers(CUBE_FACES)}</p></triangles>"""


def document(
    *primitives: str,
    positions=CUBE_CORNERS,
    nodes: str = '<node><instance_geometry url="#shape"/></node>',
    asset: str = "<up_axis>Y_UP</up_axis>",
    extra: str = "",
    sources: str = "",
) -> bytes:
    """A COLLADA file with one geometry."""
    return f"""<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1"><asset>{asset}</asset>
<library_geometries><geometry id="shape"><mesh>
<source id="xyz"><float_array id="xyz-a" count="{np.size(positions)}">{numbers(positions)}</float_array>
<technique_common><accessor source="#xyz-a" count="{len(positions)}" stride="3">
<param name="X" type="float"/><param name="Y" type="float"/><param name="Z" type="float"/></accessor></technique_common>
</source>{sources}
<vertices id="all"><input semantic="POSITION" source="#xyz"/></vertices>{"".join(primitives)}</mesh></geometry>
</library_geometries>{extra}
<library_visual_scenes><visual_scene id="other"/><visual_scene id="scene">{nodes}</visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#scene"/></scene></COLLADA>""".encode()


@pytest.fixture
def read(tmp_path, loaded):
    def it(data: bytes):
        path = tmp_path / "object.dae"
        path.write_bytes(data)
        return loaded(path)

    return it


@pytest.mark.parametrize(
    ("axis", "wanted"),
    [
        ("<up_axis>Y_UP</up_axis>", [1, 2, 3]),
        ("<up_axis> Z_UP </up_axis>", [1, 3, 2]),
        ("<up_axis>X_UP</up_axis>", [2, 1, 3]),
        ("", [1, 2, 3]),
        ('<unit name="centimeter" meter="0,01"/>', [0.01, 0.02, 0.03]),
        ('<unit name="inch" meter="0.0254"/><up_axis>Z_UP</up_axis>', np.array([1, 3, 2]) * 0.0254),
    ],
)
def test_axis_and_unit(read, axis, wanted):
    result = read(document(CUBE, positions=CUBE_CORNERS * (0.5, 1, 1.5), asset=axis))
    np.testing.assert_allclose(np.diff(bounds(result), axis=0)[0], wanted, rtol=1e-5)


def test_z_up_turns_and_does_not_mirror(read):
    nodes = '<node><translate>1 2 30</translate><instance_geometry url="#shape"/></node>'
    result = read(document(CUBE, nodes=nodes, asset="<up_axis>Z_UP</up_axis>"))
    np.testing.assert_allclose(result.centre, [1, 30, -2], atol=1e-6)


def test_transforms_in_their_order(read):
    nodes = """<node><translate>10 0 0</translate><rotate>0 0 1 90</rotate><scale>2 1 1</scale>
    <node><matrix>1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1</matrix><instance_geometry url="#shape"/></node></node>"""
    result = read(document(CUBE, nodes=nodes))
    np.testing.assert_allclose(bounds(result), [[9, 8, -1], [11, 12, 1]], atol=1e-5)


def test_library_nodes_are_instanced(read):
    library = '<library_nodes><node id="part"><instance_geometry url="#shape"/></node></library_nodes>'
    nodes = """<node><translate>0 5 0</translate><instance_node url="#part"/></node>
    <node><scale>-1 1 1</scale><instance_node url="#part"/></node>"""
    result = read(document(CUBE, nodes=nodes, extra=library))
    assert result.face_count == 24
    np.testing.assert_allclose(bounds(result), [[-1, -1, -1], [1, 6, 1]], atol=1e-6)


U_SHAPE = np.array([[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]], float)  # its area is 7
U_POSITIONS = np.column_stack([U_SHAPE, np.zeros(8)])
INPUT = '<input semantic="VERTEX" source="#all" offset="0"/>'


@pytest.mark.parametrize(
    ("primitive", "positions", "wanted"),
    [
        (f"<polylist>{INPUT}<vcount>8</vcount><p>0 1 2 3 4 5 6 7</p></polylist>", U_POSITIONS, 7),
        (f"<polygons>{INPUT}<p>0 1 2 3 4 5 6 7</p></polygons>", U_POSITIONS, 7),
        (f"<polygons>{INPUT}<p>0 1 2</p><p>2 3 4 5</p></polygons>", np.vstack([SQUARE, SQUARE]) * 2, None),
        (f"<tristrips>{INPUT}<p>0 1 3 2</p></tristrips>", SQUARE, 1),
        (f"<trifans>{INPUT}<p>0 1 2 3</p><p>0 1</p></trifans>", SQUARE, 1),
        (f"<triangles>{INPUT}<p>0 1 2 0 2 3</p></triangles><lines>{INPUT}<p>0 1</p></lines>", SQUARE, 1),
        (f"<polylist>{INPUT}<vcount>2 4</vcount><p>0 1 0 1 2 3</p></polylist>", SQUARE, 1),
    ],
)
def test_primitives(read, primitive, positions, wanted):
    result = read(document(primitive, positions=positions))
    if wanted is not None:
        assert area(result) == pytest.approx(wanted, rel=1e-5)
    for part in result.parts:
        a, b, c = (part.vertices[part.faces[:, i]].astype(float) for i in range(3))
        assert (np.cross(b - a, c - a)[:, 2] >= 0).all()  # all wind as the file says


def _source(name: str, values, parameters: str, stride: int | None = None, offset: int = 0) -> str:
    values = np.asarray(values, float)
    params = "".join(f'<param name="{p}" type="float"/>' if p != "-" else '<param type="float"/>' for p in parameters)
    stride = stride or len(parameters)
    count = (values.size - offset) // stride
    return f"""<source id="{name}"><float_array id="{name}-a">{numbers(values)}</float_array><technique_common>
    <accessor source="#{name}-a" count="{count}" stride="{stride}" offset="{offset}">{params}</accessor>
    </technique_common></source>"""


def test_stride_offset_and_parameters_without_a_name(read):
    rows = np.column_stack([np.full(4, 99), SQUARE * (2, 1, 1)])
    odd = _source("odd", [7, 7, *rows.reshape(-1)], "-XYZ", offset=2)
    primitive = """<vertices id="others"><input semantic="POSITION" source="#odd"/></vertices><triangles>
    <input semantic="VERTEX" source="#others" offset="0"/><p>0 1 2 0 2 3</p></triangles>"""
    np.testing.assert_allclose(bounds(read(document(primitive, sources=odd))), [[0, 0, 0], [2, 1, 0]], atol=1e-6)


def effect(shader: str, kind: str = "phong", params: str = "") -> str:
    """A material named paint."""
    return f"""<library_effects><effect id="e"><profile_COMMON>{params}<technique sid="c"><{kind}>{shader}</{kind}>
    </technique></profile_COMMON></effect></library_effects>
    <library_materials><material id="m"><instance_effect url="#e"/></material></library_materials>"""


BOUND = """<node><instance_geometry url="#shape"><bind_material><technique_common>
<instance_material symbol="paint" target="#m"><bind_vertex_input semantic="CHANNEL1" input_semantic="TEXCOORD"
input_set="5"/></instance_material></technique_common></bind_material></instance_geometry></node>"""
RED = "<diffuse><color>1 0.5 0 1</color></diffuse>"


@pytest.mark.parametrize(
    ("shader", "opacity"),
    [
        ("", 1),
        ("<transparency><float>0.25</float></transparency>", 0.25),
        ("<transparent><color>1 1 1 1</color></transparent><transparency><float>0</float></transparency>", 1),
        ('<transparent opaque="RGB_ZERO"><color>0.4 0.4 0.4 1</color></transparent>', 0.6),
        ('<transparent opaque="RGB_ZERO"><color>0 0 0 1</color></transparent>', 1),
        ('<transparent opaque="A_ONE"><color>0 0 0 0.5</color></transparent>', 0.5),
    ],
)
def test_colour_and_opacity(read, shader, opacity):
    (part,) = read(document(CUBE, nodes=BOUND, extra=effect(RED + shader))).parts
    wanted = [*srgb_to_linear(np.array([1, 0.5, 0])), opacity]
    np.testing.assert_allclose(part.material.base_color_factor, wanted, atol=1e-6)
    assert part.alpha_mode == ("OPAQUE" if opacity == 1 else "BLEND")


def test_emission(read):
    glow = "<emission><color>0 1 0 1</color></emission>"
    (part,) = read(document(CUBE, nodes=BOUND, extra=effect(RED + glow))).parts
    assert part.material.emissive_factor == (0, 0, 0)  # ambient light, by custom
    (part,) = read(document(CUBE, nodes=BOUND, extra=effect(glow))).parts
    assert part.material.emissive_factor == (0, 1, 0)
    (part,) = read(document(CUBE, nodes=BOUND, extra=effect(glow, "constant"))).parts
    assert part.material.unlit
    assert part.material.base_color_factor == (0, 1, 0, 1)


@pytest.mark.parametrize("by_sampler", [True, False])
def test_texture_of_the_second_set(read, tmp_path, by_sampler):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    params = """<newparam sid="s"><surface type="2D"><init_from>i</init_from></surface></newparam><newparam sid="t">
    <sampler2D><source>s</source><wrap_s>CLAMP</wrap_s></sampler2D></newparam>"""
    shader = f'<diffuse><texture texture="{"t" if by_sampler else "i"}" texcoord="CHANNEL1"/></diffuse>'
    image = '<library_images><image id="i"><init_from>a.png</init_from></image></library_images>'
    sources = _source("uv0", np.zeros((4, 2)), "ST") + _source("uv1", SQUARE[:, :2], "ST")
    sources += _source("black", np.zeros((4, 3)), "RGB")
    primitive = f"""<triangles material="paint">{INPUT}<input semantic="TEXCOORD" source="#uv0" offset="1" set="0"/>
    <input semantic="TEXCOORD" source="#uv1" offset="1" set="5"/><input semantic="COLOR" source="#black" offset="1"/>
    <p>0 0 1 1 2 2 0 0 2 2 3 3</p></triangles>"""
    extra = image + effect(shader, params=params if by_sampler else "")
    (part,) = read(document(primitive, positions=SQUARE, nodes=BOUND, extra=extra, sources=sources)).parts
    np.testing.assert_array_equal(part.material.base_color_texture.pixels, PICTURE)
    assert part.material.base_color_texture.wrap_u == ("clamp" if by_sampler else "repeat")
    np.testing.assert_allclose(part.uv[[0, 1, 2]], [[0, 1], [1, 1], [1, 0]])  # v downwards
    assert part.colors is None  # they would make the texture black


def controlled(kind: str, more: str = "") -> tuple[str, str]:
    """A controller and the nodes of its scene: a joint that is moved by 5 and doubles the height."""
    weights = " ".join("0 0" for _ in range(8))
    names = '<source id="j"><Name_array id="jn" count="1">bone</Name_array></source>'
    skin = f"""<controller id="c"><skin source="#{more or "shape"}"><bind_shape_matrix>{numbers(np.eye(4))}
    </bind_shape_matrix>{names}{_source("b", np.eye(4), "M", 16)}{_source("w", [1], "W")}
    <joints><input semantic="JOINT" source="#j"/><input semantic="INV_BIND_MATRIX" source="#b"/></joints>
    <vertex_weights count="8"><input semantic="JOINT" source="#j" offset="0"/><input semantic="WEIGHT" source="#w"
    offset="1"/><vcount>{" ".join("1" * 8)}</vcount><v>{weights}</v></vertex_weights></skin></controller>"""
    morph = f"""<controller id="m"><morph source="#shape" method="NORMALIZED"><source id="tn"><IDREF_array id="tna"
    count="1">target</IDREF_array></source>{_source("tw", [0.5], "W")}<targets>
    <input semantic="MORPH_TARGET" source="#tn"/><input semantic="MORPH_WEIGHT" source="#tw"/></targets></morph>
    </controller><library_geometries><geometry id="target"><mesh>{_source("far", CUBE_CORNERS * 3, "XYZ")}
    <vertices id="tv"><input semantic="POSITION" source="#far"/></vertices></mesh></geometry></library_geometries>"""
    extra = f"<library_controllers>{skin if kind == 'skin' else ''}{morph if kind == 'morph' or more else ''}"
    nodes = """<node sid="bone" type="JOINT"><translate>5 0 0</translate><scale>1 2 1</scale></node>
    <node><instance_controller url="#{}"/></node>"""
    return extra + "</library_controllers>", nodes.format("c" if kind == "skin" else "m")


@pytest.mark.parametrize(
    ("kind", "more", "wanted"),
    [
        ("skin", "", [[4, -2, -1], [6, 2, 1]]),
        ("morph", "", [[-2, -2, -2], [2, 2, 2]]),
        ("skin", "m", [[3, -4, -2], [7, 4, 2]]),
    ],
)
def test_skins_and_morphs_as_they_are_in_the_file(read, kind, more, wanted):
    extra, nodes = controlled(kind, more)
    np.testing.assert_allclose(bounds(read(document(CUBE, nodes=nodes, extra=extra))), wanted, atol=1e-5)


def test_numbers_with_decimal_commas(read):
    data = document(CUBE, positions=CUBE_CORNERS * 1.5).replace(b"1.5", b"1,5")
    np.testing.assert_allclose(bounds(read(data)), [[-1.5] * 3, [1.5] * 3], atol=1e-6)


def test_a_material_that_is_not_there_is_neutral(read):
    (part,) = read(document(CUBE, nodes=BOUND)).parts
    np.testing.assert_allclose(part.material.base_color_factor[:3], srgb_to_linear(np.array(0.7)))


def test_without_a_scene_every_geometry_is_taken(read):
    data = document(CUBE)
    start = data.index(b"<library_visual_scenes>")
    assert read(data[:start] + b"</COLLADA>").face_count == 12


_LOOP = '<library_nodes><node id="n"><instance_node url="#n"/><instance_node url="#n"/></node></library_nodes>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<COLLADA>", "not valid XML"),
        (b"<other/>", "not COLLADA"),
        (b'<!DOCTYPE a [<!ENTITY b "bbb">]><COLLADA>&b;</COLLADA>', "document type"),
        (b"<a>" * 5000 + b"</a>" * 5000, "more than 1000 levels"),
        (document(CUBE, asset="<up_axis>W_UP</up_axis>"), "up axis is 'W_UP'"),
        (document(CUBE.replace("7", "8")), "names vertex 8, of which there are 8"),
        (document(CUBE.replace("7", "-1")), "names vertex -1"),
        (document(CUBE.replace("7", "x")), "malformed"),
        (document(), "no faces"),
        (document(CUBE, nodes='<node><instance_geometry url="b.dae#x"/></node>'), "part of another file"),
        (document(CUBE, nodes='<node><instance_geometry url="#x"/></node>'), "'#x', which it does not have"),
        (document(CUBE, nodes='<node><instance_node url="#n"/></node>', extra=_LOOP), "more nodes than the limit"),
        (document(CUBE, positions=CUBE_CORNERS[:7]), "names vertex 7, of which there are 7"),
        (document(f"<polylist>{INPUT}<vcount>900000000</vcount><p>0 1 2</p></polylist>"), "more than the limit"),
        (document(f"<polylist>{INPUT}<vcount>4</vcount><p>0 1 2</p></polylist>"), "3 indices for 4 corners"),
        (document(f"<polygons>{INPUT}<ph><p>0 1 2</p><h>3 4 5</h></ph></polygons>"), "holes"),
        (document(CUBE, nodes='<node><skew>1</skew><instance_geometry url="#shape"/></node>'), "a lookat or a skew"),
        (document(CUBE, nodes=BOUND, extra=effect("<diffuse><texture texture='z'/></diffuse>")), "picture 'z'"),
    ],
)
def test_what_is_refused(read, data, message):
    with pytest.raises(ObjectError, match=message):
        read(data)


@pytest.mark.parametrize("name", ["missing.png", "http://example.org/a.png", "file:///etc/passwd", "../../a.png"])
def test_pictures_that_are_not_beside_the_file(read, name):
    image = f'<library_images><image id="i"><init_from>{name}</init_from></image></library_images>'
    with pytest.raises(ObjectError, match="it names"):
        read(document(CUBE, nodes=BOUND, extra=image + effect("<diffuse><texture texture='i'/></diffuse>")))


def test_damaged_files_are_refused_or_meshes(tmp_path, loaded):
    path = save_with_pycollada(tmp_path, "z")
    extra, nodes = controlled("skin", "m")
    whole, rng, refused = [path.read_bytes(), document(CUBE, nodes=nodes, extra=extra)], random.Random(2), 0
    for number in range(100):
        data = bytearray(whole[number % 2])
        if number % 4 < 2:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.choice(b'0123456789-.# <>/"aXe')
        path.write_bytes(data)
        try:
            assert np.isfinite(loaded(path).parts[0].vertices).all()
        except ObjectError:
            refused += 1
    assert refused >= 50
