"""Copies rows of many arrays, mapped from many files, in one call.

A loop in Python would take the GIL some thousand times per batch, and the thread that launches the GPU's kernels needs
the GIL for each launch.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor


class Rows:
    """Arrays [n_s, ...] of one type, with different lengths n_s; in memory or mapped, without a copy."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        if len(kinds := {(array.dtype, array.shape[1:]) for array in arrays}) != 1:
            raise ValueError(f"arrays of several kinds: {kinds}")
        self.arrays = [np.ascontiguousarray(array) for array in arrays]
        ((dtype, self._shape),) = kinds
        self._dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        self._bytes = dtype.itemsize * int(np.prod(self._shape))
        self._starts = np.array([array.ctypes.data for array in self.arrays], dtype=np.int64)
        self._lengths = np.array([len(array) for array in self.arrays])

    def __call__(
        self,
        arrays: np.ndarray,  # [M], numbers of arrays
        rows: np.ndarray,  # [M], rows in these arrays
        pin: bool = False,
    ) -> Tensor:  # [M, ...]
        """A copy of these rows, in pinned memory if `pin`.

        Raises:
            IndexError: there is no such row.
        """
        if len(wrong := np.flatnonzero((rows < 0) | (rows >= self._lengths[arrays]))):
            array, row = arrays[wrong[0]], rows[wrong[0]]
            raise IndexError(f"array {array} has no row {row} of {self._lengths[array]}")
        found = torch.empty((len(rows), *self._shape), dtype=self._dtype, pin_memory=pin)
        _copy(self._starts[arrays] + rows.astype(np.int64) * self._bytes, found.data_ptr(), self._bytes)
        return found


@intrinsic
def _copy_bytes(typing, target, source, size):
    def generate(context, builder, signature, arguments):
        target, source = (builder.inttoptr(address, cgutils.voidptr_t) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@numba.njit(cache=True, nogil=True)
def _copy(
    sources,  # [M] int64, addresses
    target,  # address
    size,  # bytes
):
    for i in range(len(sources)):
        _copy_bytes(target + i * size, sources[i], size)
