import math
import os

import pytest

from clipgs.core import processes


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_quota_of_a_control_group(tmp_path, files, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert processes._quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(math.inf, 8), (9.0, 8), (2.5, 3), (2.0, 2), (0.2, 1)])
def test_no_more_cores_are_used_than_the_quota_allows(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(processes, "_quota", lambda root: quota)
    assert processes.usable_cores() == cores
