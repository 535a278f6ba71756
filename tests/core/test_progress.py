"""What a command says of how far it is, to the screen of its run."""

import json
import os
import subprocess
import sys

from clipgs.core import runner
from clipgs.core.runner import PROGRESS, SCREEN, Progress


def test_the_file_has_the_counts_at_the_start_and_at_the_end(tmp_path, monkeypatch):
    file = tmp_path / "00000.progress"
    monkeypatch.setenv(PROGRESS, str(file))
    progress = Progress("fit 00000", 3, before=2)
    assert json.loads(file.read_text()) == {
        "what": "fit 00000", "unit": "object", "before": 2, "done": 0, "total": 3, "failed": 0}  # fmt: skip
    progress.step()
    progress.step(ok=False)
    assert json.loads(file.read_text())["done"] == 0  # at most once a second
    progress.close()
    counts = json.loads(file.read_text())
    assert (counts["done"], counts["failed"]) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.progress"]


def test_it_is_written_as_time_passes(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS, str(tmp_path / "p"))
    monkeypatch.setattr(runner, "_WRITE_EVERY_SECONDS", 0.0)
    progress = Progress("train", 9, "step")
    progress.step(count=4)
    assert json.loads((tmp_path / "p").read_text())["done"] == 4


def test_a_disk_that_takes_no_figure_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS, str(tmp_path / "no folder" / "p"))
    progress = Progress("fit", 1)
    progress.step()
    progress.close()


def test_under_a_screen_a_command_writes_to_its_log_alone(tmp_path):
    command = [sys.executable, "-m", "clipgs", "fetch", "00000", "--log", str(tmp_path / "logs" / "00000.log")]
    settings = ["--settings", '{"catalog": {"source": "procedural"}, "output": "nowhere"}']
    shown = {}
    for name in ("screen", "none"):
        environment = {key: value for key, value in os.environ.items() if key != SCREEN}
        environment |= {SCREEN: "1"} if name == "screen" else {}
        run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run([*command, *settings], **run)
        assert done.returncode != 0
        shown[name] = done.stdout + done.stderr
        assert "nowhere" in (tmp_path / "logs" / "00000.log").read_text()
    assert shown["screen"] == ""
    assert "nowhere" in shown["none"]


def test_the_time_left_does_not_count_what_the_first_waited_for(monkeypatch, caplog):
    """The first step waits for imports and compilers: by it 5,000 steps of 2 ms would last eight hours."""
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO")
    progress = Progress("splat", 5000, "step")
    now[0] += 64  # the compiler
    progress.step()
    for _ in range(3000):
        now[0] += 0.01
        progress.step()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "splat: 1 of 5000 steps, 0 failed"
    assert len(lines) > 1
    for line in lines[1:]:
        done, left = int(line.split()[1]), float(line.split(", ")[-1].split()[0])
        assert abs(left - (5000 - done) * 0.01) < 1
