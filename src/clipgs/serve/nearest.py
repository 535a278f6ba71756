"""Exact search: the cosines of a query with all embeddings of a run, read from the mapped file."""

import json
import mmap
import os
from pathlib import Path

import numpy as np

from clipgs.core.bundles import map_tensor, read_metadata
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.core.files import damage, read_sidecar, sha256_of
from clipgs.encoder import MODEL

_ROWS = 8192  # at a time: 32 MB of 1,024 numbers
_EXACT_ROWS = 1000  # the best ones are scored again in double precision, as `clipgs search` does
_TIE = 1e-9


class Vectors:
    """The embeddings of n splats by a run, in the file that its evaluation wrote.

    They stay in the file. A search reads it once through, and gives the memory back block by block, so that a large
    output needs no more memory than a small one; the operating system keeps the file in its cache.

    Raises:
        ClipgsError: there is no such file, or it is damaged or of other weights.
    """

    def __init__(self, file: Path, run: Path) -> None:
        again = f"make them with: {snakemake('evaluate')}"
        if not file.exists():
            raise ClipgsError(f"the run {run.name} has no embeddings yet; {again}")
        if reason := damage(file):
            raise ClipgsError(f"{file} {reason}; {again}")
        metadata = read_metadata(file)
        if metadata.get("model_sha256") != _recorded_sha256(run / MODEL):
            raise ClipgsError(f"{file} is of other weights than {run / MODEL}; {again}")
        self._file, self._inode = file, file.stat().st_ino
        self.uids: list[str] = metadata["uids"]
        self._rows, self._map, self._offset = map_tensor(file, "shapes")  # [n, D]
        self.dim: int = self._rows.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, i: int) -> np.ndarray:
        """[D] float32."""
        return self._read(np.array([i]))[0].astype(np.float32)

    def _read(
        self,
        rows: np.ndarray,  # [k]
    ) -> np.ndarray:
        """[k, D] of these rows. They are read and not mapped: a page of the map may bring a megabyte with it.

        Raises:
            ClipgsError: the file was written again since it was mapped.
        """
        size = self._rows.itemsize * self.dim
        with open(self._file, "rb") as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                raise ClipgsError(f"{self._file} has changed since the server started; start it again")
            data = b"".join(os.pread(file.fileno(), size, self._offset + int(row) * size) for row in rows)
        return np.frombuffer(data, self._rows.dtype).reshape(len(rows), self.dim)

    def cosines(
        self,
        query: np.ndarray,  # [D] float32, unit length
    ) -> np.ndarray:
        """[n] float32, with every embedding."""
        found = np.empty(len(self._rows), np.float32)
        page_bytes, row_bytes, freed = mmap.PAGESIZE, self._rows.itemsize * self.dim, 0
        for start in range(0, len(found), _ROWS):
            block = self._rows[start : start + _ROWS]
            # einsum takes one thread. BLAS takes several, which wait for each other as they map the same file.
            np.einsum("nd,d->n", block.astype(np.float32, copy=False), query, out=found[start : start + len(block)])
            read = (self._offset + (start + len(block)) * row_bytes) // page_bytes * page_bytes
            if read > freed and hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED, freed, read - freed)
            freed = read
        return found

    def ordered(
        self,
        query: np.ndarray,  # [D] float32, unit length
        chosen: np.ndarray,  # [m] rows to rank
    ) -> tuple[np.ndarray, np.ndarray]:
        """The chosen rows [m], nearest first, and their cosines [m]; ties are in the order of the rows."""
        cosines = self.cosines(query)[chosen]
        order = np.argsort(-cosines, kind="stable")
        best = np.sort(order[:_EXACT_ROWS])
        vectors = self._read(chosen[best]).astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query.astype(np.float64))
        exact = vectors @ query.astype(np.float64) / np.maximum(lengths, 1e-12)
        again = np.argsort(-(exact / _TIE).round(), kind="stable")
        order[: len(best)] = best[again]
        scores = cosines[order]
        scores[: len(best)] = exact[again]
        return chosen[order], scores


def _recorded_sha256(path: Path) -> str:
    """The hash of a file of the output as its writer recorded it: reading large weights would take long."""
    try:
        return json.loads(read_sidecar(path) or "")["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # a published run has no sidecar
        return sha256_of(path)
