"""How many cores this process may really use. Imports nothing heavy: Snakemake asks whenever it parses."""

import math
import os
from pathlib import Path


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
