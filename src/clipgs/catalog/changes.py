"""What became of frozen objects in their source: replaced, gone, or as they were."""

from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple

from clipgs.catalog.sources import Source
from clipgs.core.errors import SourceMissing

Row = dict[str, Any]


class Changes(NamedTuple):
    """The frozen rows whose objects are not where they were, and what the source has there instead."""

    replaced: list[Row]  # whose file has other bytes now
    gone: list[Row]  # whose file is not there
    moved: dict[str, str]  # uid to the locator of another file with the object's bytes; it is neither of the two
    new: set[str]  # frozen locators whose file is none of the frozen objects
    back: list[Row]  # of excluded objects, those that the source has, where they were or under another name
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
    usable = [row for row in rows if row["note"] is None]
    replaced = [row for row in usable if now.get(row["locator"], row["sha256"]) != row["sha256"]]
    gone = [row for row in usable if row["locator"] in missing]
    moved: dict[str, str] = {}
    if replaced or gone:
        with suppress(SourceMissing):
            now |= objects.digests(objects.locators())
        place = {digest: locator for locator, digest in sorted(now.items(), reverse=True)}
        away = ((row["uid"], place.get(row["sha256"])) for row in (*replaced, *gone))
        moved = {uid: locator for uid, locator in away if locator is not None}

    def left(lost: list[Row]) -> list[Row]:
        return [row for row in lost if row["uid"] not in moved and row["uid"] not in excluded]

    known = sum(row["uid"] not in excluded for row in usable)
    lost = {row["uid"] for row in (*replaced, *gone)} - moved.keys()
    back = [row for row in usable if row["uid"] in excluded and row["uid"] not in lost]
    return Changes(left(replaced), left(gone), moved, new, back, known)
