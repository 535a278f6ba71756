"""What a person sees of a run: on a terminal, in a file, when something fails, when nothing is run, after Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from clipgs import config as configuration
from clipgs.operate.reasons import why

from .conftest import SETTINGS, Workspace

SNAKEMAKES = ("rule fit", "jobid:", "Select jobs", "Building DAG", "steps (", '{"', "Traceback")


class Terminal:
    """A terminal of 100 columns, of which a command gets the other end."""

    def __init__(self, command, folder, environment=None):
        self.process, self._file = pty.fork()
        if self.process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
            os.chdir(folder)
            os.environ.update({"TERM": "xterm", "COLUMNS": "100", "LINES": "40"} | (environment or {}))
            os.execvp(command[0], command)
        self.text = ""

    def until(self, condition, seconds=300):
        """Reads until the condition holds, or to the end."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.text[-3000:]
            if select.select([self._file], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self._file, 65536).decode(errors="replace")
                except OSError:  # the command has ended
                    return

    def type(self, text):
        os.write(self._file, text)

    def end(self):
        """The exit code, and the lines that stand on the screen at the end."""
        self.until(lambda: False)
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self._file)
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[\d*[AJ]|\n|[^\x1b\r\n]+", self.text):
            if part == "\n":
                row += 1
            elif part.endswith("A") and part[0] == "\x1b":
                row -= int(part[2:-1])
            elif part.endswith("J") and part[0] == "\x1b":
                lines = lines[:row]
            else:
                lines += [""] * (row + 1 - len(lines))
                lines[row] += part
            lines += [""] * (row + 1 - len(lines))
        return code, [line for line in lines if line]


def refit(workspace: Workspace) -> list[str]:
    """Arguments of a run that fits and renders again what is there."""
    return ["triplets", "--config", "fit={steps: 25}"]


def test_on_a_terminal_a_stage_is_one_live_line_and_the_end_says_what_there_is(made, tmp_path):
    workspace = made.copy(tmp_path / "terminal")
    terminal = Terminal(workspace.command(*refit(workspace)), workspace.folder)
    code, lines = terminal.end()
    text = "\n".join(lines)
    assert code == 0
    assert len(lines) <= 20
    assert max(len(line) for line in lines[1:] if "snakemake" not in line) <= 130
    assert "clipgs: 2 objects in 2 shards; output: results" in lines
    assert "  7 jobs: fit 2, render 2, pack 2, index" in [line.replace("8 jobs", "7 jobs") for line in lines]
    assert re.search(r"^  log: \.snakemake/log/.*\.log$", text, re.MULTILINE)
    assert re.search(r"^  fit +2 shards, 2 objects, ", text, re.MULTILINE)
    assert re.search(r"^objects: 2 packed, 0 failed, PSNR ", text, re.MULTILINE)
    assert "results/triplets/index.parquet" in text
    assert re.search(r"^next: snakemake report .*fit", text, re.MULTILINE)
    assert not [word for word in SNAKEMAKES if word in text]
    # While it runs, the lines of the stages at work are drawn over.
    frames = terminal.text.split("\x1b[")
    assert any(re.search(r"  fit +0 of 2 shards", frame) for frame in frames)
    assert "rule fit" in "".join(file.read_text() for file in workspace.folder.glob(".snakemake/log/*"))
    assert not list(workspace.output.glob("logs/**/*.progress"))


def test_in_a_file_the_lines_are_plain(made, tmp_path):
    workspace = made.copy(tmp_path / "file")
    done = workspace.make(*refit(workspace)[1:])
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) <= 20
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    assert [line for line in lines if re.fullmatch(r"\d\d:\d\d:\d\d  fit +2 shards, 2 objects, [\d min]+s", line)]
    assert not [word for word in SNAKEMAKES if word in done.stderr]


def test_a_failed_job_is_three_lines_with_what_counts(made, tmp_path):
    workspace = made.copy(tmp_path / "failed")
    splats = workspace.output / "splats" / "00000.tar"
    times = splats.stat()
    splats.write_bytes(splats.read_bytes()[:-512])
    os.utime(splats, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = workspace.run("triplets", "--forcerun", "render")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith("render 00000 failed: ")]
    assert "splats/00000.tar has" in lines[start]
    assert lines[start + 1] == "  log: results/logs/render/00000.log"
    assert lines[start + 2].startswith("  finished objects are kept; to go on: snakemake ")
    assert "triplets --forcerun render" in lines[start + 2]
    assert "1 job failed: render 00000; to go on: snakemake" in lines[-1]
    assert len(lines) <= 20
    assert not [word for word in SNAKEMAKES if word in done.stderr]


def test_a_job_that_is_killed_says_so(made, tmp_path):
    workspace = made.copy(tmp_path / "killed")
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "clipgs").write_text("#!/bin/sh\nkill -9 $$\n")
    (commands / "clipgs").chmod(0o755)
    (tmp_path / "start.sh").write_text(f"PATH={commands}:$PATH")
    environment = os.environ | {"BASH_ENV": str(tmp_path / "start.sh")}
    command = workspace.command("triplets", "--forcerun", "pack")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "pack 00000 failed: killed by SIGKILL" in done.stderr


def test_a_failed_object_is_counted_with_its_reason(made, tmp_path):
    workspace = made.copy(tmp_path / "object")
    done = workspace.make("--config", "fit={min_psnr: 99}")
    assert re.search(r"  fit +2 shards, 2 objects, 2 failed, ", done.stderr)
    assert "objects: 0 packed, 2 failed" in done.stderr
    assert re.search(r"^ +2 fit: \w", done.stderr, re.MULTILINE)


def test_ctrl_c_ends_in_a_line_that_says_how_to_go_on(made, tmp_path):
    workspace = made.copy(tmp_path / "stopped")
    terminal = Terminal(workspace.command("triplets", "--config", "fit={steps: 100000}"), workspace.folder)
    terminal.until(lambda: re.search(r"  fit  ", terminal.text))
    time.sleep(1)
    terminal.type(b"\x03")
    code, lines = terminal.end()
    assert code != 0
    assert lines[-1].startswith("stopped; finished objects are kept; to go on: snakemake")
    assert len(lines) <= 10
    assert not [word for word in SNAKEMAKES if word in "\n".join(lines)]


def test_a_dry_run_says_which_jobs_and_why(made, tmp_path):
    workspace = made.copy(tmp_path / "dry")
    done = workspace.run("-n", "triplets", "--config", "fit={steps: 25}")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("7 jobs would run")
    assert [line.split(maxsplit=2) for line in lines[2:]] == [
        ["fit", "2", "fit.steps 20 -> 25"],
        ["render", "2", "new splats"],
        ["pack", "2", "new renders, splats"],
        ["index", "1", "new triplets"],
    ]
    (workspace.output / "captions" / "00001.parquet").unlink()
    lines = workspace.run("-n", "triplets").stdout.splitlines()
    assert [line.split(maxsplit=2) for line in lines[2:]] == [
        ["caption", "1", "missing"],
        ["pack", "1", "new captions"],
        ["index", "1", "new triplets"],
    ]
    quiet = workspace.run("triplets", "-n", "--quiet").stdout.splitlines()
    assert [line.split()[:2] for line in quiet[2:]] == [["caption", "1"], ["pack", "1"], ["index", "1"]]


def test_a_wrong_target_and_a_run_with_nothing_to_do_are_few_lines(made):
    done = made.run("nowhere")
    assert done.returncode == 1
    assert "clipgs: nothing makes nowhere; the targets are triplets, " in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    done = made.run("triplets")
    assert "Nothing to be done" in done.stderr
    assert "objects: 2 packed, 0 failed" in done.stderr
    assert len(done.stderr.splitlines()) <= 8


@pytest.mark.parametrize(
    ("arguments", "shown", "not_shown"),
    [
        (["-n", "-p", "--forcerun", "pack"], "rule pack:", "would run"),
        (["-n", "--verbose", "--forcerun", "pack"], "rule pack:", "would run"),
        (["-n", "--workflow-profile", "none", "--forcerun", "pack"], "rule pack:", "would run"),
        (["--summary"], "output_file\t", "clipgs:"),
        (["--dag"], "digraph snakemake_dag", "clipgs:"),
        (["--lint"], "Congratulations", "clipgs:"),
        (["--list-rules"], "triplets", "clipgs:"),
        (["--delete-all-output", "-n"], "Would delete", "clipgs:"),
        (["--unlock"], "Unlocked working directory", "clipgs:"),
    ],
)
def test_other_uses_of_snakemake_show_what_they_did(made, arguments, shown, not_shown):
    done = made.run("triplets", *arguments)
    assert done.returncode == 0
    assert shown in done.stdout + done.stderr
    assert not_shown not in done.stdout + done.stderr


def test_the_users_own_logger_wins(made, tmp_path):
    package = tmp_path / "snakemake_logger_plugin_other"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from snakemake_interface_logger_plugins.base import LogHandlerBase\n"
        "class LogHandler(LogHandlerBase):\n"
        "    writes_to_stream = True\n"
        "    writes_to_file = has_filter = has_formatter = needs_rulegraph = False\n"
        "    def emit(self, record):\n"
        "        print('other:', getattr(record, 'event', None))\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        made.command("-n", "--forcerun", "pack", "--logger", "other", "--", "triplets"),
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert "other: run_info" in done.stdout
    assert "would run" not in done.stdout


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Missing output files: results/splats/00000.tar; Input files updated by another job: a/b.tar", "missing"),
        ("Updated input files: results/captions/00000.parquet", "newer input: captions"),
        ("Code has changed since last execution; Forced execution", "its command changed; forced"),
        ("", "asked for"),
    ],
)
def test_reasons_are_plain_words(reason, words):
    assert why(reason, []) == words


def test_settings_of_these_tests_are_valid():
    configuration.check(configuration.merge(SETTINGS, {"fit": {"min_psnr": 99}}))
