"""This process: the cores that it may use, and the process that it ends with. Imports nothing heavy."""

import ctypes
import math
import os
import signal
import sys
from pathlib import Path

PARENT = "CLIPGS_PARENT"  # in the environment of a command: the process that started it, and that it ends with
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Ends this process if `parent` has ended, and on Linux when the thread of it that started this one does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def usable_cores() -> int:
    """Cores that the process may run on: its affinity, and the CPU quota of its control group (a container's limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(Path("/sys/fs/cgroup")))))


def _quota(root: Path) -> float:
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    try:
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf
