"""Reads a mesh file and normalises it to the canonical frame."""

import io
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipgs.catalog.records import UpAxis
from clipgs.core.errors import ObjectError
from clipgs.core.ply_header import END, parse_ply_header
from clipgs.meshes import gltf, obj
from clipgs.meshes.folder import Folder, decode_text
from clipgs.meshes.materials import AlphaMode, Material, Part, Texture, srgb_to_linear

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
    root: Path | None = None,
) -> Mesh:
    """Reads .glb, .gltf, .obj, .ply, .stl or .off.

    Only files in the file's own folder or below it are opened, and those below `root`, a folder of the user's. A
    texture or material file that is missing or damaged is an error, since the colours would be wrong without it; normal
    maps and gloss maps may be missing. A mesh without colours gets `neutral_color` (sRGB).

    Parts with the same material become one part, in the order of the file. `clipgs.meshes.gltf` reads glTF and
    `clipgs.meshes.obj` OBJ; trimesh reads the others, after the counts in their headers are checked against the
    size of the file.

    Raises:
        ObjectError: the file cannot be read, has no faces, is not finite, has no size or an absurd one, or is over a
            limit.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, Folder, Material, int], list[Part]]]
    readers = {".glb": gltf.read, ".gltf": gltf.read, ".obj": obj.read, ".ply": _read_ply}
    readers |= {".stl": _read_stl, ".off": _read_off}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ObjectError(f"files of the kind {suffix!r} are not read; known are {', '.join(readers)}")
    if not path.is_file():
        raise ObjectError("the file is missing")
    folder = Folder(path, max_texture_pixels, root)
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
    _check_face_count(sum(len(part.faces) for part in parts), max_faces)
    return _normalised(_merged(parts), up_axis)


def _check_face_count(count: int, limit: int) -> None:
    if count > limit:
        raise ObjectError(f"it has {count} triangles, more than the limit of {limit}")


# --- formats ---


def _read_ply(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    from trimesh.exchange.ply import load_ply

    data = path.read_bytes()
    _check_ply_header(data, max_faces)
    head, end, body = data.partition(END)
    try:
        head.decode()
    except UnicodeDecodeError:  # trimesh reads comments as UTF-8 only
        data = head.decode("latin-1").encode() + end + body
    textures: Any = _Textures(folder)
    return [_part(load_ply(io.BytesIO(data), resolver=textures), neutral)]


def _read_stl(path: Path, _: Folder, neutral: Material, max_faces: int) -> list[Part]:
    from trimesh.exchange.stl import load_stl

    data = path.read_bytes()
    claimed = int.from_bytes(data[80:84], "little")
    if len(data) != 84 + 50 * claimed and not data.lstrip()[:5].lower() == b"solid":
        raise ObjectError(f"the STL file claims {claimed} triangles, which do not fit its {len(data)} bytes")
    if len(data) == 84 + 50 * claimed:
        _check_face_count(claimed, max_faces)
    loaded = load_stl(io.BytesIO(data))
    solids = loaded["geometry"].values() if "geometry" in loaded else [loaded]
    return [_part(kwargs, neutral) for kwargs in solids]


def _read_off(path: Path, _: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """OFF and COFF, with the colours that trimesh ignores: of vertices (COFF), else of faces."""
    lines = [line.partition("#")[0].split() for line in decode_text(path.read_bytes()).splitlines()]
    head, *body = [line for line in lines if line] or [[""]]
    if not head[0].upper().startswith(("OFF", "COFF")):
        raise ObjectError("the OFF file does not begin with OFF")
    # Some files, such as ModelNet's, have the counts on the first line, even without a space.
    first = re.sub(r"^C?OFF", "", head[0], flags=re.IGNORECASE)
    head = ([first] if first else []) + head[1:]
    if not head:
        head, *body = body
    vertex_count, face_count = int(head[0]), int(head[1])
    if vertex_count < 0 or face_count < 0 or vertex_count + face_count > len(body):
        raise ObjectError(
            f"the OFF file claims {vertex_count} vertices and {face_count} faces, and has {len(body)} lines"
        )
    _check_face_count(face_count, max_faces)
    rows = body[:vertex_count]
    vertices = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
    polygons = [
        (row[1 : 1 + int(row[0])], row[1 + int(row[0]) :]) for row in body[vertex_count : vertex_count + face_count]
    ]
    faces = [(polygon[0], *edge) for polygon, _ in polygons for edge in pairwise(polygon[1:])]
    kwargs: dict[str, Any] = {"vertices": vertices, "faces": np.array(faces, np.int64).reshape(-1, 3)}
    if rows and all(len(row) in (6, 7) for row in rows):
        kwargs["vertex_colors"] = _off_colors([row[3:] for row in rows])
    elif polygons and all(len(color) in (3, 4) for _, color in polygons):
        kwargs["face_colors"] = _off_colors([c for polygon, c in polygons for _ in polygon[2:]])
    return [_part(kwargs, neutral)]


def _off_colors(rows: list[list[str]]) -> np.ndarray:
    """Colours in [0, 1]. The numbers are fractions if any has a decimal point (as in Geomview), else bytes."""
    colors = np.array([row[:3] for row in rows], np.float64)
    return colors if any("." in word for row in rows for word in row) else colors / 255


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


def _check_ply_header(data: bytes, max_faces: int) -> None:
    end = data.find(END)
    if not data.startswith(b"ply") or end < 0:
        raise ObjectError("the PLY file has no header")
    header = parse_ply_header(data[:end])
    needed = 0
    for element in header.elements:
        if element.count < 0:
            raise ObjectError(f"the PLY file claims {element.count} elements")
        # A list needs at least the bytes of its length; in text, a digit and a space.
        needed += element.count * (2 * len(element.properties) if header.text else element.row_bytes)
    if needed > len(data) - end:
        raise ObjectError(f"the PLY file claims {needed} bytes of elements and has {len(data) - end}")
    faces = header.element("face")
    _check_face_count(faces.count if faces else 0, max_faces)


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
    a, b, c = (part.vertices[part.faces[:, i]].astype(np.float64) for i in range(3))
    return bool((np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0).any())
