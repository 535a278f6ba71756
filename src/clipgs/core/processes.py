"""This process: the cores and the memory that it may use, and the process that it ends with. Imports nothing heavy."""

import ctypes
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

PARENT = "CLIPGS_PARENT"  # in the environment of a command: the process that started it, and that it ends with
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Ends this process if `parent` has ended, and on Linux when the thread of it that started this one does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def usable_cores(root: Path = Path("/")) -> int:
    """How many threads or workers to start: the cores of the process's affinity, or fewer where the CPU quota of its
    control groups (v1 and v2: the limit of a container or of a batch job) allows fewer; at least 1.

    A quota is rounded up: with 1.5 cores, two threads or workers share what there is. `root` is where /proc and /sys
    are looked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([cores, *_quotas(root)])))


def free_memory_bytes(root: Path = Path("/")) -> float:
    """Memory that the process may still take: what the machine has available, or less where its control groups leave
    less. `root` is where /proc and /sys are looked for.
    """
    return min([psutil.virtual_memory().available, *_groups_free_bytes(root)])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for a controller, up to the outermost."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0" and not controllers:  # v2
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):  # v1
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = base / name.strip("/")
        # Inside a container the path may be the host's; the container's own group is then the base.
        yield from (path for path in (folder, *folder.parents) if path.is_relative_to(base) and path.is_dir())


def _numbers(folder: Path, *names: str) -> list[float]:
    """The numbers in control files; none where a file is missing or sets no limit."""
    try:
        return [float(word) for name in names for word in (folder / name).read_text().split()]
    except (OSError, ValueError):  # "max" is no number
        return []


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group allows, where it sets a limit."""
    for folder in _groups(root, "cpu"):
        for numbers in (_numbers(folder, "cpu.max"), _numbers(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")):
            if numbers and min(numbers) > 0:  # v1 writes -1 for no limit
                yield numbers[0] / numbers[1]


def _groups_free_bytes(root: Path) -> Iterator[float]:
    for folder in _groups(root, "memory"):
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if numbers := _numbers(folder, *names):
                yield numbers[0] - numbers[1] + _file_cache_bytes(folder)


def _file_cache_bytes(folder: Path) -> float:
    """File cache counts as used memory, but the kernel frees it on demand."""
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0.0
    return float(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
