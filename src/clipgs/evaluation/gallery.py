"""The gallery: which objects are searched and asked about, written down with a hash before anything is measured.

Two evaluations compare only where their galleries' hashes are equal: it covers every object's uid, its packed bytes,
its group, caption and category, and the seeded picture that stands for it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clipgs.config import Evaluation
from clipgs.core.errors import ClipgsError
from clipgs.core.seeds import canonical_json, seed_of

Row = dict[str, Any]


def same_text(caption: str) -> str:
    """What makes two captions one: case, white space and a full stop at the end do not tell objects apart."""
    return " ".join(caption.casefold().split()).rstrip(".")


@dataclass(frozen=True)
class Gallery:
    """Objects by uid, and what is relevant to what."""

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
        """The seeded picture that stands for each object."""
        return [row["view"] for row in self.objects]

    @cached_property
    def captions(self) -> list[int]:
        """[captions] the first object of each distinct caption, in the order of the objects."""
        first: dict[str, int] = {}
        for i, row in enumerate(self.objects):
            first.setdefault(same_text(row["caption"]), i)
        return list(first.values())

    @cached_property
    def caption_of(self) -> list[int]:
        """[objects] place of each object's caption among the distinct ones."""
        place = {same_text(self.objects[i]["caption"]): j for j, i in enumerate(self.captions)}
        return [place[same_text(row["caption"])] for row in self.objects]

    @cached_property
    def of_caption(self) -> list[list[int]]:
        """[captions] the objects that each distinct caption describes."""
        found: list[list[int]] = [[] for _ in self.captions]
        for i, caption in enumerate(self.caption_of):
            found[caption].append(i)
        return found

    def manifest(self) -> dict[str, Any]:
        """What `gallery.json` holds."""
        content = {"split": self.split, "per": self.per, "objects": list(self.objects)}
        return {"sha256": hashlib.sha256(canonical_json(content).encode()).hexdigest(), **content}

    def about(self) -> dict[str, Any]:
        """What stands beside every number that was measured on it."""
        return {
            "sha256": self.manifest()["sha256"],
            "split": self.split,
            "per": self.per,
            "objects": len(self.objects),
            "groups": len(set(self.groups)),
            "captions": len(self.captions),
        }


def seeded_view(settings: Evaluation, uid: str, views: int) -> int:
    """Which of an object's pictures stands for it."""
    return seed_of(settings.seed, "evaluation view", uid) % views


def gallery(rows: Sequence[Row], settings: Evaluation, views: int) -> Gallery:
    """The objects of the split, or one of each group (that of the smallest uid), by uid.

    Args:
        rows: of the triplets' index.
        views: pictures an object.

    Raises:
        ClipgsError: fewer than two objects are left.
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
    objects = [
        {
            **{key: row[key] for key in ("uid", "group", "caption", "category", "sha256")},
            "view": seeded_view(settings, row["uid"], views),
        }
        for row in sorted(chosen.values(), key=lambda row: row["uid"])
    ]
    return Gallery(settings.split, settings.per, tuple(objects))
