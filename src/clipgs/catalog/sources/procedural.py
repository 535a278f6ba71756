"""The built-in source: any number of parametric objects as GLB files, each with a caption that is true of it.

An object is a function of its category, its number and a seed: nothing is downloaded or kept.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgs.catalog.records import UpAxis
from clipgs.config import Config
from clipgs.core.files import whole
from clipgs.shapes import furniture, outdoors, things, vehicles
from clipgs.shapes.design import Design, Dice
from clipgs.shapes.glb import write_glb
from clipgs.stages import STAGES

DESIGNS: dict[str, Callable[[Dice], Design]] = {
    "chair": furniture.chair,
    "lamp": furniture.lamp,
    "table": furniture.table,
    "bookshelf": furniture.bookshelf,
    "sofa": furniture.sofa,
    "bed": furniture.bed,
    "mug": things.mug,
    "bottle": things.bottle,
    "teapot": things.teapot,
    "umbrella": things.umbrella,
    "guitar": things.guitar,
    "cake": things.cake,
    "robot": things.robot,
    "house": outdoors.house,
    "windmill": outdoors.windmill,
    "lighthouse": outdoors.lighthouse,
    "tree": outdoors.tree,
    "cactus": outdoors.cactus,
    "mushroom": outdoors.mushroom,
    "car": vehicles.car,
    "bus": vehicles.bus,
    "airplane": vehicles.airplane,
    "boat": vehicles.boat,
    "rocket": vehicles.rocket,
}
CATEGORIES: tuple[str, ...] = tuple(DESIGNS)


@dataclass(frozen=True)
class Description:
    """What the catalog keeps of an object; `group` is the uid, since no two objects are one shape."""

    uid: str
    category: str
    text: str
    group: str
    license: str = "CC0-1.0"
    credit: str = "clipgs procedural"


def locator(index: int, seed: int) -> str:
    """Names the object at a place of the endless sequence of a seed: "chair/17/0" is category/number/seed.

    The categories take turns, so that any n objects in a row hold each as often as another, to one.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are 0 or more, not {index} and {seed}")
    return f"{CATEGORIES[index % len(CATEGORIES)]}/{index // len(CATEGORIES)}/{seed}"


def describe(locator: str) -> Description:
    """The object's row, without building it. Raises ValueError for what `locator` does not give."""
    category, number, seed = parse(locator)
    uid = f"{category}-{seed}-{number:05d}"
    return Description(uid=uid, category=category, text=design(locator).caption, group=uid)


def build(locator: str) -> bytes:
    """The object's GLB: Y up, front toward +Z, metres; the same bytes in any process. Raises as `describe`."""
    return write_glb(describe(locator).uid, design(locator).pieces())


def design(locator: str) -> Design:
    category, _, _ = parse(locator)
    return DESIGNS[category](Dice(locator))


def parse(locator: str) -> tuple[str, int, int]:
    """Category, number and seed."""
    match = re.fullmatch(r"([a-z]+)/(0|[1-9]\d{0,17})/(0|[1-9]\d{0,19})", locator)
    if match is None or match[1] not in DESIGNS:
        raise ValueError(f"{locator!r} is not category/number/seed with a category of {', '.join(CATEGORIES)}")
    return match[1], int(match[2]), int(match[3])


class ProceduralSource:
    """See `Source`. Objects are made when they are fetched, into the cache."""

    name = "procedural"
    remote = False

    def __init__(self, config: Config) -> None:
        self._count, self._seed = config.catalog.procedural.objects, config.seed
        # The cache is shared: what another version of the designs made has another place.
        self._folder = config.cache_path / self.name / f"version-{STAGES['fetch'].version}"

    def locators(self) -> list[str]:
        return [locator(index, self._seed) for index in range(self._count)]

    def gone(self, known: list[str]) -> list[str]:
        return []  # what can be made is always there

    def identify(self, locator: str) -> dict[str, Any]:
        about = describe(locator)
        return {"uid": about.uid, "sha256": None, "group": about.group, "split": None, "note": None}

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "category": about.category,
                "text": about.text,
                "license": about.license,
                "credit": about.credit,
                "page": None,
            }
            for about in map(describe, locators)
        ]

    def label_digest(self, locators: list[str]) -> str:
        return ""

    def fetch(self, row: dict[str, Any]) -> Path:
        path = self.path(row)
        with whole(path) as temporary:
            temporary.write_bytes(build(row["locator"]))
        return path

    def path(self, row: dict[str, Any]) -> Path:
        return self._folder / f"{row['uid']}.glb"

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y"

    def notes(self) -> list[str]:
        return []
