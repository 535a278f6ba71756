"""Many objects in one call on a GPU, while threads read the next batch and finish the last."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from clipgs.core.errors import ClipgsError, describe_error
from clipgs.core.runner import Files, Results, Row, Task

log = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")


def in_batches(
    tasks: list[Task],
    threads: int,
    size: int,
    read: Callable[[Any], Input],
    compute: Callable[[list[Input]], Iterable[Output]],
    finish: Callable[[Output, Input], tuple[Row, Files]],
    lower: str,
) -> Results:
    """Yields each task with its row and files, or with its error as text.

    Args:
        size: objects per batch; halved when the GPU's memory runs out.
        read: makes an input of `compute` from a task's payload. What it raises is the object's error. It may be called
            again for the same object.
        compute: makes a list of as many outputs from a list of inputs.
        finish: makes the object's row and files from its output and input.
        lower: the keys to lower if not even one object fits.

    Raises:
        ClipgsError: one object alone does not fit into the GPU's memory.
    """
    import torch

    first = 0
    reading: dict[int, Future[Input]] = {}
    finishing: dict[int, Future[tuple[Row, Files]]] = {}
    with ThreadPoolExecutor(threads) as pool:
        while first < len(tasks):
            for index in range(first, min(first + 2 * size, len(tasks))):
                if index not in reading:
                    reading[index] = pool.submit(read, tasks[index].payload)
            batch = range(first, min(first + size, len(tasks)))
            # Inputs are read again after a failure: generators in them may be partly consumed.
            results = {index: _result(reading.pop(index)) for index in batch}
            inputs = {index: result for index, result in results.items() if not isinstance(result, str)}
            try:
                computed = compute(list(inputs.values())) if inputs else []
            except torch.OutOfMemoryError:
                if size == 1:
                    raise ClipgsError(f"one object does not fit into the GPU's memory; lower {lower}") from None
                size = max(1, len(inputs) // 2)
                torch.cuda.empty_cache()
                log.warning("the batch does not fit into the GPU's memory; going on with %d objects a batch", size)
                continue
            for index in batch:
                if isinstance(error := results[index], str):
                    yield tasks[index], error
            yield from ((tasks[index], _result(future)) for index, future in finishing.items())
            finishing = {
                index: pool.submit(finish, result, inputs[index])
                for index, result in zip(inputs, computed, strict=True)
            }
            first = batch.stop
        yield from ((tasks[index], _result(future)) for index, future in finishing.items())


def _result(future: Future[Any]) -> Any:
    """The result of a thread, or its error as text."""
    import torch

    try:
        return future.result()
    except (ClipgsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the object's own: it becomes its row
        return describe_error(error)
