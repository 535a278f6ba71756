"""What every stage has in common: the way over one shard's objects, from input rows to a table and a bundle.

A stage turns each object of a shard into a row and a few files. Finished objects are kept in a journal, so that a stage
that was killed goes on where it was; failed ones become rows; the shard's own files are assembled at the end.
"""

import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clipgs.config import Config, stage_settings
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check, whole
from clipgs.core.journal import Journal
from clipgs.core.previous import Previous
from clipgs.core.seeds import canonical_json

log = logging.getLogger(__name__)

Row = dict[str, Any]
Files = list[tuple[str, bytes]]
_SHARD_TO_FAIL_AS_A_WHOLE = 100  # objects; in smaller shards a high share of failures may be chance
_LOG_EVERY_SECONDS = 15.0


class Task(NamedTuple):
    """One object's work: `function(payload)` gives its row and files; `inputs` is a hash of all that goes in."""

    uid: str
    inputs: str
    payload: Any


def path(config: Config, stage: str, shard: str, suffix: str) -> Path:
    """Where a stage's file of a shard lies."""
    return config.output_path / stage / f"{shard}{suffix}"


def table(config: Config, folder: str, shard: str, columns: list[str] | None = None) -> list[Row]:
    """All rows of an earlier stage, its file checked; pictures in it are only read where `columns` names them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = path(config, folder, shard, ".parquet")
    check(where)
    if columns is None:
        columns = [field.name for field in pq.read_schema(where) if not pa.types.is_binary(field.type)]
    return read_table(where, columns)


def good(rows: list[Row]) -> dict[str, Row]:
    """Uid to row, of the objects that did not fail."""
    return {row["uid"]: row for row in rows if row["status"] == "ok"}


def failed(uid: str, error: str) -> Row:
    """The row of an object that failed."""
    return {"uid": uid, "status": "failed", "error": error}


def _journal_path(config: Config, stage: str, shard: str) -> Path:
    return config.output_path / "work" / stage / shard


def mark_path(config: Config, stage: str, shard: str) -> Path:
    """The file that says who works on a stage of a shard, or how that failed; none once it is done."""
    return config.output_path / "work" / stage / f"{shard}.json"


@contextmanager
def marked(config: Config, stage: str, shard: str) -> Iterator[None]:
    """Leaves a mark while the stage runs and when it fails; clears away what only helped once its files are whole.

    The commands use it. The journal goes last: should the disk fill while the table is written, what was made is still
    there. Who calls a stage's function without this keeps the journal, and a repeated call takes all from it.
    """
    mark = mark_path(config, stage, shard)
    at_work = {"host": socket.gethostname(), "process": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}

    def leave(**state: str) -> None:
        with suppress(OSError), whole(mark) as temporary:  # the disk may be what fails
            temporary.write_text(canonical_json({**state, **at_work}))

    leave(state="running")
    try:
        yield
    except Exception as error:
        leave(state="failed", error=" ".join(str(error).split()))
        raise
    Journal(_journal_path(config, stage, shard), "").clear()
    Previous(config.output_path, stage, shard).clear()
    mark.unlink(missing_ok=True)


class Progress:
    """A bar on a terminal, else a line of the log every few seconds."""

    def __init__(self, what: str, total: int, unit: str = "object") -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False)
        self._what, self._total, self._unit = what, total, unit
        self._done = self._failed = 0
        self._start = self._last = time.monotonic()

    def step(self, ok: bool = True, count: int = 1) -> None:
        """One more is done, or several at once."""
        self._done += count
        self._failed += not ok
        self._bar.update(count)
        if self._failed:
            self._bar.set_postfix(failed=self._failed)
        now = time.monotonic()
        if self._bar.disable and (now - self._last > _LOG_EVERY_SECONDS):
            self._last = now
            left = (now - self._start) / self._done * (self._total - self._done)
            log.info(
                "%s: %d of %d %ss, %.4g a second, %d failed, %.0f s left",
                self._what,
                self._done,
                self._total,
                self._unit,
                self._done / (now - self._start),
                self._failed,
                left,
            )

    def close(self) -> None:
        """Ends the bar and logs what was done."""
        self._bar.close()
        if self._done:
            log.info(
                "%s: %d %ss in %.1f s, %d failed",
                self._what,
                self._done,
                self._unit,
                time.monotonic() - self._start,
                self._failed,
            )


def over_objects(
    config: Config,
    stage: str,
    shard: str,
    tasks: list[Task],
    compute: Callable[[list[Task]], Iterable[tuple[Task, tuple[Row, Files] | str]]],
) -> Iterator[tuple[Row, Files]]:
    """Yields row and files of each task in their order, computing what neither journal nor earlier files have.

    Args:
        compute: gets the tasks to do and yields each with its result, or with its error as text.

    Raises:
        ClipgsError: more than `workers.max_failed_fraction` of a shard of 100 objects or more failed.
    """
    journal = Journal(_journal_path(config, stage, shard), stage_settings(config, stage))
    previous = Previous(config.output_path, stage, shard)
    keys = {task.uid: journal.key(task.inputs) for task in tasks}
    todo = [
        task for task in tasks if (task.uid, task.inputs) not in journal and (task.uid, keys[task.uid]) not in previous
    ]
    if len(todo) < len(tasks):
        log.info("%s %s: %d of %d objects are done already", stage, shard, len(tasks) - len(todo), len(tasks))
    errors: dict[str, str] = {}
    progress = Progress(f"{stage} {shard}", len(todo))
    for task, result in compute(todo):
        if isinstance(result, str):
            errors[task.uid] = result
            log.warning("%s %s: %s failed: %s", stage, shard, task.uid, result)
        else:
            row, files = result
            journal.put(task.uid, task.inputs, row, files)
        progress.step(ok=not isinstance(result, str) and result[0].get("status", "ok") == "ok")
    progress.close()
    fail_as_a_whole(config, f"{stage} {shard}", errors, len(tasks))
    for task in tasks:
        if task.uid in errors:
            yield failed(task.uid, errors[task.uid]), []
            continue
        entry = journal.get(task.uid, task.inputs)
        if entry is None and (task.uid, keys[task.uid]) in previous:
            entry = previous.get(task.uid, keys[task.uid])
        if entry is None:
            raise ClipgsError(f"{journal.folder} lost {task.uid} while it was in use; run the same command again")
        row, files = entry
        yield {"uid": task.uid, "status": "ok", "error": None, **row, "key": keys[task.uid]}, files


def write_objects(
    config: Config,
    stage: str,
    folder: str,
    shard: str,
    tasks: list[Task],
    compute: Callable[[list[Task]], Iterable[tuple[Task, tuple[Row, Files] | str]]],
    columns: dict[str, Any],
    *,
    member: str = "{uid}/{name}",
) -> None:
    """Writes `FOLDER/S.tar` and `FOLDER/S.parquet` of all objects, as `over_objects` gives them.

    Args:
        columns: those of the table besides uid, status and error, name to type. A file that has the name of a column
            is the row's, and no member of the tar.
        member: how an object's file is named in the tar.
    """
    from clipgs.catalog.records import stage_schema
    from clipgs.core.bundles import TarWriter, write_table

    rows = []
    with TarWriter(path(config, folder, shard, ".tar")) as tar:
        for row, files in over_objects(config, stage, shard, tasks, compute):
            rows.append(row | {name: data for name, data in files if name in columns})
            for name, data in files:
                if name not in columns:
                    tar.add(member.format(uid=row["uid"], name=name), data)
    write_table(path(config, folder, shard, ".parquet"), rows, stage_schema(columns))


def fail_as_a_whole(config: Config, what: str, errors: dict[str, str], total: int) -> None:
    """Stops a stage whose objects nearly all failed: then the fault is hardly theirs."""
    if total >= _SHARD_TO_FAIL_AS_A_WHOLE and len(errors) > config.workers.max_failed_fraction * total:
        common = Counter(errors.values()).most_common(3)
        reasons = "; ".join(f"{count} x {error}" for error, count in common)
        raise ClipgsError(f"{what}: {len(errors)} of {total} objects failed: {reasons}")


def in_workers(
    function: Callable[[Any], tuple[Row, Files]],
    config: Config,
    limits: Literal["load", "fit"],
    threads: int,
) -> Callable[[list[Task]], Iterator[tuple[Task, tuple[Row, Files] | str]]]:
    """A `compute` that runs `function` in processes with limits of time and memory; a crash is the object's error.

    `limits` names the keys of `workers` that hold: for one mesh, or for one splat.
    """
    timeout_seconds: float = getattr(config.workers, f"{limits}_timeout_seconds")
    memory_mb: int = getattr(config.workers, f"{limits}_memory_mb")

    def compute(tasks: list[Task]) -> Iterator[tuple[Task, tuple[Row, Files] | str]]:
        from clipgs.core import workers

        if not tasks:
            return
        count = min(workers.usable_workers(threads, memory_mb), len(tasks))
        payloads = (task.payload for task in tasks)
        for index, result in workers.run(
            function, payloads, workers=count, timeout_seconds=timeout_seconds, memory_mb=memory_mb
        ):
            yield tasks[index], result.error if isinstance(result, workers.Failure) else result

    return compute
