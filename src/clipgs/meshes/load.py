"""Reads a mesh file and normalises it to the canonical frame."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipgs.catalog.records import CONVERTED, USD, UpAxis
from clipgs.config import Config
from clipgs.core.errors import ObjectError
from clipgs.core.runner import Limits
from clipgs.meshes import collada, convert, gltf, obj, off, ply, stl, threemf, usd
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material, Part, srgb_to_linear
from clipgs.meshes.polygons import check_face_count

# No real object is smaller or larger in any unit, and squares of such numbers exceed float32.
_SMALLEST, _LARGEST = 1e-15, 1e15
_LIMITS = Limits(timeout_seconds=300, memory_mb=1500)
_OF_VERTICES = ("vertices", "normals", "uv", "colors", "glow_uv")  # the attributes of a part that have one row a vertex


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh in the canonical frame: right-handed, Y up, centred, the longest side of its bounding box 1.

    normalised = (y_up(original) - centre) * scale, where y_up rotates a Z-up file to Y up, and changes no other.
    """

    parts: tuple[Part, ...]
    centre: np.ndarray  # [3] float64
    scale: float
    up_axis: Literal["y", "z"] = "y"  # of the file
    note: str | None = None  # what was read in another way than the file says

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
    missing_material: Literal["neutral", "fail"] = "neutral",
    root: Path | None = None,
    limits: Limits = _LIMITS,
) -> Mesh:
    """Reads .glb, .gltf, .obj, .ply, .stl, .off, .dae and .3mf; with the extra `usd` .usd, .usda, .usdc and .usdz; by
    the converter .fbx, .blend and .abc.

    Only files in the file's own folder or below it are opened, and those below `root`, a folder of the user's. A
    texture or material file that is missing or damaged is an error, since the colours would be wrong without it; normal
    maps and gloss maps may be missing. A mesh without colours gets `neutral_color` (sRGB), and so does an .obj whose
    material file is missing, unless `missing_material` is `fail`.

    Parts with the same material become one part, in the order of the file. `up_axis` is the file's; `auto` is that of
    `up_axis_of`. `limits` are those of the converter's process, and of no other reader.

    Raises:
        ObjectError: the file cannot be read, has no faces, is not finite, has no size or an absurd one, or is over a
            limit.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, Folder, Material, int], list[Part]]]
    readers = {".glb": gltf.read, ".gltf": gltf.read, ".obj": obj.read, ".ply": ply.read}
    readers |= {".stl": stl.read, ".off": off.read, ".dae": collada.read, ".3mf": threemf.read}
    readers |= dict.fromkeys(USD, usd.read)
    readers |= dict.fromkeys(CONVERTED, partial(convert.read, limits=limits))
    suffix = path.suffix.lower()
    if path.is_dir():
        raise ObjectError("it is a folder; name a file in it")
    if suffix not in readers:
        raise ObjectError(f"files of the kind {suffix!r} are not read; known are {', '.join(readers)}")
    if not path.is_file():
        raise ObjectError("the file is missing")
    _check_content(path)
    folder = Folder(path, max_texture_pixels, root, needs_materials=missing_material == "fail")
    neutral = Material(base_color_factor=(*srgb_to_linear(np.asarray(neutral_color)).tolist(), 1.0))
    try:
        parts = readers[suffix](path, folder, neutral, max_faces)
    except (ObjectError, MemoryError):
        raise
    except Exception as error:  # a damaged file must not end the run, whatever a reader overlooks
        raise ObjectError(f"the {suffix[1:].upper()} file is malformed: {type(error).__name__}, {error}") from error
    check_face_count(sum(len(part.faces) for part in parts), max_faces)
    mesh = _normalised(_merged(parts), up_axis_of(path) if up_axis == "auto" else up_axis)
    return replace(mesh, note="; ".join(folder.notes) or None)


def _check_content(path: Path) -> None:
    """What a download leaves in place of any kind of file, under its name."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise ObjectError("the file is empty")
    head = head.lstrip()
    if head.startswith(b"version https://git-lfs"):
        raise ObjectError("it is a pointer of Git LFS and not the file itself; fetch that with: git lfs pull")
    if head[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise ObjectError("it is a web page and not the file itself; download it again")


def load_by(config: Config, path: Path, *, up_axis: UpAxis, root: Path | None) -> Mesh:
    """As `load`, with the limits and the neutral colour of a configuration."""
    settings = config.meshes.model_dump(exclude={"max_file_mb"})
    return load(path, up_axis=up_axis, root=root, limits=config.workers.load_limits, **settings)


def up_axis_of(path: Path) -> Literal["y", "z"]:
    """The axis that points up by the default of the program that wrote the file: Z in PLY and STL by Blender, else Y.

    Blender names itself in a comment of a PLY and, before version 3, in the first line of an STL; later ones leave that
    empty. It writes OBJ with Y up.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    begins = {
        ".ply": rb"ply\b[^\0]*?[\r\n]comment Created (?:in|by) Blender\b",
        ".stl": rb"\s*(?:solid )?Exported from Blender\b",
    }
    begin = begins.get(path.suffix.lower())
    return "z" if begin is not None and re.match(begin, head) else "y"


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


def _normalised(parts: list[Part], up_axis: Literal["y", "z"]) -> Mesh:
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
    return Mesh(finished, centre, scale, up_axis)


def _finite(values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return None
    with np.errstate(over="ignore"):  # numbers that float32 does not hold are none
        return np.nan_to_num(values.astype(np.float32), nan=0, posinf=0, neginf=0)


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
