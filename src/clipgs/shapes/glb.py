"""Writes a GLB (Khronos glTF 2.0, sections 3 and 4): one primitive a material, the same bytes for one input.

trimesh's exporter rounds colour factors to 256 levels of linear light and leaves pictures to the local zlib;
here factors are kept, and nothing depends on the machine.
"""

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from clipgs.shapes.geometry import Mesh
from clipgs.shapes.paint import Paint, linear

FLOAT, UNSIGNED_INT = 5126, 5125  # glTF's component types


def write_glb(name: str, pieces: Iterable[tuple[Mesh, Paint]]) -> bytes:
    """One node, one mesh: pieces of equal paint become one primitive.

    A paint with a picture takes its pieces' texture coordinates, one with neither picture nor colour takes their
    point colours (`COLOR_0`, linear).
    """
    by_paint: dict[Paint, list[Mesh]] = {}
    for mesh, paint in pieces:
        by_paint.setdefault(paint, []).append(mesh)
    data = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    gltf: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "clipgs procedural"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": []}],
        "materials": [],
        "accessors": accessors,
        "bufferViews": views,
    }

    def view(content: bytes, **more: int) -> int:
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(content), **more})
        data.extend(content + b"\0" * (-len(content) % 4))
        return len(views) - 1

    def accessor(values: np.ndarray, bounds: bool = False) -> int:
        integers = values.ndim == 1
        values = values.astype("<u4" if integers else "<f4")
        entry = {
            "bufferView": view(values.tobytes(), target=34963 if integers else 34962),
            "componentType": UNSIGNED_INT if integers else FLOAT,
            "count": len(values),
            "type": "SCALAR" if integers else f"VEC{values.shape[1]}",
        }
        if bounds:
            entry |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    for paint, meshes in by_paint.items():
        columns = list(zip(*(mesh.corners() for mesh in meshes), strict=True))
        counts = np.cumsum([0] + [len(points) for points in columns[0]])
        attributes = {
            "POSITION": accessor(np.concatenate(columns[0]), bounds=True),
            "NORMAL": accessor(np.concatenate(columns[1])),
        }
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": paint.roughness}
        if paint.png is not None:
            uv = np.concatenate(columns[2])
            attributes["TEXCOORD_0"] = accessor(np.column_stack([uv[:, 0], 1 - uv[:, 1]]))  # glTF's v points down
            images, textures = gltf.setdefault("images", []), gltf.setdefault("textures", [])
            textures.append({"source": len(images), "sampler": 0})
            images.append({"bufferView": view(paint.png), "mimeType": "image/png"})
            gltf["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 10497, "wrapT": 10497}]
            surface["baseColorTexture"] = {"index": len(textures) - 1}
        elif paint.color is not None:
            factor = linear(np.array(paint.color) / 255).round(6).tolist()
            surface["baseColorFactor"] = [*factor, 1.0]
        else:
            attributes["COLOR_0"] = accessor(linear(np.concatenate(columns[3])).round(5))
        faces = np.concatenate([part + start for part, start in zip(columns[4], counts[:-1], strict=True)])
        gltf["materials"].append({"pbrMetallicRoughness": surface})
        gltf["meshes"][0]["primitives"].append(
            {
                "attributes": attributes,
                "indices": accessor(faces.reshape(-1)),
                "material": len(gltf["materials"]) - 1,
            }
        )
    gltf["buffers"] = [{"byteLength": len(data)}]
    header = json.dumps(gltf, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 4)
    total = 12 + 8 + len(header) + 8 + len(data)
    return (
        struct.pack("<4sIIII", b"glTF", 2, total, len(header), 0x4E4F534A)
        + header
        + struct.pack("<II", len(data), 0x004E4942)
        + bytes(data)
    )
