"""Compressed splat PLYs, as SuperSplat writes them: 16 bytes a Gaussian, and bounds for each 256 of them.

Method: the layout that PlayCanvas' engine documents in "Compressed PLY".
"""

import numpy as np

from clipgs.core.ply_header import PlyHeader
from clipgs.splats.rows import f_dc_of, joined, logits_of, smallest_three

CHUNK = 256  # Gaussians that share bounds
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_BOUNDS = tuple(f"{end}_{name}{axis}" for name in ("", "scale_") for end in ("min", "max") for axis in "xyz")


def lacks(header: PlyHeader) -> list[str]:
    """What a compressed PLY needs and this one has not."""
    vertex, chunk = header.element("vertex"), header.element("chunk")
    missing = [name for name in _PACKED if vertex is None or name not in vertex.properties]
    missing += [name for name in _BOUNDS if chunk is None or name not in chunk.properties]
    if not missing and chunk is not None and vertex is not None and chunk.count * CHUNK < vertex.count:
        missing = [f"bounds of {vertex.count} Gaussians (only {chunk.count} chunks of {CHUNK})"]
    return missing


def unpacked(
    chunks: np.ndarray,  # [ceil(N / 256)], structured: bounds
    vertices: np.ndarray,  # [N], structured: packed values, uint32
) -> np.ndarray:  # [N, 14]
    """Rows. Positions and log-scales have 11, 10 and 11 bits, colours and opacity 8, and quaternions 2 + 3 x 10."""
    position, rotation, scale, color = (vertices[name].astype(np.uint32) for name in _PACKED)
    chunk = chunks[np.arange(len(vertices)) // CHUNK]

    def between(fractions: np.ndarray, prefix: str, axes: str) -> np.ndarray:  # [N, 3]
        low, high = (
            np.stack([chunk[f"{end}_{prefix}{axis}"] for axis in axes], 1).astype(np.float64) for end in ("min", "max")
        )
        return low * (1 - fractions) + high * fractions

    colors = np.stack([_bits(color, shift, 8) for shift in (24, 16, 8)], axis=1)
    if "min_r" in (chunks.dtype.names or ()):  # older files have colours of 0 to 1
        colors = between(colors, "", "rgb")
    others = (np.stack([_bits(rotation, shift, 10) for shift in (20, 10, 0)], axis=1) - 0.5) * np.sqrt(2)
    return joined(
        between(_three(position), "", "xyz"),
        f_dc_of(colors),
        logits_of(_bits(color, 0, 8)),
        between(_three(scale), "scale_", "xyz"),
        smallest_three(rotation >> 30, others),  # w, x, y, z
    )


def _bits(packed: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """Some bits of each number, as a fraction of the highest that they can hold."""
    highest = (1 << bits) - 1
    return ((packed >> shift) & highest) / highest


def _three(packed: np.ndarray) -> np.ndarray:  # [N, 3]
    return np.stack([_bits(packed, 21, 11), _bits(packed, 11, 10), _bits(packed, 0, 11)], axis=1)
