"""What a run shows: a few lines before the first job, one line a stage, three for a failed job, and what was made.

A logger plugin of Snakemake (`logger: clipgs` in the profiles). Snakemake's own text is in its log file. On a terminal
the lines of the stages at work are drawn over and over; elsewhere a stage says now and then how far it is.

Imported whenever Snakemake starts, so it imports nothing heavy.
"""

import json
import logging
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase

from clipgs.core.lists import counted
from clipgs.operate.reasons import TARGETS, plainly, why

if TYPE_CHECKING:
    from clipgs.catalog.shards import Plan
    from clipgs.config import Config

SCREEN = "CLIPGS_SCREEN"  # as in clipgs.core.runner, which is not imported here: it is heavy
_WIDTH = 100  # columns, where no terminal says how wide it is
_DRAW_SECONDS = 0.5
_PLAIN_SECONDS, _PLAIN_GROWTH = 60.0, 0.1  # between two lines of a stage: at least, and as a part of its time so far
_WORTH_SAYING_SECONDS = 30.0  # of an estimate
_SHOWN_FAILURES = 3  # of a stage, in full
_SHOWN_REASONS = 3
_SHOWN_LINES = 12  # of a message of Snakemake
_CLOCKS_DIFFER_SECONDS = 5.0  # of this host and a file server, at most
_LOG_TAIL_BYTES = 20_000
_TARGETS = ("triplets", "features", "all")  # rules that make nothing themselves
_NOISE = ("Building DAG", "Assuming unrestricted", "Config file ")  # what Snakemake says before it begins
_SAID_OTHERWISE = ("At least one job did not complete successfully", "Exiting because a job execution failed")
_KILLED = "its job ended without an error: killed, out of memory or time"


@dataclass
class Read:
    """What the workflow that Snakemake has read is of."""

    config: "Config"
    plan: "Plan"
    targets: tuple[str, ...] = TARGETS  # their names in the workflow, which another one may have imported

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Shard to its number of objects."""
        from clipgs.catalog.shards import shard_sizes

        return shard_sizes(self.config, self.plan)


@dataclass
class _Job:
    """A job that was started."""

    name: str  # such as `fit 00000`
    shard: str
    size: int | None  # objects of its shard
    log: Path | None
    counts: dict[str, Any] = field(default_factory=dict)  # what the command last wrote: clipgs.core.runner.Progress
    began: float = field(default_factory=time.time)

    def read(self) -> None:
        if self.log is not None:
            with suppress(OSError, ValueError):
                self.counts = json.loads(self.log.with_suffix(".progress").read_text())

    def error(self) -> str | None:
        """The line of a failed command's log that says why."""
        if self.log is None:
            return None
        try:
            about = self.log.stat()
            if about.st_mtime < self.began - _CLOCKS_DIFFER_SECONDS:  # an earlier run's
                return None
            with open(self.log, "rb") as file:
                file.seek(max(0, about.st_size - _LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            if match := re.match(r"clipgs [\w-]+: (.+)", line):
                return match[1]
        # An error that is a fault of the program: the last line of its traceback.
        start = max(
            (i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")), default=len(lines)
        )
        return next((line for line in lines[start + 1 :] if line and not line[0].isspace()), None)

    def end(self) -> None:
        self.read()
        if self.log is not None:
            with suppress(OSError):
                self.log.with_suffix(".progress").unlink(missing_ok=True)


@dataclass
class _Stage:
    """A rule with its jobs of this run."""

    rule: str
    jobs: int
    sizes: dict[str, int]  # shard to its objects, of all shards
    running: dict[int, _Job] = field(default_factory=dict)
    ended: list[_Job] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # jobs
    began: float | None = None
    said: float = 0.0  # when its last plain line was written

    @property
    def over(self) -> bool:
        return len(self.ended) + len(self.failed) >= self.jobs

    def start(self, number: int, job: _Job) -> None:
        if self.began is None:
            self.began = self.said = time.monotonic()
        self.running[number] = job

    def text(self) -> str:
        """How far it is: shards, objects, rate, failures, time."""
        known = [*self.ended, *self.running.values()]
        counts = [job.counts for job in known if job.counts.get("unit") == "object" and job.size is not None]
        seconds = time.monotonic() - self.began if self.began is not None else 0.0
        words = []
        if self.jobs > 1:
            words.append(f"{len(self.ended):,} of {self.jobs:,} shards" if not self.over else f"{self.jobs:,} shards")
        if counts:
            words += self._objects(counts, known, seconds)
        elif not self.over and self.jobs == 1:
            words += [_own_words(self.rule, job.counts, seconds) for job in known if job.counts]
        if self.failed:
            words.append(f"{len(self.failed)} of {self.jobs} jobs failed")
        if self.over:
            words.append(_duration(seconds))
        return f"  {self.rule:<14} {', '.join(word for word in words if word) or 'at work'}"

    def to_come(self, known: list[_Job]) -> int:
        """Objects of the jobs that have not begun. Which shards these are is not known where some need no job."""
        others = [size for shard, size in self.sizes.items() if shard not in {job.shard for job in known}]
        jobs = self.jobs - len(known) - len(self.failed)
        return round(sum(others) * jobs / len(others)) if others else 0

    def _objects(self, counts: list[dict[str, Any]], known: list[_Job], seconds: float) -> list[str]:
        fresh = sum(each["done"] for each in counts)
        done = fresh + sum(each["before"] for each in counts)
        failed = sum(each["failed"] for each in counts)
        total = sum(each["before"] + each["total"] for each in counts)
        total += sum(job.size or 0 for job in known if not job.counts) + self.to_come(known)
        rate = fresh / seconds if seconds else 0.0
        words = [counted(done, "object") if self.over else f"{done:,} of {total:,} objects"]
        if rate and not self.over:
            words.append(f"{rate:.2g} a second" if rate < 10 else f"{rate:,.0f} a second")
        if failed:
            words.append(f"{failed:,} failed")
        if rate and not self.over:
            words.append(f"{_duration((total - done) / rate)} left")
        return words


class Screen(LogHandlerBase):
    """Snakemake's events as lines for a person."""

    RUN: ClassVar[Read | None] = None  # none before the workflow is read

    def __post_init__(self) -> None:
        settings = self.common_settings
        self._stream = sys.stdout if settings.stdout else sys.stderr
        self._own = _snakemakes_own(settings, self._stream) if _wants_own(settings) else None
        quiet = {str(getattr(what, "name", what)).lower() for what in settings.quiet or ()}
        self._silent, self._quiet = "all" in quiet, bool(quiet & {"all", "rules", "progress"})
        self._dryrun = bool(settings.dryrun)
        self._live = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._stages: dict[str, _Stage] = {}
        self._rule_of: dict[int, str] = {}
        self._reasons: dict[str, Counter[str]] = {}
        self._errors: dict[str, int] = {}  # of a stage, how many of its failures were shown
        self._drawn = 0  # live lines that stand on the terminal
        self._cores, self._gpus = 0, 0
        self._started = time.monotonic()
        self._works = self._stopped = self._broken = self._closed = False
        self._exit = ""
        self._over = threading.Event()
        if self._own is None and not self._dryrun:
            os.environ[SCREEN] = "1"

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record, or keeps what it says for later."""
        if self._own is not None:
            self._own.handle(record)
            return
        try:
            event = getattr(record, "event", None)
            show = getattr(self, f"_on_{event}", None) if event else self._on_text
            if show is not None:
                show(record)
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Says how the run ended, and what there is now."""
        if not self._closed:
            self._closed = True
            self._over.set()
            with suppress(OSError, ValueError):
                self._end()
        super().close()

    # --- Snakemake's events ------------------------------------------------------------------------------------------

    def _on_workflow_started(self, record: logging.LogRecord) -> None:
        self._works = True

    def _on_resources_info(self, record: logging.LogRecord) -> None:
        self._cores = getattr(record, "cores", None) or self._cores
        gpu = getattr(record, "provided_resources", {}).get("gpu")
        self._gpus = getattr(gpu, "value", gpu) or self._gpus

    def _on_run_info(self, record: logging.LogRecord) -> None:
        stats = {rule: jobs for rule, jobs in record.stats.items() if rule != "total"}  # type: ignore[attr-defined]
        if self._stages:  # a dry run says it twice
            return
        sizes = self.RUN.sizes if self.RUN is not None else {}
        self._stages = {rule: _Stage(rule, jobs, sizes) for rule, jobs in stats.items()}
        if self._dryrun or self._quiet:
            return
        self._begin(stats)
        threading.Thread(target=self._tick, daemon=True).start()

    def _on_job_info(self, record: logging.LogRecord) -> None:
        rule, number, wildcards = record.rule_name, record.jobid, record.wildcards  # type: ignore[attr-defined]
        if self._dryrun:
            if files := record.output:  # type: ignore[attr-defined]
                self._reasons.setdefault(rule, Counter())[why(record.reason, files)] += 1  # type: ignore[attr-defined]
            return
        stage = self._stages.get(rule)
        if stage is None or not record.output:  # type: ignore[attr-defined]
            self._stages.pop(rule, None)  # a target
            return
        log = Path(record.log[0]) if record.log else None  # type: ignore[attr-defined]
        shard = dict(wildcards).get("shard", "")
        name = " ".join([rule, *map(str, dict(wildcards).values())])
        stage.start(number, _Job(name, shard, stage.sizes.get(shard), log))
        self._rule_of[number] = rule

    def _on_job_finished(self, record: logging.LogRecord) -> None:
        self._job_over(record.job_id, ok=True)  # type: ignore[attr-defined]

    def _on_job_error(self, record: logging.LogRecord) -> None:
        number = record.jobid  # type: ignore[attr-defined]
        rule, stage = self._rule_of.get(number, ""), self._stages.get(self._rule_of.get(number, ""))
        if stage is None or number not in stage.running:
            return
        job = stage.running[number]
        self._errors[rule] = self._errors.get(rule, 0) + 1
        if not self._stopped and self._errors[rule] <= _SHOWN_FAILURES:
            reason = job.error() or getattr(record, "rule_msg", None) or self._exit or _KILLED
            lines = [f"{job.name} failed: {' '.join(str(reason).split())}"]
            lines += [f"  log: {job.log}"] if job.log is not None else []
            self._write(*lines, f"  finished objects are kept; to go on: {_again()}")
        self._job_over(number, ok=False)

    def _on_error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "CalledProcessError" in text:  # of a job, whose own event follows
            self._exit = _exit_words(text)
        elif not any(words in text for words in _SAID_OTHERWISE):
            self._broken = True
            plain = plainly(text, sys.argv, self.RUN.targets if self.RUN is not None else TARGETS)
            self._write(*([f"clipgs: {plain}"] if plain else _cut(text)))

    def _on_text(self, record: logging.LogRecord) -> None:
        text = str(record.msg or "")
        if any(words in text for words in _SAID_OTHERWISE):
            return
        if record.levelno >= logging.WARNING:
            self._write(*_cut(text))
        elif text.startswith("Trying to restart job") and (number := _number(text)) in self._rule_of:
            stage = self._stages[self._rule_of[number]]
            if stage.failed:
                self._write(f"{stage.failed.pop()} is tried again")
        elif text.startswith(("Terminating processes", "Will exit after")):
            self._stopped = True
            self._write("stopping: waiting for the jobs that run")
        elif text.startswith("Nothing to be done"):
            self._write(text)
        elif not self._works and not text.startswith(_NOISE) and text.strip():
            self._write(text)  # of a command such as --unlock, --lint or --delete-all-output

    # --- lines -------------------------------------------------------------------------------------------------------

    def _begin(self, stats: dict[str, int]) -> None:
        run = self.RUN
        shown = [f"{rule} {jobs:,}" if jobs > 1 else rule for rule, jobs in stats.items() if rule not in _TARGETS]
        lines = []
        if run is not None:
            objects, shards = counted(run.plan.objects, "object"), counted(len(run.plan.shards), "shard")
            lines.append(f"clipgs: {objects} in {shards}; output: {run.config.output}")
        lines += textwrap.wrap(
            f"{counted(sum(stats.values()), 'job')}: {', '.join(shown)}",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
        if run is not None and (text := self._estimate(run, stats)):
            lines.append(f"  {text}")
        if logs := [handler.baseFilename for handler in _log_files()]:
            lines.append(f"  log: {_short_path(logs[0])}")
        self._write(*lines)

    def _estimate(self, run: Read, stats: dict[str, int]) -> str:
        """How long the stages take whose rates were measured."""
        from clipgs.operate.estimate import rates

        of_shard = run.plan.objects / max(1, len(run.plan.shards))
        core = gpu = 0.0
        for stage, (_, core_seconds, gpu_seconds) in rates(run.config).items():
            objects = stats.get(stage, 0) * of_shard
            on_gpu = gpu_seconds and (self._gpus or not self._cores) and run.config.device != "cpu"
            gpu += objects * gpu_seconds if on_gpu else 0.0
            core += 0.0 if on_gpu else objects * core_seconds
        if core + gpu < _WORTH_SAYING_SECONDS:
            return ""
        by = "up to the triplets, by the rates of `clipgs plan`"
        if self._cores:
            return f"about {_duration(core / self._cores + gpu / max(1, self._gpus))} on {self._cores} cores {by}"
        return f"about {_duration(core)} of one core{f' and {_duration(gpu)} of one H200' * bool(gpu)} {by}"

    def _job_over(self, number: int, ok: bool) -> None:
        stage = self._stages.get(self._rule_of.get(number, ""))
        job = stage.running.pop(number, None) if stage is not None else None
        if stage is None or job is None:
            return
        job.end()
        if ok:
            stage.ended.append(job)
        else:
            stage.failed.append(job.name)
        if stage.over and not self._quiet and not self._stopped:
            self._say(stage)

    def _tick(self) -> None:
        while not self._over.wait(_DRAW_SECONDS):
            with self.lock:  # type: ignore[union-attr]  # every Handler has one
                busy = [stage for stage in self._stages.values() if stage.running]
                for stage in busy if self._live else [stage for stage in busy if _due(stage)]:
                    for job in stage.running.values():
                        job.read()
                with suppress(OSError, ValueError):
                    if self._live:
                        self._clear()
                        self._draw(busy)
                    else:
                        for stage in filter(_due, busy):
                            self._say(stage)

    def _write(self, *lines: str) -> None:
        """Writes lines that stay, above the live ones."""
        if self._silent:
            return
        self._clear()
        self._stream.write("".join(f"{line}\n" for line in lines))
        if self._live and not self._closed:
            self._draw([stage for stage in self._stages.values() if stage.running])
        self._stream.flush()

    def _say(self, stage: _Stage) -> None:
        """A line of a stage that stays."""
        stage.said = time.monotonic()
        self._write(stage.text() if self._live else f"{time.strftime('%H:%M:%S')}{stage.text()}")

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _draw(self, stages: list[_Stage]) -> None:
        if self._quiet or self._stopped or not stages:
            return
        size = shutil.get_terminal_size((_WIDTH, 24))
        lines = [stage.text()[: size.columns - 1] for stage in stages[: max(1, size.lines - 2)]]
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._drawn = len(lines)
        self._stream.flush()

    def _end(self) -> None:
        self._clear()
        if self._own is not None or (self._silent and not self._dryrun):
            return
        if self._dryrun:
            self._plan()
            return
        if not self._works or self._broken:
            return
        failed = [name for stage in self._stages.values() for name in stage.failed]
        if self._stopped:
            self._write(f"stopped; finished objects are kept; to go on: {_again()}")
        elif failed:
            more = f" and {len(failed) - _SHOWN_FAILURES} more" if len(failed) > _SHOWN_FAILURES else ""
            jobs = counted(len(failed), "job")
            self._write(f"{jobs} failed: {', '.join(failed[:_SHOWN_FAILURES])}{more}; to go on: {_again()}")
        elif self._stages and not self._quiet:
            self._write(f"done in {_duration(time.monotonic() - self._started)}")
        if (
            self.RUN is not None
            and not self._quiet
            and not self._stopped
            and all(s.over for s in self._stages.values())
        ):
            from clipgs.operate.status import summary

            self._stages = {}
            self._write(*summary(self.RUN.config))

    def _plan(self) -> None:
        """What would be run, and why."""
        if not self._stages:
            return
        count = sum(stage.jobs for stage in self._stages.values() if stage.rule not in _TARGETS)
        self._stream.write(f"{counted(count, 'job')} would run (-n: none does; -n -p shows each of them)\n")
        self._stream.write(f"  {'stage':<18} {'jobs':>6}  why\n")
        for rule, stage in self._stages.items():
            if rule in _TARGETS:
                continue
            reasons = self._reasons.get(rule, Counter()).most_common()
            words = [
                f"{reason} ({jobs:,})" if len(reasons) > 1 else reason for reason, jobs in reasons[:_SHOWN_REASONS]
            ]
            words += [f"{len(reasons) - _SHOWN_REASONS} more reasons"] * (len(reasons) > _SHOWN_REASONS)
            self._stream.write(f"  {rule:<18} {stage.jobs:>6,}  {'; '.join(words)}".rstrip() + "\n")
        self._stream.flush()


def _wants_own(settings: Any) -> bool:
    """Whether the user asked for what only Snakemake's own screen shows."""
    return bool(settings.verbose or settings.printshellcmds or settings.debug_dag)


def _snakemakes_own(settings: Any, stream: Any) -> logging.Handler:
    quiet = settings.quiet or set()
    return ColorizingTextHandler(
        nocolor=settings.nocolor,
        stream=stream,
        formatter=DefaultFormatter(quiet, settings.show_failed_logs),
        filter=DefaultFilter(quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds),
    )


def _log_files() -> list[logging.FileHandler]:
    return [each for each in logging.getLogger("snakemake.logging").handlers if isinstance(each, logging.FileHandler)]


def _short_path(path: str) -> str:
    """Relative to the working folder, where it lies in it."""
    file = Path(path)
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else path


def _exit_words(text: str) -> str:
    if match := re.search(r"died with <Signals\.(SIG\w+)", text):
        return f"killed by {match[1]}"
    if match := re.search(r"exit status (\d+)", text):
        code = int(match[1])
        return "killed by SIGKILL: out of memory?" if code == 137 else f"ended with exit code {code}"
    return ""


def _again() -> str:
    """The command that this run was started with."""
    import shlex

    program = "snakemake" if Path(sys.argv[0]).name in ("__main__.py", "snakemake") else sys.argv[0]
    return shlex.join([program, *sys.argv[1:]])


def _cut(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith("Traceback"):  # whose end says what it is
        return ["(more in the log)"] * (len(lines) > _SHOWN_LINES) + lines[-_SHOWN_LINES:]
    return lines[:_SHOWN_LINES] + ["(more in the log)"] * (len(lines) > _SHOWN_LINES)


def _number(text: str) -> int:
    match = re.search(r"(\d+)", text)
    return int(match[1]) if match else -1


def _own_words(rule: str, counts: dict[str, Any], seconds: float) -> str:
    """`few-shot: 30 of 100 episodes, 20 s left`, of a job that is no shard's and works for so long."""
    done, total = counts["before"] + counts["done"], counts["before"] + counts["total"]
    what = "" if counts["what"] == rule else f"{counts['what']}: "
    left = (total - done) * seconds / counts["done"] if counts["done"] else 0.0
    return f"{what}{done:,} of {total:,} {counts['unit']}s" + (f", {_duration(left)} left" if left >= 1 else "")


def _due(stage: _Stage) -> bool:
    now = time.monotonic()
    return now - stage.said > max(_PLAIN_SECONDS, _PLAIN_GROWTH * (now - (stage.began or now)))


def _duration(seconds: float) -> str:
    """`35 s`, `4 min 10 s`, `3 h 20 min`, `2 d 5 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
