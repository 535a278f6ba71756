"""The plumbing with converters that are shell scripts, and what Blender's library gives where it is installed."""

import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.core.runner import Limits
from clipgs.core.workers import run
from clipgs.meshes import convert
from clipgs.meshes.load import load
from tests.meshes.damaged import damaged, failures_of
from tests.meshes.three_objects import PICTURE, check_same, write_glb

SMALL = {"max_faces": 100_000, "max_texture_pixels": 1 << 20}


# --- without Blender ---


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Makes a converter of a shell script, which gets its arguments in $parent, $memory, $root, $in and $out."""

    def make(text: str) -> None:
        python = tmp_path / "environment" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nshift 3\nparent=$1 memory=$2 root=$3 in=$4 out=$5\n{text}\n")
        python.chmod(0o755)

    monkeypatch.setenv("CLIPGS_CONVERTER", str(tmp_path / "environment"))
    (tmp_path / "object.FBX").write_bytes(b"Kaydara FBX Binary  ")
    return make


@pytest.fixture
def leftovers(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def ended(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", ["a.fbx", "a.blend", "a.abc"])
def test_without_the_converter_it_says_what_to_do(tmp_path, loaded, monkeypatch, name):
    monkeypatch.setenv("CLIPGS_CONVERTER", str(tmp_path / "nothing"))
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(ObjectError, match="clipgs doctor --install-converter"):
        loaded(tmp_path / name)


def test_the_folder_of_the_environment(monkeypatch):
    monkeypatch.delenv("CLIPGS_CONVERTER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert convert.environment() == Path("/cache/clipgs/converter")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert convert.environment() == Path.home() / ".cache/clipgs/converter"


def test_the_glb_of_the_converter_is_read_and_nothing_is_left(tmp_path, converter, loaded, leftovers, glb, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("https_proxy", "http://proxy")
    source = write_glb(glb).save(tmp_path / "wanted.glb")
    names = tmp_path / "names"
    converter(f'env > {names}; echo "$parent $memory $root $in" > {names}2; cp {source} "$out"')
    result = loaded(tmp_path / "object.FBX", root=tmp_path.parent, limits=Limits(60, 1234))
    check_same(result, loaded(source))
    assert (tmp_path / "names2").read_text().split() == [
        *(str(os.getpid()), "1234", str(tmp_path.parent), str(tmp_path / "object.FBX"))
    ]
    given = {line.partition("=")[0] for line in names.read_text().splitlines()}
    assert given <= {
        *("PATH", "LANG", "HOME", "TMPDIR", "BLENDER_USER_RESOURCES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("PWD", "OLDPWD", "SHLVL", "_"),
    }
    assert list(leftovers.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kill -SEGV $$", "ended by SIGSEGV: the file is damaged, or needs more than 1500 MB"),
        ("true", "wrote no file"),
        ("echo what it says >&2; true", "wrote no file: what it says"),
        ("echo 'clipgs: it names X' >&2; echo noise; exit 1", "^it names X$"),
        ("echo 'ImportError: libX.so' >&2; exit 1", "failed: ImportError: libX.so"),
        ('echo data > "$out"', "its glTF header is not valid JSON"),
    ],
)
def test_a_converter_that_fails(tmp_path, converter, loaded, leftovers, text, sentence):
    converter(text)
    with pytest.raises(ObjectError, match=sentence):
        loaded(tmp_path / "object.FBX")
    assert list(leftovers.iterdir()) == []


def test_a_converter_that_hangs_is_ended(tmp_path, converter, loaded, leftovers):
    converter(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(ObjectError, match=r"longer than 0\.9 s"):
        loaded(tmp_path / "object.FBX", limits=Limits(1, 1500))
    assert ended(int((tmp_path / "pid").read_text()))
    assert list(leftovers.iterdir()) == []


def test_a_converter_that_does_not_start(tmp_path, converter, loaded):
    converter("")
    (tmp_path / "environment/bin/python").chmod(0o644)
    with pytest.raises(ObjectError, match="does not start"):
        loaded(tmp_path / "object.FBX")


def _load(path: Path) -> int:
    return load(path, **SMALL).face_count


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a process with its parent")
def test_the_converter_ends_with_its_worker(tmp_path, converter, monkeypatch):
    """The true program, whose library is one that sleeps."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a worker that is killed leaves a small folder
    pid = tmp_path / "pid"
    sleeps = f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    (tmp_path / "bpy.py").write_text(sleeps)
    program, words = shlex.quote(str(convert.PROGRAM)), '"$parent" "$memory" "$root" "$in" "$out"'
    converter(f"PYTHONPATH={shlex.quote(str(tmp_path))} exec {shlex.quote(sys.executable)} {program} {words}")
    ((_, failure),) = run(_load, [tmp_path / "object.FBX"], workers=1, timeout_seconds=10, memory_mb=1500)
    assert failure.error.startswith("TimeoutError")
    assert ended(int(pid.read_text()))


# --- with Blender ---


def script(text: str, *words: object) -> None:
    """Runs a program of Blender's library, which has the words as `words`."""
    python = convert.python_of(convert.environment())
    head = "import sys, bpy\nwords = sys.argv[1:]\nbpy.ops.wm.read_factory_settings(use_empty=True)\n"
    done = subprocess.run([python, "-I", "-c", head + text, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def blender() -> None:
    if not convert.python_of(convert.environment()).is_file():
        pytest.skip(f"the converter is not installed: {convert.INSTALL}")


@pytest.fixture(scope="module")
def saved(blender, tmp_path_factory) -> Path:
    """A folder with the three objects as Blender writes them, and their GLB."""
    from tests.meshes.glb_builder import Glb

    folder = tmp_path_factory.mktemp("blender")
    source = write_glb(Glb()).save(folder / "wanted.glb")
    script(
        """bpy.ops.import_scene.gltf(filepath=words[0])
bpy.ops.wm.save_as_mainfile(filepath=words[1] + "/object.blend")
bpy.ops.export_scene.fbx(filepath=words[1] + "/object.fbx", path_mode="COPY", embed_textures=True)
bpy.ops.wm.alembic_export(filepath=words[1] + "/object.abc", as_background_job=False)""",
        source,
        folder,
    )
    return folder


@pytest.mark.parametrize("kind", ["fbx", "blend"])
def test_files_of_blender_are_like_gltf(saved, loaded, kind):
    result, wanted = loaded(saved / f"object.{kind}"), loaded(saved / "wanted.glb")
    check_same(result, wanted)
    assert result.scale == pytest.approx(wanted.scale, rel=1e-6)


def test_alembic_has_the_shape(saved, loaded):
    result, wanted = loaded(saved / "object.abc"), loaded(saved / "wanted.glb")
    corners, others = (
        np.unique(np.concatenate([part.vertices for part in mesh.parts]).round(4), axis=0) for mesh in (result, wanted)
    )
    np.testing.assert_allclose(corners, others, atol=2e-4)
    assert result.face_count == wanted.face_count
    assert result.scale == pytest.approx(wanted.scale, rel=1e-6)
    assert all(part.colors is None for part in result.parts)


def with_picture(folder: Path, how: str) -> None:
    """A plane with the picture in folder/out/picture.png, saved as folder/in/object.blend and object.fbx."""
    from PIL import Image

    for name in ("in", "out"):
        (folder / name).mkdir()
    Image.fromarray(PICTURE).save(folder / "out" / "picture.png")
    script(
        f"""folder = words[0]
image = bpy.data.images.load(folder + "/out/picture.png")
bpy.ops.mesh.primitive_plane_add()
material = bpy.data.materials.new("m")
material.use_nodes = True
nodes, links = material.node_tree.nodes, material.node_tree.links
node = nodes.new("ShaderNodeTexImage")
node.image = image
links.new(node.outputs["Color"], nodes["Principled BSDF"].inputs[{how!r}])
bpy.context.object.data.materials.append(material)
bpy.ops.export_scene.fbx(filepath=folder + "/in/object.fbx", path_mode="ABSOLUTE")
image.filepath = "C:\\\\Users\\\\me\\\\Picture.png"
bpy.ops.wm.save_as_mainfile(filepath=folder + "/in/object.blend")""",
        folder,
    )


@pytest.mark.parametrize("kind", ["fbx", "blend"])
def test_pictures_outside_the_folder_are_not_opened(blender, tmp_path, loaded, kind):
    with_picture(tmp_path, "Base Color")
    path = tmp_path / "in" / f"object.{kind}"
    with pytest.raises(ObjectError, match=r"texture '[Pp]icture\.png', which is missing from its folder"):
        loaded(path)
    (tmp_path / "in/textures").mkdir()
    (tmp_path / "out/picture.png").rename(tmp_path / "in/textures/picture.png")
    assert loaded(path).parts[0].material.base_color_texture is not None


def test_a_picture_of_no_colour_may_be_missing(blender, tmp_path, loaded):
    with_picture(tmp_path, "Roughness")
    assert loaded(tmp_path / "in/object.blend").face_count == 2


@pytest.mark.parametrize("kind", ["fbx", "blend", "abc"])
def test_another_file_is_refused_without_its_path(blender, tmp_path, loaded, kind):
    (tmp_path / f"object.{kind}").write_bytes(b"something else " * 100)
    with pytest.raises(ObjectError) as refused:
        loaded(tmp_path / f"object.{kind}")
    assert str(tmp_path) not in str(refused.value)


def test_nothing_in_a_blend_file_runs(blender, tmp_path, loaded):
    script(
        """bpy.ops.mesh.primitive_cube_add()
text = bpy.data.texts.new("t.py")
text.write(f"open({words[0]!r} + '/text', 'w')")
text.use_module = True
driver = bpy.context.object.driver_add("location", 0).driver
driver.expression = f"open({words[0]!r} + '/driver', 'w').write('')"
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/object.blend")""",
        tmp_path,
    )
    (tmp_path / "driver").unlink(missing_ok=True)  # Blender may run what a script of its own has made
    assert loaded(tmp_path / "object.blend").face_count == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["object.blend"]


def test_modifiers_count_and_what_is_not_rendered_does_not(blender, tmp_path, loaded):
    script(
        """bpy.ops.mesh.primitive_cube_add(location=(3, 0, 0))
bpy.context.object.modifiers.new("m", "ARRAY").count = 3
bpy.ops.mesh.primitive_cube_add(location=(0, 0, 9))
bpy.context.object.hide_render = True
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/object.blend")""",
        tmp_path,
    )
    assert loaded(tmp_path / "object.blend").face_count == 36


def test_a_material_with_outputs_of_two_renderers(blender, tmp_path, loaded):
    """As Blender makes of one without nodes."""
    script(
        """bpy.ops.mesh.primitive_plane_add()
material = bpy.data.materials.new("m")
material.use_nodes = True
nodes, links = material.node_tree.nodes, material.node_tree.links
nodes.clear()
for target, color in (("CYCLES", (0, 1, 0, 1)), ("EEVEE", (1, 0, 0, 1))):
    shader, output = nodes.new("ShaderNodeBsdfPrincipled"), nodes.new("ShaderNodeOutputMaterial")
    shader.inputs["Base Color"].default_value, output.target = color, target
    links.new(shader.outputs[0], output.inputs[0])
bpy.context.object.data.materials.append(material)
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/object.blend")""",
        tmp_path,
    )
    (part,) = loaded(tmp_path / "object.blend").parts
    assert part.material.base_color_factor == (1, 0, 0, 1)


def test_a_mixture_of_older_shaders_has_the_diffuse_colour(blender, tmp_path, loaded):
    script(
        """bpy.ops.mesh.primitive_plane_add()
material = bpy.data.materials.new("m")
material.use_nodes = True
nodes, links = material.node_tree.nodes, material.node_tree.links
nodes.clear()
mix, output = nodes.new("ShaderNodeMixShader"), nodes.new("ShaderNodeOutputMaterial")
links.new(mix.outputs[0], output.inputs[0])
for number, (kind, color) in enumerate((("Glossy", (1, 1, 1, 1)), ("Diffuse", (1, 0, 0, 1)))):
    shader = nodes.new("ShaderNodeBsdf" + kind)
    shader.inputs["Color"].default_value = color
    links.new(shader.outputs[0], mix.inputs[number + 1])
bpy.context.object.data.materials.append(material)
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/object.blend")""",
        tmp_path,
    )
    (part,) = loaded(tmp_path / "object.blend").parts
    assert part.material.base_color_factor == (1, 0, 0, 1)


@pytest.mark.parametrize("kind", ["fbx", "blend"])
def test_a_shape_key_has_the_weight_of_the_file(blender, tmp_path, loaded, kind):
    script(
        """bpy.ops.mesh.primitive_plane_add(size=2)
thing = bpy.context.object
thing.shape_key_add(name="rest")
key = thing.shape_key_add(name="long")
for point in key.data:
    point.co.x *= 3
key.value = 0.5
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/object.blend")
bpy.ops.export_scene.fbx(filepath=words[0] + "/object.fbx")""",
        tmp_path,
    )
    assert loaded(tmp_path / f"object.{kind}").scale == pytest.approx(1 / 4)


def test_libraries_outside_the_folder_are_refused(blender, tmp_path, loaded):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    script(
        """bpy.ops.mesh.primitive_cube_add()
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/out/part.blend")
bpy.ops.wm.read_factory_settings(use_empty=True)
with bpy.data.libraries.load(words[0] + "/out/part.blend", link=True) as (there, here):
    here.objects = there.objects
bpy.context.collection.objects.link(bpy.data.objects[0])
bpy.ops.wm.save_as_mainfile(filepath=words[0] + "/in/object.blend")""",
        tmp_path,
    )
    assert loaded(tmp_path / "in/object.blend", root=tmp_path).face_count == 12
    with pytest.raises(ObjectError, match=r"in the file 'part\.blend', which is not in its own folder"):
        loaded(tmp_path / "in/object.blend")


def test_a_white_layer_of_colours_hides_no_material(blender, tmp_path, loaded):
    script(
        """bpy.ops.mesh.primitive_cube_add()
material = bpy.data.materials.new("m")
material.use_nodes = True
material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (1, 0, 0, 1)
for place, colours in ((0, (1, 1, 1, 1)), (5, (0, 1, 0, 1))):
    bpy.ops.mesh.primitive_cube_add(location=(place, 0, 0))
    mesh = bpy.context.object.data
    mesh.materials.append(material)
    layer = mesh.color_attributes.new("Color", "BYTE_COLOR", "CORNER")
    for each in layer.data:
        each.color = colours
bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.ops.export_scene.fbx(filepath=words[0] + "/object.fbx")""",
        tmp_path,
    )
    plain, green = sorted(loaded(tmp_path / "object.fbx").parts, key=lambda part: part.vertices[:, 0].mean())
    np.testing.assert_allclose(plain.material.base_color_factor, (1, 0, 0, 1), atol=1e-3)
    color = green.colors[0] * green.material.base_color_factor
    np.testing.assert_allclose(color, (0, 1, 0, 1), atol=1e-3)


@pytest.mark.slow
def test_damaged_files_are_refused_or_meshes(saved, tmp_path):
    """Fewer than of other formats, because each starts a process of Blender's, which takes about two seconds."""
    rng, files = random.Random(7), []
    for number in range(30):
        kind = "fbx" if number < 20 else "blend" if number < 25 else "abc"
        files.append(tmp_path / f"f{number}.{kind}")
        files[-1].write_bytes(damaged((saved / f"object.{kind}").read_bytes(), rng, cut=number % 2 == 1))
    assert len(failures_of(files, memory_mb=1500)) >= 10
