"""Measurements during a run: retrieval on the validation split, speed, and their files."""

import json
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from clipgs.core.prefetch import Prefetch


def validation_retrieval(
    shapes: Tensor,  # [n, D]
    texts: Tensor,  # [n, D]
    images: Tensor,  # [n, K, D]
    captions: Tensor,  # [n]
) -> dict[str, float]:
    """Recall at 1 and mean reciprocal rank of the own shape of each text and image, among all shapes.

    Unlike in `evaluation.retrieval`, only the own shape is a right answer, shapes of the same caption are left out, and
    ties count as wrong. So one product on the GPU is enough, and a collapsed encoder scores 0.
    """

    def ranks_of(queries: Tensor, right: Tensor) -> Tensor:
        """[n] wrong shapes before the query's own."""
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
    """Samples per second, and the fraction of the time that steps wait for data."""

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
    """`metrics.jsonl`, which has the same bytes after a killed and resumed run; `speed.jsonl`; TensorBoard.

    Args:
        step: the number of finished steps; removes the lines of later ones.
    """

    NAMES = ("metrics.jsonl", "speed.jsonl")

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._files = {Path(name).stem: _cut(folder / name, step).open("a") for name in self.NAMES}
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, numbers: dict[str, float], file: Literal["metrics", "speed"] = "metrics") -> None:
        """Adds a line to a file, and its numbers to TensorBoard."""
        print(json.dumps({"step": step, **numbers}), file=self._files[file], flush=True)
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._board.close()


def _cut(file: Path, step: int) -> Path:
    """Removes the lines of later steps, and an incomplete last line; returns the file."""
    kept = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    file.write_text("".join(kept))
    return file
