"""Excluded objects, for example after a takedown or when a licence is withdrawn. They are no longer packed.

The list names each object's shard, so that only these shards are packed again. Nothing is fitted again, and frozen
shards do not change.
"""

import csv
from pathlib import Path

from clipgs.catalog.records import frozen_shards, shard_path
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.core.errors import UsageError
from clipgs.core.files import whole
from clipgs.core.lists import read_rows
from clipgs.core.seeds import json_digest

COLUMNS = ("uid", "shard", "reason")
NO_REASON = "on request"
EXCLUDED = "excluded: "  # begins the error of an object's row
# The kinds of `clipgs.catalog.shards.lost` to the reason of those that are excluded for it.
WHY_LOST = {
    "replaced": "its file was replaced",
    "gone": "its file has gone",
    "unlisted": "it is no longer listed",
}


def excluded_path(config: Config) -> Path:
    """The list of excluded objects: CSV of uid, shard and reason."""
    return config.output_path / "catalog" / "excluded.csv"


def excluded(config: Config) -> dict[str, dict[str, str]]:
    """Shard to its excluded uids with their reasons.

    Raises:
        UsageError: the list is not a CSV file with the right columns.
    """
    path = excluded_path(config)
    found: dict[str, dict[str, str]] = {}
    if not path.exists():
        return {}
    (_, header), *rows = [*read_rows(path, "excluded objects", strict=True)] or [(1, [])]
    for line, cells in rows:
        row = dict(zip(header, cells, strict=False))
        if not ("uid" in row and "shard" in row):
            raise UsageError(f"{path}, line {line}: it is not a CSV file of {', '.join(COLUMNS)}")
        found.setdefault(row["shard"], {})[row["uid"]] = row.get("reason") or NO_REASON
    return found


def excluded_digests(config: Config) -> dict[str, str]:
    """Shard to a digest of its excluded objects, for the shards that have some."""
    listed = excluded(config).items()
    return {shard: json_digest(uids)[:16] for shard, uids in listed}


def exclude(config: Config, names: list[str], reason: str = NO_REASON, *, undo: bool = False) -> list[str]:
    """Adds objects to the list, or (`undo`) removes them; returns the shards that will be packed again.

    Args:
        names: uids, or locators as in the column `file` of the index.

    Raises:
        UsageError: an object is in no frozen shard, or (`undo`) is not listed; or several objects are of one file.
    """
    listed = excluded(config)
    shard_of, of_file = _objects(config, set(names))
    nowhere = f"is in no shard of {config.output_path}"
    if undo:
        shard_of = {uid: shard for shard, reasons in listed.items() for uid in reasons}
        nowhere = "is not excluded"
    meant = {name: [name] if name in shard_of else [uid for uid in of_file[name] if uid in shard_of] for name in names}
    missing = [name for name, found in meant.items() if not found]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(f"{missing[0]} {nowhere}{more}; nothing was changed")
    for name, found in meant.items():
        if len(found) > 1:
            raise UsageError(f"{name} is the file of {len(found)} objects: {', '.join(found)}; name one of these uids")
    uids = {found[0] for found in meant.values()}
    for uid in uids:
        if undo:
            del listed[shard_of[uid]][uid]
        else:
            listed.setdefault(shard_of[uid], {})[uid] = " ".join(reason.split()) or NO_REASON
    with whole(excluded_path(config)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for shard, reasons in sorted(listed.items()):
            writer.writerows((uid, shard, why) for uid, why in sorted(reasons.items()))
    return sorted({shard_of[uid] for uid in uids})


def _objects(config: Config, names: set[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Uid to shard of the objects that names mean, and name to the uids of that file.

    A file that was replaced has several, of which only those count that can be used.
    """
    shard_of: dict[str, str] = {}
    of_file: dict[str, list[str]] = {name: [] for name in names}
    for shard in frozen_shards(config):
        for row in read_table(shard_path(config, shard), ["uid", "locator", "note"]):
            if row["uid"] in names or (row["locator"] in names and row["note"] is None):
                shard_of[row["uid"]] = shard
                of_file.get(row["locator"], []).append(row["uid"])
    return shard_of, of_file
