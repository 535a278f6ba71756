"""What control groups leave of a machine, read from files that stand in for /proc and /sys."""

import os

import psutil
import pytest

from clipgs.core.processes import free_memory_bytes, usable_cores
from clipgs.core.workers import usable_workers
from tests.core.control_groups import write_groups


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 40})())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3), (500.0, 64)])
def test_a_quota_is_rounded_up_for_cores_and_workers_alike(tmp_path, version, quota, cores):
    write_groups(tmp_path, version, cores=quota, memory_bytes=1 << 40, used_bytes=0)
    assert usable_cores(tmp_path) == usable_workers(1000, 1, tmp_path) == cores


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_groups_leave_with_the_cache_that_they_give_up(tmp_path, version):
    write_groups(tmp_path, version, cores=2, memory_bytes=4 << 30, used_bytes=3 << 30, cache_bytes=1 << 30)
    assert free_memory_bytes(tmp_path) == 2 << 30


def test_without_control_groups_the_machine_is_all_there(tmp_path):
    assert usable_cores(tmp_path) == 64
    assert free_memory_bytes(tmp_path) == 1 << 40
