import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from clipgs.core.errors import ClipgsError, ObjectError
from clipgs.core.workers import Failure, run, usable_workers
from tests.core.control_groups import write_groups


def act(task: str | int) -> int:
    """What a task may do to its worker."""
    match task:
        case "abort":
            os.abort()
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(3600)
        case "allocate at once":
            np.ones(64 << 30, np.uint8)
        case "allocate by and by":
            blocks = []
            while True:
                blocks.append(np.ones(8 << 20, np.uint8))
        case "object":
            raise ObjectError("it is no mesh")
        case "machine":
            raise ClipgsError("the disk is full")
        case "unpicklable":
            return lambda: 0
    return int(task) * 2


def environment(task: str) -> str | None:
    return os.environ.get(task)


def pid(task: int) -> int:
    return os.getpid()


def test_failures_stay_with_their_task():
    bad = ["abort", "sleep", "allocate at once", "allocate by and by", "object", "unpicklable", "segfault", "exit"]
    tasks = [bad[i // 2] if i % 2 and i // 2 < len(bad) else i for i in range(2 * len(bad) + 4)]
    results = dict(run(act, tasks, workers=2, timeout_seconds=6, memory_mb=400))
    assert len(results) == len(tasks)
    good = {i: results[i] for i, task in enumerate(tasks) if isinstance(task, int)}
    assert good == {i: 2 * i for i in good}
    errors = {task: results[i].error for i, task in enumerate(tasks) if not isinstance(task, int)}
    assert "pickle" in errors.pop("unpicklable")
    assert errors == {
        "abort": "Killed: the worker died of SIGABRT (signal 6)",
        "sleep": "TimeoutError: ran longer than 6 s",
        "allocate at once": "MemoryError: needed more than 400 MB",
        "allocate by and by": "MemoryError: needed more than 400 MB",
        "object": "ObjectError: it is no mesh",
        "segfault": "Killed: the worker died of SIGSEGV (signal 11)",
        "exit": "Killed: the worker ended with exit code 3",
    }


def test_crashes_in_a_row_lose_no_neighbour():
    tasks = ["abort" if i % 3 == 0 else i for i in range(18)]
    results = dict(run(act, tasks, workers=2, timeout_seconds=60, memory_mb=400))
    for index, task in enumerate(tasks):
        if task == "abort":
            assert results[index] == Failure("Killed: the worker died of SIGABRT (signal 6)")
        else:
            assert results[index] == 2 * task


def failing(marks: str) -> int:
    """Fails as the folder's name says (how, and how many times); then gives the number of its tries."""
    folder = Path(marks)
    how, times = folder.name.split("-")
    done = len(list(folder.iterdir()))
    (folder / str(done)).touch()
    if done < int(times):
        if how == "object":
            raise ObjectError("it is no mesh")
        if how == "driver":
            raise RuntimeError("no context")
        os.kill(os.getpid(), signal.Signals[how])
    return done + 1


def test_what_is_not_the_objects_fault_is_tried_once_more(tmp_path):
    """The kernel kills for the memory of others, a person by mistake, and drivers fail: no object fails of that."""
    names = ["SIGKILL-0", "SIGKILL-1", "SIGKILL-2", "SIGSEGV-1", "driver-1", "driver-2", "object-1"]
    for name in names:
        (tmp_path / name).mkdir()
    found = run(failing, [str(tmp_path / name) for name in names], workers=2, timeout_seconds=60, memory_mb=400)
    assert {names[index]: getattr(result, "error", result) for index, result in found} == {
        "SIGKILL-0": 1,
        "SIGKILL-1": 2,
        "SIGKILL-2": "Killed: the worker died of SIGKILL (signal 9)",
        "SIGSEGV-1": 2,
        "driver-1": 2,
        "driver-2": "RuntimeError: no context",
        "object-1": "ObjectError: it is no mesh",
    }
    assert len(list((tmp_path / "object-1").iterdir())) == 1


def test_what_is_the_fault_of_no_object_ends_the_run():
    with pytest.raises(ClipgsError, match="the disk is full"):
        list(run(act, [1, "machine", 3], workers=1, timeout_seconds=60, memory_mb=400))


class Unopenable:
    """A task that can be pickled and not opened again."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_task_that_the_worker_cannot_open():
    results = dict(run(act, [1, Unopenable(), 3], workers=1, timeout_seconds=60, memory_mb=400))
    assert (results[0], results[2]) == (2, 6)
    assert results[1].error.startswith("ValueError: invalid literal")


def test_tasks_are_drawn_as_needed():
    drawn = []

    def tasks():
        for index in range(50):
            drawn.append(index)
            yield index

    results = run(act, tasks(), workers=1, timeout_seconds=60, memory_mb=400)
    next(results)
    assert len(drawn) <= 4
    results.close()
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_no_tasks():
    assert list(run(act, [], workers=2, timeout_seconds=1, memory_mb=400)) == []


def test_a_worker_serves_many_tasks_on_one_thread():
    assert len({result for _, result in run(pid, range(8), workers=1, timeout_seconds=60, memory_mb=400)}) == 1
    names = ["OMP_NUM_THREADS", "LP_NUM_THREADS"]
    assert [value for _, value in run(environment, names, workers=1, timeout_seconds=60, memory_mb=400)] == ["1", "1"]


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from clipgs.core.workers import run\n"
        "if __name__ == '__main__':\n"
        "    for _ in run(time.sleep, [0.01, 3600, 3600], workers=2, timeout_seconds=4000, memory_mb=400):\n"
        "        sys.stdout.write('ready\\n')\n"
        "        sys.stdout.flush()\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert any("spawn_main" in " ".join(child.cmdline()) for child in children)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, alive


def test_usable_workers_is_bounded_by_what_there_is(tmp_path):
    cores = len(os.sched_getaffinity(0))
    assert usable_workers(1, 1, tmp_path) == 1
    assert usable_workers(1000, 1, tmp_path) == cores
    assert usable_workers(1000, 1 << 30, tmp_path) == 1  # no machine has a petabyte, and one worker always runs
    assert usable_workers(64, 1000) * 1000 <= max(1000, psutil.virtual_memory().total >> 20)


@pytest.mark.parametrize("version", [1, 2])
def test_usable_workers_minds_control_groups(tmp_path, version, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 40})())
    write_groups(tmp_path, version, cores=3, memory_bytes=4 << 30, used_bytes=3 << 30, cache_bytes=1 << 30)
    assert usable_workers(64, 1, tmp_path) == 3
    assert usable_workers(64, 1024, tmp_path) == 2


STARTS_LATE = """
import time
from pebble.pool.process import WorkerManager
from clipgs.core.workers import run

def quick(task):
    return task

stop = WorkerManager.force_stop_workers

def stop_late(manager):  # as on a host with many cores: workers start while others are stopped one by one
    time.sleep(4)
    stop(manager)

if __name__ == "__main__":
    WorkerManager.force_stop_workers = stop_late
    print(next(run(quick, [7] * 6, workers=6, timeout_seconds=60, memory_mb=400)))
"""


def test_a_worker_that_starts_while_the_pool_ends_says_nothing(tmp_path):
    (tmp_path / "late.py").write_text(STARTS_LATE)
    done = subprocess.run([sys.executable, "late.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "7" in done.stdout
    assert done.stderr == ""
