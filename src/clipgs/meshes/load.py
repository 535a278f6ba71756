"""Reads a mesh file and normalises it to the canonical frame."""

import io
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipgs.catalog.records import UpAxis
from clipgs.core.errors import ObjectError
from clipgs.meshes import gltf, off, ply, stl
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import AlphaMode, Material, Part, Texture, srgb_to_linear
from clipgs.meshes.polygons import check_face_count
from clipgs.meshes.texts import decoded

# trimesh logs tracebacks of errors that it ignores; errors that matter are raised.
logging.getLogger("trimesh").setLevel(logging.CRITICAL)

# No real object is smaller or larger in any unit, and squares of such numbers exceed float32.
_SMALLEST, _LARGEST = 1e-15, 1e15
_OF_VERTICES = ("vertices", "normals", "uv", "colors", "glow_uv")  # the attributes of a part that have one row a vertex


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh in the canonical frame: right-handed, Y up, centred, the longest side of its bounding box 1.

    normalised = (y_up(original) - centre) * scale, where y_up rotates a Z-up file to Y up, and changes no other.
    """

    parts: tuple[Part, ...]
    centre: np.ndarray  # [3] float64
    scale: float

    @property
    def face_count(self) -> int:
        return sum(len(part.faces) for part in self.parts)


def load(
    path: Path,
    *,
    up_axis: UpAxis = "y",
    max_faces: int,
    max_texture_pixels: int,
    neutral_color: tuple[float, float, float] = (0.7, 0.7, 0.7),
) -> Mesh:
    """Reads .glb, .gltf, .obj, .ply, .stl or .off.

    Only files in the file's own folder, or below it, are opened. A texture or material file that is missing or damaged
    is an error, since the colours would be wrong without it; normal maps and gloss maps may be missing. A mesh without
    colours gets `neutral_color` (sRGB).

    Parts with the same material become one part, in the order of the file. trimesh reads OBJ, and
    modules of this package read the others.

    Raises:
        ObjectError: the file cannot be read, has no faces, is not finite, has no size or an absurd one, or is over a
            limit.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, Folder, Material, int], list[Part]]]
    readers = {".glb": gltf.read, ".gltf": gltf.read, ".obj": _read_obj, ".ply": ply.read}
    readers |= {".stl": stl.read, ".off": off.read}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ObjectError(f"files of the kind {suffix!r} are not read; known are {', '.join(readers)}")
    if not path.is_file():
        raise ObjectError("the file is missing")
    folder = Folder(path, max_texture_pixels)
    neutral = Material(base_color_factor=(*srgb_to_linear(np.asarray(neutral_color)).tolist(), 1.0))
    try:
        parts = readers[suffix](path, folder, neutral, max_faces)
    except (ObjectError, MemoryError):
        raise
    except Exception as error:  # trimesh raises errors of any class
        reason = f"the {suffix[1:].upper()} file is malformed: {type(error).__name__}, {error}"
        raise folder.refusal or ObjectError(reason) from error
    if folder.refusal is not None:
        raise folder.refusal
    check_face_count(sum(len(part.faces) for part in parts), max_faces)
    return _normalised(_merged(parts), up_axis)


# --- formats ---


def _read_obj(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    from trimesh.exchange.obj import load_obj

    text = decoded(path.read_bytes())
    check_face_count(text.count("\nf "), max_faces)  # a polygon has at least one triangle, and parsing is slow
    text = _absolute_indices(text)
    libraries = re.findall(r"^[ \t]*mtllib[ \t]+(.+?)[ \t]*$", text, re.MULTILINE)
    # A material file that no face uses gives no colours, and is often missing.
    used = bool(libraries) and re.search(r"^[ \t]*usemtl\b", text, re.MULTILINE) is not None
    materials = "\n".join(decoded(folder.get(name)) for name in libraries) if used else ""
    # trimesh reads the options of a texture as part of its name.
    materials = re.sub(r"(?im)^([ \t]*map_kd[ \t]+)(?:-[a-z]+[ \t]+(?:(?:[-+.\d]+|on|off)[ \t]+)*)+", r"\1", materials)
    textures: Any = _Textures(folder, materials.encode() + b"\n")
    loaded = load_obj(io.BytesIO(text.encode()), resolver=textures, skip_materials=not used)
    return [_part(kwargs, neutral) for kwargs in loaded.get("geometry", {}).values()]


def _absolute_indices(text: str) -> str:
    """OBJ text with positive indices: negative ones count back from their own line, but in trimesh from the end."""
    if re.search(r"^[ \t]*f\b.*-\d", text, re.MULTILINE) is None:
        return text
    counts, lines = {"v": 0, "vt": 0, "vn": 0}, []
    for line in text.splitlines():
        kind, *words = line.split() or [""]
        if kind in counts:
            counts[kind] += 1
        elif kind == "f":
            for place, word in enumerate(words):
                words[place] = "/".join(
                    str(total + int(index) + 1) if index.startswith("-") else index
                    for index, total in zip(word.split("/"), counts.values(), strict=False)
                )
            line = " ".join(["f", *words])
        lines.append(line)
    return "\n".join(lines)


class _Textures:
    """The resolver of trimesh's readers: it returns `materials` at its first call, then textures.

    Textures are checked and decoded here, and trimesh gets them as PNG.
    """

    def __init__(self, folder: Folder, materials: bytes = b"") -> None:
        self.folder, self.materials = folder, materials

    def get(self, name: str) -> bytes:
        if self.materials:
            materials, self.materials = self.materials, b""
            return materials
        buffer = io.BytesIO()
        Image.fromarray(self.folder.image(name)).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()

    __getitem__ = get


def _part(kwargs: dict[str, Any], neutral: Material) -> Part:
    """A part from the output of trimesh's readers (arguments of `trimesh.Trimesh`)."""
    vertices = np.asarray(kwargs.get("vertices", ()), np.float64).reshape(-1, 3)
    faces = kwargs.get("faces")
    faces = np.zeros((0, 3), np.int64) if faces is None else np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3:
        from trimesh.geometry import triangulate_quads

        faces = triangulate_quads(faces)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise ObjectError(f"a face names vertex {int(faces.max())}, of which there are {len(vertices)}")
    normals = kwargs.get("vertex_normals")
    visual = kwargs.get("visual")
    uv = None if visual is None or visual.uv is None else np.asarray(visual.uv, np.float64) * (1, -1) + (0, 1)
    material = None if visual is None else _simple_material(visual.material)
    colors = kwargs.get("vertex_colors")
    if colors is None and kwargs.get("face_colors") is not None:
        colors = np.repeat(np.asarray(kwargs["face_colors"]), 3, axis=0)
        order = faces.reshape(-1)
        vertices, faces = vertices[order], np.arange(len(order)).reshape(-1, 3)
        uv = None if uv is None else uv[order]
        normals = None if normals is None else np.asarray(normals)[order]
    if colors is not None:
        colors = _srgb_colors(np.asarray(colors), len(vertices))
    if material is None:
        material = neutral if colors is None else Material()
    return Part(vertices, faces, None if normals is None else np.asarray(normals), uv, colors, material)


def _srgb_colors(colors: np.ndarray, count: int) -> np.ndarray | None:
    """Linear [V, 4] of sRGB colours, which are bytes or fractions; None if their shape is not that of colours."""
    if len(colors) != count or colors.ndim != 2 or colors.shape[1] not in (3, 4):
        return None
    fractions = colors / np.iinfo(colors.dtype).max if colors.dtype.kind in "iu" else colors.astype(np.float64)
    if fractions.max(initial=0) > 1:  # OBJ files have either
        fractions = fractions / 255
    if not np.isfinite(fractions).all():
        raise ObjectError("some vertex colours are not finite numbers")
    return np.column_stack([srgb_to_linear(fractions[:, :3].clip(0, 1)), np.ones(count)])


def _simple_material(material: Any) -> Material | None:
    """The material of an MTL or PLY file; None if it has no colour.

    Kd is a display colour (sRGB). A texture replaces it, because exporters write any value beside a texture.
    """
    image, values = getattr(material, "image", None), getattr(material, "kwargs", {})
    # Only a fraction is an opacity: programs that write 0 mean opaque.
    opacity = next((float(word) for word in values.get("d", ())), 1.0)
    alpha = opacity if 0 < opacity < 1 else 1.0
    if image is not None and image.format is not None:  # without a texture trimesh makes an image, which has no format
        pixels = np.asarray(image)
        cut_out = pixels.shape[2] == 4 and pixels[..., 3].min() < 255
        mode: AlphaMode = "BLEND" if alpha < 1 else "MASK" if cut_out else "OPAQUE"
        return Material((1.0, 1.0, 1.0, alpha), Texture(pixels), alpha_mode=mode)
    diffuse = values.get("kd")
    if not isinstance(diffuse, list) or len(diffuse) < 3 or not np.isfinite(diffuse).all():
        return None
    linear = srgb_to_linear(np.clip(diffuse[:3], 0, 1)).tolist()
    return Material((*linear, alpha), alpha_mode="BLEND" if alpha < 1 else "OPAQUE")


# --- the canonical frame ---


def _merged(parts: Iterable[Part]) -> list[Part]:
    """One part for each material and set of attributes, because many small draw calls make rendering slow."""
    groups: dict[tuple[Any, ...], list[Part]] = {}
    for part in parts:
        if len(part.faces):
            key = (part.material, *(getattr(part, name) is None for name in _OF_VERTICES))
            groups.setdefault(key, []).append(_compacted(part))
    return [_joined(group) for group in groups.values()]


def _compacted(part: Part) -> Part:
    """The part without vertices that no face names, since they must not count for the bounding box."""
    used = np.zeros(len(part.vertices), bool)
    used[part.faces] = True
    if used.all():
        return part
    number = np.cumsum(used) - 1
    kept = {name: getattr(part, name)[used] for name in _OF_VERTICES if getattr(part, name) is not None}
    return replace(part, faces=number[part.faces], **kept)


def _joined(group: list[Part]) -> Part:
    starts = np.cumsum([0, *(len(part.vertices) for part in group)])
    faces = np.concatenate([part.faces + start for part, start in zip(group, starts, strict=False)])
    present = [name for name in _OF_VERTICES if getattr(group[0], name) is not None]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in group]) for name in present}
    return replace(group[0], faces=faces, **arrays)


def _normalised(parts: list[Part], up_axis: UpAxis) -> Mesh:
    if not parts:
        raise ObjectError("it has no faces")
    if up_axis not in ("y", "z"):
        raise ValueError(f"up_axis is {up_axis!r}, not 'y' or 'z'")
    if not all(np.isfinite(part.vertices).all() for part in parts):
        raise ObjectError("some vertices are not finite numbers")
    # A quarter turn about X takes Z up to Y up.
    turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]] if up_axis == "z" else np.eye(3), np.float64)
    turned = [part.vertices @ turn.T for part in parts]
    low = np.min([vertices.min(axis=0) for vertices in turned], axis=0)
    high = np.max([vertices.max(axis=0) for vertices in turned], axis=0)
    largest = max(np.abs(low).max(), np.abs(high).max())
    if largest > _LARGEST:
        raise ObjectError(f"it has coordinates up to {largest:.3g}, which is not the size of an object")
    size = float((high - low).max())
    if size < _SMALLEST or size < largest * 1e-12:
        raise ObjectError("it has no size: all its vertices are at one point")
    centre, scale = (low + high) / 2, 1.0 / size
    finished = tuple(
        Part(
            vertices=((vertices - centre) * scale).astype(np.float32),
            faces=np.ascontiguousarray(part.faces, np.int32),
            normals=_unit_normals(part.normals, turn),
            uv=_finite(part.uv),
            colors=_finite(part.colors),
            glow_uv=_finite(part.glow_uv),
            material=part.material,
        )
        for part, vertices in zip(parts, turned, strict=True)
    )
    if not any(_has_area(part) for part in finished):
        raise ObjectError("it has no surface: all its triangles are lines or points")
    return Mesh(finished, centre, scale)


def _finite(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.nan_to_num(values, nan=0, posinf=0, neginf=0).astype(np.float32)


def _unit_normals(normals: np.ndarray | None, turn: np.ndarray) -> np.ndarray | None:
    """Unit normals; zero where the file's normal has no direction, which the shader draws as a flat face."""
    if normals is None:
        return None
    normals = np.nan_to_num(normals.astype(np.float64), nan=0, posinf=0, neginf=0) @ turn.T
    normals = normals / np.abs(normals).max(axis=1, keepdims=True).clip(1e-300)  # squares of tiny ones would vanish
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / length.clip(1e-12)).astype(np.float32)


def _has_area(part: Part) -> bool:
    for first in range(0, len(part.faces), 10_000):  # usually the first triangles have
        a, b, c = (part.vertices[corner].astype(np.float64) for corner in part.faces[first : first + 10_000].T)
        if (np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0).any():
            return True
    return False
