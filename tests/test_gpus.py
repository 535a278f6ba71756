"""Counting GPUs without a driver, and that each process takes one of its own."""

import os
import subprocess
import sys
import tempfile

import pytest

from clipgs import gpus
from clipgs.gpus import VISIBLE, take_gpu, visible_gpus

TAKE = "import sys; from clipgs.gpus import take_gpu; print(take_gpu(), flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def own_locks(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(gpus, "_held", [])
    for name in gpus._BATCH_SYSTEMS:
        monkeypatch.delenv(name, raising=False)
    yield
    for lock in gpus._held:
        lock.close()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("0", ["0"]),
        ("1, 3", ["1", "3"]),
        ("", []),
        ("-1", []),
        ("2,-1,0", ["2"]),
        ("GPU-8a,GPU-9b", ["GPU-8a", "GPU-9b"]),
    ],
)
def test_what_the_environment_shows_is_what_there_is(value, names, tmp_path):
    assert visible_gpus({VISIBLE: value}, tmp_path) == names


def test_device_files_are_counted(tmp_path):
    (tmp_path / "dev").mkdir()
    assert visible_gpus({}, tmp_path) == []
    # A container may get any of the host's GPUs; CUDA numbers what it sees from 0.
    for name in ("nvidia0", "nvidia3", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / "dev" / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1", "2"]


def test_windows_shows_linux_one_device(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dxg").touch()
    assert visible_gpus({}, tmp_path) == ["0"]


def test_each_process_takes_a_free_one_and_a_dead_one_gives_it_back(monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,GPU-7f")

    def start():
        return subprocess.Popen([sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first = start()
    assert first.stdout.readline() == "4\n"
    second = start()
    assert second.stdout.readline() == "GPU-7f\n"
    third = start()  # waits
    first.kill()
    assert third.stdout.readline() == "4\n"
    for process in (first, second, third):
        process.kill()
        process.communicate()


def test_what_was_taken_is_all_that_is_seen():
    environment = {VISIBLE: "4,5"}
    assert take_gpu(environment=environment) == "4"
    assert environment == {VISIBLE: "4"}
    assert take_gpu(environment=environment) is None  # one is enough


def test_what_is_shared_is_never_waited_for():
    environment = {VISIBLE: "4"}
    assert take_gpu(environment=environment) == "4"
    code = TAKE.replace("take_gpu()", "take_gpu(alone=False)").removesuffix("; sys.stdin.read()")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.stdout == "4\n"


def test_a_scheduler_s_choice_stands():
    environment = {VISIBLE: "2,3", "SLURM_JOB_ID": "17"}
    assert take_gpu(environment=environment) is None
    assert environment[VISIBLE] == "2,3"


def test_without_gpus_nothing_is_taken():
    environment = {VISIBLE: ""}
    assert take_gpu(environment=environment) is None
    assert environment == {VISIBLE: ""}
