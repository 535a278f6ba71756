"""Worker processes with limits, for work on files of unknown quality.

A task that raises, runs too long, takes too much memory or kills its process becomes a `Failure`; the others continue.
"""

import logging
import multiprocessing
import os
import pickle
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool

from clipgs.core.errors import ClipgsError, ObjectError, describe_error
from clipgs.core.processes import end_with, free_memory_bytes, usable_cores

_log = logging.getLogger(__name__)

# A worker starts OpenGL and compiles its shaders once. It is replaced after this many tasks, which bounds the leaks
# of graphics drivers and decoders.
_TASKS_A_WORKER = 64
_OVER_MEMORY = 86  # exit code of a worker that found itself over its memory
# Address space that is reserved but never touched (thread stacks, allocator arenas, the compiler inside llvmpipe)
# counts for RLIMIT_DATA, but not for the memory in use.
_RESERVED_MB = 1024
_WATCH_SECONDS = 0.05
_ONE_THREAD = ("OMP", "OPENBLAS", "MKL", "NUMBA", "LP")  # LP: Mesa's llvmpipe


@dataclass(frozen=True)
class Failure:
    """Why a task gave no result: `Class: one sentence`."""

    error: str
    final: bool = field(default=True, compare=False)  # its own fault: another try would end as this one


class _Spawn(multiprocessing.context.SpawnContext):
    """Starts processes, and keeps the locks that it makes.

    A pool that stops drops its locks before its workers. A worker that still starts then would not find them by their
    names, and end with a traceback of multiprocessing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._locks: list[Any] = []

    def RLock(self) -> Any:
        self._locks.append(super().RLock())
        return self._locks[-1]


def run(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    *,
    workers: int,
    timeout_seconds: float,
    memory_mb: int,
) -> Iterator[tuple[int, Any]]:
    """Calls `function(task)` for every task in spawned processes.

    Yields (index of the task, result or `Failure`) in the order in which they finish. `function` must be importable by
    name, tasks and results picklable. A task starts when a worker is free; it may run for `timeout_seconds` and
    its process hold `memory_mb`. A worker uses one thread and dies with its parent. A task whose worker died, or that
    raised an error that nobody foresaw, is tried once more: the kernel kills for the memory of others, a person by
    mistake, and drivers of graphics fail under load.

    Raises:
        ClipgsError: a task raised it; no other task would fare better.
    """
    context = _Spawn()  # lives as long as the pool
    pool = ProcessPool(
        max_workers=workers,
        max_tasks=_TASKS_A_WORKER,
        initializer=_start_worker,
        initargs=(os.getpid(), memory_mb),
        context=context,
    )
    waiting = ((index, task, 1) for index, task in enumerate(tasks))
    again: deque[tuple[int, Any, int]] = deque()
    running: dict[Future[bytes], tuple[int, Any, int]] = {}
    try:
        while True:
            # One task more than workers is queued: with more, a crash could reach them.
            while len(running) < workers + 1 and (entry := again.popleft() if again else next(waiting, None)):
                # Pickled here and opened under guard: pebble loses a task that its worker cannot open.
                call = pickle.dumps((function, entry[1]))
                future = pool.schedule(_guarded, args=(call, memory_mb), timeout=timeout_seconds)
                running[future] = entry
            if not running:
                break
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                index, task, attempt = running.pop(finished)
                outcome = _outcome(finished, timeout_seconds, memory_mb)
                if attempt == 1 and isinstance(outcome, Failure) and not outcome.final:
                    again.append((index, task, 2))
                else:
                    yield index, outcome
        pool.close()
    finally:
        pool.stop()  # what still runs, where the caller gave up
        pool.join()


def _outcome(future: Future[bytes], timeout_seconds: float, memory_mb: int) -> Any:
    try:
        outcome = pickle.loads(future.result())
    except TimeoutError:
        return Failure(f"TimeoutError: ran longer than {timeout_seconds:g} s")
    except ProcessExpired as expired:
        if expired.exitcode == _OVER_MEMORY:
            return _too_much_memory(memory_mb)
        if (number := -expired.exitcode) > 0:
            return Failure(f"Killed: the worker died of {signal.Signals(number).name} (signal {number})", final=False)
        return Failure(f"Killed: the worker ended with exit code {expired.exitcode}", final=False)
    if isinstance(outcome, ClipgsError):
        raise outcome
    return outcome


def _too_much_memory(memory_mb: int) -> Failure:
    return Failure(f"MemoryError: needed more than {memory_mb} MB")


def _start_worker(parent: int, memory_mb: int) -> None:
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in _ONE_THREAD}
    end_with(parent)
    limit = (memory_mb + _RESERVED_MB) << 20
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here, its image of no use


def _guarded(call: bytes, memory_mb: int) -> bytes:
    """The pickled result or `Failure`: one that cannot be pickled is the task's failure, not the worker's."""
    finished = threading.Event()
    watch = threading.Thread(target=_watch_memory, args=(finished, memory_mb << 20), daemon=True)
    watch.start()
    try:
        function, task = pickle.loads(call)
        return pickle.dumps(function(task))
    except ClipgsError as error:
        return pickle.dumps(error)
    except MemoryError:
        return pickle.dumps(_too_much_memory(memory_mb))
    except Exception as error:
        _log.debug("task failed", exc_info=True)
        return pickle.dumps(Failure(describe_error(error), final=isinstance(error, ObjectError)))
    finally:
        # Joined before the result is sent: a worker that ends while it sends would break the pool.
        finished.set()
        watch.join()


def _watch_memory(finished: threading.Event, limit_bytes: int) -> None:
    process = psutil.Process()
    while not finished.wait(_WATCH_SECONDS):
        if process.memory_info().rss > limit_bytes:
            os._exit(_OVER_MEMORY)


def usable_workers(threads: int, memory_mb_per_worker: int, root: Path = Path("/")) -> int:
    """How many workers fit: the least of `threads`, the usable cores, and free memory over the need of one; at least 1.

    `root` is where /proc and /sys are looked for.
    """
    fitting = int(free_memory_bytes(root) / (memory_mb_per_worker << 20))
    return max(1, min(threads, usable_cores(root), fitting))
