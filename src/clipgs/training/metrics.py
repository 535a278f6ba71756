"""What is measured during a run: retrieval on the validation split and speed; and the files that keep it."""

import json
import logging
import time
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor

from clipgs.core.prefetch import Prefetch

log = logging.getLogger(__name__)


def validation_retrieval(
    shapes: Tensor,  # [n, D]
    texts: Tensor,  # [n, D]
    images: Tensor,  # [n, K, D]
    captions: Tensor,  # [n]
) -> dict[str, float]:
    """How well texts and images find their own shape among all: recall at 1 and mean reciprocal rank.

    Unlike in `evaluation.retrieval`, only the own shape counts as found, and equal similarities count against it; other
    shapes of the same caption are left out. So it runs on the GPU in one product, and a collapsed encoder scores 0.
    """

    def ranks_of(queries: Tensor, right: Tensor) -> Tensor:
        """Wrong shapes that come before the query's own, [n]."""
        similar = queries @ shapes.T
        own = similar.diagonal()[:, None]
        return ((similar >= own) & ~right).sum(dim=1)

    itself = torch.eye(len(shapes), dtype=torch.bool, device=shapes.device)
    found = {
        "text": ranks_of(texts, captions[:, None] == captions[None, :]),
        "image": torch.cat([ranks_of(images[:, k], itself) for k in range(images.shape[1])]),
    }
    numbers = {}
    for name, ranks in found.items():
        numbers[f"{name}_r1"] = (ranks == 0).double().mean().item()
        numbers[f"{name}_mrr"] = (1 / (ranks.double() + 1)).mean().item()
    return numbers


class Speed:
    """Samples a second, and the share of the time in which a step waited for its data."""

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch
        self.steps = 0  # since `numbers` was last called
        self._start, self._waited = time.perf_counter(), 0.0

    def numbers(self, batch: int) -> dict[str, float]:
        """Since the last call."""
        now, waited = time.perf_counter(), self._prefetch.waited_seconds
        seconds = now - self._start
        numbers = {
            "samples_per_second": self.steps * batch / seconds,
            "data_wait_fraction": (waited - self._waited) / seconds,
        }
        self.steps, self._start, self._waited = 0, now, waited
        return numbers


class MetricsFiles:
    """`metrics.jsonl`, which a killed and resumed run writes to the same bytes; `speed.jsonl`; TensorBoard.

    Args:
        step: the number of steps that are done; lines of later ones are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = _cut(folder / "metrics.jsonl", step).open("a")
        self._speed = _cut(folder / "speed.jsonl", step).open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, numbers: dict[str, float]) -> None:
        self._write(self._metrics, step, "", numbers)

    def validation(self, step: int, numbers: dict[str, float]) -> None:
        self._write(self._metrics, step, "validation_", numbers)
        log.info("train: step %d: %s", step, ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))

    def speed(self, step: int, numbers: dict[str, float]) -> None:
        self._write(self._speed, step, "", numbers)

    def _write(self, file: IO[str], step: int, prefix: str, numbers: dict[str, float]) -> None:
        numbers = {prefix + name: value for name, value in numbers.items()}
        file.write(json.dumps({"step": step, **numbers}) + "\n")
        file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._metrics.close()
        self._speed.close()
        self._board.close()


def _cut(file: Path, step: int) -> Path:
    """Removes the lines of later steps and a last line without an end; returns the file."""
    kept = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    file.write_text("".join(kept))
    return file
