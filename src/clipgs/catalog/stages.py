"""The stages `freeze`, `label` and `objects`: from the source to tables of objects and their labels."""

import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from clipgs.catalog.records import frozen_schema, labels_schema, objects_schema
from clipgs.catalog.shards import (
    curation,
    curation_path,
    frozen_shards,
    label_locators,
    labels_path,
    pending_shards,
    shard_path,
)
from clipgs.catalog.sources import Source, source
from clipgs.catalog.sources.folder import path_uid
from clipgs.config import Config
from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import ClipgsError, ObjectError
from clipgs.core.files import write_bytes
from clipgs.core.seeds import canonical_json, unit_hash

log = logging.getLogger(__name__)

_STRATIFY_FROM_GROUPS = 3


def freeze(config: Config, shards: list[str]) -> None:
    """Writes the named pending shards: identifies their objects, finds duplicates, gives each its split.

    Raises:
        ClipgsError: the source changed since the shards were planned.
    """
    objects = source(config)
    frozen = frozen_shards(config)
    rows = [row for shard in frozen for row in read_table(shard_path(config, shard))]
    of_source = [row for row in rows if row["source"] == objects.name]
    pending = pending_shards(config, objects, frozen, of_source)
    if not set(shards) <= set(pending):
        raise ClipgsError("the source changed while shards were planned; run the same command again")
    splits = _Splits(config, rows)
    owner = {row["sha256"]: row["uid"] for row in rows if row["sha256"] and row["note"] is None}
    taken = {row["uid"] for row in rows}
    earlier: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in of_source:
        earlier[row["locator"]].append(row)
    objects.digests([locator for shard in shards for locator in pending[shard]])  # hashes them in several threads
    for shard in sorted(shards):
        new = [_freeze_row(objects, locator, owner, taken, earlier[locator]) for locator in pending[shard]]
        splits.assign(new, [label["category"] for label in objects.labels(pending[shard])])
        new.sort(key=lambda row: row["uid"])
        write_table(shard_path(config, shard), new, frozen_schema())
        log.info("froze shard %s: %d objects", shard, len(new))


def _freeze_row(
    objects: Source,
    locator: str,
    owner: dict[str, str],  # SHA-256 to uid; updated
    taken: set[str],  # uids; updated
    earlier: Sequence[dict[str, Any]] = (),  # frozen rows of this locator, whose file was replaced
) -> dict[str, Any]:
    """The row of a new object. One that replaces another is in its group, so that both are in one split."""
    try:
        row = {"source": objects.name, "locator": locator, **objects.identify(locator)}
    except ObjectError as error:
        row = {"source": objects.name, "locator": locator, "uid": path_uid(locator), "note": f"unreadable: {error}"}
    first = owner.get(row.get("sha256") or "")
    if row["uid"] in {before["uid"] for before in earlier} and row.get("sha256"):  # the manifest's
        row["uid"] = f"{row['uid'][:55]}-{row['sha256'][:8]}"
    if first is not None:
        row["note"] = f"duplicate of {first}"
    elif row["uid"] in taken and row.get("note") is None:
        row["note"] = f"another object has the uid {row['uid']}"
    if row["uid"] in taken:
        names = itertools.chain([locator], (f"{locator}\0{number}" for number in itertools.count(2)))
        row["uid"] = next(uid for uid in map(path_uid, names) if uid not in taken)
    taken.add(row["uid"])
    if row.get("note") is None and row.get("sha256"):
        owner[row["sha256"]] = row["uid"]
    groups = (before["group"] for before in earlier if before["note"] is None)
    row["group"] = row.get("group") or next(groups, row["uid"])
    return row


class _Splits:
    """Gives groups their split: by hash, or evenly inside a category that has three groups or more."""

    def __init__(self, config: Config, rows: list[dict[str, Any]]) -> None:
        test, validation = config.catalog.test_fraction, config.catalog.validation_fraction
        self._fractions = {"train": 1 - test - validation, "test": test, "validation": validation}
        self._of_group = {row["group"]: row["split"] for row in rows}
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        category_of: dict[str, str | None] = {}
        for labels in (labels_path(config, shard) for shard in frozen_shards(config)):
            if labels.exists():
                category_of |= {row["uid"]: row["category"] for row in read_table(labels, ["uid", "category"])}
        groups = {row["group"]: (category_of.get(row["uid"]), row["split"]) for row in rows}
        for category, split in groups.values():
            if category:
                self._counts[category][split] += 1

    def assign(self, rows: list[dict[str, Any]], categories: list[str | None]) -> None:
        """Sets `split` in rows. A known group keeps its split; a split that the source gives comes next."""
        for row in rows:
            if row.get("split"):
                self._of_group.setdefault(row["group"], row["split"])
        new: dict[str, set[str]] = defaultdict(set)  # category to its new groups
        for row, category in zip(rows, categories, strict=True):
            if row["group"] not in self._of_group:
                new[category or ""].add(row["group"])
        for category, groups in new.items():
            counts = self._counts[category]
            stratified = category and counts.total() + len(groups) >= _STRATIFY_FROM_GROUPS
            for group in sorted(groups, key=lambda group: hashlib.sha256(group.encode()).hexdigest()):
                split = self._in_deficit(counts) if stratified else self._by_hash(group)
                self._of_group[group] = split
                counts[split] += 1
        for row in rows:
            row["split"] = self._of_group[row["group"]]

    def _by_hash(self, group: str) -> str:
        position = unit_hash(group)
        if position < self._fractions["test"]:
            return "test"
        return "validation" if position < self._fractions["test"] + self._fractions["validation"] else "train"

    def _in_deficit(self, counts: Counter[str]) -> str:
        total = counts.total() + 1
        # Ties go to the test split, so that a category of three groups can be tested.
        order = ("test", "train", "validation")
        return max(order, key=lambda split: round(self._fractions[split] * total - counts[split], 9))


def label(config: Config, shard: str, threads: int = 1) -> None:
    """Writes `catalog/labels/S.parquet`: category, text, license, credit and page of each object, from its source."""
    rows = read_table(shard_path(config, shard))
    objects = source(config, rows[0]["source"])
    labels = objects.labels(label_locators(config, objects, rows))
    labelled = [{"uid": row["uid"], **found} for row, found in zip(rows, labels, strict=True)]
    write_table(labels_path(config, shard), labelled, labels_schema())


def objects(config: Config) -> None:
    """Writes `catalog/objects.parquet`, every frozen row with its shard, and `catalog/curation.json`.

    The latter has the number of objects in the source, and how many objects each rule leaves out.
    """
    rows = [{"shard": shard, **row} for shard in frozen_shards(config) for row in read_table(shard_path(config, shard))]
    write_table(config.output_path / "catalog" / "objects.parquet", rows, objects_schema())
    write_bytes(curation_path(config), canonical_json(curation(config)).encode() + b"\n")
