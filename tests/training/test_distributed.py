"""Several processes on one machine, which torchrun starts."""

import logging
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from clipgs.core.errors import ClipgsError
from clipgs.core.files import check
from clipgs.training import distributed, runs, stages
from tests.training.small_dataset import lines, make, settings
from tests.training.two_processes import ALONE, ONE_THREAD, assert_equal_gradients, gradients

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_processes_have_the_gradient_of_one(tmp_path, checkout):
    cases = {"frozen": ("frozen", 8), "sync": ("sync", 8), "in parts": ("frozen", 2)}
    for name, (batch_norm, micro_batch) in cases.items():
        config = settings(tmp_path, encoder={"batch_norm": batch_norm}, training={"micro_batch": micro_batch})
        (tmp_path / name).mkdir()
        values = config.model_dump(mode="json", include={"output", "encoder", "training", "device"})
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(values))
    make(config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.training.two_processes", *(str(tmp_path / name) for name in cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ONE_THREAD, cwd=checkout)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (batch_norm, _) in cases.items():
        alone, norms = gradients(settings(tmp_path, encoder={"batch_norm": batch_norm}), ALONE)
        for rank in range(2):
            found = load_file(tmp_path / name / f"rank{rank}.safetensors")
            for norm, value in norms.items():
                assert torch.allclose(found.pop(norm), value, atol=1e-5), norm
            assert_equal_gradients(found, alone, 2e-5)


def test_several_processes_are_launched_and_train_one_model(tmp_path, caplog):
    config = settings(tmp_path, encoder={"batch_norm": "sync"}, training={"epochs": 1})
    make(config)
    with caplog.at_level(logging.INFO):
        distributed.launch(config, 2)
    check(runs.run_path(config) / "model.safetensors")
    assert [line["step"] for line in lines(config) if "loss" in line] == [1, 2, 3]
    assert "wrote step 3 of 3" in caplog.text


def test_training_starts_a_process_for_each_gpu(two_gpus, tmp_path, monkeypatch):
    """They see the same GPUs, and take none of them for themselves alone."""
    script = "import os; from clipgs.core.devices import *; print(take_gpus(), os.environ[VISIBLE])"
    found = []

    def launch(config, processes):
        environment = {**os.environ, "WORLD_SIZE": str(processes)}
        found.append(subprocess.check_output([sys.executable, "-c", script], env=environment, text=True))

    monkeypatch.setattr(distributed, "launch", launch)
    stages.train(settings(tmp_path, device="cuda"))
    assert found == ["[] 4,5\n"]


def test_training_that_may_use_one_gpu_leaves_the_other(two_gpus, tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def ranks(device):
        raise Begun(device)

    monkeypatch.setattr(distributed, "ranks", ranks)
    with pytest.raises(Begun, match="cuda"):
        stages.train(settings(tmp_path, device="cuda", workers={"gpus": 1}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_the_fault_of_the_processes_is_told_once_and_in_one_line(tmp_path, caplog):
    config = settings(tmp_path, training={"batch": 999})
    make(config)
    with caplog.at_level(logging.INFO), pytest.raises(ClipgsError) as error:
        distributed.launch(config, 2)
    assert str(error.value).startswith("config: training.batch = 999, but only 24 objects")
    assert "\n" not in str(error.value)
    assert "999" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_process_that_is_killed_ends_the_others(tmp_path, caplog):
    """As by a system that is out of memory: it says nothing itself."""
    config = settings(tmp_path, training={"epochs": 100_000})
    make(config)
    killed = []

    def kill_one(record):
        if "step 3:" in record.getMessage() and not killed:
            workers = [one for one in psutil.Process().children(recursive=True) if "clipgs" in one.cmdline()[3:4]]
            killed.extend(workers)
            workers[1].kill()
        return True

    distributed.log.addFilter(kill_one)
    try:
        with caplog.at_level(logging.INFO), pytest.raises(ClipgsError, match="one of 2 processes failed"):
            distributed.launch(config, 2)
    finally:
        distributed.log.removeFilter(kill_one)
    assert len(killed) == 2
    assert not psutil.wait_procs(killed, 20)[1]
    assert "process 1 ended with exit code -9" in caplog.text


def test_the_processes_of_a_killed_command_end_with_it(tmp_path):
    config = settings(tmp_path, training={"epochs": 100_000})
    make(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script = "import sys; from clipgs.config import read; from clipgs.training.distributed import launch; "
    script += "launch(read(sys.argv[1]), 2)"
    metrics = runs.run_path(config) / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "config.yaml")], env=ONE_THREAD) as command:
        deadline = time.monotonic() + 200
        while not metrics.exists():
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGKILL)
    assert len(started) == 3  # torchrun, and two that train
    assert not psutil.wait_procs(started, 20)[1]
