"""Meshes of a few faces, and a writer of glTF that can say what no exporter would."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

CUBE_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
CUBE_FACES = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ],
    np.uint16,
)
QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]], np.uint16)
QUAD_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # the picture stands upright


class Glb:
    """Writes glTF by hand, so that files can say what no exporter would."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "scenes": [{"nodes": []}], "scene": 0}
        self.binary = b""

    def list(self, kind: str, item: dict[str, Any]) -> int:
        self.json.setdefault(kind, []).append(item)
        return len(self.json[kind]) - 1

    def view(self, data: bytes, **fields: Any) -> int:
        self.binary += b"\0" * (-len(self.binary) % 4)
        offset, self.binary = len(self.binary), self.binary + data
        return self.list("bufferViews", {"buffer": 0, "byteOffset": offset, "byteLength": len(data), **fields})

    def accessor(self, values: np.ndarray, **fields: Any) -> int:
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else values.shape[1]
        described = {
            "bufferView": self.view(values.tobytes()),
            "componentType": _COMPONENTS[values.dtype.str[1:]],
            "count": len(values),
            "type": _TYPES[width],
        }
        return self.list("accessors", described | fields)

    def image(self, pixels: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return self.list("images", {"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"})

    def texture(self, pixels: np.ndarray, **sampler: int) -> dict[str, Any]:
        described = {"source": self.image(pixels)}
        if sampler:
            described["sampler"] = self.list("samplers", sampler)
        return {"index": self.list("textures", described)}

    def material(self, *, factor=(1, 1, 1, 1), texture=None, metallic=None, **fields: Any) -> int:
        surface: dict[str, Any] = {"baseColorFactor": list(factor)}
        surface |= {} if texture is None else {"baseColorTexture": texture}
        surface |= {} if metallic is None else {"metallicFactor": metallic}
        return self.list("materials", {"pbrMetallicRoughness": surface, **fields})

    def mesh(self, vertices=CUBE_CORNERS, faces=CUBE_FACES, *, material=None, mode=4, **attributes: Any) -> int:
        """Attributes are arrays, or the numbers of accessors."""
        named = {"POSITION": vertices, **attributes}
        accessors = {k: v if isinstance(v, int) else self.accessor(v) for k, v in named.items() if v is not None}
        primitive: dict[str, Any] = {"attributes": accessors, "mode": mode}
        if faces is not None:
            primitive["indices"] = faces if isinstance(faces, int) else self.accessor(np.ravel(faces))
        primitive |= {} if material is None else {"material": material}
        return self.list("meshes", {"primitives": [primitive]})

    def node(self, mesh: int | None = None, *, root: bool = True, **fields: Any) -> int:
        index = self.list("nodes", fields if mesh is None else {"mesh": mesh, **fields})
        if root:
            self.json["scenes"][0]["nodes"].append(index)
        return index

    def save(self, path: Path) -> Path:
        if self.binary:
            self.json.setdefault("buffers", [{"byteLength": len(self.binary)}])
        text = json.dumps(self.json).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path
