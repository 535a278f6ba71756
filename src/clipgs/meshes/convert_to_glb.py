"""Writes the scene of an .fbx, .blend or .abc file as GLB, by Blender's library: a program of the converter's own.

    python -I -B convert_to_glb.py PARENT MEMORY_MB ROOT IN OUT

It ends with the process PARENT, holds MEMORY_MB at most, and uses files only that `NamedFiles(IN, ROOT)` finds. A file
that cannot be converted is exit code 1 and `clipgs: SENTENCE` on stderr. Nothing in a file is run.
"""

import ctypes
import ntpath
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # of clipgs, for the one module that needs no package
from clipgs.catalog.named_files import NamedFiles, shown

sys.path.pop()
_COLORS = ("Base Color", "Alpha", "Emission Color")  # of Blender's only material that glTF has


def _limit(parent: int, memory_mb: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    most = memory_mb << 20
    for kind, limit in ((resource.RLIMIT_DATA, most), (resource.RLIMIT_FSIZE, most), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _refuse(sentence: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\nclipgs: {' '.join(sentence.split())[:300]}\n")
    sys.stderr.flush()
    os._exit(1)  # Blender's own end may crash


def main(parent: str, memory_mb: str, root: str, name: str, glb: str) -> None:
    _limit(int(parent), int(memory_mb))
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:  # Blender starts a thread for each core that it sees, and a worker has one
        os.sched_setaffinity(0, {min(cores)})
    import bpy

    if cores:
        os.sched_setaffinity(0, cores)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    path = Path(name)
    try:
        _open(bpy, path)
    except RuntimeError as error:
        text = re.sub(rf" ['\"]?{re.escape(name)}['\"]?", "", str(error))  # of this machine
        lines = text.strip().splitlines() or ["no reason was given"]
        _refuse(f"Blender could not read it: {lines[-1].removeprefix('Error: ')}")
    files = NamedFiles(path, Path(root))
    _check_libraries(bpy, files)
    materials = {slot.material for thing in bpy.data.objects for slot in thing.material_slots if slot.material}
    _choose_outputs(bpy, materials)
    _find_pictures(bpy, files, materials)
    if path.suffix.lower() == ".fbx":
        _show_vertex_colors(bpy)
    for thing in bpy.data.objects:
        # The exporter takes a mesh with all its shape keys at 0, unless there is a modifier, even one that is not used.
        if thing.type == "MESH" and thing.data.shape_keys and not thing.modifiers:
            thing.modifiers.new("shape keys", "TRIANGULATE").show_viewport = False
    bpy.ops.export_scene.gltf(
        filepath=glb,
        export_format="GLB",
        export_apply=True,
        export_skins=False,  # with them the armature's modifier would not be applied
        export_morph=False,
        export_animations=False,
        use_active_scene=True,
        use_renderable=True,
    )
    sys.stdout.flush()
    os._exit(0)


def _open(bpy: Any, path: Path) -> None:
    match path.suffix.lower():
        case ".blend":
            bpy.ops.wm.open_mainfile(filepath=str(path), load_ui=False, use_scripts=False)
        case ".fbx":
            bpy.ops.wm.fbx_import(filepath=str(path), use_anim=False, import_subdivision=True)
        case ".abc":
            bpy.ops.wm.alembic_import(filepath=str(path), as_background_job=False)
            bpy.context.scene.frame_set(bpy.context.scene.frame_start)


# --- other files ---


def _inside(files: NamedFiles, name: str) -> bool:
    """Is it a file that may be opened?"""
    path = Path(name).resolve()
    return path.is_file() and (path.is_relative_to(files.root) or path.is_relative_to(files.home))


def _check_libraries(bpy: Any, files: NamedFiles) -> None:
    """Refuses a scene of which a part is in a file that is missing, or that lies outside of the object's folder."""
    named = [*(each for each in bpy.data.libraries if not each.packed_file), *bpy.data.cache_files]
    named += [each for thing in bpy.data.objects for each in thing.modifiers if each.type == "MESH_CACHE"]
    for each in named:
        if not _inside(files, bpy.path.abspath(each.filepath, library=each.id_data.library)):
            name = shown(ntpath.basename(each.filepath))
            _refuse(f"a part of it is in the file {name}, which is not in its own folder, so it was not used")
    for tree in bpy.data.node_groups:
        if any(node.bl_idname.startswith("GeometryNodeImport") for node in tree.nodes):
            _refuse("its geometry nodes read other files, which are not opened")


def _find_pictures(bpy: Any, files: NamedFiles, materials: set[Any]) -> None:
    """Points every picture to its file. Those without a file are dropped, or refused if a colour needs them."""
    lost = set()
    for image in bpy.data.images:
        if image.source in ("GENERATED", "VIEWER") or image.packed_file:
            continue
        path = bpy.path.abspath(image.filepath.replace("<UDIM>", "1001"), library=image.library)
        if _inside(files, path):
            continue
        # As a rule the path is that of another machine.
        found = files.find(image.filepath.removeprefix("//"), picture=True) if image.source == "FILE" else None
        if found is None:
            lost.add(image)
        else:
            image.filepath = str(found)
    for material in materials:
        for image in _pictures(material.node_tree) if material.node_tree else ():
            if image in lost:
                name = ntpath.basename(image.filepath) or image.name
                _refuse(f"it names the texture {shown(name)}, which is missing from its folder")
    for image in lost:
        bpy.data.images.remove(image)


def _pictures(tree: Any) -> Iterator[Any]:
    """The pictures that decide on the colours of a material."""
    for node in _that_color(tree):
        if node.type == "TEX_IMAGE" and node.image:
            yield node.image
        if node.type == "GROUP" and node.node_tree:
            yield from (each.image for each in node.node_tree.nodes if each.type == "TEX_IMAGE" and each.image)


def _that_color(tree: Any) -> list[Any]:
    """The nodes that decide on the colours of a material, those next to its output first."""
    found = _outputs(tree)
    for node in found:  # grows
        for socket in node.inputs:
            if socket.name in _COLORS if node.type == "BSDF_PRINCIPLED" else socket.name not in ("Normal", "Height"):
                found += [link.from_node for link in socket.links if link.from_node not in found]
    return found


# --- colours ---


def _choose_outputs(bpy: Any, materials: set[Any]) -> None:
    """Leaves a material the one output that Blender shows, since the exporter knows no output of one renderer only.

    A material without nodes has two, because Blender gives it nodes when it opens the file.
    """
    trees = [material.node_tree for material in materials if material.node_tree]
    before_nodes = bpy.data.version < (2, 80, 0) and any(len(_outputs(tree)) > 1 for tree in trees)
    if before_nodes and any(image.source == "FILE" for image in bpy.data.images):
        _refuse("it has textures of Blender before 2.80, which later versions do not show")
    for tree in trees:
        chosen = tree.get_output_node("EEVEE") or tree.get_output_node("CYCLES")
        if chosen is not None:
            for node in _outputs(tree):
                if node != chosen:
                    tree.nodes.remove(node)
            chosen.target, chosen.is_active_output = "ALL", True
            _replace_shader(tree, chosen)


def _replace_shader(tree: Any, output: Any) -> None:
    """Replaces shaders that the exporter does not know by the one that it does, with the colour of the diffuse one."""
    nodes = _that_color(tree)
    shaders = [node for node in nodes if node.type.startswith("BSDF_") and "Color" in node.inputs]
    if not shaders or any(node.type in ("BSDF_PRINCIPLED", "EMISSION", "GROUP") for node in nodes):
        return
    old = next((node for node in shaders if node.type == "BSDF_DIFFUSE"), shaders[0])
    new = tree.nodes.new("ShaderNodeBsdfPrincipled")
    new.inputs["Base Color"].default_value = old.inputs["Color"].default_value
    for link in old.inputs["Color"].links:
        tree.links.new(link.from_socket, new.inputs["Base Color"])
    tree.links.new(new.outputs[0], output.inputs["Surface"])


def _outputs(tree: Any) -> list[Any]:
    return [node for node in tree.nodes if node.type == "OUTPUT_MATERIAL"]


def _show_vertex_colors(bpy: Any) -> None:
    """Makes colours of vertices those of the surface where it has no picture; FBX does not say which count.

    They replace the material's colour, unless they are all white.
    """
    colored: dict[tuple[str, str], Any] = {}
    for thing in bpy.data.objects:
        attribute = _vertex_colors(thing.data) if thing.type == "MESH" else None
        if attribute is None:
            continue
        for slot in thing.material_slots:
            if slot.material is None or slot.material.node_tree is None:
                continue
            key = slot.material.name, attribute
            if key not in colored:
                colored[key] = _colored(slot.material, attribute)
            slot.material = colored[key]


def _vertex_colors(mesh: Any) -> str | None:
    import numpy as np

    number = mesh.color_attributes.render_color_index
    if not 0 <= number < len(mesh.color_attributes):
        return None
    attribute = mesh.color_attributes[number]
    values = np.ones((len(attribute.data), 4), np.float32)
    attribute.data.foreach_get("color", values.reshape(-1))
    return attribute.name if (values[:, :3] < 1).any() else None


def _colored(material: Any, attribute: str) -> Any:
    """The material with the colours of an attribute; itself if its colour is a picture or it has them already."""
    shader = next((node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED"), None)
    if shader is None or shader.inputs["Base Color"].is_linked:
        return material
    copied = material.copy()  # a mesh without colours may have the same
    nodes = copied.node_tree.nodes
    source = nodes.new("ShaderNodeVertexColor")
    source.layer_name = attribute
    copied.node_tree.links.new(source.outputs["Color"], nodes[shader.name].inputs["Base Color"])
    return copied


if __name__ == "__main__":
    main(*sys.argv[1:])
