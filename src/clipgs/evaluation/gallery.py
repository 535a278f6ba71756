"""The gallery: the objects that are searched and queried, chosen before anything is measured.

Two evaluations are comparable only if the hashes of their galleries are equal. The hash covers each object's uid,
packed bytes, group, caption and category, and the seeded image that represents it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clipgs.config import Evaluation
from clipgs.core.errors import ClipgsError
from clipgs.core.seeds import json_digest, seed_of
from clipgs.triplets.captions import same_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Gallery:
    """Objects sorted by uid, and which captions describe which of them."""

    split: str
    per: str
    objects: tuple[Row, ...]  # uid, group, caption, category, view, sha256

    @property
    def uids(self) -> list[str]:
        return [row["uid"] for row in self.objects]

    @property
    def groups(self) -> list[str]:
        return [row["group"] for row in self.objects]

    @property
    def views(self) -> list[int]:
        """The seeded image that represents each object."""
        return [row["view"] for row in self.objects]

    @cached_property
    def of_caption(self) -> list[list[int]]:
        """[captions] the objects that each distinct caption describes, in the order of the objects."""
        found = defaultdict(list)
        for i, row in enumerate(self.objects):
            found[same_text(row["caption"])].append(i)
        return list(found.values())

    @property
    def captions(self) -> list[int]:
        """[captions] the first object of each distinct caption."""
        return [described[0] for described in self.of_caption]

    @cached_property
    def caption_of(self) -> list[int]:
        """[objects] the place of each object's caption among the distinct ones."""
        place = {i: caption for caption, described in enumerate(self.of_caption) for i in described}
        return [place[i] for i in range(len(self.objects))]

    @property
    def described(self) -> list[list[int]]:
        """[objects] all objects that an object's caption describes."""
        return [self.of_caption[caption] for caption in self.caption_of]

    def manifest(self) -> dict[str, Any]:
        """The contents of `gallery.json`."""
        content = {"split": self.split, "per": self.per, "objects": list(self.objects)}
        return {"sha256": json_digest(content), **content}

    def about(self) -> dict[str, Any]:
        """A short description, which every table measured on it contains."""
        return {
            "sha256": self.manifest()["sha256"],
            "split": self.split,
            "per": self.per,
            "objects": len(self.objects),
            "groups": len(set(self.groups)),
            "captions": len(self.captions),
        }


def seeded_view(settings: Evaluation, uid: str, views: int) -> int:
    """The number of the image that represents an object."""
    return seed_of(settings.seed, "evaluation view", uid) % views


def gallery(rows: Sequence[Row], settings: Evaluation, views: int) -> Gallery:
    """The objects of the split, sorted by uid; one of each group (the smallest uid) if `settings.per` is group.

    Args:
        rows: of the triplets' index.
        views: images per object.

    Raises:
        ClipgsError: there are fewer than two objects.
    """
    chosen: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["uid"]):
        if settings.split in ("all", row["split"]):
            chosen.setdefault(row["group"] if settings.per == "group" else row["uid"], row)
    if len(chosen) < 2:
        raise ClipgsError(
            f"the split {settings.split} has {len(chosen)} objects, and retrieval needs 2: add objects, raise "
            "catalog.test_fraction before they are frozen, or set evaluation.split: all"
        )
    keys = ("uid", "group", "caption", "category", "sha256")
    objects = tuple(
        {**{key: row[key] for key in keys}, "view": seeded_view(settings, row["uid"], views)} for row in chosen.values()
    )
    return Gallery(settings.split, settings.per, objects)
