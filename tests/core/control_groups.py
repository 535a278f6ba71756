"""The files of /proc and /sys that say what a process's control groups allow."""

from pathlib import Path


def write_groups(
    root: Path, version: int, *, cores: float, memory_bytes: int, used_bytes: int, cache_bytes: int = 0
) -> None:
    """Writes below `root` the groups of a job that may use so much; the rest of the tree is without limits."""
    quota = int(cores * 100_000)
    if version == 2:
        files = {
            "proc/self/cgroup": "0::/slice/job\n",
            "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slice/cpu.max": f"{quota} 100000\n",  # a limit further out counts too
            "sys/fs/cgroup/slice/job/memory.max": f"{memory_bytes}\n",
            "sys/fs/cgroup/slice/job/memory.current": f"{used_bytes}\n",
            "sys/fs/cgroup/slice/job/memory.stat": f"anon 5\ninactive_file {cache_bytes}\n",
        }
    else:
        files = {
            "proc/self/cgroup": "4:cpu,cpuacct:/job\n5:memory:/job\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": f"{quota}\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{memory_bytes}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{used_bytes}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {cache_bytes}\n",
        }
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
