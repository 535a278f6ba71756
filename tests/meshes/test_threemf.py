import io
import locale
import random
import zipfile

import numpy as np
import pytest
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import srgb_to_linear, surface_rgba
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES
from tests.meshes.three_objects import OBJECTS, PICTURE, check_same, write_glb


def bounds(mesh) -> np.ndarray:
    """The box [2, 3] of the mesh in the reader's coordinates."""
    vertices = np.concatenate([part.vertices for part in mesh.parts]).astype(float)
    return np.stack([vertices.min(axis=0), vertices.max(axis=0)]) / mesh.scale + mesh.centre


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_with_lib3mf(path) -> None:
    lib3mf = pytest.importorskip("lib3mf")
    wrapper = lib3mf.get_wrapper()
    model = wrapper.CreateModel()
    model.SetUnit(lib3mf.ModelUnit.CentiMeter)
    back = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # Y up to Z up
    for each in OBJECTS:
        mesh = model.AddMeshObject()
        mesh.SetName(each.name)
        vertices = []
        for row in each.vertices:
            vertex = lib3mf.Position()
            vertex.Coordinates[:] = row.tolist()
            vertices.append(vertex)
        triangles = []
        for row in each.faces:
            triangle = lib3mf.Triangle()
            triangle.Indices[:] = row.tolist()
            triangles.append(triangle)
        mesh.SetGeometry(vertices, triangles)
        if each.uv is not None:
            attachment = model.AddAttachment(
                "/3D/Texture/picture.png", "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dtexture"
            )
            attachment.ReadFromBuffer(png(PICTURE))
            group = model.AddTexture2DGroup(model.AddTexture2DFromAttachment(attachment))
            coordinates = []
            for u, v in each.uv * (1, -1) + (0, 1):
                coordinate = lib3mf.Tex2Coord()
                coordinate.U, coordinate.V = u, v
                coordinates.append(group.AddTex2Coord(coordinate))
            corners = np.array(coordinates)[each.faces]
        elif each.colors is not None:
            group = model.AddColorGroup()
            corners = np.array([group.AddColor(wrapper.RGBAToColor(*row)) for row in each.colors.tolist()])[each.faces]
        else:
            group = model.AddBaseMaterialGroup()
            number = group.AddMaterial("paint", wrapper.RGBAToColor(*each.color, 255))
            corners = np.full(each.faces.shape, number)
        properties = []
        for row in corners:
            triangle = lib3mf.TriangleProperties()
            triangle.ResourceID = group.GetResourceID()
            triangle.PropertyIDs[:] = row.tolist()
            properties.append(triangle)
        mesh.SetAllTriangleProperties(properties)
        mesh.SetObjectLevelProperty(group.GetResourceID(), int(corners[0, 0]))
        transform = lib3mf.Transform()
        placed = (back @ each.matrix)[:3].T
        for row in range(4):
            transform.Fields[row][:] = placed[row].tolist()
        model.AddBuildItem(mesh, transform)
    model.QueryWriter("3mf").WriteToFile(str(path))


def test_the_library_s_own_files_are_like_gltf(tmp_path, loaded, glb):
    before = locale.setlocale(locale.LC_ALL)
    try:
        save_with_lib3mf(tmp_path / "object.3mf")
    finally:
        locale.setlocale(locale.LC_ALL, before)  # the library sets that of the process
    result, wanted = loaded(tmp_path / "object.3mf"), loaded(write_glb(glb))
    check_same(result, wanted)
    assert result.scale == pytest.approx(wanted.scale * 100, rel=1e-5)  # metres, of a file in centimetres


VERTICES = "".join(f'<vertex x="{x:g}" y="{y:g}" z="{z:g}"/>' for x, y, z in CUBE_CORNERS)


def mesh(properties: list[str] | None = None, attributes: str = "", number: int = 1) -> str:
    """An object that is a cube; `properties` are attributes of its triangles, over and over."""
    rows = [
        f'<triangle v1="{a}" v2="{b}" v3="{c}" {(properties or [""])[i % len(properties or [""])]}/>'
        for i, (a, b, c) in enumerate(CUBE_FACES)
    ]
    return f"""<object id="{number}" {attributes}><mesh><vertices>{VERTICES}</vertices><triangles>{"".join(rows)}
    </triangles></mesh></object>"""


def model(resources: str, build: str = '<item objectid="1"/>', head: str = 'unit="meter"') -> str:
    return f"""<?xml version="1.0"?><model {head} xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
    xmlns:m="http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
    xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06">
    <resources>{resources}</resources><build>{build}</build></model>"""


RELATIONS = """<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Target="/3D/a.model" Id="r" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>
</Relationships>"""


@pytest.fixture
def read(tmp_path, loaded):
    def it(content: str, files: dict[str, bytes | str] | None = None):
        path = tmp_path / "object.3mf"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in {"_rels/.rels": RELATIONS, "3D/a.model": content, **(files or {})}.items():
                archive.writestr(name, data)
        return loaded(path)

    return it


def test_prefixes_that_are_not_declared(read):
    content = model(BASE + mesh(attributes='pid="5" pindex="0"') + '<d:new_property id="9"/>')
    assert colors(read(content)) == {(255, 128, 0, 255)}


@pytest.mark.parametrize(("unit", "metres"), [("", 0.001), ('unit="micron"', 1e-6), ('unit="foot"', 0.3048)])
def test_units(read, unit, metres):
    result = read(model(mesh(), head=unit))
    assert result.scale == pytest.approx(1 / (2 * metres))


def test_items_and_components_are_placed_and_z_is_up(read):
    components = """<object id="2"><components><component objectid="1"/>
    <component objectid="1" transform="2 0 0 0 1 0 0 0 1 0 0 10"/></components></object>"""
    build = '<item objectid="2" transform="0 1 0 -1 0 0 0 0 1 5 0 0"/>'  # a quarter turn about Z, then 5 along X
    result = read(model(mesh() + components, build))
    assert result.face_count == 24
    # In the file's axes x is in [4, 6], y in [-2, 2] and z in [-1, 11].
    np.testing.assert_allclose(bounds(result), [[4, -1, -2], [6, 11, 2]], atol=1e-5)


def test_objects_in_other_files_of_the_archive(read):
    components = (
        '<object id="7"><components><component objectid="1" p:path="/3D/Objects/b.model"/></components></object>'
    )
    files = {"3D/Objects/b.model": model(mesh(), build="")}
    assert read(model(components, '<item objectid="7"/>'), files).face_count == 12


def test_supports_are_left_out(read):
    resources = mesh() + mesh(attributes='type="support"', number=2)
    assert read(model(resources, '<item objectid="1"/><item objectid="2"/>')).face_count == 12


def colors(result) -> set[tuple[int, ...]]:
    """sRGB at the middles of all faces."""
    rows = [
        surface_rgba(part, np.arange(len(part.faces)), np.full((len(part.faces), 3), 1 / 3)) for part in result.parts
    ]
    return {tuple(row) for row in (np.concatenate(rows) * 255).round().astype(int).tolist()}


BASE = """<basematerials id="5"><base name="a" displaycolor="#FF8000"/><base name="b" displaycolor="#0000FF80"/>
</basematerials>"""
GROUP = '<m:colorgroup id="6"><m:color color="#FF0000"/><m:color color="#00FF00FF"/></m:colorgroup>'


def test_base_materials_of_objects_and_triangles(read):
    result = read(model(BASE + mesh(["", 'pid="5" p1="1"'], 'pid="5" pindex="0"')))
    assert colors(result) == {(255, 128, 0, 255), (0, 0, 255, 128)}


def test_colours_of_corners(read):
    result = read(model(GROUP + mesh(['pid="6" p1="0" p2="1" p3="1"', 'pid="6" p1="1"'])))
    mixed = np.array([1, 2, 0]) / 3  # of linear light
    (part,) = (part for part in result.parts if part.colors is not None)
    rgba = part.colors[part.faces].mean(axis=1)
    np.testing.assert_allclose(np.unique(rgba.round(5), axis=0), [[0, 1, 0, 1], [*mixed.round(5), 1]], atol=1e-5)


def test_a_triangle_without_property_in_an_object_without_one_is_neutral(read, loaded):
    result = read(model(GROUP + mesh(["", 'pid="6" p1="0"'])))
    assert colors(result) == {(178, 178, 178, 255), (255, 0, 0, 255)}


def test_composites_and_multi_properties(read):
    composite = """<m:compositematerials id="8" matid="5" matindices="0 1"><m:composite values="0 1"/>
    <m:composite values="1 0"/></m:compositematerials>"""
    several = '<m:multiproperties id="9" pids="5 6"><m:multi pindices="0 1"/></m:multiproperties>'
    result = read(model(BASE + GROUP + composite + several + mesh(['pid="8" p1="1"', 'pid="9" p1="0"'])))
    assert colors(result) == {(255, 128, 0, 255), (0, 255, 0, 255)}


def test_a_picture_over_a_colour(read):
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:2] = (255, 0, 0, 255)
    resources = """<m:texture2d id="3" path="/a.png"/><m:texture2dgroup id="4" texid="3"><m:tex2coord u="0" v="0"/>
    <m:tex2coord u="1" v="1"/></m:texture2dgroup><m:multiproperties id="9" pids="5 4"><m:multi pindices="0 0"/>
    <m:multi pindices="0 1"/></m:multiproperties>"""
    content = model(BASE + resources + mesh(['pid="9" p1="0" p2="1" p3="1"']))
    (part,) = read(content, {"a.png": png(picture)}).parts
    pixels = part.material.base_color_texture.pixels
    assert pixels.shape == (4, 4, 3)
    assert (pixels[:2] == (255, 0, 0)).all()
    assert (pixels[2:] == (255, 128, 0)).all()
    np.testing.assert_allclose(part.uv[part.faces[0]], [[0, 1], [1, 0], [1, 0]])


def test_colours_that_are_all_transparent_are_opaque(read):
    base = '<basematerials id="5"><base name="a" displaycolor="#FF800000"/></basematerials>'
    (part,) = read(model(base + mesh(attributes='pid="5" pindex="0"'))).parts
    wanted = [*srgb_to_linear(np.array([255, 128, 0]) / 255), 1]
    np.testing.assert_allclose(part.material.base_color_factor, wanted, atol=1e-6)


def test_texture_of_a_name_in_another_case(read):
    resources = """<m:texture2d id="3" path="/3D/Textures/A.png" contenttype="image/png" tilestyleu="clamp"
    filter="nearest"/><m:texture2dgroup id="4" texid="3"><m:tex2coord u="0" v="1"/><m:tex2coord u="0.5" v="0.25"/>
    </m:texture2dgroup>"""
    content = model(resources + mesh(['pid="4" p1="0" p2="1" p3="1"']))
    (part,) = read(content, {"3D/textures/a.png": png(PICTURE)}).parts
    texture = part.material.base_color_texture
    np.testing.assert_array_equal(texture.pixels, PICTURE)
    assert (texture.wrap_u, texture.wrap_v, texture.magnify) == ("clamp", "repeat", "nearest")
    np.testing.assert_allclose(part.uv[part.faces[0]], [[0, 0], [0.5, 0.75], [0.5, 0.75]])  # v downwards
    with pytest.raises(ObjectError, match=r"A\.png', which is missing from its archive"):
        read(content)


LOOP = '<object id="1"><components><component objectid="1"/><component objectid="1"/></components></object>'
DOUBLING = "".join(
    f'<object id="{i}"><components>{f"""<component objectid="{i + 1}"/>""" * 2}</components></object>'
    for i in range(1, 60)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid XML"),
        ("<other/>", "not 3MF"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><model/>', "document type"),
        (model(mesh(), '<item objectid="2"/>'), "object '2', which it does not have"),
        (model(mesh(), head='unit="mile"'), "unit is 'mile'"),
        (model(LOOP), "contain each other"),
        (model(DOUBLING + mesh(number=60)), "more than the limit of 100000"),
        (model(DOUBLING + '<object id="60"/>'), "contain each other"),
        (model(mesh().replace('v2="7"', 'v2="8"')), "names vertex 8"),
        (model(mesh().replace('v2="7"', "")), "lacks a vertex"),
        (model(mesh().replace('x="1"', "")), "not finite"),
        (model(mesh().replace('x="1"', 'x="one"')), "malformed"),
        (model(mesh(attributes='pid="5" pindex="0"')), "property '5', which it does not have"),
        (model(BASE + mesh(attributes='pid="5" pindex="2"')), "names colour 2 of a group of 2"),
        (model(BASE.replace("#FF8000", "red") + mesh(attributes='pid="5" pindex="0"')), "'red', not like #RRGGBB"),
        (model(mesh(), '<item objectid="1" transform="1 0 0"/>'), "3 numbers instead of 12"),
        (model(""), "object '1'"),
        (model("", ""), "no faces"),
    ],
)
def test_what_is_refused(read, content, message):
    with pytest.raises(ObjectError, match=message):
        read(content)


def test_archives_that_grow_without_bound_are_not_unpacked(read, tmp_path, loaded):
    with pytest.raises(ObjectError, match="more XML than a mesh of 100000 triangles needs"):
        read(model(mesh()) + " " * 100_000_000)
    picture = '<m:texture2d id="3" path="/a.png"/><m:texture2dgroup id="4" texid="3"/>'
    with pytest.raises(ObjectError, match="more than its pixels need"):
        read(model(picture + mesh(['pid="4" p1="0"'])), {"a.png": bytes(20_000_000)})
    (tmp_path / "other.3mf").write_bytes(b"not an archive")
    with pytest.raises(ObjectError, match="archive is damaged"):
        loaded(tmp_path / "other.3mf")


def test_damaged_files_are_refused_or_meshes(tmp_path, read, loaded):
    read(model(BASE + GROUP + mesh(['pid="6" p1="0" p2="1" p3="1"', ""], 'pid="5" pindex="0"')))
    path = tmp_path / "object.3mf"
    packed, rng, refused = path.read_bytes(), random.Random(4), 0
    with zipfile.ZipFile(path) as archive:
        content = archive.read("3D/a.model")
    for number in range(100):
        data = bytearray((packed, content)[number % 2])
        if number % 4 < 2:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(32, 127)
        try:
            if number % 2:
                result = read(data.decode())
            else:
                path.write_bytes(data)
                result = loaded(path)
            assert np.isfinite(result.parts[0].vertices).all()
        except ObjectError:
            refused += 1
    assert refused >= 50
