"""Curation: rules over annotations, and over a table of the user's, that choose objects."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipgs.catalog.records import LICENSES
from clipgs.config import WHERE_PATTERN, Catalog, Curation
from clipgs.core.errors import UsageError
from clipgs.core.lists import Names, alike, did_you_mean

_MB = 1_000_000
# Operators of `where` to functions of pyarrow.compute.
_FUNCTIONS = {"=": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}


def curate(
    objects: Any,  # pyarrow.Table: uid, sha256, file_identifier, license_name, faces, bytes, animations, textures, lvis
    catalog: Catalog,
) -> Any:
    """For each object the rule that leaves it out, else null: a string array as long as the table.

    The rules that the source has set in `refused` come first, then those of `catalog.curation` in the order of the
    configuration. Then one of several objects with the same bytes is kept, an LVIS object before others. `max_objects`
    comes last; it does not count LVIS test objects.

    Raises:
        UsageError: the table cannot be read, or a rule does not match its columns.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    refused = objects["refused"].combine_chunks()
    for rule, allowed in _rules(objects, catalog.curation):
        left_out = pc.and_(pc.is_null(refused), pc.invert(allowed))
        refused = pc.if_else(left_out, pa.scalar(rule), refused)
    refused = pc.if_else(_duplicates(objects, pc.is_null(refused)), pa.scalar("same bytes as another object"), refused)
    limit = catalog.curation.max_objects
    if limit is not None:
        counted = pc.is_null(refused)
        if catalog.objaverse.lvis == "test":
            counted = pc.and_(counted, pc.invert(objects["lvis"].combine_chunks()))
        refused = pc.if_else(_beyond(objects, counted, limit), pa.scalar("max_objects"), refused)
    return refused


def _rules(objects: Any, settings: Curation) -> Iterator[tuple[str, Any]]:
    """Each rule's name and, for every object, whether it passes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def column(name: str) -> Any:
        return objects[name].combine_chunks()

    def known(passes: Any) -> Any:
        return pc.fill_null(passes, True)  # an unknown value refuses nothing

    if settings.licenses:
        allowed = _licenses(settings.licenses, column("license_name").unique().drop_null().to_pylist())
        yield "licenses", pc.is_in(column("license_name"), value_set=pa.array(allowed, pa.string()))
    if settings.min_faces:
        yield "min_faces", known(pc.greater_equal(column("faces"), settings.min_faces))
    if settings.max_faces is not None:
        yield "max_faces", known(pc.less_equal(column("faces"), settings.max_faces))
    if settings.max_file_mb is not None:
        yield "max_file_mb", known(pc.less_equal(column("bytes"), int(settings.max_file_mb * _MB)))
    counts = (("animated", settings.animated, "animations"), ("textured", settings.textured, "textures"))
    for name, wanted, count in counts:
        if wanted != "any":
            has = pc.greater(column(count), 0)
            yield name, known(has if wanted == "only" else pc.invert(has))
    if settings.table is not None:
        yield from _table_rules(column(settings.key), settings)
    elif settings.where:
        raise UsageError("config: catalog.curation.where has rules, but catalog.curation.table names no table")


def _licenses(wanted: list[str], used: list[str]) -> list[str]:
    """The licences in use that the user names, by the source's names or SPDX's."""
    names = Names(map(str.lower, [*used, *LICENSES, *LICENSES.values()]))
    if unknown := names.unknown(wanted):
        raise UsageError(f"config: catalog.curation.licenses: no object has the licence {names.shown(unknown)}")
    keys = {alike(name) for name in wanted}
    keys |= {alike(name) for name, spdx in LICENSES.items() if alike(spdx) in keys}
    return [name for name in used if alike(name) in keys]


def _table_rules(names: Any, settings: Curation) -> Iterator[tuple[str, Any]]:
    import pyarrow.compute as pc

    table = _read_table(Path(str(settings.table)).expanduser(), settings.key)
    places = pc.index_in(names, value_set=table[settings.key].combine_chunks())
    yield "table", pc.is_valid(places)
    for rule in settings.where:
        match = re.match(WHERE_PATTERN, rule)
        assert match is not None  # the configuration is checked
        name, operator, value = match[1], match[2].strip(), match[3]
        column = Names(table.column_names).find(name)
        if column is None:
            near = did_you_mean(name, table.column_names)
            listed = f"(it has {', '.join(table.column_names)})"
            raise UsageError(f"config: catalog.curation.where: {settings.table} has no column {name}{near} {listed}")
        passes = _compare(rule, table[column].combine_chunks(), operator, value)
        yield rule, pc.fill_null(pc.take(passes, places), False)


def _read_table(path: Path, key: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    try:
        options = csv.ConvertOptions(column_types={key: pa.string()})
        table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"config: catalog.curation.table: {path}: {' '.join(str(error).split())}") from None
    if key not in table.column_names:
        listed = ", ".join(table.column_names)
        raise UsageError(f"config: catalog.curation.key = {key}: {path} has no such column (it has {listed})")
    if pc.count_distinct(table[key]).as_py() != len(table):
        counts = table.group_by(key).aggregate([([], "count_all")])
        twice = counts.filter(pc.greater(counts["count_all"], 1))[key][0]
        raise UsageError(f"config: catalog.curation.table: {path} lists {twice} more than once")
    return table


def _compare(rule: str, column: Any, operator: str, value: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    values = [part.strip() for part in value.split("|")] if operator == "in" else [value]
    parsed: list[float | bool | str | None]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        holds, parsed, column = "numbers", [_number(text) for text in values], column.cast(pa.float64())
    elif pa.types.is_boolean(kind):
        holds, parsed = "true or false", [{"true": True, "false": False}.get(text.lower()) for text in values]
    else:
        holds, parsed, column = "text", list(values), column.cast(pa.string())
    if None in parsed:
        raise UsageError(f"config: catalog.curation.where: {rule}: the column holds {holds}")
    if operator == "in":
        return pc.and_(pc.is_in(column, value_set=pa.array(parsed)), pc.is_valid(column))
    if operator not in ("=", "!=") and holds != "numbers":
        raise UsageError(f"config: catalog.curation.where: {rule}: the column holds {holds}: use =, != or in")
    return getattr(pc, _FUNCTIONS[operator])(column, parsed[0])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _duplicates(objects: Any, taken: Any) -> Any:
    """True for all but one of the taken objects with the same SHA-256."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    duplicate = np.zeros(len(objects), bool)
    hashes = objects["sha256"].combine_chunks()
    rows = np.flatnonzero(pc.and_(taken, pc.is_valid(hashes)).to_numpy(zero_copy_only=False))
    codes = hashes.take(rows).dictionary_encode().indices.to_numpy()
    in_category = pc.is_valid(objects["category"]).to_numpy()[rows]
    order = np.lexsort((rows, ~in_category, codes))
    same_as_before = codes[order][1:] == codes[order][:-1]
    duplicate[rows[order[1:][same_as_before]]] = True
    return pa.array(duplicate)


def _beyond(objects: Any, counted: Any, limit: int) -> Any:
    """True for the counted objects that are not among the `limit` with the lowest hash of their uid."""
    import numpy as np
    import pyarrow as pa

    beyond = np.zeros(len(objects), bool)
    rows = np.flatnonzero(counted.to_numpy(zero_copy_only=False))
    uids = objects["uid"].combine_chunks().take(rows).to_pylist()
    digests = b"".join(hashlib.sha256(uid.encode()).digest()[:8] for uid in uids)
    order = np.argsort(np.frombuffer(digests, ">u8"), kind="stable")
    beyond[rows[order[limit:]]] = True
    return pa.array(beyond)
