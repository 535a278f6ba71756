"""The screen of a run from Snakemake's events, without a run: shards, failures, second attempts, other workflows."""

import io
import json
import logging
import sys
import time
from types import SimpleNamespace

import pytest

from clipgs.operate import screen as module
from clipgs.operate.screen import Read, Screen, _duration, _Job, _Stage


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Driven:
    """A screen and the events that Snakemake would send it."""

    def __init__(self, monkeypatch, stream, **settings):
        flags = dict.fromkeys(("dryrun", "printshellcmds", "nocolor", "debug_dag", "verbose", "stdout"), False)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "argv", ["/somewhere/snakemake", "triplets", "--configfile", "my own.yaml"])
        monkeypatch.setenv(module.SCREEN, "")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setattr(module, "_DRAW_SECONDS", 3600.0)
        self.stream = stream
        self.screen = Screen(SimpleNamespace(**flags | {"quiet": None, "show_failed_logs": True} | settings), None)

    def send(self, event=None, text="", level=logging.INFO, **more):
        record = logging.LogRecord("snakemake", level, "", 0, text, None, None)
        record.__dict__ |= more | ({"event": event} if event else {})
        self.screen.handle(record)

    def begin(self, **stats):
        self.send("workflow_started")
        self.send("run_info", stats=stats | {"total": sum(stats.values())})

    def start(self, number, rule, shard, log=None):
        files = {"output": ["a file"], "log": [str(log)] if log else [], "reason": "Forced execution"}
        self.send("job_info", rule_name=rule, jobid=number, wildcards={"shard": shard} if shard else {}, **files)

    def fail(self, number):
        self.send("job_error", jobid=number, rule_msg=None, level=logging.ERROR)

    def lines(self):
        return self.stream.getvalue().splitlines()


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    monkeypatch.setattr(Screen, "RUN", None)


def counts(folder, shard, done, total, failed=0, before=0):
    log = folder / f"{shard}.log"
    text = {"what": f"fit {shard}", "unit": "object", "before": before, "done": done, "total": total, "failed": failed}
    log.with_suffix(".progress").write_text(json.dumps(text))
    return log


def test_shards_objects_rate_failures_and_the_time_that_is_left(tmp_path, monkeypatch):
    stage = _Stage("fit", 4, {"00000": 10, "00001": 10, "00002": 10, "00003": 6})
    clock = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    for number, (shard, done, failed, before) in enumerate([("00000", 10, 1, 0), ("00001", 3, 0, 2)]):
        job = _Job(f"fit {shard}", shard, 10, counts(tmp_path, shard, done, 10 - before, failed, before))
        stage.start(number, job)
        job.read()
    stage.ended.append(stage.running.pop(0))
    clock = 126.0
    # 10 and 5 of 10 + 10 + 10 + 6 are done; 13 of them in 26 seconds.
    line = "  fit            1 of 4 shards, 15 of 36 objects, 0.5 a second, 1 failed, 42 s left"
    assert stage.text() == line


def test_a_stage_of_one_job_shows_what_the_job_counts(tmp_path):
    stage = _Stage("train", 1, {})
    log = tmp_path / "base.log"
    words = {"what": "train", "unit": "step", "before": 100, "done": 50, "total": 900, "failed": 0}
    log.with_suffix(".progress").write_text(json.dumps(words))
    job = _Job("train", "", None, log)
    stage.start(1, job)
    assert stage.text().split(maxsplit=1)[1] == "at work"
    job.read()
    assert stage.text().split(maxsplit=1)[1] == "150 of 1,000 steps"
    stage.began = time.monotonic() - 10
    assert stage.text().split(maxsplit=1)[1] == "150 of 1,000 steps, 2 min 50 s left"  # 50 steps took 10 s


def test_lines_of_stages_at_work_are_drawn_over_and_fit_the_terminal(tmp_path, monkeypatch):
    driven = Driven(monkeypatch, Terminal())
    driven.begin(fit=2, render=1)
    for number, shard in enumerate(("00000", "00001")):
        driven.start(number, "fit", shard, counts(tmp_path, shard, 3, 1000000))
    driven.start(7, "render", "00000")
    for stage in driven.screen._stages.values():
        for job in stage.running.values():
            job.size = 1000000
            job.read()
    driven.send(text="a warning", level=logging.WARNING)
    driven.send(text="another", level=logging.WARNING)
    shown = driven.stream.getvalue()
    assert shown.count("\x1b[2A\x1b[J") == 1  # two live lines, drawn once more below the second warning
    assert shown.index("a warning") < shown.index("\x1b[2A") < shown.index("another")
    assert max(len(line) for line in driven.lines()[3:]) < 60 + len("\x1b[2A\x1b[J")


def test_three_failures_of_a_stage_are_shown_and_the_others_counted(tmp_path, monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    driven.begin(fit=9, render=9)
    for number in range(9):
        log = tmp_path / f"0000{number}.log"
        log.write_text(f"noise\nclipgs fit: the disk is full ({number})\n")
        driven.start(number, "fit", f"0000{number}", log)
        driven.send("error", "RuleException:\nCalledProcessError in file x:\nCommand '{\"json\": 1}' returned ...")
        driven.fail(number)
    driven.screen.close()
    lines = driven.lines()
    assert [line for line in lines if line.startswith("fit 0000")] == [
        f"fit 0000{number} failed: the disk is full ({number})" for number in range(3)
    ]
    assert "9 of 9 jobs failed" in "".join(lines)
    assert lines[-1] == (
        "9 jobs failed: fit 00000, fit 00001, fit 00002 and 6 more; "
        "to go on: snakemake triplets --configfile 'my own.yaml'"
    )
    assert "json" not in driven.stream.getvalue()


def test_an_older_runs_log_is_no_reason(tmp_path, monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    driven.begin(fit=1)
    log = tmp_path / "00000.log"
    log.write_text("clipgs fit: something of yesterday\n")
    module.os.utime(log, (0, 0))
    driven.start(0, "fit", "00000", log)
    driven.send("error", "CalledProcessError\nCommand '...' died with <Signals.SIGKILL: 9>.")
    driven.fail(0)
    assert "fit 00000 failed: killed by SIGKILL" in driven.lines()


def test_a_second_attempt_is_no_failed_job(monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    driven.begin(fit=1)
    driven.start(4, "fit", "00000")
    driven.send("job_error", jobid=4, rule_msg="SLURM status is: 'TIMEOUT'", level=logging.ERROR)
    driven.send(text="Trying to restart job 4.")
    driven.start(4, "fit", "00000")
    driven.send("job_finished", job_id=4)
    driven.screen.close()
    text = driven.stream.getvalue()
    assert "fit 00000 failed: SLURM status is: 'TIMEOUT'" in text
    assert "fit 00000 is tried again" in text
    assert driven.lines()[-1].startswith("done in")


def test_rules_of_another_workflow_are_shown_by_their_names(monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    driven.begin(count=1, splats_fit=1, all=1)
    driven.start(1, "count", "")
    driven.send("job_finished", job_id=1)
    assert [line[8:].split(",")[0].split()[0] for line in driven.lines() if line[2:3] == ":"] == ["count"]


@pytest.mark.parametrize("settings", [{"verbose": True}, {"printshellcmds": True}, {"debug_dag": True}])
def test_who_asks_for_snakemakes_own_text_gets_it(monkeypatch, settings):
    driven = Driven(monkeypatch, io.StringIO(), **settings)
    driven.send(text="Building DAG of jobs...")
    assert driven.lines() == ["Building DAG of jobs..."]


def test_quiet_shows_failures_only_and_quiet_all_nothing(monkeypatch):
    for quiet, shown in ((["progress", "rules"], 3), (["all"], 0)):
        driven = Driven(monkeypatch, io.StringIO(), quiet=quiet)
        driven.begin(fit=1)
        driven.start(0, "fit", "00000")
        driven.fail(0)
        driven.screen.close()
        assert len(driven.lines()) == shown


def test_messages_of_snakemake_are_cut(monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    driven.send("error", "\n".join(["WorkflowError:", "", *map(str, range(100))]))
    assert len(driven.lines()) == 13
    assert driven.lines()[0] == "WorkflowError:"


def test_of_a_traceback_its_end_is_shown(monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    driven.send("error", "\n".join(["Traceback (most recent call last):", *map(str, range(100)), "KeyError: 'x'"]))
    assert driven.lines()[0] == "(more in the log)"
    assert driven.lines()[-1] == "KeyError: 'x'"


def test_a_misspelt_target_gets_the_list_of_targets(monkeypatch):
    driven = Driven(monkeypatch, io.StringIO())
    text = "MissingRuleException:\nNo rule to produce triplet (if you use input functions make sure that they ...)."
    driven.send("error", text)
    (line,) = driven.lines()
    assert line.startswith("clipgs: nothing makes triplet; did you mean triplets? the targets are triplets, features,")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--configfile", "nope.yaml"], "nope.yaml: No such file or directory"),
        (["--configfile=bad.yaml", "-n"], "bad.yaml, line 3, is not YAML: expected ',' or ']', but got ':'"),
        (
            ["--configfile", "fine.yaml", "triplets", "-n"],
            "triplets: No such file or directory; words behind --configfile name files, so targets come before it",
        ),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fine.yaml").write_text("output: results\n")
    (tmp_path / "bad.yaml").write_text("output: results\na: [1\nb: 2\n")
    for text in ("WorkflowError:\nConfig file is not valid JSON or YAML.", "Traceback ...\nload_configfile(f)\nE: no"):
        driven = Driven(monkeypatch, io.StringIO())
        monkeypatch.setattr(sys, "argv", ["snakemake", *arguments])
        driven.send("error", text)
        assert driven.lines() == [f"clipgs: {said}"]


def test_sizes_are_read_when_they_are_asked_for(monkeypatch):
    from clipgs.catalog import shards

    monkeypatch.setattr(shards, "shard_sizes", lambda config, plan: {"00000": 3})
    assert Read(None, None).sizes == {"00000": 3}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (86400, "24 h 0 min"), (190000, "2 d 4 h")],
)
def test_times_are_short(seconds, text):
    assert _duration(seconds) == text
