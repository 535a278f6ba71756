"""What every stage has in common: the loop over one shard's objects, from input rows to a table and a bundle.

A stage turns each object of a shard into a row and a few files. A journal keeps finished objects, so that a stage that
was killed resumes. Failed objects become rows. The shard's own files are assembled at the end.
"""

import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clipgs.core.bundles import TarWriter, read_table, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import whole
from clipgs.core.journal import Journal
from clipgs.core.seeds import canonical_json

log = logging.getLogger(__name__)

Row = dict[str, Any]
Files = list[tuple[str, bytes]]
_SHARD_TO_FAIL_AS_A_WHOLE = 100  # objects; in smaller shards a high share of failures may be chance
_LOG_EVERY_SECONDS = 15.0
_WRITE_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """A stage's work on one shard."""

    output: Path
    stage: str
    shard: str
    folder: str  # of its files under `output`
    settings: str  # what its result depends on, as canonical JSON
    max_failed_fraction: float  # `workers.max_failed_fraction`
    catalog: Path | None = None  # the table with the locators of the shard's objects, for the log

    def __str__(self) -> str:
        return f"{self.stage} {self.shard}"

    def file(self, suffix: str) -> Path:
        """Its file of the shard."""
        return self.output / self.folder / f"{self.shard}{suffix}"

    def named(self, uid: str) -> str:
        """The uid and, where it is known, the locator of an object."""
        if self.catalog is None or not self.catalog.exists():
            return uid
        rows = read_table(self.catalog, ["uid", "locator"])
        return next((f"{uid} ({row['locator']})" for row in rows if row["uid"] == uid), uid)

    @property
    def journal(self) -> Journal:
        """Its finished objects."""
        return Journal(self.output / "work" / self.stage / self.shard, self.settings)

    @property
    def mark(self) -> Path:
        """The file with the process that works on it, or with its error; removed once it is done."""
        return self.output / "work" / self.stage / f"{self.shard}.json"


class Task(NamedTuple):
    """One object's work: `function(payload)` gives its row and files; `inputs` is a hash of all that goes in."""

    uid: str
    inputs: str
    payload: Any


Results = Iterator[tuple[Task, tuple[Row, Files] | str]]
Compute = Callable[[list[Task]], Iterable[tuple[Task, tuple[Row, Files] | str]]]


def good(rows: list[Row]) -> dict[str, Row]:
    """Uid to row, of the objects that did not fail."""
    return {row["uid"]: row for row in rows if row["status"] == "ok"}


@contextmanager
def marked(job: Job) -> Iterator[None]:
    """Writes a mark while the stage runs and when it fails; removes mark and journal once its files are whole.

    The commands use it. The journal is removed last: if the disk fills while the table is written, finished objects are
    kept. A call of a stage's function without this keeps the journal, and a repeated call takes all objects from it.
    """
    at_work = {"host": socket.gethostname(), "process": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}

    def leave(**state: str) -> None:
        with suppress(OSError), whole(job.mark) as temporary:  # the disk may be what fails
            temporary.write_text(canonical_json({**state, **at_work}))

    leave(state="running")
    try:
        yield
    except Exception as error:
        leave(state="failed", error=" ".join(str(error).split()))
        raise
    job.journal.clear()
    job.mark.unlink(missing_ok=True)


# In the environment of a command. That the run has a screen, to which the terminal belongs:
SCREEN = "CLIPGS_SCREEN"
# and the file from which that screen takes how far the command is. Processes that the command starts write there too.
PROGRESS = "CLIPGS_PROGRESS"


class Progress:
    """How far a piece of work is: a bar on a terminal, else a line of the log every few seconds.

    Under the screen of a run it is also in the file that `PROGRESS` names.

    Args:
        total: how much is to do.
        before: how much was done by an earlier attempt.
    """

    def __init__(self, what: str, total: int, unit: str = "object", before: int = 0) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False)
        self._what, self._total, self._unit, self._before = what, total, unit, before
        self._done = self._failed = 0
        self._start = self._last = self._written = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first was done, and how many these were
        self._write()

    def step(self, ok: bool = True, count: int = 1) -> None:
        """One more is done, or several at once."""
        self._done += count
        self._failed += not ok
        if self._first is None:  # the first waits for imports and compilers: it says nothing of the others
            self._first = time.monotonic(), self._done
            self._bar.unpause()
        self._bar.update(count)
        if self._failed:
            self._bar.set_postfix(failed=self._failed)
        now = time.monotonic()
        if now - self._written > _WRITE_EVERY_SECONDS:
            self._written = now
            self._write()
        if self._bar.disable and (now - self._last > _LOG_EVERY_SECONDS):
            self._last = now
            began, first = self._first
            done = f"{self._done} of {self._total} {self._unit}s"
            if self._done > first:
                rate = (self._done - first) / (now - began)
                self._log(f"{done}, {rate:.4g} a second", f"{(self._total - self._done) / rate:.0f} s left")
            else:
                self._log(done)

    def close(self, *, log_done: bool = True) -> None:
        """Ends the bar and logs what was done."""
        self._bar.close()
        self._write()
        if self._done and log_done:
            self._log(f"{self._done} {self._unit}s in {time.monotonic() - self._start:.1f} s")

    def _log(self, done: str, *more: str) -> None:
        log.info("%s: %s", self._what, ", ".join([done, f"{self._failed} failed", *more]))

    def _write(self) -> None:
        if PROGRESS not in os.environ:
            return
        file = Path(os.environ[PROGRESS])
        counts = {"before": self._before, "done": self._done, "total": self._total, "failed": self._failed}
        temporary = file.with_name(f".{file.name}.part")
        with suppress(OSError):  # the disk may be full, and a lost figure is no harm
            temporary.write_text(canonical_json({"what": self._what, "unit": self._unit, **counts}))
            temporary.replace(file)


def over_objects(job: Job, tasks: list[Task], compute: Compute) -> Iterator[tuple[Row, Files]]:
    """Yields row and files of each task in their order, computing what the journal does not have.

    Args:
        compute: gets the tasks to do and yields each with its result, or with its error as text.

    Raises:
        ClipgsError: more than `job.max_failed_fraction` of a shard of 100 objects or more failed.
    """
    journal = job.journal
    keys = {task.uid: journal.key(task.inputs) for task in tasks}
    todo = [task for task in tasks if (task.uid, keys[task.uid]) not in journal]
    if len(todo) < len(tasks):
        log.info("%s: %d of %d objects are done already", job, len(tasks) - len(todo), len(tasks))
    errors: dict[str, str] = {}
    progress = Progress(str(job), len(todo), before=len(tasks) - len(todo))
    for task, result in compute(todo):
        if isinstance(result, str):
            errors[task.uid] = result
            log.warning("%s: %s failed: %s", job, job.named(task.uid), result)
        else:
            journal.put(task.uid, keys[task.uid], *result)
        progress.step(ok=not isinstance(result, str) and result[0].get("status", "ok") == "ok")
    progress.close()
    fail_as_a_whole(job, errors, len(tasks))
    for task in tasks:
        if task.uid in errors:
            yield {"uid": task.uid, "status": "failed", "error": errors[task.uid]}, []
            continue
        if (entry := journal.get(task.uid, keys[task.uid])) is None:
            raise ClipgsError(f"{journal.folder} lost {task.uid} while it was in use; run the same command again")
        row, files = entry
        yield {"uid": task.uid, "status": "ok", "error": None, **row, "key": keys[task.uid]}, files


def stage_schema(columns: dict[str, Any] | None = None) -> Any:
    """Rows that every stage writes: uid, status (`ok` or `failed`), error, key, then the stage's own columns.

    `key` is a hash of the object's inputs and the stage's settings: a retry makes nothing again that has the same.
    """
    import pyarrow as pa

    common = [(name, pa.string()) for name in ("uid", "status", "error", "key")]
    return pa.schema(common + list((columns or {}).items()))


def write_objects(
    job: Job, tasks: list[Task], compute: Compute, columns: dict[str, Any], *, member: str = "{uid}/{name}"
) -> None:
    """Writes the shard's tar and table of all objects, as `over_objects` gives them.

    Args:
        columns: those of the table besides uid, status and error, name to type. A file that has the name of a column
            is the row's, and no member of the tar.
        member: how an object's file is named in the tar.
    """
    rows = []
    with TarWriter(job.file(".tar")) as tar:
        for row, files in over_objects(job, tasks, compute):
            rows.append(row | {name: data for name, data in files if name in columns})
            for name, data in files:
                if name not in columns:
                    tar.add(member.format(uid=row["uid"], name=name), data)
    write_table(job.file(".parquet"), rows, stage_schema(columns))


def fail_as_a_whole(job: Job, errors: dict[str, str], total: int) -> None:
    """Stops a stage if nearly all of its objects failed: the cause is then hardly in the objects."""
    if total >= _SHARD_TO_FAIL_AS_A_WHOLE and len(errors) > job.max_failed_fraction * total:
        reasons = "; ".join(f"{count} x {error}" for error, count in Counter(errors.values()).most_common(3))
        raise ClipgsError(f"{job}: {len(errors)} of {total} objects failed: {reasons}")


class Limits(NamedTuple):
    """Of one object's work in a process of its own."""

    timeout_seconds: float
    memory_mb: int
    keys: str = ""  # what the keys of the configuration begin with that set them: workers.load_

    def named(self, limit: str) -> str:
        """What a message says behind the value of a limit: `, which workers.load_memory_mb sets`."""
        return f", which {self.keys}{limit} sets" if self.keys else ""


def in_workers(function: Callable[[Any], tuple[Row, Files]], threads: int, limits: Limits) -> Compute:
    """A `compute` that runs `function` in processes with limits of time and memory; a crash is the object's error."""

    def compute(tasks: list[Task]) -> Results:
        from clipgs.core import workers

        if not tasks:
            return
        count = min(workers.usable_workers(threads, limits.memory_mb), len(tasks))
        payloads = (task.payload for task in tasks)
        seconds, memory_mb = limits.timeout_seconds, limits.memory_mb
        results = workers.run(function, payloads, workers=count, timeout_seconds=seconds, memory_mb=memory_mb)
        for index, result in results:
            if isinstance(result, workers.Failure):
                result = result.error + (limits.named(result.limit) if result.limit else "")
            yield tasks[index], result

    return compute
