"""Reads 3MF, .3mf, as the parts of a mesh.

Two packages of the 3MF Consortium's library exist, and neither has wheels for every machine.

Colours are sRGB, by the standard, and are blended in sRGB. An object's own property counts for triangles without one.
Of the layers of a multi-property, a picture lies over one colour, or over another picture of the same layout; of other
layers the upper one counts.

Method: 3MF Core specification 1.3, Materials and Properties extension 1.2, Production extension 1.1.
"""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import Folder, decode_image
from clipgs.meshes.gltf import transformed
from clipgs.meshes.markup import Element, parse
from clipgs.meshes.materials import AlphaMode, Filter, Material, Part, Texture, Wrap, srgb_to_linear
from clipgs.meshes.polygons import check_corners, check_face_count

_ROWS = {
    "vertex": ("x", "y", "z"),
    "triangle": ("v1", "v2", "v3", "pid", "p1", "p2", "p3"),
    "tex2coord": ("u", "v"),
}
_METRES = {"micron": 1e-6, "millimeter": 1e-3, "centimeter": 1e-2, "inch": 0.0254, "foot": 0.3048, "meter": 1.0}
_WRAPS: dict[str, Wrap] = {"wrap": "repeat", "mirror": "mirror", "clamp": "clamp", "none": "clamp"}
_FILTERS: dict[str, tuple[Filter, Filter]] = {"nearest": ("nearest", "nearest")}
_Z_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)
# A face takes at least so many bytes of XML, and the rest of a model is small beside them; texts of slicers are not.
_XML_PER_FACE = 400
_SMALL_XML = 50_000_000
_DEEPEST, _MOST_COMPONENTS = 100, 200_000  # components within components, and all of them


class _Group(NamedTuple):
    """What the indices of a property name: colours [N, 4] (sRGB, alpha), or places [N, 2] on a picture."""

    colors: np.ndarray | None
    uv: np.ndarray | None
    material: Material

    @property
    def values(self) -> np.ndarray:
        values = self.colors if self.uv is None else self.uv
        assert values is not None
        return values


def read(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """Parts of the file's build, in metres with Y up (float64), one for each property group of each mesh.

    Objects that support others are left out.

    Raises:
        ObjectError: the file is damaged or has more than `max_faces` triangles.
    """
    try:
        with zipfile.ZipFile(path) as archive, np.errstate(all="ignore"):
            return list(_Package(archive, folder, neutral, max_faces).parts())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, RecursionError):
            raise
        raise ObjectError(f"its archive is damaged: {error}") from error


class _Package:
    def __init__(self, archive: zipfile.ZipFile, folder: Folder, neutral: Material, max_faces: int) -> None:
        self.archive, self.folder, self.neutral, self.max_faces = archive, folder, neutral, max_faces
        # Names are compared without regard to case, as in the standard of the packages.
        self.names = {("/" + info.filename.lstrip("/")).casefold(): info for info in archive.infolist()}
        self.models: dict[str, _Model] = {}
        self.images: dict[str, np.ndarray] = {}
        self.xml_left = _SMALL_XML + _XML_PER_FACE * max_faces
        self.face_count = self.component_count = 0

    def info(self, name: str) -> zipfile.ZipInfo:
        """The entry of a file. Its size is what is read at most, even if it is not true."""
        info = self.names.get(name.casefold()) or self.names.get(unquote(name).casefold())
        if info is None:
            raise ObjectError(f"it names {name[:100]!r}, which is missing from its archive")
        return info

    def xml(self, name: str, rows: dict[str, tuple[str, ...]] | None = None) -> Element:
        info = self.info(name)
        self.xml_left -= info.file_size
        if self.xml_left < 0:
            raise ObjectError(f"its archive has more XML than a mesh of {self.max_faces} triangles needs")
        with self.archive.open(info) as file:
            return parse(file, rows)

    def model(self, name: str) -> "_Model":
        key = name.casefold()
        if key not in self.models:
            self.models[key] = _Model(self, self.xml(name, _ROWS))
        return self.models[key]

    def image(self, name: str) -> np.ndarray:
        if name not in self.images:
            info = self.info(name)
            if info.file_size > 4 * self.folder.max_texture_pixels + 1_000_000:
                raise ObjectError(f"its texture {name[:100]!r} has {info.file_size} bytes, more than its pixels need")
            self.images[name] = decode_image(self.archive.read(info), name, self.folder.max_texture_pixels)
        return self.images[name]

    def parts(self) -> Iterator[Part]:
        root = "/3D/3dmodel.model"
        if "/_rels/.rels" in self.names:
            for each in self.xml("/_rels/.rels").all("Relationship"):
                if each.get("Type").endswith("/3dmodel"):
                    root = posixpath.normpath("/" + each.get("Target"))
                    root = "/" + root.lstrip("/")
        model = self.model(root)
        if model.root.name != "model":
            raise ObjectError(f"it is not 3MF: its model begins with {model.root.name[:50]!r}")
        unit = model.root.get("unit", "millimeter")
        if unit not in _METRES:
            raise ObjectError(f"its unit is {unit[:50]!r}, not one of {', '.join(_METRES)}")
        frame = _Z_UP * [[_METRES[unit]], [_METRES[unit]], [_METRES[unit]], [1]]
        for item in model.root.all("build", "item"):
            place = self.model(item.get("path")) if "path" in item.attributes else model
            yield from self.object(place, item.get("objectid"), frame @ _matrix(item.get("transform")), 0)

    def object(self, model: "_Model", number: str, matrix: np.ndarray, depth: int) -> Iterator[Part]:
        described = model.objects.get(number)
        if described is None:
            raise ObjectError(f"it refers to the object {number[:20]!r}, which it does not have")
        self.component_count += 1
        if depth > _DEEPEST or self.component_count > _MOST_COMPONENTS:
            # An object may contain itself, and shared ones could multiply without bound.
            raise ObjectError("its components contain each other too many times")
        if described.get("type", "model") in ("support", "solidsupport"):
            return
        for part in model.mesh(described):
            self.face_count += len(part.faces)
            check_face_count(self.face_count, self.max_faces)
            yield transformed(part, matrix[None])
        for component in described.all("components", "component"):
            place = self.model(component.get("path")) if "path" in component.attributes else model
            below = matrix @ _matrix(component.get("transform"))
            yield from self.object(place, component.get("objectid"), below, depth + 1)


class _Model:
    """A model file of a package."""

    def __init__(self, package: _Package, root: Element) -> None:
        self.package, self.root = package, root
        resources = list(root.all("resources"))
        self.objects = {each.get("id"): each for owner in resources for each in owner.all("object")}
        self.resources = {each.get("id"): each for owner in resources for each in owner.children}
        self.groups: dict[str, _Group | None] = {}
        self.meshes: dict[Element, list[Part]] = {}

    def mesh(self, described: Element) -> list[Part]:
        """The parts of an object's own mesh, in its own coordinates."""
        if described not in self.meshes:  # components share one mesh
            self.meshes[described] = list(self.parts(described))
        return self.meshes[described]

    def parts(self, described: Element) -> Iterator[Part]:
        vertices, triangles = (described.first("mesh", name) for name in ("vertices", "triangles"))
        if vertices is None or triangles is None or "vertex" not in vertices.rows or "triangle" not in triangles.rows:
            return
        positions = np.array(vertices.rows["vertex"]).reshape(-1, 3)
        rows = np.array(triangles.rows["triangle"]).reshape(-1, 7)
        check_face_count(len(rows), self.package.max_faces)
        if not np.isfinite(rows[:, :3]).all():
            raise ObjectError("one of its triangles lacks a vertex")
        faces = rows[:, :3].astype(np.int64)
        check_corners(faces.reshape(-1), len(positions))
        own, first = described.get("pid"), described.get("pindex")
        groups = np.nan_to_num(rows[:, 3], nan=-1).astype(np.int64)
        # Of a triangle: p1 alone is for all three corners; without it, the object's own property.
        corners = rows[:, 4:7]
        corners = np.where(np.isnan(corners), corners[:, :1], corners)
        inherited = (groups < 0) | np.isnan(corners[:, 0])
        if own:
            corners[inherited], groups[inherited] = float(first or 0), int(own)
        else:
            groups[inherited] = -1
        for number in np.unique(groups).tolist():
            chosen = groups == number
            group = None if number < 0 else self.group(str(number))
            yield _part(positions, faces[chosen], corners[chosen], group, self.package.neutral)

    def group(self, number: str) -> _Group | None:
        """A property group; None if it has no colour."""
        if number not in self.groups:
            self.groups[number] = None  # of a group that names itself
            described = self.resources.get(number)
            if described is None:
                raise ObjectError(f"it refers to the property {number[:20]!r}, which it does not have")
            self.groups[number] = self.described(described)
        return self.groups[number]

    def described(self, element: Element) -> _Group | None:
        kind = element.name
        if kind == "basematerials":
            return _colors([each.get("displaycolor", "#FFFFFF") for each in element.all("base")])
        if kind == "colorgroup":
            return _colors([each.get("color") for each in element.all("color")])
        if kind == "texture2dgroup":
            texture = self.resources.get(element.get("texid"))
            if texture is None or texture.name != "texture2d":
                raise ObjectError(f"it refers to the texture {element.get('texid')[:20]!r}, which it does not have")
            pixels = self.package.image(texture.get("path"))
            wraps = [_WRAPS.get(texture.get(key, "wrap"), "repeat") for key in ("tilestyleu", "tilestylev")]
            magnify, minify = _FILTERS.get(texture.get("filter"), ("linear", "mipmaps"))
            holes = pixels.shape[2] == 4 and pixels[..., 3].min() < 255
            picture = Texture(pixels, wraps[0], wraps[1], magnify, minify)
            material = Material(base_color_texture=picture, alpha_mode="MASK" if holes else "OPAQUE")
            places = np.array(element.rows.get("tex2coord", ())).reshape(-1, 2)
            return _Group(None, places * (1, -1) + (0, 1), material)
        if kind == "compositematerials":
            base = self.group(element.get("matid"))
            columns = [int(word) for word in element.get("matindices").split()]
            shares = [[float(w) for w in each.get("values").split()] for each in element.all("composite")]
            if base is None or base.colors is None:
                return base
            _check_indices(np.array(columns, np.int64), len(base.colors))
            weights = np.array(shares, np.float64).reshape(len(shares), len(columns))
            weights = weights / weights.sum(axis=1, keepdims=True).clip(1e-12)
            return _group(weights @ base.colors[columns])
        if kind == "multiproperties":
            rows = [[int(word) for word in each.get("pindices").split()] for each in element.all("multi")]
            methods = element.get("blendmethods").split()  # of all layers but the lowest
            below = None
            for place, number in enumerate(element.get("pids").split()):
                group = self.group(number)
                if group is None:
                    continue
                chosen = np.array([row[place] if place < len(row) else 0 for row in rows], np.int64)
                _check_indices(chosen, len(group.values))
                values = group.values[chosen]
                layer = group._replace(colors=values) if group.uv is None else group._replace(uv=values)
                multiply = methods[place - 1 : place] == ["multiply"]
                below = layer if below is None else _blended(below, layer, multiply=multiply)
            return below
        return None


def _part(
    positions: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
    corners: np.ndarray,  # [F, 3], indices of the group
    group: _Group | None,
    neutral: Material,
) -> Part:
    if group is None:
        return Part(positions, faces, material=neutral)
    values = group.values
    if not np.isfinite(corners).all():
        raise ObjectError("one of its triangles lacks an index of its colour")
    indices = corners.astype(np.int64).reshape(-1)
    _check_indices(indices, len(values))
    if group.uv is None and (indices == indices[:1]).all():  # one colour
        red, green, blue, alpha = values[indices[0]]
        linear = srgb_to_linear(np.array([red, green, blue])).tolist()
        return Part(positions, faces, material=Material((*linear, float(alpha)), alpha_mode=group.material.alpha_mode))
    own = np.arange(len(indices)).reshape(-1, 3)
    chosen = values[indices]
    if group.uv is not None:
        return Part(positions[faces.reshape(-1)], own, uv=chosen, material=group.material)
    colors = np.hstack([srgb_to_linear(chosen[:, :3]), chosen[:, 3:]])
    return Part(positions[faces.reshape(-1)], own, colors=colors, material=group.material)


def _blended(below: _Group, above: _Group, *, multiply: bool) -> _Group:
    """Two layers of a multi-property, whose rows belong together."""
    if above.colors is not None:
        if below.colors is None:
            return above if (above.colors[:, 3] == 1).all() and not multiply else below
        if multiply:
            return _group(below.colors * above.colors)
        alpha = above.colors[:, 3:]
        return _group(np.hstack([above.colors[:, :3], alpha * 0 + 1]) * alpha + below.colors * (1 - alpha))
    texture = above.material.base_color_texture
    assert texture is not None
    pixels = texture.pixels / 255
    under = below.material.base_color_texture
    if below.colors is not None:
        base = below.colors.mean(axis=0)[None, None, :3]
    elif (
        under is not None and np.array_equal(below.values, above.values) and under.pixels.shape[:2] == pixels.shape[:2]
    ):
        base = under.pixels[..., :3] / 255
    else:
        return above
    alpha = pixels[..., 3:] if pixels.shape[2] == 4 else np.ones((1, 1, 1))
    mixed = base * pixels[..., :3] if multiply else pixels[..., :3] * alpha + base * (1 - alpha)
    texture = replace(texture, pixels=(mixed * 255).round().astype(np.uint8))
    return above._replace(material=Material(base_color_texture=texture))


def _check_indices(indices: np.ndarray, count: int) -> None:
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise ObjectError(f"it names colour {int(indices.max())} of a group of {count}")


def _colors(texts: list[str]) -> _Group:
    """Of colours like #RRGGBB or #RRGGBBAA."""
    for text in texts:
        if not re.fullmatch(r"\s*#[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?\s*", text):
            raise ObjectError(f"one of its colours is {text[:50]!r}, not like #RRGGBB")
    words = [(text.strip()[1:] + "FF")[:8] for text in texts]
    return _group(np.frombuffer(bytes.fromhex("".join(words)), np.uint8).reshape(-1, 4) / 255)


def _group(colors: np.ndarray) -> _Group:
    if not colors[:, 3].any():  # written by programs that mean opaque: nothing would be seen
        colors = colors * (1, 1, 1, 0) + (0, 0, 0, 1)
    mode: AlphaMode = "BLEND" if len(colors) and colors[:, 3].min() < 1 else "OPAQUE"
    return _Group(colors, None, Material(alpha_mode=mode))


def _matrix(text: str) -> np.ndarray:
    """A transform [4, 4] of twelve numbers, which the standard writes for row vectors."""
    matrix = np.eye(4)
    if text:
        numbers = np.array(text.split(), np.float64)
        if numbers.shape != (12,) or not np.isfinite(numbers).all():
            raise ObjectError(f"one of its transforms has {len(numbers)} numbers instead of 12")
        matrix[:3] = numbers.reshape(4, 3).T
    return matrix
