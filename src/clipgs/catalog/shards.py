"""Shards: frozen lists of objects, only ever appended.

`plan` is what Snakemake calls when it parses: it reads what is frozen and what the source has, and writes nothing.
`freeze` writes the shards that the plan found pending.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgs.catalog.records import frozen_schema, labels_schema, objects_schema
from clipgs.catalog.sources import source
from clipgs.catalog.sources.folder import path_uid
from clipgs.config import Config
from clipgs.storage import ClipgsError, ObjectError, read_table, write_table

log = logging.getLogger(__name__)

MAX_GONE_FRACTION = 0.05  # more known objects missing than this, and the folder is probably not mounted
_STRATIFY_FROM_GROUPS = 3


@dataclass(frozen=True)
class Plan:
    """What there is to do: shards on disk, shards to freeze, and for each a digest of its labels."""

    frozen: tuple[str, ...]
    pending: tuple[str, ...]
    label_digests: dict[str, str]
    notes: tuple[str, ...]

    @property
    def shards(self) -> tuple[str, ...]:
        return self.frozen + self.pending


def shard_path(config: Config, shard: str) -> Path:
    """Where a shard's frozen rows lie."""
    return config.output_path / "catalog" / "shards" / f"{shard}.parquet"


def labels_path(config: Config, shard: str) -> Path:
    """Where a shard's labels lie."""
    return config.output_path / "catalog" / "labels" / f"{shard}.parquet"


def frozen_shards(config: Config) -> list[str]:
    """Names of the shards on disk, in order."""
    return sorted(path.stem for path in (config.output_path / "catalog" / "shards").glob("[0-9]*.parquet"))


def _pending(config: Config, frozen: list[str], known: set[str]) -> dict[str, list[str]]:
    """Shard name to locators, of the objects that no shard holds yet."""
    new = [locator for locator in source(config).locators() if locator not in known]
    size = config.catalog.shard_objects
    first = int(frozen[-1]) + 1 if frozen else 0
    return {f"{first + i // size:05d}": new[i : i + size] for i in range(0, len(new), size)}


def plan(config: Config) -> Plan:
    """What is frozen and what is pending; changes nothing on disk.

    Raises:
        UsageError: the source is empty or its settings are wrong.
        ClipgsError: more than 5 % of the known objects have gone.
    """
    objects = source(config)
    frozen = frozen_shards(config)
    members = {
        shard: [
            row["locator"]
            for row in read_table(shard_path(config, shard), ["source", "locator"])
            if row["source"] == objects.name
        ]
        for shard in frozen
    }
    known = [locator for locators in members.values() for locator in locators]
    gone = objects.gone(known)
    if len(gone) > MAX_GONE_FRACTION * len(known):
        raise ClipgsError(
            f"{len(gone)} of {len(known)} known objects have gone from the source (the first: {gone[0]}); "
            "is it mounted? To go on without them, use another `output`"
        )
    pending = _pending(config, frozen, set(known))
    digests = {shard: objects.label_digest(locators) for shard, locators in {**members, **pending}.items()}
    return Plan(tuple(frozen), tuple(pending), digests, tuple(objects.notes()))


def freeze(config: Config, shards: list[str]) -> None:
    """Writes the named pending shards: identifies their objects, finds doubles, gives each its split.

    Raises:
        ClipgsError: the source changed since the shards were planned.
    """
    objects = source(config)
    frozen = frozen_shards(config)
    rows = [row for shard in frozen for row in read_table(shard_path(config, shard))]
    pending = _pending(config, frozen, {row["locator"] for row in rows if row["source"] == objects.name})
    if not set(shards) <= set(pending):
        raise ClipgsError("the source changed while shards were planned; run the same command again")
    splits = _Splits(config, rows)
    owner = {row["sha256"]: row["uid"] for row in rows if row["sha256"] and row["note"] is None}
    taken = {row["uid"] for row in rows}
    for shard in sorted(shards):
        new = [_freeze_row(objects, locator, owner, taken) for locator in pending[shard]]
        categories = [label["category"] for label in objects.labels(pending[shard])]
        splits.assign(new, categories)
        new.sort(key=lambda row: row["uid"])
        write_table(shard_path(config, shard), new, frozen_schema())
        log.info("froze shard %s: %d objects", shard, len(new))


def _freeze_row(objects: Any, locator: str, owner: dict[str, str], taken: set[str]) -> dict[str, Any]:
    try:
        row = {"source": objects.name, "locator": locator, **objects.identify(locator)}
    except ObjectError as error:
        row = {"source": objects.name, "locator": locator, "uid": path_uid(locator), "note": f"unreadable: {error}"}
    first = owner.get(row.get("sha256") or "")
    if first is not None:
        row["note"] = f"duplicate of {first}"
    elif row["uid"] in taken and row.get("note") is None:
        row["note"] = f"another object has the uid {row['uid']}"
    if row["uid"] in taken:
        row["uid"] = path_uid(locator)
    taken.add(row["uid"])
    if row.get("note") is None and row.get("sha256"):
        owner[row["sha256"]] = row["uid"]
    row["group"] = row.get("group") or row["uid"]
    return row


class _Splits:
    """Gives groups their split: by hash, and evenly inside a category that has three groups or more."""

    def __init__(self, config: Config, rows: list[dict[str, Any]]) -> None:
        test, validation = config.catalog.test_fraction, config.catalog.validation_fraction
        self._fractions = {"train": 1 - test - validation, "test": test, "validation": validation}
        self._of_group = {row["group"]: row["split"] for row in rows}
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        category_of: dict[str, str | None] = {}
        for shard in frozen_shards(config):
            labels = labels_path(config, shard)
            if labels.exists():
                category_of |= {row["uid"]: row["category"] for row in read_table(labels, ["uid", "category"])}
        groups = {row["group"]: (category_of.get(row["uid"]), row["split"]) for row in rows}
        for category, split in groups.values():
            if category:
                self._counts[category][split] += 1

    def assign(self, rows: list[dict[str, Any]], categories: list[str | None]) -> None:
        """Sets `split` in rows. A split that the source gives stands; a known group keeps its own."""
        for row in rows:
            if row.get("split") and row["group"] not in self._of_group:
                self._of_group[row["group"]] = row["split"]
        new: dict[str, dict[str, None]] = defaultdict(dict)  # category to its new groups
        for row, category in zip(rows, categories, strict=True):
            if row["group"] not in self._of_group:
                new[category or ""][row["group"]] = None
        for category, groups in new.items():
            counts = self._counts[category]
            stratified = category and counts.total() + len(groups) >= _STRATIFY_FROM_GROUPS
            for group in sorted(groups, key=_hash):
                split = self._in_deficit(counts) if stratified else self._by_hash(group)
                self._of_group[group] = split
                counts[split] += 1
        for row in rows:
            row["split"] = self._of_group[row["group"]]

    def _by_hash(self, group: str) -> str:
        position = int(_hash(group)[:12], 16) / 16**12
        if position < self._fractions["test"]:
            return "test"
        return "validation" if position < self._fractions["test"] + self._fractions["validation"] else "train"

    def _in_deficit(self, counts: Counter[str]) -> str:
        total = counts.total() + 1
        # Ties go to the test split, so that a category of three groups can be tested.
        order = ("test", "train", "validation")
        return max(order, key=lambda split: round(self._fractions[split] * total - counts[split], 9))


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()


def label(config: Config, shard: str, threads: int = 1) -> None:
    """Writes `catalog/labels/S.parquet`: the source's category, text, license, credit and page of each object."""
    del threads
    rows = [row for row in read_table(shard_path(config, shard)) if row["source"] == config.catalog.source]
    labels = source(config).labels([row["locator"] for row in rows])
    labelled = [{"uid": row["uid"], **found} for row, found in zip(rows, labels, strict=True)]
    write_table(labels_path(config, shard), labelled, labels_schema())


def objects(config: Config) -> None:
    """Writes `catalog/objects.parquet`: every frozen row with its shard."""
    rows = [{"shard": shard, **row} for shard in frozen_shards(config) for row in read_table(shard_path(config, shard))]
    write_table(config.output_path / "catalog" / "objects.parquet", rows, objects_schema())
