"""Shards: frozen lists of objects. New objects go to new shards.

Snakemake calls `plan` when it parses: it reads the frozen shards and the source, and writes nothing into the output.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from clipgs.catalog.sources import Source, source
from clipgs.catalog.sources.annotations import AnnotatedSource
from clipgs.config import Config
from clipgs.core.errors import ClipgsError
from clipgs.core.files import whole
from clipgs.core.seeds import canonical_json, json_digest

MAX_GONE_FRACTION = 0.05  # if more of the known objects are missing, the folder is probably not mounted
_PLAN_VERSION = 2  # raised when the same shards and source give another plan


@dataclass(frozen=True)
class Plan:
    """The frozen and pending shards, a digest of each shard's labels, and one of the rules of curation."""

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
    """The table of a shard's frozen rows."""
    return config.output_path / "catalog" / "shards" / f"{shard}.parquet"


def labels_path(config: Config, shard: str) -> Path:
    """The table of a shard's labels."""
    return config.output_path / "catalog" / "labels" / f"{shard}.parquet"


def curation_path(config: Config) -> Path:
    """The JSON file of what `curation` returns."""
    return config.output_path / "catalog" / "curation.json"


def frozen_shards(config: Config) -> list[str]:
    """Names of the shards on disk, in order."""
    return sorted(path.stem for path in (config.output_path / "catalog" / "shards").glob("[0-9]*.parquet"))


def pending_shards(config: Config, objects: Source, frozen: list[str], known: set[str]) -> dict[str, list[str]]:
    """Shard name to locators, of the objects that are in no frozen shard."""
    new = [locator for locator in objects.locators() if locator not in known]
    size = config.catalog.shard_objects
    first = int(frozen[-1]) + 1 if frozen else 0
    return {f"{first + i // size:05d}": new[i : i + size] for i in range(0, len(new), size)}


def plan(config: Config) -> Plan:
    """The frozen and the pending shards. An unchanged plan of an annotated source is read from the cache.

    Raises:
        UsageError: the source is empty or its settings are wrong.
        ClipgsError: more than 5 % of the known objects are missing from the source.
    """
    objects = source(config)
    frozen = frozen_shards(config)
    if not isinstance(objects, AnnotatedSource):
        return _plan(config, objects, frozen)[0]
    # Snakemake plans in every job, and reading all annotations takes long.
    files = [(stat.st_size, stat.st_mtime_ns) for stat in (shard_path(config, shard).stat() for shard in frozen)]
    settings = [config.catalog.model_dump(mode="json"), config.seed]
    key = json_digest([_PLAN_VERSION, objects.state, settings, frozen, files])
    output = hashlib.sha256(str(config.output_path.absolute()).encode()).hexdigest()[:16]
    cached = config.cache_path / "plans" / f"{output}.json"
    try:
        kept = json.loads(cached.read_text())
        if kept.pop("key") == key:
            return TypeAdapter(Plan).validate_python(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # there is none, or another version wrote it
    made, sources = _plan(config, objects, frozen)
    if sources == {objects.name}:
        with whole(cached) as temporary:
            temporary.write_text(canonical_json({"key": key, **asdict(made)}))
    return made


def _plan(config: Config, objects: Source, frozen: list[str]) -> tuple[Plan, set[str]]:
    """The plan, and the names of the sources of all shards: an output may hold shards of several."""
    members = {shard: _members(config, shard) for shard in frozen}
    known = [locator for name, locators in members.values() if name == objects.name for locator in locators]
    gone = objects.gone(known)
    if len(gone) > MAX_GONE_FRACTION * len(known):
        raise ClipgsError(
            f"{len(gone)} of {len(known)} known objects are missing from the source (the first: {gone[0]}); "
            "is it mounted? To continue without them, use another `output`"
        )
    pending = pending_shards(config, objects, frozen, set(known))
    members |= {shard: (objects.name, locators) for shard, locators in pending.items()}
    names = {name for name, _ in members.values()}
    sources = {name: source(config, name) for name in names - {objects.name}} | {objects.name: objects}
    # Sorted, because a pending shard has the order of the source, and a frozen one the order of the uids.
    digests = {shard: sources[name].label_digest(sorted(locators)) for shard, (name, locators) in members.items()}
    count = sum(len(locators) for _, locators in members.values())
    rules = json_digest(_curation(config, objects))
    return Plan(tuple(frozen), tuple(pending), digests, rules, tuple(objects.notes()), count), set(sources)


def _members(config: Config, shard: str) -> tuple[str, list[str]]:
    """The source of a frozen shard's objects (they have one) and their locators. Reads two columns only."""
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(shard_path(config, shard), memory_map=True).read(["source", "locator"])
    return rows["source"][0].as_py(), rows["locator"].to_pylist()


def curation(config: Config) -> dict[str, Any]:
    """The effect of `catalog.curation`: source, taken, refused (rule to count) and rules.

    For an annotated source also `lvis`: how many of the taken objects are LVIS shapes.
    """
    objects = source(config)
    return {**_curation(config, objects), "taken": len(objects.locators())}


def _curation(config: Config, objects: Source) -> dict[str, Any]:
    """As `curation`, but without `taken` for other sources, because the number changes with their shards."""
    if not isinstance(objects, AnnotatedSource):
        return {"source": objects.name, "refused": {}, "rules": {}}
    return {
        "source": objects.name,
        "taken": len(objects.locators()),
        "lvis": objects.lvis_objects(),
        "refused": objects.refusals(),
        "rules": {**config.catalog.curation.model_dump(mode="json"), "lvis": config.catalog.objaverse.lvis},
    }
