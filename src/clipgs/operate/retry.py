"""Making failed objects again, and only those.

`catalog/retries.json` counts how often a shard's stage was retried. The count is part of the settings of that shard's
rule, so that Snakemake runs it again; it changes no result.
"""

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

from clipgs.catalog.records import frozen_shards, shard_path
from clipgs.config import Config
from clipgs.core.bundles import read_table, tar_objects
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import check, whole
from clipgs.core.runner import Files
from clipgs.core.seeds import canonical_json
from clipgs.operate.lock import OutputLock
from clipgs.stages import STAGES, Stage, fed_by, job, retriable

log = logging.getLogger(__name__)


def retry(config: Config, stage: str, shards: list[str]) -> dict[str, dict[str, int]]:
    """Makes the next run try a stage's failed objects again. Good objects are kept, there and in later stages.

    Stages that read the same files, as `sample` and `view` do, fail of the same causes. So an object that failed in
    several of them is tried again in all.

    Args:
        shards: only these; empty: all.

    Returns:
        stage to shard to the number of failed objects that the next run tries again.

    Raises:
        UsageError: the stage does not work object by object, or a shard is not there.
        ClipgsError: a run works on the output.
    """
    if stage not in retriable():
        raise UsageError(f"{stage} cannot be retried; {', '.join(retriable())} can")
    known = frozen_shards(config)
    if unknown := [shard for shard in shards if shard not in known]:
        raise UsageError(f"{config.output_path} has no shard {unknown[0]}")
    beside = [name for name, other in retriable().items() if name != stage and other.after == STAGES[stage].after]
    found: dict[str, dict[str, int]] = {}
    counts = retries(config)
    if not known:  # nor is there an output to lock
        return {}
    with OutputLock(config.output_path):
        for shard in shards or known:
            if not (failed := _failed(config, stage, shard)):
                continue
            alike = {name: both for name in beside if (both := failed & _failed(config, name, shard))}
            again = {stage: failed, **alike}
            for each in {*again, *(name for retried in again for name in fed_by(retried))}:
                keep_good(config, each, shard)
            for name, uids in again.items():
                found.setdefault(name, {})[shard] = len(uids)
                counts.setdefault(name, {})[shard] = counts.get(name, {}).get(shard, 0) + 1
        if found:
            with whole(_path(config)) as temporary:
                temporary.write_text(canonical_json(counts) + "\n")
    return found


def _path(config: Config) -> Path:
    return config.output_path / "catalog" / "retries.json"


def retries(config: Config) -> dict[str, dict[str, int]]:
    """Stage to shard to the number of times it was retried.

    Raises:
        UsageError: the file that holds them is damaged.
    """
    try:
        return {stage: dict(shards) for stage, shards in json.loads(_path(config).read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        text = f"{_path(config)} is damaged ({error}); remove it, and the next run makes all that was retried again"
        raise UsageError(text) from None


def _failed(config: Config, stage: str, shard: str) -> set[str]:
    """Uids of the objects that failed, without those that can never be used (a duplicate, an unreadable file)."""
    table, *_ = STAGES[stage].files(config.output_path, shard)
    if not table.exists():
        return set()
    never = {row["uid"] for row in read_table(shard_path(config, shard), ["uid", "note"]) if row["note"]}
    return {row["uid"] for row in read_table(table, ["uid", "status"]) if row["status"] != "ok"} - never


def keep_good(config: Config, name: str, shard: str) -> None:
    """Copies a shard's good objects into the stage's journal, since Snakemake removes their files before the stage."""
    files = STAGES[name].files(config.output_path, shard)
    try:
        for file in files:
            check(file)
    except ClipgsError:
        log.info("%s %s is missing or not whole: the next run makes all of it", name, shard)
        return
    journal, of_object = job(config, name, shard).journal, _members(STAGES[name], files)
    journal.clear()
    for row in read_table(files[0]):
        if row["status"] == "ok" and row.get("key"):
            own = {key: value for key, value in row.items() if key not in ("uid", "status", "error", "key")}
            pictures = [(key, own.pop(key)) for key, value in row.items() if isinstance(value, bytes)]
            journal.put(row["uid"], row["key"], own, [*of_object(row["uid"]), *pictures])


def _members(stage: Stage, files: list[Path]) -> Callable[[str], Files]:
    """A function from a uid to its files in the shard's bundle."""
    if stage.bundle == ".tar":
        members = tar_objects(files[1])
        return lambda uid: list(members[uid].read().items())
    if stage.bundle == ".npz":
        arrays = zipfile.ZipFile(files[1])
        return lambda uid: [
            (name.removeprefix(f"{uid}/").removesuffix(".npy"), arrays.read(name))
            for name in arrays.namelist()
            if name.startswith(f"{uid}/")
        ]
    return lambda uid: []
