"""Reads glTF 2.0, .glb and .gltf, as the parts of a mesh.

Libraries that read glTF ignore features that many real files use for colour or shape: normalised integers, triangle
fans, other texture coordinate sets, texture transforms and wrapping, linear vertex colours. And this module checks
every count against the size of the file before it allocates memory.

Method: Khronos glTF 2.0 specification, sections 3.5 (scenes), 3.6 (buffers and accessors), 3.7 (meshes, skins) and 3.9
(materials).
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import Folder
from clipgs.meshes.gltf_materials import Layout, Materials
from clipgs.meshes.materials import Material, Part
from clipgs.meshes.polygons import IS_SPLAT

_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_OF_VERTICES = Material(single_sided=True)  # of vertex colours without a material; one, so that parts become one

# Extensions that a file may require. KHR_materials_* change gloss, not colour; lights are ignored.
_SUPPORTED = re.compile(
    "KHR_(draco_mesh_compression|mesh_quantization|texture_transform|lights_punctual|animation_pointer|xmp_json_ld"
    "|texture_basisu|node_visibility|meshopt_compression|materials_.*|gaussian_splatting.*)|EXT_(texture_webp|mesh_gpu_instancing|meshopt_compression)"
)
# What Python raises where the JSON does not have the types that the standard requires.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, struct.error, RecursionError)


class _Primitive(NamedTuple):
    """A part in its mesh's own coordinates (float64), and the skin weights of its vertices."""

    part: Part
    joints: np.ndarray | None  # [V, J] int
    weights: np.ndarray | None  # [V, J]


def read(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """Parts of the default scene, in its world coordinates (float64), one for each primitive of each node.

    A skinned mesh has the pose that its joints have in the file.

    Raises:
        ObjectError: the file is damaged, needs an extension that is not read, or has more than `max_faces` triangles.
    """
    try:
        document = _Document(path, folder, neutral, max_faces)
        parts = list(document.parts())
        if not parts and "KHR_gaussian_splatting" in document.header.get("extensionsUsed", []):
            raise ObjectError(IS_SPLAT)
        return parts
    except _MALFORMED as error:
        raise ObjectError(f"the glTF file is malformed: {type(error).__name__}, {error}") from error


def extended(
    path: Path, folder: Folder, extension: str, most: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray]]:
    """What `read` leaves out: each primitive with this extension, for each shown node of the default scene.

    Args:
        most: elements of an accessor without data.

    Yields:
        attributes [V, width] by name; the extension, of whose buffer views the bytes are in `bytes`; world matrix
        [4, 4].

    Raises:
        ObjectError: the file is damaged, or needs an extension that is not read.
    """
    try:
        yield from _Document(path, folder, _OF_VERTICES, most // 3).extended(extension)
    except _MALFORMED as error:
        raise ObjectError(f"the glTF file is malformed: {type(error).__name__}, {error}") from error


class _Document:
    def __init__(self, path: Path, folder: Folder, neutral: Material, max_faces: int) -> None:
        self.folder, self.neutral, self.max_faces = folder, neutral, max_faces
        data = path.read_bytes()
        text, self.binary = _chunks(data) if data[:4] == b"glTF" else (data, None)
        try:
            self.header = json.loads(text.decode("utf-8-sig"), parse_constant=_not_json, parse_float=_number)
        except (ValueError, RecursionError) as error:
            if path.suffix.lower() == ".glb" and data[:4] != b"glTF":
                raise ObjectError("it is no GLB file: it does not begin with glTF") from error
            raise ObjectError(f"its glTF header is not valid JSON: {error}") from error
        if not isinstance(self.header, dict) or not isinstance(self.header.get("asset"), dict):
            raise ObjectError("it has no glTF header with an asset version")
        version, least = (str(self.header["asset"].get(name, "2.0")) for name in ("version", "minVersion"))
        if version.split(".")[0] != "2":
            raise ObjectError(f"it is glTF {version[:20]}; only glTF 2.0 is read")
        if least not in (
            "2",
            "2.0",
        ):  # the standard's own sign that a reader of an older version would misread the file
            raise ObjectError(f"it needs glTF {least[:20]}; only glTF 2.0 is read")
        for name in self.header.get("extensionsRequired", []):
            if not _SUPPORTED.fullmatch(str(name)):
                raise ObjectError(f"it needs the glTF extension {str(name)[:60]}, which is not read")
        self.buffers: dict[int, bytes] = {}
        self.decoded: dict[int, bytes] = {}  # views that meshoptimizer compressed
        self.materials = Materials(self.item, self.image_data, neutral, folder.max_texture_pixels)
        self.primitives: dict[tuple[int, int, tuple[float, ...]], _Primitive | None] = {}
        self.hidden: set[int] = set()  # nodes
        self.without_positions = 0  # primitives
        self.face_count = 0

    # --- buffers ---

    def item(self, kind: str, index: Any) -> dict[str, Any]:
        """An element of one of the header's lists. Negative indices are errors, unlike in Python."""
        items = self.header.get(kind, [])
        if not isinstance(index, int) or not 0 <= index < len(items):
            raise ObjectError(f"it refers to {kind}[{index}], of which there are {len(items)}")
        return items[index]

    def buffer(self, index: int) -> bytes:
        if index not in self.buffers:
            described = self.item("buffers", index)
            if "uri" in described:
                data = self.uri(described["uri"])
            elif index == 0 and self.binary is not None:
                data = self.binary
            else:
                raise ObjectError(f"its buffer {index} has no data")
            if len(data) < described["byteLength"]:
                raise ObjectError(f"its buffer {index} has {len(data)} bytes instead of {described['byteLength']}")
            self.buffers[index] = data
        return self.buffers[index]

    def uri(self, uri: str) -> bytes:
        if not uri.startswith("data:"):
            return self.folder.get(unquote(uri))
        kind, _, payload = uri.partition(",")
        try:
            return base64.b64decode(payload, validate=True) if kind.endswith(";base64") else unquote(payload).encode()
        except binascii.Error as error:
            raise ObjectError(f"one of its data URIs is damaged: {error}") from error

    def view(self, index: int) -> bytes:
        described = self.item("bufferViews", index)
        extensions = described.get("extensions", {})
        for name in ("EXT_meshopt_compression", "KHR_meshopt_compression"):
            if name in extensions:
                if index not in self.decoded:
                    self.decoded[index] = self.meshopt(described, name, index)
                return self.decoded[index]
        return self.plain(described, index)

    def plain(self, described: dict[str, Any], index: int) -> bytes:
        data = self.buffer(described["buffer"])
        start, length = described.get("byteOffset", 0), described["byteLength"]
        if start < 0 or length < 0 or start + length > len(data):
            raise ObjectError(f"its buffer view {index} is outside its buffer of {len(data)} bytes")
        return data[start : start + length]

    def meshopt(self, described: dict[str, Any], name: str, index: int) -> bytes:
        from clipgs.meshes import meshopt

        packed = described["extensions"][name]
        try:
            return meshopt.decode(self.plain(packed, index), packed, 3 * self.max_faces)
        except ObjectError:
            if name in self.header.get("extensionsRequired", []):
                raise
            return self.plain(described, index)  # the same data for readers without the extension

    # --- accessors ---

    def accessor(self, index: int) -> np.ndarray:
        """Values as [count, width]: integers as they are, or floats where the accessor is normalised."""
        described = self.item("accessors", index)
        dtype, width = np.dtype(_DTYPES[described["componentType"]]), _WIDTHS[described["type"]]
        count = described["count"]
        if not isinstance(count, int) or count < 0:
            raise ObjectError(f"its accessor {index} has {count} elements")
        if "bufferView" in described:
            stride = self.item("bufferViews", described["bufferView"]).get("byteStride", 0)
            values = self.elements(described["bufferView"], described.get("byteOffset", 0), stride, count, dtype, width)
        else:
            # All zeros, without data in the file: the face limit is the only bound.
            if count > 3 * self.max_faces:
                raise ObjectError(f"its accessor {index} claims {count} elements without data")
            values = np.zeros((count, width), dtype)
        if "sparse" in described:
            sparse = described["sparse"]
            where, what = sparse["indices"], sparse["values"]
            index_type = np.dtype(_DTYPES[where["componentType"]])
            rows = self.elements(where["bufferView"], where.get("byteOffset", 0), 0, sparse["count"], index_type, 1)
            new = self.elements(what["bufferView"], what.get("byteOffset", 0), 0, sparse["count"], dtype, width)
            values = values.copy()
            values[rows[:, 0]] = new
        if described.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values / np.iinfo(dtype).max, -1.0)
        return values

    def elements(self, view: int, offset: int, stride: int, count: int, dtype: np.dtype, width: int) -> np.ndarray:
        data = self.view(view)
        row_bytes = dtype.itemsize * width
        stride = stride or row_bytes
        needed = offset + (count - 1) * stride + row_bytes if count else 0
        if offset < 0 or stride < row_bytes or needed > len(data):
            raise ObjectError(f"an accessor of {count} elements needs {needed} bytes; its view has {len(data)}")
        return np.ndarray((count, width), dtype, buffer=data, offset=offset, strides=(stride, dtype.itemsize))

    def image_data(self, index: int) -> tuple[bytes, str]:
        """Bytes of an image, and its name."""
        image = self.item("images", index)
        data = self.uri(image["uri"]) if "uri" in image else self.view(image["bufferView"])
        name = str(image.get("uri") or image.get("name") or f"images[{index}]")
        name = f"images[{index}]" if name.startswith("data:") else name
        return data, name

    # --- meshes ---

    def attributes(self, primitive: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Attributes by name, and indices [I]."""
        accessors = primitive["attributes"]
        draco = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        decoded, indices = (None, None) if draco is None else self.draco(draco)
        values = {}
        for name in accessors:
            if not name.startswith(("POSITION", "NORMAL", "TEXCOORD", "COLOR_0", "JOINTS", "WEIGHTS")):
                continue
            if decoded is not None and name in decoded:
                described = self.item("accessors", accessors[name])
                array = decoded[name].reshape(len(decoded[name]), -1)
                integer = array.dtype.kind in "iu" and described.get("normalized")
                values[name] = np.maximum(array / np.iinfo(array.dtype).max, -1.0) if integer else array
            else:
                values[name] = self.accessor(accessors[name])
        if indices is None and "indices" in primitive:
            indices = self.accessor(primitive["indices"])[:, 0]
        return values, indices

    def draco(self, extension: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        import DracoPy

        try:
            mesh = DracoPy.decode(self.view(extension["bufferView"]))
        except (ObjectError, MemoryError):
            raise
        except Exception as error:  # the decoder's exception classes differ between its versions
            raise ObjectError(f"its Draco data could not be decoded: {error}") from error
        names = {number: name for name, number in extension["attributes"].items()}
        decoded = {names[a["unique_id"]]: np.asarray(a["data"]) for a in mesh.attributes if a["unique_id"] in names}
        return decoded, np.asarray(mesh.faces).reshape(-1)

    def primitive(self, mesh: int, index: int, weights: tuple[float, ...]) -> _Primitive | None:
        """The primitive with `weights` of its morph targets; None for points, lines, and what has no positions."""
        described = self.item("meshes", mesh)["primitives"][index]
        mode = described.get("mode", _TRIANGLES)
        if mode not in (_TRIANGLES, _STRIP, _FAN):
            return None
        if "POSITION" not in described.get("attributes", ()):
            self.without_positions += 1
            return None
        material, base, glow = self.materials.get(described.get("material"))
        values, indices = self.attributes(described)
        count = len(values["POSITION"])
        if indices is None:
            indices = np.arange(count)
        if len(indices) and (indices.max() >= count or indices.min() < 0):
            raise ObjectError(f"a face names vertex {int(indices.max())}, of which there are {count}")
        faces = _triangles(indices.astype(np.int64), mode)
        if not len(faces):
            return None
        for name, array in values.items():
            if len(array) != count:
                raise ObjectError(f"a primitive has {count} positions but {len(array)} of {name}")
        for target, weight in zip(described.get("targets", []), weights, strict=False):
            if weight:
                self.morph(values, target, weight)

        uv, glow_uv = _coordinates(values, base), _coordinates(values, glow)
        if glow is not None and glow_uv is None:  # without coordinates there is no glow
            material = replace(material, emissive_texture=None, emissive_factor=(0.0, 0.0, 0.0))
        if glow == base and uv is not None:
            glow_uv = None
        colors = values.get("COLOR_0")
        if colors is not None:
            if "material" not in described:
                material = _OF_VERTICES
            if colors.dtype.kind in "iu":  # the standard requires normalised ones; some writers omit the flag
                colors = colors / np.iinfo(colors.dtype).max
            if colors.shape[1] == 3:
                colors = np.column_stack([colors, np.ones(count)])
            if not np.isfinite(colors).all():
                raise ObjectError("some vertex colours are not finite numbers")
        normals = values.get("NORMAL")
        part = Part(
            vertices=np.asarray(values["POSITION"], np.float64),
            faces=faces,
            normals=None if normals is None else np.asarray(normals, np.float64),
            uv=uv,
            colors=None if colors is None else np.asarray(colors, np.float64).clip(0, 1),
            material=material,
            glow_uv=glow_uv,
        )
        sets = [i for i in range(8) if f"JOINTS_{i}" in values and f"WEIGHTS_{i}" in values]
        if not sets:
            return _Primitive(part, None, None)
        joints = np.column_stack([values[f"JOINTS_{i}"] for i in sets]).astype(np.int64)
        skin_weights = np.column_stack([values[f"WEIGHTS_{i}"] for i in sets]).astype(np.float64)
        return _Primitive(part, joints, skin_weights)

    def morph(self, values: dict[str, np.ndarray], target: dict[str, int], weight: float) -> None:
        """Adds a morph target to the attributes in `values`."""
        for name in ("POSITION", "NORMAL"):
            if name in target and name in values:
                moved = self.accessor(target[name])
                if moved.shape != values[name].shape:
                    raise ObjectError(f"a morph target has {len(moved)} of {name} for {len(values[name])}")
                values[name] = values[name] + np.float64(weight) * moved

    # --- scene ---

    def parts(self) -> Iterator[Part]:
        placed, found = self.placed_nodes(), False
        nodes = [(self.item("nodes", index), matrix) for index, matrix in placed.items() if index not in self.hidden]
        if not self.header.get("nodes"):  # a library of meshes: each is taken, untransformed
            nodes = [({"mesh": index}, np.eye(4)) for index in range(len(self.header.get("meshes", [])))]
        for node, matrix in nodes:
            if "mesh" not in node:
                continue
            mesh = self.item("meshes", node["mesh"])
            weights = tuple(float(weight) for weight in node.get("weights", mesh.get("weights", [])))
            copies = self.instances(node, matrix)
            for index in range(len(mesh["primitives"])):
                key = (node["mesh"], index, weights)
                if key not in self.primitives:  # instances share one primitive
                    self.primitives[key] = self.primitive(*key)
                primitive = self.primitives[key]
                if primitive is None:
                    continue
                part, joints, skin_weights = primitive
                self.face_count += len(part.faces) * len(copies)
                if self.face_count > self.max_faces:
                    raise ObjectError(f"it has more triangles than the limit of {self.max_faces}")
                found = True
                if "skin" in node and joints is not None and skin_weights is not None:
                    skinned = self.skinned(node["skin"], placed, joints, skin_weights)
                    if skinned is not None:
                        yield transformed(part, skinned)
                        continue
                for copy in copies:
                    yield transformed(part, copy[None])
        if self.without_positions and not found:
            raise ObjectError("a primitive has no POSITION, so its triangles have no coordinates")

    def extended(self, extension: str) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray]]:
        """See the function `extended`."""
        for index, matrix in self.placed_nodes().items():
            node = self.item("nodes", index)
            if index in self.hidden or "mesh" not in node:
                continue
            for primitive in self.item("meshes", node["mesh"])["primitives"]:
                found = primitive.get("extensions", {}).get(extension)
                if found is None:
                    continue
                inner = [part for part in found.get("extensions", {}).values() if "bufferView" in part]
                packed = {"bytes": [self.view(part["bufferView"]) for part in inner]}
                # Where the data are packed, the accessors are without.
                values = {} if inner else {name: self.accessor(at) for name, at in primitive["attributes"].items()}
                yield values, {**found, **packed}, matrix

    def placed_nodes(self) -> dict[int, np.ndarray]:
        """Node to world matrix, for the nodes of the default scene (else of the first scene, else of all roots).

        Hidden nodes are among them, since joints may be hidden, and are noted in `hidden`.
        """
        nodes = self.header.get("nodes", [])
        if self.header.get("scenes"):
            roots = self.item("scenes", self.header.get("scene", 0)).get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [index for index in range(len(nodes)) if index not in children]
        placed: dict[int, np.ndarray] = {}
        queue = [(root, np.eye(4), True) for root in reversed(roots)]
        while queue:
            index, parent, visible = queue.pop()
            if index in placed:
                # A loop would never end, and shared branches could multiply without bound.
                raise ObjectError(f"its node {index} has two parents or is in a loop; glTF nodes must form a tree")
            node = self.item("nodes", index)
            visible = visible and node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
            if not visible:
                self.hidden.add(index)
            placed[index] = parent @ _local_matrix(node)
            queue.extend((child, placed[index], visible) for child in reversed(node.get("children", [])))
        return placed

    def instances(self, node: dict[str, Any], matrix: np.ndarray) -> np.ndarray:
        """World matrices [N, 4, 4] of the node's mesh: its own, or those of EXT_mesh_gpu_instancing."""
        extension = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if extension is None:
            return matrix[None]
        stored = {
            name.lower(): self.accessor(accessor)
            for name, accessor in extension["attributes"].items()
            if name in ("TRANSLATION", "ROTATION", "SCALE")
        }
        counts = {len(values) for values in stored.values()}
        if len(counts) != 1 or max(counts) > self.max_faces:
            raise ObjectError(
                f"its instances have {sorted(counts)} placements; one number is needed, no more than faces"
            )
        if "rotation" in stored:  # quantised ones are not of length 1
            turns = stored["rotation"].astype(np.float64)
            stored["rotation"] = turns / np.linalg.norm(turns, axis=1, keepdims=True).clip(1e-12)
        rows = [dict(zip(stored, values, strict=True)) for values in zip(*stored.values(), strict=True)]
        return matrix @ np.reshape([_local_matrix(row) for row in rows], (-1, 4, 4))

    def skinned(
        self,
        skin: int,
        placed: dict[int, np.ndarray],
        joints: np.ndarray,  # [V, J] int
        weights: np.ndarray,  # [V, J]
    ) -> np.ndarray | None:
        """A matrix for each vertex [V, 4, 4]; None if the weights are invalid, so that the node's matrix is used."""
        described = self.item("skins", skin)
        world = np.stack([placed.get(joint, np.eye(4)) for joint in described["joints"]])
        if "inverseBindMatrices" in described:
            stored = self.accessor(described["inverseBindMatrices"])[: len(world)]
            world = world @ stored.reshape(-1, 4, 4).transpose(0, 2, 1).astype(np.float64)
        total = weights.sum(axis=1, keepdims=True)
        if not np.isfinite(world).all() or not (np.isfinite(total) & (total > 0)).all() or joints.max() >= len(world):
            return None
        return np.einsum("vj,vjab->vab", weights / total, world[joints])


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """JSON and binary chunk of a GLB file."""
    if len(data) < 12:
        raise ObjectError("the GLB file ends within its header")
    _, version, length = struct.unpack_from("<4sII", data)
    if version != 2:
        raise ObjectError(f"it is binary glTF {version}; only glTF 2.0 is read")
    if length > len(data):
        raise ObjectError(f"the GLB file has {len(data)} bytes instead of {length}: it is cut short")
    found: dict[bytes, bytes] = {}
    offset = 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, offset)
        if offset + 8 + size > length:
            raise ObjectError(f"a chunk of the GLB file claims {size} bytes, more than are left")
        found.setdefault(kind, data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if b"JSON" not in found:
        raise ObjectError("the GLB file has no JSON chunk")
    return found[b"JSON"], found.get(b"BIN\0")


def _not_json(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _number(text: str) -> float:
    """A number in JSON. Writers without integers store indices and counts as decimals, which the standard allows.

    Whole factors become integers too: 1.0 and 1 are the same number there.
    """
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _coordinates(values: dict[str, np.ndarray], layout: Layout | None) -> np.ndarray | None:
    """Texture coordinates [V, 2] of a layout; None if the primitive does not have them."""
    if layout is None or (coordinates := values.get(f"TEXCOORD_{layout.uv_set}")) is None:
        return None
    matrix = np.array(layout.matrix)
    return np.asarray(coordinates, np.float64)[:, :2] @ matrix[:, :2].T + matrix[:, 2]


def _triangles(
    indices: np.ndarray,  # [I]
    mode: int,
) -> np.ndarray:
    """Faces [F, 3] of a list, strip or fan, without those that name a vertex twice (strips use them to turn)."""
    if mode == _TRIANGLES:
        faces = indices[: len(indices) // 3 * 3].reshape(-1, 3)
    elif len(indices) < 3:
        return np.zeros((0, 3), np.int64)
    elif mode == _STRIP:
        faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
        faces[1::2, :2] = faces[1::2, 1::-1]
    else:
        faces = np.stack([np.broadcast_to(indices[0], len(indices) - 2), indices[1:-1], indices[2:]], axis=1)
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]


def _local_matrix(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        matrix = np.asarray(node["matrix"], np.float64).reshape(4, 4).T
    else:
        x, y, z, w = np.asarray(node.get("rotation", (0, 0, 0, 1)), np.float64)
        matrix = np.eye(4)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        matrix[:3, :3] *= np.asarray(node.get("scale", (1, 1, 1)), np.float64)
        matrix[:3, 3] = node.get("translation", (0, 0, 0))
    if not np.isfinite(matrix).all():
        raise ObjectError("a node's transform is not finite")
    return matrix


def transformed(
    part: Part,
    matrices: np.ndarray,  # [V or 1, 4, 4]
) -> Part:
    linear = matrices[:, :3, :3]
    vertices = np.einsum("vab,vb->va", np.broadcast_to(linear, (len(part.vertices), 3, 3)), part.vertices)
    faces, normals = part.faces, part.normals
    determinant = np.linalg.det(linear)
    if normals is not None:
        # Cofactors transform normals as the inverse transpose does, and also exist for singular matrices.
        following, last = linear[:, [1, 2, 0]], linear[:, [2, 0, 1]]  # rows; their cross products are the cofactors
        cofactors = following[..., [1, 2, 0]] * last[..., [2, 0, 1]] - following[..., [2, 0, 1]] * last[..., [1, 2, 0]]
        normals = np.einsum("vab,vb->va", np.broadcast_to(cofactors, (len(vertices), 3, 3)), normals)
        normals = normals * np.sign(determinant)[:, None]
    if determinant.mean() < 0:  # a reflection reverses the winding
        faces = faces[:, ::-1]
    return replace(part, vertices=vertices + matrices[:, :3, 3], faces=faces, normals=normals)
