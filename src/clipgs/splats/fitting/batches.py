"""Fits of many objects on a GPU: batch by batch, while threads read the next objects and judge the last."""

from collections.abc import Callable
from typing import Any

import torch

from clipgs.config import Config
from clipgs.core.batching import in_batches
from clipgs.core.devices import choose_device
from clipgs.core.runner import Files, Results, Row, Task
from clipgs.splats import fitting
from clipgs.splats.fitting.start import Prepared, prepare
from clipgs.splats.gaussians import Gaussians, Points, Views


def fit_batches(
    config: Config,
    tasks: list[Task],
    threads: int,
    read: Callable[[Any], tuple[Points, Views, int]],
    finish: Callable[[Any, Gaussians, Views], tuple[Row, Files]],
) -> Results:
    """Yields each task with its row and files, or with its error as text.

    Args:
        read: makes the points, all views and the seed of one object from a task's payload, without a batch axis.
        finish: makes the row and files of one object from the payload, the Gaussians [N, ...] and all views.
    """
    count, device = config.views.count, choose_device(config.device)

    def prepared(payload: Any) -> tuple[Prepared, Views, Any]:
        cloud, views, seed = read(payload)
        return prepare(cloud, count, config.fit, seed), views, payload

    def compute(inputs: list[tuple[Prepared, Views, Any]]) -> list[Gaussians]:
        starts, views, _ = zip(*inputs, strict=True)
        to_see = [one[:count].to(device) for one in views]
        stacked = (torch.stack([getattr(one, name) for one in to_see]) for name in ("rgba", "viewmats", "Ks"))
        gaussians = fitting.fit(starts, Views(*stacked), config.fit)
        return [gaussians[b] for b in range(len(starts))]

    def judged(gaussians: Gaussians, of: tuple[Prepared, Views, Any]) -> tuple[Row, Files]:
        _, views, payload = of
        return finish(payload, gaussians, views)

    size = fitting.cuda.objects_a_batch(config.fit, count, config.views.pixels)
    yield from in_batches(tasks, threads, size, prepared, compute, judged, "views.pixels or fit.gaussians")
