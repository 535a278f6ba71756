"""Files with bytes that no writer wrote."""

import random
from collections.abc import Iterable
from pathlib import Path

from clipgs.core.workers import Failure, run
from clipgs.meshes.load import load


def damaged(data: bytes, rng: random.Random, *, cut: bool) -> bytes:
    """The bytes, of which some are others; cut off somewhere if asked for."""
    result = bytearray(data)
    if cut:
        result = result[: rng.randrange(len(result))]
    for _ in range(rng.randrange(1, 6)):
        result[rng.randrange(len(result))] = rng.randrange(256)
    return bytes(result)


def failures_of(files: Iterable[Path], memory_mb: int) -> list[Failure]:
    """Why files do not load: in workers, as in the stages, since libraries may end their process.

    Every file has an outcome, and none runs out of time.
    """
    paths = list(files)
    results = dict(run(_faces, paths, workers=2, timeout_seconds=60, memory_mb=memory_mb))
    assert len(results) == len(paths)
    failures = [result for result in results.values() if isinstance(result, Failure)]
    assert not any("Timeout" in failure.error for failure in failures)
    return failures


def _faces(path: Path) -> int:
    return load(path, max_faces=100_000, max_texture_pixels=1 << 20).face_count
