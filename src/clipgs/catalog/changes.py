"""What became of frozen objects in their source: replaced, gone, or as they were."""

from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple

from clipgs.catalog.sources import Source
from clipgs.core.errors import SourceMissing

Row = dict[str, Any]


class Changes(NamedTuple):
    """The frozen rows whose objects the source does not have any more, and what it has instead."""

    replaced: list[Row]  # whose file has other bytes now
    gone: list[Row]  # whose file is not there, nor another with the same bytes
    new: set[str]  # frozen locators whose file is none of the frozen objects
    known: int  # rows that could be replaced or gone


def changes(
    objects: Source,
    rows: list[Row],  # frozen, of this source; several may have one locator, since a file may be replaced
    excluded: Collection[str],  # uids
) -> Changes:
    """Compares frozen rows with their source as it is now.

    Excluded objects, and those that could never be used (`note`), are neither replaced nor gone.
    """
    locators = sorted({row["locator"] for row in rows})
    try:
        missing = set(objects.gone(locators))
    except SourceMissing:
        missing = set(locators)
    now = objects.digests([locator for locator in locators if locator not in missing])
    frozen = {(row["locator"], row["sha256"]) for row in rows}
    new = {locator for locator, digest in now.items() if (locator, digest) not in frozen}
    known = [row for row in rows if row["note"] is None and row["uid"] not in excluded]
    replaced = [row for row in known if now.get(row["locator"], row["sha256"]) != row["sha256"]]
    gone = [row for row in known if row["locator"] in missing]
    if gone:  # some may only have another name now
        held = set(now.values())
        with suppress(SourceMissing):
            held |= set(objects.digests(objects.locators()).values())
        gone = [row for row in gone if row["sha256"] not in held]
    return Changes(replaced, gone, new, len(known))
