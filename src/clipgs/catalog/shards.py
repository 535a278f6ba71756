"""Shards: frozen lists of objects, only ever appended.

`plan` is what Snakemake calls when it parses: it reads what is frozen and what the source has, and writes nothing.
`write_shards` writes those that the plan found pending.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipgs.catalog.records import frozen_schema
from clipgs.catalog.sources import Annotated, Source, source
from clipgs.catalog.sources.folder import path_uid
from clipgs.config import Config
from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import ClipgsError, ObjectError
from clipgs.core.files import whole
from clipgs.core.seeds import canonical_json, unit_hash

log = logging.getLogger(__name__)

MAX_GONE_FRACTION = 0.05  # more known objects missing than this, and the folder is probably not mounted
_STRATIFY_FROM_GROUPS = 3
_PLAN_VERSION = 2  # raised when the same shards and source would be planned otherwise


@dataclass(frozen=True)
class Plan:
    """What there is to do: shards on disk, shards to freeze, for each a digest of its labels, and one of the rules."""

    frozen: tuple[str, ...]
    pending: tuple[str, ...]
    label_digests: dict[str, str]
    curation_digest: str
    notes: tuple[str, ...]
    objects: int

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


def _pending(config: Config, objects: Source, frozen: list[str], known: set[str]) -> dict[str, list[str]]:
    """Shard name to locators, of the objects that no shard holds yet."""
    new = [locator for locator in objects.locators() if locator not in known]
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
    cache = _PlanCache(config, objects, frozen)
    if cache.plan is not None:
        return cache.plan
    members = {shard: _members(config, shard) for shard in frozen}
    known = [locator for name, locators in members.values() if name == objects.name for locator in locators]
    gone = objects.gone(known)
    if len(gone) > MAX_GONE_FRACTION * len(known):
        raise ClipgsError(
            f"{len(gone)} of {len(known)} known objects have gone from the source (the first: {gone[0]}); "
            "is it mounted? To go on without them, use another `output`"
        )
    pending = _pending(config, objects, frozen, set(known))
    members |= {shard: (objects.name, locators) for shard, locators in pending.items()}
    names = {name for name, _ in members.values()}  # an output may hold shards of several sources
    sources = {name: source(config, name) for name in names - {objects.name}} | {objects.name: objects}
    # Sorted, for a shard that is pending lists its objects as the source does, and one that is frozen by their uids.
    digests = {shard: sources[name].label_digest(sorted(locators)) for shard, (name, locators) in members.items()}
    count = sum(len(locators) for _, locators in members.values())
    rules = _digest(_curation(config, objects))
    made = Plan(tuple(frozen), tuple(pending), digests, rules, tuple(objects.notes()), count)
    if len(sources) == 1:
        cache.keep(made)
    return made


def _members(config: Config, shard: str) -> tuple[str, list[str]]:
    """The source of a frozen shard's objects (they have one) and their locators. Reads two columns only."""
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(shard_path(config, shard), memory_map=True).read(["source", "locator"])
    return rows["source"][0].as_py(), rows["locator"].to_pylist()


class _PlanCache:
    """The last plan of an output, kept in the cache while shards, source and settings are what they were.

    Snakemake plans in every job. Only a source that can tell at a glance that it is unchanged is remembered.
    """

    def __init__(self, config: Config, objects: Source, frozen: list[str]) -> None:
        self.plan: Plan | None = None
        self._key: str | None = None
        if not isinstance(objects, Annotated):
            return
        shards = [(stat.st_size, stat.st_mtime_ns) for stat in (shard_path(config, shard).stat() for shard in frozen)]
        settings = [config.catalog.model_dump(mode="json"), config.seed]
        state = [_PLAN_VERSION, objects.state(), settings, frozen, shards]
        self._key = _digest(state)
        output = hashlib.sha256(str(config.output_path.absolute()).encode()).hexdigest()[:16]
        self._path = config.cache_path / "plans" / f"{output}.json"
        try:
            kept = json.loads(self._path.read_text())
            if kept["key"] == self._key:
                self.plan = Plan(
                    frozen=tuple(kept["frozen"]),
                    pending=tuple(kept["pending"]),
                    label_digests=kept["label_digests"],
                    curation_digest=kept["curation_digest"],
                    notes=tuple(kept["notes"]),
                    objects=kept["objects"],
                )
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or another version wrote it

    def keep(self, plan: Plan) -> None:
        if self._key is not None:
            with whole(self._path) as temporary:
                temporary.write_text(canonical_json({"key": self._key, **asdict(plan)}))


def write_shards(config: Config, shards: list[str]) -> None:
    """Writes the named pending shards: identifies their objects, finds doubles, gives each its split.

    Raises:
        ClipgsError: the source changed since the shards were planned.
    """
    objects = source(config)
    frozen = frozen_shards(config)
    rows = [row for shard in frozen for row in read_table(shard_path(config, shard))]
    pending = _pending(config, objects, frozen, {row["locator"] for row in rows if row["source"] == objects.name})
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
        position = unit_hash(group)
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


def curation_path(config: Config) -> Path:
    """Where the counts of refused objects lie."""
    return config.output_path / "catalog" / "curation.json"


def curation(config: Config) -> dict[str, Any]:
    """What the source has, and what `catalog.curation` left out: source, taken, refused (rule to count), rules.

    Of an annotated source also `lvis`: how many of the taken objects are LVIS shapes.
    """
    objects = source(config)
    return {**_curation(config, objects), "taken": len(objects.locators())}


def _curation(config: Config, objects: Source) -> dict[str, Any]:
    """What `curation` says, but for the number of a source without annotations: that changes with its shards."""
    if not isinstance(objects, Annotated):
        return {"source": objects.name, "refused": {}, "rules": {}}
    rules = {**config.catalog.curation.model_dump(mode="json"), "lvis": config.catalog.objaverse.lvis}
    taken = len(objects.locators())
    return {
        "source": objects.name,
        "taken": taken,
        "lvis": objects.lvis_objects(),
        "refused": objects.refusals(),
        "rules": rules,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
