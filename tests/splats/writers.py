"""Small writers of splats in other programs' formats, by the letter of what these programs document."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from PIL import Image
from plyfile import PlyData, PlyElement

from clipgs.splats.gaussians import Gaussians

SH_C0 = 0.28209479177387814


def values(splat: Gaussians) -> dict[str, np.ndarray]:
    """Means, unit quaternions wxyz, log-scales, opacities, colours and f_dc in float64."""
    quats = splat.quats_wxyz.double().numpy()
    colors = splat.colors.double().numpy()
    return {
        "means": splat.means.double().numpy(),
        "quats": quats / np.linalg.norm(quats, axis=1, keepdims=True),
        "log_scales": splat.log_scales.double().numpy(),
        "opacities": splat.opacities.double().numpy(),
        "colors": colors,
        "f_dc": (colors - 0.5) / SH_C0,
    }


def steps(fractions: np.ndarray, highest: int = 255) -> np.ndarray:
    return (fractions * highest).round().clip(0, highest).astype(np.int64)


def largest_first(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each quaternion's largest component, and the three others, the largest made positive."""
    largest = np.abs(quats).argmax(axis=1)
    signs = np.sign(np.take_along_axis(quats, largest[:, None], axis=1))
    others = np.array([np.delete(quat, place) for quat, place in zip(quats * signs, largest, strict=True)])
    return largest, others


def extension(kind: int, payload: bytes) -> bytes:
    return struct.pack("<II", kind, len(payload)) + payload


def spz(
    splat: Gaussians, version: int, degree: int = 0, flags: int = 0, extensions: bytes = b"", count: int | None = None
) -> bytes:
    """SPZ; `count` lies in the header."""
    v = values(splat)
    if version == 1:
        positions = v["means"].astype("<f2").tobytes()
    else:
        fixed = (v["means"] * 4096).round().astype("<i4").reshape(-1, 1)
        positions = fixed.view("u1")[:, :3].tobytes()
    xyzw = v["quats"][:, [1, 2, 3, 0]]
    if version < 3:
        signs = np.where(xyzw[:, 3:] < 0, -1, 1)
        rotations = (xyzw[:, :3] * signs * 127.5 + 127.5).round().clip(0, 255).astype("u1")
    else:
        largest, others = largest_first(xyzw)
        fields = (np.abs(others) / np.sqrt(0.5) * 511).round().astype("<u4") | np.where(others < 0, 512, 0).astype(
            "<u4"
        )
        packed = largest.astype("<u4") << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
        rotations = packed.astype("<u4").view("u1")
    harmonics = (0, 9, 24, 45, 72)[degree]
    streams = [
        positions,
        steps(v["opacities"]).astype("u1").tobytes(),
        steps(v["f_dc"] * 0.15 + 0.5).astype("u1").tobytes(),
        ((v["log_scales"] + 10) * 16).round().clip(0, 255).astype("u1").tobytes(),
        rotations.tobytes(),
        bytes([128]) * (harmonics * len(splat)),
    ]
    rows = len(splat) if count is None else count
    flags |= 2 if extensions else 0
    if version < 4:
        head = struct.pack("<4sIIBBBB", b"NGSP", version, rows, degree, 12, flags, 0)
        return gzip.compress(head + b"".join(streams) + extensions, mtime=0)
    streams = streams if degree else streams[:5]
    zipped = [bytes(pa.Codec("zstd").compress(stream)) for stream in streams]
    table = 32 + len(extensions)
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", version, rows, degree, 12, flags, len(streams), table)
    sizes = (struct.pack("<QQ", len(small), len(large)) for small, large in zip(zipped, streams, strict=True))
    return head + extensions + b"".join(sizes) + b"".join(zipped)


def compressed_ply(splat: Gaussians, colors_of_chunks: bool = True, harmonics: int = 0) -> bytes:
    """Compressed PLY, its rows in their order, with colours between bounds, or of 0 to 1 as in older files."""
    v = values(splat)
    parts = {"": ("xyz", v["means"]), "scale_": ("xyz", v["log_scales"])}
    if colors_of_chunks:
        parts["color"] = ("rgb", v["colors"])
    names, bounds, fractions = [], [], {}
    starts = range(0, len(splat), 256)
    for prefix, (axes, array) in parts.items():
        name = prefix.removeprefix("color")
        low, high = (np.array([end(array[i : i + 256], axis=0) for i in starts]) for end in (np.min, np.max))
        names += [f"{end}_{name}{axis}" for end in ("min", "max") for axis in axes]
        bounds += [low, high]
        of_row = np.arange(len(splat)) // 256
        fractions[prefix] = (array - low[of_row]) / np.where(high > low, high - low, 1)[of_row]
    chunk = np.zeros(len(starts), [(name, "f4") for name in names])
    for name, column in zip(names, np.concatenate(bounds, axis=1).T, strict=True):
        chunk[name] = column

    def three(array: np.ndarray) -> np.ndarray:
        return steps(array[:, 0], 2047) << 21 | steps(array[:, 1], 1023) << 11 | steps(array[:, 2], 2047)

    largest, others = largest_first(v["quats"])
    tenths = steps(others / np.sqrt(2) + 0.5, 1023)
    shown = steps(fractions.get("color", v["colors"]))
    vertex = np.zeros(len(splat), [(f"packed_{name}", "u4") for name in ("position", "rotation", "scale", "color")])
    vertex["packed_position"], vertex["packed_scale"] = three(fractions[""]), three(fractions["scale_"])
    vertex["packed_rotation"] = largest << 30 | tenths[:, 0] << 20 | tenths[:, 1] << 10 | tenths[:, 2]
    vertex["packed_color"] = shown[:, 0] << 24 | shown[:, 1] << 16 | shown[:, 2] << 8 | steps(v["opacities"])
    elements = [PlyElement.describe(chunk, "chunk"), PlyElement.describe(vertex, "vertex")]
    if harmonics:
        rest = np.full(len(splat), 128, [(f"f_rest_{i}", "u1") for i in range(harmonics)])
        elements.append(PlyElement.describe(rest, "sh"))
    stream = io.BytesIO()
    PlyData(elements, byte_order="<").write(stream)
    return stream.getvalue()


def ksplat(splat: Gaussians, level: int, sections: Iterable[int], bucket: int = 8, degree: int = 0) -> bytes:
    """.ksplat with sections of these numbers of Gaussians, each with full buckets and one partial bucket."""
    v = values(splat)
    rgba = steps(np.column_stack([v["colors"], v["opacities"]]))
    wide, harmonic = (("<f4", "<f2")[level > 0], ("<f4", "<f2", "u1")[level])
    columns = [("p", ("<f4", "<u2")[level > 0], 3), ("s", wide, 3), ("r", wide, 4), ("c", "u1", 4)]
    row = np.dtype([*columns, ("h", harmonic, (0, 9, 24, 45)[degree])])
    heads, bodies, start = [], [], 0
    sections = list(sections)
    for count in sections:
        part = slice(start, start + count)
        start += count
        table = np.zeros(count, row)
        table["s"], table["r"], table["c"] = np.exp(v["log_scales"][part]), v["quats"][part], rgba[part]
        full, partial = divmod(count, bucket)
        partial = min(partial, 1)
        centres, sizes, block = np.zeros((0, 3)), b"", 5.0
        if level:
            places = np.arange(count) // bucket
            centres = np.array(
                [v["means"][part][places == place].mean(axis=0) for place in range(full + partial)]
            ).reshape(-1, 3)
            block = 4 * np.abs(v["means"][part] - centres[places]).max(initial=0) + 1e-6
            table["p"] = ((v["means"][part] - centres[places]) / (block / 2 / 32767)).round() + 32767
            sizes = struct.pack("<I", count - full * bucket) * partial
        else:
            table["p"] = v["means"][part]
        partial = partial if level else 0
        numbers = (count, count, bucket, len(centres), block, 12, 32767 if level else 1)
        heads.append(struct.pack("<4IfHxxI4xIIH", *numbers, full if level else 0, partial, degree).ljust(1024, b"\0"))
        bodies.append(sizes + centres.astype("<f4").tobytes() + table.tobytes())
    head = struct.pack("<BBxxIIIIH", 0, 1, len(sections), len(sections), len(splat), len(splat), level).ljust(
        4096, b"\0"
    )
    return head + b"".join(heads + bodies)


def picture(pixels: np.ndarray, kind: str) -> bytes:
    """Rows [N, channels] as a lossless picture, filled up to a rectangle."""
    width = int(np.ceil(np.sqrt(len(pixels)) / 4)) * 4
    height = int(np.ceil(len(pixels) / width))
    filled = np.zeros((width * height, *pixels.shape[1:]), np.uint8)
    filled[: len(pixels)] = pixels
    stream = io.BytesIO()
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    Image.fromarray(filled.reshape(height, width, *pixels.shape[1:])).save(stream, kind, **options)
    return stream.getvalue()


def sixteen_bits(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, list[float]]]:
    """Low bytes, high bytes and bounds of positions, as SOG and gsplat store them."""
    logs = np.sign(means) * np.log1p(np.abs(means))
    low, high = logs.min(axis=0), logs.max(axis=0)
    whole = steps((logs - low) / np.where(high > low, high - low, 1), 65535)
    return whole & 255, whole >> 8, {"mins": low.tolist(), "maxs": high.tolist()}


def sog(splat: Gaussians, bands: int = 0) -> dict[str, bytes]:
    """The files of a SOG 2. Its codebooks hold even steps from the least to the greatest value."""
    v = values(splat)
    low, high, bounds = sixteen_bits(v["means"])
    largest, others = largest_first(v["quats"])
    tagged = np.column_stack([steps(others / np.sqrt(2) + 0.5), largest + 252])

    def coded(array: np.ndarray) -> tuple[np.ndarray, list[float]]:
        book = np.linspace(array.min(), array.max(), 256)
        return np.abs(array[..., None] - book).argmin(axis=-1), book.tolist()

    (scales, scale_book), (colors, color_book) = coded(v["log_scales"]), coded(v["f_dc"])
    solid = np.full(len(splat), 255)
    pixels = {
        "means_l": np.column_stack([low, solid]),
        "means_u": np.column_stack([high, solid]),
        "quats": tagged,
        "scales": np.column_stack([scales, solid]),
        "sh0": np.column_stack([colors, steps(v["opacities"])]),
    }
    meta = {
        "version": 2,
        "count": len(splat),
        "means": {**bounds, "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scale_book, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": color_book, "files": ["sh0.webp"]},
    }
    files = {f"{name}.webp": picture(array, "WEBP") for name, array in pixels.items()}
    if bands:
        meta["shN"] = {"count": 1, "bands": bands, "codebook": [0.0] * 256, "files": ["c.webp", "l.webp"]}
        files |= {name: picture(np.zeros((4, 4)), "WEBP") for name in ("c.webp", "l.webp")}
    return {"meta.json": json.dumps(meta).encode(), **files}


def gsplat_folder(splat: Gaussians, mask: np.ndarray | None = None) -> dict[str, bytes]:
    """The files of gsplat's PNG compression; the number of Gaussians is a square. `mask` as uCO3D adds it."""
    v = values(splat)
    side = int(len(splat) ** 0.5)
    assert side**2 == len(splat)
    low, high, bounds = sixteen_bits(v["means"])
    arrays = {
        "scales": v["log_scales"],
        "quats": v["quats"],
        "opacities": splat.opacity_logits.double().numpy()[:, None],
        "sh0": v["f_dc"],
    }
    meta = {"means": {"shape": [len(splat), 3], "dtype": "float32", **bounds}}
    shapes = {"opacities": [len(splat)], "sh0": [len(splat), 1, 3]}
    images = {"means_l": low, "means_u": high}
    for name, array in arrays.items():
        least, most = array.min(axis=0), array.max(axis=0)
        images[name] = steps((array - least) / np.where(most > least, most - least, 1))
        shape = shapes.get(name, list(array.shape))
        meta[name] = {"shape": shape, "dtype": "float32", "mins": least.tolist(), "maxs": most.tolist()}
    files = {"meta.json": json.dumps(meta).encode()}
    for name, pixels in images.items():
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8).reshape(side, side, -1).squeeze()).save(stream, "PNG")
        files[f"{name}.png"] = stream.getvalue()
    if mask is not None:
        stream = io.BytesIO()
        np.savez_compressed(stream, mask)
        files["fg_mask.npz"] = stream.getvalue()
    return files


def zipped(files: dict[str, bytes], folder: str = "", compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as bundle:
        for name, data in files.items():
            bundle.writestr(folder + name, data)
    return stream.getvalue()


def glb(attributes: dict[str, np.ndarray], node: dict | None = None, extension: dict | None = None, **header) -> bytes:
    """A GLB of one primitive with these attributes; arrays of whole numbers are normalised."""
    kinds = {"f4": 5126, "u1": 5121, "i1": 5120, "u2": 5123, "i2": 5122}
    accessors, views, blocks, offset = [], [], [], 0
    for index, array in enumerate(attributes.values()):
        kind = array.dtype.str[1:]
        accessor = {"bufferView": index, "componentType": kinds[kind], "count": len(array)}
        accessor["type"] = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[array.shape[1]]
        accessors.append(accessor | ({} if kind == "f4" else {"normalized": True}))
        block = array.tobytes()
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(block)})
        blocks.append(block.ljust(len(block) + -len(block) % 4, b"\0"))
        offset += len(blocks[-1])
    about = extension or {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    primitive = {
        "mode": 0,
        "attributes": {name: index for index, name in enumerate(attributes)},
        "extensions": {"KHR_gaussian_splatting": about},
    }
    document = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_gaussian_splatting"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, **(node or {})}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
        **header,
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", offset, b"BIN\0") + b"".join(blocks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def attributes(splat: Gaussians, number: str = "<f4") -> dict[str, np.ndarray]:
    """The attributes of KHR_gaussian_splatting."""
    v = values(splat)
    of = {
        "ROTATION": v["quats"][:, [1, 2, 3, 0]],
        "SCALE": np.exp(v["log_scales"]),
        "OPACITY": v["opacities"][:, None],
        "SH_DEGREE_0_COEF_0": v["f_dc"],
    }
    return {
        "POSITION": v["means"].astype(number),
        **{f"KHR_gaussian_splatting:{name}": array.astype(number) for name, array in of.items()},
    }
