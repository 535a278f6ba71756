"""What the file of a splat holds in any format, as rows of 14 numbers, and what is done to the rows of all formats.

Imports no torch. N is the number of Gaussians.
"""

from typing import Any, NamedTuple

import numpy as np

from clipgs.splats.order import farthest_point_order

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, sqrt(1 / (4 pi))
MAX_LOGIT = 30.0  # files may have infinite logits; at this one, sigmoids are already 0 or 1 and their gradient is 0
FLAT = 1e-6  # the scale of a flat Gaussian across its plane, as other programs read it
ANTIALIASED = "it was fitted for antialiased drawing (mip), so its thin parts are drawn wider here"

_NO_MOVE = np.zeros(3)


class SplatRows(NamedTuple):
    """What a file holds."""

    rows: np.ndarray  # [N, 14] float32 in the order of SPLAT_PROPERTIES
    notes: list[str]  # what was dropped or replaced, and what the file says of how it is to be drawn
    harmonics: int = 0  # coefficients above degree 0 a Gaussian, which are dropped
    origin: np.ndarray = _NO_MOVE  # [3] float64, was taken off the positions where float32 would lose their digits


class Limit(NamedTuple):
    """How many Gaussians a file may have. Headers may lie, so readers ask before they allocate."""

    gaussians: int = 10_000_000
    setting: str = "the most that clipgs reads"

    def check(self, count: int) -> int:
        """The number itself.

        Raises:
            ValueError: there are more, or none.
        """
        if count > self.gaussians:
            raise ValueError(f"it has {count} Gaussians, {self.setting} is {self.gaussians}")
        if count < 1:
            raise ValueError("the splat has no Gaussians")
        return count


def joined(
    means: np.ndarray,  # [N, 3]
    f_dc: np.ndarray,  # [N, 3]
    logits: np.ndarray,  # [N]
    log_scales: np.ndarray,  # [N, 3]
    quats_wxyz: np.ndarray,  # [N, 4]
) -> np.ndarray:  # [N, 14]
    """Rows of float32. A value beyond float32 becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        columns = (means, f_dc, logits[:, None], log_scales, quats_wxyz)
        return np.concatenate([np.asarray(column, np.float32) for column in columns], axis=1)


def f_dc_of(colors: Any) -> Any:
    """The harmonic of degree 0 that gives a colour; arrays or tensors [N, 3]."""
    return (colors - 0.5) / SH_C0


def logits_of(
    opacities: np.ndarray,  # [N] in [0, 1]
) -> np.ndarray:  # [N]
    """Logits, finite for 0 and 1 too: in these formats both are usual values."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.log(opacities) - np.log1p(-opacities)).clip(-MAX_LOGIT, MAX_LOGIT)


def logs_of(
    scales: np.ndarray,  # [N, 3]
) -> np.ndarray:  # [N, 3]
    """Natural logarithms; -inf of zero, which `usable` makes flat, and NaN of what is negative."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(scales.astype(np.float64))


def smallest_three(
    largest: np.ndarray,  # [N] 0 to 3
    others: np.ndarray,  # [N, 3], the other components in their order
) -> np.ndarray:  # [N, 4]
    """Unit quaternions of which the largest component was left out, in the component order of the file."""
    quats = np.empty((len(largest), 4))
    rest = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    np.put_along_axis(quats, rest, others, axis=1)
    left = np.sqrt(np.maximum(0, 1 - np.square(others).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None].astype(np.int64), left[:, None], axis=1)
    return quats


def usable(found: SplatRows, *, ordered: bool = False) -> SplatRows:
    """The Gaussians that can be used, in farthest-point order.

    Rows with a value that is not a number, or with a quaternion of zeros, are dropped. Infinite opacity logits and
    log-scales of -inf are values (opaque, transparent, flat), and become finite ones.

    Args:
        ordered: the rows are in this order already.

    Raises:
        ValueError: no row can be used.
    """
    rows, notes = _finite(found.rows)
    if not ordered or len(rows) < len(found.rows):
        rows = rows[farthest_point_order(rows[:, :3])]
    return found._replace(rows=rows, notes=found.notes + notes)


def _finite(
    rows: np.ndarray,  # [N, 14]
) -> tuple[np.ndarray, list[str]]:  # [n, 14]
    """The rows that are Gaussians, with finite values; and notes of what was dropped or replaced."""
    notes = []
    if not np.isfinite(rows).all():
        rows = rows.copy()
        logits, log_scales = rows[:, 6], rows[:, 7:10]
        infinite, flat = np.isinf(logits), np.isneginf(log_scales)
        logits[infinite] = np.copysign(np.float32(MAX_LOGIT), logits[infinite])
        log_scales[flat] = np.log(FLAT)
        if infinite.any():
            notes.append(f"{infinite.sum()} infinite opacity logits became {MAX_LOGIT:g} or -{MAX_LOGIT:g}")
        if flat.any():
            notes.append(f"{flat.sum()} scales of zero became {FLAT:g}")
    finite, turned = np.isfinite(rows).all(axis=1), np.abs(rows[:, 10:]).max(axis=1) != 0
    kept = finite & turned
    if kept.all():
        return rows, notes
    reasons = {"values that are not finite numbers": ~finite, "a quaternion of zeros": ~turned}
    listed = ", ".join(f"{bad.sum()} with {reason}" for reason, bad in reasons.items() if bad.any())
    if not kept.any():
        raise ValueError(f"none of its {len(rows)} Gaussians can be used: {listed}")
    notes.append(f"{len(rows) - kept.sum()} of {len(rows)} Gaussians are dropped: {listed}")
    return rows[kept], notes


def moved(
    rows: np.ndarray,  # [N, 14]
    matrix: np.ndarray,  # [4, 4]
) -> np.ndarray:  # [N, 14]
    """The Gaussians under an affine map. One that is no rotation with an even scale bends them as it bends space."""
    from scipy.spatial.transform import Rotation  # takes a quarter of a second, and few formats need it

    linear = matrix[:3, :3].astype(np.float64)
    rows64 = rows.astype(np.float64)
    means = rows64[:, :3] @ linear.T + matrix[:3, 3]
    lengths = np.linalg.norm(rows64[:, 10:], axis=1, keepdims=True)
    is_turn = (lengths > 0) & np.isfinite(lengths)  # what is none stays none, and is dropped later
    turns = Rotation.from_quat(np.where(is_turn, rows64[:, 10:], [1, 0, 0, 0]), scalar_first=True)
    size = np.cbrt(abs(np.linalg.det(linear)))
    if size > 0 and np.allclose(linear @ linear.T, size**2 * np.eye(3), rtol=0, atol=1e-6 * size**2):
        # A reflection at a point changes no Gaussian, so that of a mirror is a rotation too.
        turned = Rotation.from_matrix(linear / size * np.sign(np.linalg.det(linear))) * turns
        log_scales = rows64[:, 7:10] + np.log(size)
    else:
        axes = linear @ (turns.as_matrix() * np.exp(rows64[:, None, 7:10]))
        is_turn &= np.isfinite(axes).all(axis=(1, 2))[:, None]
        left, scales, _ = np.linalg.svd(np.where(is_turn[..., None], axes, np.eye(3)))
        turned = Rotation.from_matrix(left * np.sign(np.linalg.det(left))[:, None, None])
        log_scales = logs_of(scales)
    quats = np.where(is_turn, turned.as_quat(scalar_first=True), np.where(lengths > 0, np.nan, 0))
    return joined(means, rows64[:, 3:6], rows64[:, 6], log_scales, quats)
