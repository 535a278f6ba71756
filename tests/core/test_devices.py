"""Counting GPUs without a driver, and that each process takes one of its own."""

import os
import subprocess
import sys
import time
from importlib.machinery import PathFinder

import pytest

from clipgs.core import devices as gpus
from clipgs.core.devices import VISIBLE, choose_device, find_nvcc, take_gpus, visible_gpus, without_cuda
from clipgs.core.errors import ClipgsError

TAKE = "import sys; from clipgs.core.devices import take_gpus; print(*take_gpus(), flush=True); sys.stdin.read()"


pytestmark = pytest.mark.usefixtures("own_gpu_locks")


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


@pytest.mark.parametrize(
    ("version", "visible", "reason"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "0", None),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "", "this machine has no GPU"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", "0", "this torch is a CPU-only build"),
        ("cuda = '12.1'\n", "", "this machine has no GPU"),  # as older versions write it
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.3'\n", "", None),  # AMD's have no such device files
    ],
)
def test_why_cuda_cannot_be_used_is_known_without_torch(tmp_path, monkeypatch, version, visible, reason):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(version)
    monkeypatch.setattr(gpus, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    found = without_cuda({VISIBLE: visible})
    assert found is None if reason is None else found.startswith(reason)


def test_this_torch_says_what_it_is():
    import torch

    found = without_cuda({VISIBLE: "0"})
    assert (found is None) == (torch.version.cuda is not None or torch.version.hip is not None)


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


def start(count=1):
    code = TAKE.replace("take_gpus()", f"take_gpus({count})")
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_each_process_takes_a_free_one_and_a_dead_one_gives_it_back(monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,GPU-7f")
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
    assert take_gpus(environment=environment) == ["4"]
    assert environment == {VISIBLE: "4"}
    assert take_gpus(environment=environment) == []  # one is enough


def test_several_are_taken_at_one_moment_or_not_at_all(monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,5,6")
    with start() as one:
        assert one.stdout.readline() == "4\n"
        with start(0) as waiting:
            time.sleep(0.5)
            # It waits for the first, and keeps no others meanwhile from those that want fewer.
            environment = {VISIBLE: "4,5,6"}
            assert take_gpus(2, environment=environment) == ["5", "6"]
            assert environment == {VISIBLE: "5,6"}
            one.kill()
            while gpus._held:
                gpus._held.pop().release()
            assert waiting.stdout.readline() == "4 5 6\n"
            waiting.kill()


def test_what_is_shared_is_never_waited_for():
    environment = {VISIBLE: "4"}
    assert take_gpus(environment=environment) == ["4"]
    code = TAKE.replace("take_gpus()", "take_gpus(alone=False)").removesuffix("; sys.stdin.read()")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.stdout == "4\n"


@pytest.mark.parametrize("chosen", [{"SLURM_JOB_ID": "17"}, {"WORLD_SIZE": "2"}])
def test_the_choice_of_a_scheduler_or_starter_stands(chosen):
    environment = {VISIBLE: "2,3", **chosen}
    assert take_gpus(environment=environment) == []
    assert environment[VISIBLE] == "2,3"


def test_without_gpus_nothing_is_taken():
    environment = {VISIBLE: ""}
    assert take_gpus(environment=environment) == []
    assert environment == {VISIBLE: ""}


def test_the_compiler_of_the_named_toolkit_comes_before_that_of_the_path(tmp_path, monkeypatch):
    for folder in ("first", "second", "path"):
        compiler = tmp_path / folder / "bin" / "nvcc"
        compiler.parent.mkdir(parents=True)
        compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "first"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "second"))
    for folder in ("first", "second", "path"):
        assert find_nvcc() == str(tmp_path / folder / "bin" / "nvcc")
        (tmp_path / folder / "bin" / "nvcc").chmod(0o644)


@pytest.mark.parametrize(("wanted", "chosen"), [("cpu", "cpu"), ("auto", "cpu"), ("cuda", ClipgsError)])
def test_without_gpus_the_device_is_the_cpu_or_said_to_be_missing(wanted, chosen, monkeypatch):
    monkeypatch.setenv(VISIBLE, "")
    if isinstance(chosen, str):
        assert choose_device(wanted) == chosen
    else:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(chosen, match="device = cuda, but torch sees no GPU"):
            choose_device(wanted)


def test_gpus_are_taken_where_cuda_is_there(monkeypatch):
    taken = []
    monkeypatch.setattr(gpus, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(gpus, "take_gpus", lambda count, *, alone: taken.append((count, alone)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda", 0, alone=False) == "cuda"
    assert choose_device("cpu") == "cpu"
    assert taken == [(1, True), (0, False)]
