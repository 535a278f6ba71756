"""Splats in the formats of other programs: .splat, and glTF with KHR_gaussian_splatting."""

import json
import logging
import struct
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from clipgs.catalog.named_files import META
from clipgs.catalog.sources.splats import GLTF_EXTENSION as EXTENSION
from clipgs.core.bundles import tar_objects
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import whole
from clipgs.splats.formats.packed import SPLAT_ROW
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.read import is_splat
from clipgs.splats.rows import f_dc_of

log = logging.getLogger(__name__)

GLTF_FLOAT, GLTF_UNSIGNED_SHORT = 5126, 5123
GLTF_VERTICES = 34962  # target of a buffer view: attributes
GLTF_POINTS = 0  # mode of a primitive
GLB_MAGIC, GLB_JSON, GLB_BINARY = 0x46546C67, 0x4E4F534A, 0x004E4942


def to_splat(gaussians: Gaussians) -> bytes:
    """One object as .splat, 32 bytes a Gaussian, in the layout of antimatter15's viewer.

    Position and scale (world units) as float32; RGB and opacity as bytes; the unit quaternion w, x, y, z as
    128 + 128 q. The largest and most opaque Gaussians come first, so that a viewer shows the object while it loads.

    Raises:
        ValueError: a batch, or no Gaussians.
    """
    means, quats, scales, opacities, colors = _values(gaussians)
    rows = np.empty(len(means), SPLAT_ROW)
    rows["position"], rows["scale"] = means, scales
    rows["rgba"] = _steps(np.column_stack([colors.clip(0, 1), opacities]), 255, np.uint8)
    rows["rotation"] = (quats * 128 + 128).round().clip(0, 255)
    return rows[np.argsort(-scales.prod(axis=1) * opacities, kind="stable")].tobytes()


def to_glb(gaussians: Gaussians) -> bytes:
    """One object as binary glTF 2.0 with the extension KHR_gaussian_splatting; the rows keep their order.

    Positions (Y up), unit quaternions x, y, z, w, linear scales, opacities in [0, 1] and the spherical harmonic of
    degree 0, all float32. Programs without the extension show points in `COLOR_0` (linear, as glTF requires). The
    extension's properties are those that its specification requires: kernel and colour space.

    Raises:
        ValueError: a batch, or no Gaussians.
    """
    means, quats, scales, opacities, colors = _values(gaussians)
    shown = colors.clip(0, 1)  # colours of other programs may exceed the range
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    attributes = {
        "POSITION": means,
        "COLOR_0": _steps(np.column_stack([linear, opacities]), 65535, np.uint16),
        f"{EXTENSION}:ROTATION": quats[:, [1, 2, 3, 0]],
        f"{EXTENSION}:SCALE": scales,
        f"{EXTENSION}:OPACITY": opacities[:, None],
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": f_dc_of(colors),
    }
    accessors, views, blocks, offset = [], [], [], 0
    for index, values in enumerate(attributes.values()):
        block = values if values.dtype == np.uint16 else np.ascontiguousarray(values, "<f4")
        accessor = {
            "bufferView": index,
            "componentType": GLTF_UNSIGNED_SHORT if block.dtype == np.uint16 else GLTF_FLOAT,
            "count": len(block),
            "type": {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[block.shape[1]],
        }
        if block.dtype == np.uint16:
            accessor["normalized"] = True
        if index == 0:  # the specification requires the bounding box of the positions
            accessor |= {"min": block.min(axis=0).tolist(), "max": block.max(axis=0).tolist()}
        accessors.append(accessor)
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": block.nbytes, "target": GLTF_VERTICES})
        blocks.append(block.tobytes())
        offset += block.nbytes  # each block is a multiple of four bytes
    primitive = {
        "mode": GLTF_POINTS,
        "attributes": {name: index for index, name in enumerate(attributes)},
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    document = {
        "asset": {"version": "2.0", "generator": "clipgs"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), GLB_JSON) + text + struct.pack("<II", offset, GLB_BINARY) + b"".join(blocks)
    return struct.pack("<III", GLB_MAGIC, 2, 12 + len(chunks)) + chunks


FORMATS: dict[str, tuple[str, Callable[[Gaussians], bytes]]] = {
    "splat": (".splat", to_splat),
    "gltf": (".glb", to_glb),
    "ply": (".ply", Gaussians.to_ply),
}


OF_SUFFIX = {suffix: kind for kind, (suffix, _) in FORMATS.items()}


def format_of(path: Path) -> str:
    """The format that a file's suffix names.

    Raises:
        UsageError: it names none.
    """
    if (suffix := path.suffix.lower()) not in OF_SUFFIX:
        named = f"the suffix {path.suffix}" if suffix else "no suffix"
        raise UsageError(f"{path} has {named}; splats are written as {', '.join(OF_SUFFIX)}")
    return OF_SUFFIX[suffix]


def save(gaussians: Gaussians, path: Path, kind: str | None = None) -> None:
    """Writes one splat, whole or not at all, in a format of FORMATS (default: that of the suffix).

    Raises:
        UsageError: the suffix names no format.
        ValueError: a batch, no Gaussians, or a value that is not finite.
    """
    data = FORMATS[kind or format_of(path)][1](gaussians)
    with whole(path) as temporary:
        temporary.write_bytes(data)


def export(
    inputs: Path | str | Sequence[Path | str], folder: Path | str, kind: str, uids: str | Sequence[str] = ()
) -> int:
    """Writes each splat of the inputs to `folder` as UID.splat, UID.glb or UID.ply; returns the number of splats.

    Args:
        inputs: splats of any format that is read, tars of PLY files (`triplets/S.tar`, `splats/S.tar`), or folders of
            either.
        kind: `splat`, `gltf` or `ply`.
        uids: the splats to export (the uid of a file is its name without the suffix); default: all.

    Raises:
        UsageError: there is nothing to export, or two inputs have the same uid.
        ClipgsError: an input cannot be read as a splat; the others are still written.
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    uids = [uids] if isinstance(uids, str) else uids
    suffix, encode = FORMATS[kind]
    written: dict[str, Path] = {}
    errors = []
    for uid, file, load in _splats(inputs, uids):
        if uid in written:
            raise UsageError(f"{uid} is in {written[uid]} and in {file}: export them to two folders")
        written[uid] = file
        try:
            data = encode(load())
        except ValueError as error:
            errors.append(str(error))
            log.warning("not exported: %s", error)
            continue
        with whole(Path(folder) / f"{uid}{suffix}") as temporary:
            temporary.write_bytes(data)
    missing = sorted(set(uids) - written.keys())
    if missing or not written:
        what = ", ".join(missing) or "a splat"
        raise UsageError(f"no input holds {what}: name files of splats, or the folder `triplets` of an output")
    log.info("exported %d splats to %s", len(written) - len(errors), folder)
    if errors:
        raise ClipgsError(f"{len(errors)} of {len(written)} splats could not be exported; the first: {errors[0]}")
    return len(written)


def _splats(inputs: Sequence[Path | str], uids: Sequence[str]) -> Iterator[tuple[str, Path, Callable[[], Gaussians]]]:
    """Uid, input file and loader of each splat of these uids; of all splats if there are none."""
    for path in map(Path, inputs):
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        files = [path]
        if path.is_dir() and not (path / META).is_file():
            found = (file for file in path.iterdir() if file.suffix == ".ply" or is_splat(file))
            files = sorted(path.glob("*.tar")) or sorted(found)
        for file in files:
            if file.suffix != ".tar":
                uid = file.name if file.is_dir() else file.stem.removesuffix(".compressed")
                if not uids or uid in uids:
                    yield uid, file, partial(Gaussians.load, file)
                continue
            try:
                objects = tar_objects(file)
            except (tarfile.TarError, ValueError) as error:
                raise ClipgsError(f"{file} is not a tar of splats ({error})") from None
            for uid, members in objects.items():
                splat = members._replace(entries=tuple(entry for entry in members.entries if entry[0] == "ply"))
                if splat.entries and (not uids or uid in uids):
                    yield uid, file, partial(Gaussians.from_ply, splat.read()["ply"], f"{file}: {uid}")


def _values(gaussians: Gaussians) -> tuple[np.ndarray, ...]:
    """Means, unit quaternions wxyz, scales, opacities and colours in float64."""
    if gaussians.means.ndim != 2 or len(gaussians) == 0:
        raise ValueError(f"Only one object with Gaussians can be exported, not means {list(gaussians.means.shape)}.")
    fields = (gaussians.means, gaussians.quats_wxyz, gaussians.log_scales, gaussians.opacity_logits, gaussians.colors)
    means, quats, log_scales, logits, colors = (values.detach().cpu().double() for values in fields)
    quats = torch.nn.functional.normalize(quats, dim=1, eps=1e-300)
    return tuple(values.numpy() for values in (means, quats, log_scales.exp(), logits.sigmoid(), colors))


def _steps(fractions: np.ndarray, highest: int, number: type) -> np.ndarray:
    """Fractions in [0, 1] as whole numbers up to `highest`."""
    return (fractions * highest).round().astype(number)
