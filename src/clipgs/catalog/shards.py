"""Shards: frozen lists of objects. New objects go to new shards.

Snakemake calls `plan` when it parses: it reads the frozen shards and the source, and writes nothing into the output.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from clipgs.catalog.changes import Changes, changes
from clipgs.catalog.excluded import WHY_LOST, excluded
from clipgs.catalog.records import LABEL_COLUMNS, frozen_shards, shard_path
from clipgs.catalog.sources import Source, source
from clipgs.catalog.sources.annotations import AnnotatedSource
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError, SourceMissing
from clipgs.core.files import whole
from clipgs.core.lists import counted
from clipgs.core.seeds import canonical_json, json_digest

LARGE_CATALOG = 20  # objects: if more than half of so many are missing, the source is probably not mounted
GO_ON = "to go on with what was made, give Snakemake --config catalog='{allow_missing: true}'"
_PLAN_VERSION = 4  # raised when the same shards and source give another plan


@dataclass(frozen=True)
class Plan:
    """The frozen and pending shards, a digest of each shard's labels, and one of the rules of curation."""

    frozen: tuple[str, ...]
    pending: tuple[str, ...]
    label_digests: dict[str, str]
    curation_digest: str
    notes: tuple[str, ...]
    objects: int
    replaced: tuple[tuple[str, str], ...] = ()  # uid and locator of frozen objects whose file has other bytes now
    gone: tuple[tuple[str, str], ...] = ()  # of those whose file is not there

    @property
    def shards(self) -> tuple[str, ...]:
        return self.frozen + self.pending


def shard_sizes(config: Config, made: Plan) -> dict[str, int]:
    """Shard to its number of objects, of the frozen and the pending ones."""
    import pyarrow.parquet as pq

    sizes = {shard: pq.read_metadata(shard_path(config, shard)).num_rows for shard in made.frozen}
    to_come = made.objects - sum(sizes.values())
    for shard in made.pending:
        sizes[shard] = min(config.catalog.shard_objects, to_come)
        to_come -= sizes[shard]
    return sizes


def labels_path(config: Config, shard: str) -> Path:
    """The table of a shard's labels."""
    return config.output_path / "catalog" / "labels" / f"{shard}.parquet"


def curation_path(config: Config) -> Path:
    """The JSON file of what `curation` returns."""
    return config.output_path / "catalog" / "curation.json"


def pending_shards(
    config: Config, objects: Source, frozen: list[str], rows: list[dict[str, Any]]
) -> dict[str, list[str]]:
    """Shard name to locators, of the objects that are in no frozen shard.

    Args:
        rows: frozen ones of this source. Where the file of one was replaced, it is a new object.
    """
    return _pending(config, _locators(config, objects, frozen), frozen, rows, changes(objects, rows, ()).new)


def _pending(
    config: Config, locators: list[str], frozen: list[str], rows: list[dict[str, Any]], new: set[str]
) -> dict[str, list[str]]:
    known = {row["locator"] for row in rows} - new
    found = [locator for locator in locators if locator not in known]
    size = config.catalog.shard_objects
    first = int(frozen[-1]) + 1 if frozen else 0
    return {f"{first + i // size:05d}": found[i : i + size] for i in range(0, len(found), size)}


def _locators(config: Config, objects: Source, frozen: list[str]) -> list[str]:
    """The objects that the source has now; none if it is missing and the run may go on without it."""
    try:
        return objects.locators()
    except SourceMissing as error:
        if not frozen:
            raise
        if config.catalog.allow_missing:
            return []
        raise SourceMissing(f"{error}; {GO_ON}") from None


def plan(config: Config) -> Plan:
    """The frozen and the pending shards. An unchanged plan of an annotated source is read from the cache.

    Raises:
        UsageError: the source is empty or its settings are wrong.
        ClipgsError: the known objects have gone from the source, all or more than half of a large catalog.
    """
    objects = source(config)
    frozen = frozen_shards(config)
    if not isinstance(objects, AnnotatedSource):
        return _plan(config, objects, frozen)[0]
    # Snakemake plans in every job, and reading all annotations takes long.
    files = [(stat.st_size, stat.st_mtime_ns) for stat in (shard_path(config, shard).stat() for shard in frozen)]
    settings = [config.catalog.model_dump(mode="json"), config.seed, sorted(_excluded(config).items())]
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
    rows = {shard: _rows(config, shard) for shard in frozen}
    of_source = [row for shard in frozen for row in rows[shard] if row["source"] == objects.name]
    reasons = _excluded(config)
    found = changes(objects, of_source, reasons)
    if not config.catalog.allow_missing:
        _refuse_a_missing_source(found)
    locators = _locators(config, objects, frozen)
    pending = _pending(config, locators, frozen, of_source, found.new)
    members = {shard: (rows[shard][0]["source"], [row["locator"] for row in rows[shard]]) for shard in frozen}
    members |= {shard: (objects.name, locators) for shard, locators in pending.items()}
    names = {name for name, _ in members.values()}
    sources = {name: source(config, name) for name in names - {objects.name}} | {objects.name: objects}
    # Sorted, because a pending shard has the order of the source, and a frozen one the order of the uids.
    digests = {
        shard: _label_digest(config, sources[name], shard, sorted(its)) for shard, (name, its) in members.items()
    }
    for shard in frozen:
        if moved := [(row["uid"], found.moved[row["uid"]]) for row in rows[shard] if row["uid"] in found.moved]:
            digests[shard] = json_digest([digests[shard], moved])[:16]
    count = sum(len(locators) for _, locators in members.values())
    rules = json_digest(_curation(config, objects, locators))
    lost = [tuple((row["uid"], row["locator"]) for row in changed) for changed in (found.replaced, found.gone)]
    made = Plan(tuple(frozen), tuple(pending), digests, rules, (), count, *lost)
    notes = (
        *_notes(objects, of_source),
        *_lost_notes(made, found.known),
        *_back_notes(_back(found, reasons, locators)),
    )
    return replace(made, notes=notes), set(sources)


def _rows(config: Config, shard: str) -> list[dict[str, Any]]:
    """A frozen shard's rows, which have one source; only the columns that a plan needs."""
    import pyarrow.parquet as pq

    columns = ["uid", "source", "locator", "sha256", "note"]
    return pq.ParquetFile(shard_path(config, shard), memory_map=True).read(columns).to_pylist()


def _excluded(config: Config) -> dict[str, str]:
    """Uid to the reason, of all excluded objects."""
    return {uid: reason for uids in excluded(config).values() for uid, reason in uids.items()}


def _refuse_a_missing_source(found: Changes) -> None:
    gone, known = len(found.gone), found.known
    if gone and (gone == known or (known >= LARGE_CATALOG and 2 * gone > known)):
        raise ClipgsError(
            f"{gone} of {known} known objects are missing from the source (the first: {found.gone[0]['locator']}); "
            f"mount it again or, {GO_ON}"
        )


def _label_digest(config: Config, objects: Source, shard: str, locators: list[str]) -> str:
    """The digest of a shard's labels; that of the written ones if the source is missing and need not be there."""
    try:
        return objects.label_digest(locators)
    except SourceMissing:
        if not config.catalog.allow_missing or not labels_path(config, shard).exists():
            raise
    rows = _rows(config, shard)
    locator_of = dict(zip([row["uid"] for row in rows], label_locators(config, objects, rows), strict=True))
    written = sorted(read_table(labels_path(config, shard)), key=lambda row: locator_of[row["uid"]])
    return json_digest([{name: row[name] for name in LABEL_COLUMNS[1:]} for row in written])[:16]


def label_locators(config: Config, objects: Source, rows: list[dict[str, Any]]) -> list[str]:
    """Where the source has the labels of a shard's frozen rows: under the name that each file has now."""
    moved = changes(objects, rows, ()).moved if objects.name == config.catalog.source else {}
    return [moved.get(row["uid"], row["locator"]) for row in rows]


def _notes(objects: Source, rows: list[dict[str, Any]]) -> list[str]:
    try:
        return objects.notes({row["locator"] for row in rows if row["note"] is None})
    except SourceMissing as error:
        return [f"{error}: the run goes on with what was made"]


def _lost_notes(made: Plan, known: int) -> list[str]:
    found = []
    if made.replaced:
        first = (
            f"{len(made.replaced)} of {known} objects were replaced in the source (the first: {made.replaced[0][1]})"
        )
        found.append(f"{first}; the new files are new objects; the old ones leave with: clipgs exclude --replaced")
    if made.gone:
        first = f"{len(made.gone)} of {known} objects have gone from the source (the first: {made.gone[0][1]})"
        found.append(f"{first}; what was made of them stays; they leave with: clipgs exclude --gone")
    return found


def _back(found: Changes, reasons: dict[str, str], locators: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Of the objects that are excluded for a kind of loss, those that the source has again: kind to uid and locator."""
    listed, kinds = set(locators), {reason: kind for kind, reason in WHY_LOST.items()}
    back: dict[str, list[tuple[str, str]]] = {kind: [] for kind in WHY_LOST}
    for row in found.back:
        kind, place = kinds.get(reasons[row["uid"]]), found.moved.get(row["uid"], row["locator"])
        if kind is not None and place in listed:
            back[kind].append((row["uid"], place))
    return back


def _back_notes(back: dict[str, list[tuple[str, str]]]) -> list[str]:
    places = [place for objects in back.values() for _, place in objects]
    if not places:
        return []
    first = f"{counted(len(places), 'excluded object is', 'excluded objects are')} in the source again"
    flags = " ".join(f"--{kind}" for kind, objects in back.items() if objects)
    return [f"{first} (the first: {places[0]}); to take them in again: clipgs exclude --undo {flags}"]


def lost(config: Config) -> dict[str, list[tuple[str, str]]]:
    """`replaced`, `gone` and `unlisted` (left out by the manifest or the selection): uid and locator of each object.

    Unlike `plan`, it refuses no missing source.
    """
    return _lost_and_back(config)[0]


def back(config: Config) -> dict[str, list[tuple[str, str]]]:
    """As `lost`, of the objects that were excluded for these reasons and that the source has again."""
    return _lost_and_back(config)[1]


def _lost_and_back(config: Config) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[tuple[str, str]]]]:
    objects = source(config)
    rows = [row for shard in frozen_shards(config) for row in _rows(config, shard) if row["source"] == objects.name]
    reasons = _excluded(config)
    found = changes(objects, rows, reasons)
    try:
        listed = set(objects.locators())
    except SourceMissing:
        listed = {row["locator"] for row in rows}
    known = reasons.keys() | found.moved.keys() | {row["uid"] for row in (*found.replaced, *found.gone)}
    usable = (row for row in rows if row["note"] is None and row["uid"] not in known)
    unlisted = [row for row in usable if row["locator"] not in listed]
    kinds = {"replaced": found.replaced, "gone": found.gone, "unlisted": unlisted}
    away = {name: [(row["uid"], row["locator"]) for row in rows] for name, rows in kinds.items()}
    return away, _back(found, reasons, sorted(listed))


def curation(config: Config) -> dict[str, Any]:
    """The effect of `catalog.curation`: source, taken, refused (rule to count) and rules.

    For an annotated source also `lvis`: how many of the taken objects are LVIS shapes.
    """
    objects = source(config)
    locators = _locators(config, objects, frozen_shards(config))
    return {**_curation(config, objects, locators), "taken": len(locators)}


def _curation(config: Config, objects: Source, locators: list[str]) -> dict[str, Any]:
    """As `curation`, but without `taken` for other sources, because the number changes with their shards."""
    if not isinstance(objects, AnnotatedSource):
        return {"source": objects.name, "refused": {}, "rules": {}}
    return {
        "source": objects.name,
        "taken": len(locators),
        "lvis": objects.lvis_objects(),
        "refused": objects.refusals(),
        "rules": {**config.catalog.curation.model_dump(mode="json"), "lvis": config.catalog.objaverse.lvis},
    }
