"""Splats in glTF 2.0, .glb and .gltf, with KHR_gaussian_splatting.

Method: the extension's specification in the Khronos repository; the names and the log-scales of its release candidate.
"""

from pathlib import Path

import numpy as np

from clipgs.catalog.sources.splats import GLTF_EXTENSION as EXTENSION
from clipgs.core.errors import ObjectError
from clipgs.meshes import gltf
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import linear_to_srgb
from clipgs.splats.formats import spz
from clipgs.splats.rows import SH_C0, Limit, SplatRows, f_dc_of, joined, logits_of, logs_of, moved

_NEEDED = ("POSITION", *(f"{EXTENSION}:{name}" for name in ("ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0")))


def read(path: Path, limit: Limit) -> SplatRows:
    """The splats of all primitives, in the world coordinates of the scene (Y up).

    Raises:
        ValueError: damaged, without a splat, or of more Gaussians than the limit.
    """
    parts: list[SplatRows] = []
    try:
        for values, extension, matrix in gltf.extended(path, Folder(path, 1), EXTENSION, limit.gaussians):
            part = _packed(extension["bytes"], limit) if extension["bytes"] else _primitive(values, extension)
            parts.append(part._replace(rows=moved(part.rows, matrix)))
            limit.check(sum(len(part.rows) for part in parts))
    except ObjectError as error:
        raise ValueError(str(error)) from error
    if not parts:
        raise ValueError(f"none of its primitives has {EXTENSION}: a mesh, and no splat")
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    return SplatRows(np.concatenate([part.rows for part in parts]), notes, max(part.harmonics for part in parts))


def _packed(data: list[bytes], limit: Limit) -> SplatRows:
    """A primitive whose data are a whole SPZ file."""
    if len(data) != 1:
        raise ValueError("a primitive is compressed in several ways")
    return spz.read(data[0], limit)


def _primitive(values: dict[str, np.ndarray], extension: dict[str, object]) -> SplatRows:
    missing = [name for name in _NEEDED if name not in values]
    if missing:
        raise ValueError(f"its splat has no {', '.join(missing)}")
    means, quats_xyzw, scales, opacities, f_dc = (values[name].astype(np.float64) for name in _NEEDED)
    if len({len(column) for column in (means, quats_xyzw, scales, opacities, f_dc)}) != 1:
        raise ValueError("its attributes differ in length")
    notes = []
    if (scales < 0).any():  # the standard has no negative ones
        log_scales = scales
        notes.append("its scales are logarithms, as before the standard was final")
    else:
        log_scales = logs_of(scales)
    if str(extension.get("colorSpace", "")).startswith("lin_"):
        f_dc = f_dc_of(linear_to_srgb((0.5 + SH_C0 * f_dc).clip(0, 1)))
        notes.append("its colours were linear")
    quats = quats_xyzw[:, [3, 0, 1, 2]]
    rows = joined(means[:, :3], f_dc[:, :3], logits_of(opacities[:, 0]), log_scales[:, :3], quats)
    higher = sum(name.startswith(f"{EXTENSION}:SH_DEGREE_") for name in values) - 1
    return SplatRows(rows, notes, 3 * higher)
