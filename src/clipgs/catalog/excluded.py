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


def exclude(config: Config, uids: list[str], reason: str = NO_REASON, *, undo: bool = False) -> list[str]:
    """Adds objects to the list, or (`undo`) removes them; returns the shards that will be packed again.

    Raises:
        UsageError: an object is in no frozen shard, or (`undo`) is not listed.
    """
    listed = excluded(config)
    if undo:
        shard_of = {uid: shard for shard, reasons in listed.items() for uid in reasons}
        nowhere = "is not excluded"
    else:
        wanted, shard_of = set(uids), {}
        for shard in frozen_shards(config):
            found = {row["uid"] for row in read_table(shard_path(config, shard), ["uid"])}
            shard_of |= dict.fromkeys(wanted & found, shard)
        nowhere = f"is in no shard of {config.output_path}"
    missing = [uid for uid in uids if uid not in shard_of]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(f"{missing[0]} {nowhere}{more}; nothing was changed")
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
