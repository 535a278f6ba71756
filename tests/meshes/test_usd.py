import random
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import srgb_to_linear
from tests.meshes.damaged import damaged, failures_of
from tests.meshes.three_objects import OBJECTS, PICTURE, check_same, write_glb


def test_without_the_extra_it_says_what_to_install(tmp_path, loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    (tmp_path / "a.usda").write_text("#usda 1.0\n")
    with pytest.raises(ObjectError, match=r"clipgs\[usd\]"):
        loaded(tmp_path / "a.usda")


def save(path, up: str = "y") -> None:
    """The three objects, by the format's own library."""
    pytest.importorskip("pxr")
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdShade, Vt

    Image.fromarray(PICTURE).save(path.parent / "picture.png")
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z if up == "z" else UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    back = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]) if up == "z" else np.eye(4)
    for each in OBJECTS:
        mesh = UsdGeom.Mesh.Define(stage, f"/{each.name}")
        mesh.AddTransformOp().Set(Gf.Matrix4d((back @ each.matrix).T.tolist()))
        mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(each.vertices))
        mesh.CreateFaceVertexCountsAttr([3] * len(each.faces))
        mesh.CreateFaceVertexIndicesAttr(each.faces.reshape(-1).tolist())
        primvars = UsdGeom.PrimvarsAPI(mesh)
        if each.colors is not None:
            linear = srgb_to_linear(each.colors[:, :3] / 255).astype(np.float32)
            mesh.CreateDisplayColorPrimvar("vertex").Set(Vt.Vec3fArray.FromNumpy(linear))
            continue
        material = UsdShade.Material.Define(stage, f"/paint/{each.name}")
        shader = UsdShade.Shader.Define(stage, f"/paint/{each.name}/surface")
        shader.CreateIdAttr("UsdPreviewSurface")
        material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
        diffuse = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
        if each.uv is None:
            diffuse.Set(Gf.Vec3f(*srgb_to_linear(np.array(each.color) / 255).tolist()))
            continue
        uv = (each.uv * (1, -1) + (0, 1)).astype(np.float32)
        coordinates = primvars.CreatePrimvar("UV", Sdf.ValueTypeNames.TexCoord2fArray, "faceVarying")
        coordinates.Set(Vt.Vec2fArray.FromNumpy(uv[each.faces.reshape(-1)]))
        reader = UsdShade.Shader.Define(stage, f"/paint/{each.name}/reader")
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("UV")
        texture = UsdShade.Shader.Define(stage, f"/paint/{each.name}/texture")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set("./picture.png")
        for wrap in ("wrapS", "wrapT"):
            texture.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("repeat")
        texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        diffuse.ConnectToSource(texture.ConnectableAPI(), "rgb")
    stage.GetRootLayer().Save()


@pytest.mark.parametrize(("name", "up"), [("object.usda", "y"), ("object.usdc", "z"), ("object.usd", "y")])
def test_the_library_s_own_files_are_like_gltf(tmp_path, loaded, glb, name, up):
    save(tmp_path / name, up)
    result, wanted = loaded(tmp_path / name), loaded(write_glb(glb))
    check_same(result, wanted)
    assert result.scale == pytest.approx(wanted.scale * 100, rel=1e-5)


def test_a_package(tmp_path, loaded, glb):
    save(tmp_path / "inner.usdc")
    from pxr import Sdf, UsdUtils

    assert UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(tmp_path / "inner.usdc")), str(tmp_path / "object.usdz"))
    (tmp_path / "picture.png").unlink()
    check_same(loaded(tmp_path / "object.usdz"), loaded(write_glb(glb)))


SQUARE = """int[] faceVertexCounts = [4]
    int[] faceVertexIndices = [0, 1, 2, 3]
    point3f[] points = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]"""


def read(tmp_path, loaded, text: str):
    pytest.importorskip("pxr")
    path = tmp_path / "object.usda"
    path.write_text(f'#usda 1.0\n(\n upAxis = "Y"\n metersPerUnit = 1\n)\n{text}\n')
    return loaded(path)


def test_instancers_hidden_prims_and_left_handed_meshes(tmp_path, loaded):
    text = f"""def PointInstancer "many"
{{
    rel prototypes = [</many/a>]
    int[] protoIndices = [0, 0, 0]
    point3f[] positions = [(0, 0, 0), (10, 0, 0), (0, 5, 0)]
    def Xform "a"
    {{
        def Mesh "m"
        {{
    {SQUARE}
            uniform token orientation = "leftHanded"
        }}
    }}
}}
def Mesh "hidden"
{{
    {SQUARE}
    token visibility = "invisible"
}}
def Mesh "guide"
{{
    {SQUARE}
    uniform token purpose = "guide"
}}"""
    result = read(tmp_path, loaded, text)
    assert result.face_count == 6
    np.testing.assert_allclose(result.centre, [5.5, 3, 0], atol=1e-6)
    (part,) = result.parts
    a, b, c = (part.vertices[part.faces[:, i]].astype(float) for i in range(3))
    assert (np.cross(b - a, c - a)[:, 2] < 0).all()


@pytest.mark.parametrize("kind", ["references", "payload"])
@pytest.mark.parametrize("target", ["../outside.usda", "/etc/passwd.usda", "missing.usda"])
def test_layers_outside_the_folder_are_not_opened(tmp_path, loaded, kind, target):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.usda").write_text(f'#usda 1.0\ndef Mesh "m"\n{{\n{SQUARE}\n}}\n')
    with pytest.raises(ObjectError, match="it names"):
        read(folder, loaded, f'def "a" (\n{kind} = @{target}@</m>\n)\n{{\n}}')


def test_a_layer_in_the_folder_is_read(tmp_path, loaded):
    (tmp_path / "part.usda").write_text(f'#usda 1.0\ndef Mesh "m"\n{{\n{SQUARE}\n}}\n')
    assert read(tmp_path, loaded, 'def "a" (\nreferences = @./part.usda@</m>\n)\n{\n}').face_count == 2


def test_damaged_files_are_refused_or_meshes(tmp_path):
    """In workers, as the stages do: the library is not made for damaged files, and may end its process."""
    save(tmp_path / "a.usdc")
    save(tmp_path / "b.usda")
    rng, files = random.Random(6), []
    for number in range(100):
        whole = tmp_path / ("a.usdc", "b.usda")[number % 2]
        files.append(tmp_path / f"f{number}{whole.suffix}")
        files[-1].write_bytes(damaged(whole.read_bytes(), rng, cut=number % 4 < 2))
    assert len(failures_of(files, memory_mb=2000)) >= 50


def test_a_package_that_is_no_archive(tmp_path, loaded):
    pytest.importorskip("pxr")
    (tmp_path / "a.usdz").write_bytes(b"PK")
    with pytest.raises(ObjectError):
        loaded(tmp_path / "a.usdz")
    with zipfile.ZipFile(tmp_path / "b.usdz", "w") as archive:
        archive.writestr("a.txt", "nothing")
    with pytest.raises(ObjectError):
        loaded(tmp_path / "b.usdz")
