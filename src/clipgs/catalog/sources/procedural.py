"""The built-in source: any number of parametric objects as GLB files, each with a caption that describes it.

An object is a function of its category, its number and a seed, so nothing is downloaded.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from clipgs.catalog.records import UpAxis
from clipgs.config import Config
from clipgs.core.files import whole
from clipgs.shapes import furniture, outdoors, things, vehicles
from clipgs.shapes.design import Design, Dice
from clipgs.shapes.glb import write_glb
from clipgs.stages import STAGES

# The categories in the order of the sequence, each with the name of its function.
_FUNCTIONS: list[Callable[[Dice], Design]]
_FUNCTIONS = [furniture.chair, furniture.lamp, furniture.table, furniture.bookshelf, furniture.sofa, furniture.bed]
_FUNCTIONS += [things.mug, things.bottle, things.teapot, things.umbrella, things.guitar, things.cake, things.robot]
_FUNCTIONS += [
    outdoors.house,
    outdoors.windmill,
    outdoors.lighthouse,
    outdoors.tree,
    outdoors.cactus,
    outdoors.mushroom,
]
_FUNCTIONS += [vehicles.car, vehicles.bus, vehicles.airplane, vehicles.boat, vehicles.rocket]
DESIGNS = {function.__name__: function for function in _FUNCTIONS}
CATEGORIES = tuple(DESIGNS)


class Description(NamedTuple):
    """An object's uid (which is also its group, since no two objects have the same shape), category and caption."""

    uid: str
    category: str
    text: str


def locator(index: int, seed: int) -> str:
    """The locator category/number/seed, such as "chair/17/0", of an object in the endless sequence of a seed.

    The categories alternate, so in any run of objects their counts differ by one at most.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are 0 or more, not {index} and {seed}")
    return f"{CATEGORIES[index % len(CATEGORIES)]}/{index // len(CATEGORIES)}/{seed}"


def describe(locator: str) -> Description:
    """The description of an object, without building it.

    Raises:
        ValueError: `locator` is not one of the function `locator`.
    """
    category, number, seed = parse(locator)
    return Description(f"{category}-{seed}-{number:05d}", category, design(locator).caption)


def build(locator: str) -> bytes:
    """The object's GLB: Y up, front toward +Z, metres; the same bytes in any process. Raises as `describe`."""
    return write_glb(describe(locator).uid, design(locator).pieces())


def design(locator: str) -> Design:
    return DESIGNS[parse(locator)[0]](Dice(locator))


def parse(locator: str) -> tuple[str, int, int]:
    """Category, number and seed."""
    match = re.fullmatch(r"([a-z]+)/(0|[1-9]\d{0,17})/(0|[1-9]\d{0,19})", locator)
    if match is None or match[1] not in DESIGNS:
        raise ValueError(f"{locator!r} is not category/number/seed with a category of {', '.join(CATEGORIES)}")
    return match[1], int(match[2]), int(match[3])


class ProceduralSource:
    """See `Source`. `fetch` builds an object's file in the cache."""

    name = "procedural"
    remote = False
    root = None

    def __init__(self, config: Config) -> None:
        self._count, self._seed = config.catalog.procedural.objects, config.seed
        # The cache is shared with other versions of the designs.
        self._folder = config.cache_path / self.name / f"version-{STAGES['fetch'].version}"

    def locators(self) -> list[str]:
        return [locator(index, self._seed) for index in range(self._count)]

    def gone(self, known: list[str]) -> list[str]:
        return []

    def digests(self, locators: list[str]) -> dict[str, str]:
        return {}

    def identify(self, locator: str) -> dict[str, Any]:
        uid = describe(locator).uid
        return {"uid": uid, "sha256": None, "group": uid, "split": None, "note": None}

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        terms = {"license": "CC0-1.0", "credit": "clipgs procedural", "page": None}
        return [{"category": about.category, "text": about.text, **terms} for about in map(describe, locators)]

    def label_digest(self, locators: list[str]) -> str:
        return ""

    def fetch(self, row: dict[str, Any]) -> Path:
        path = self.path(row)
        with whole(path) as temporary:
            temporary.write_bytes(build(row["locator"]))
        return path

    def path(self, row: dict[str, Any]) -> Path:
        return self._folder / f"{row['uid']}.glb"

    def all_files(self, row: dict[str, Any]) -> list[Path]:
        return [self.path(row)]

    def elsewhere(self, row: dict[str, Any]) -> list[Path]:
        return []

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y"

    def notes(self, known: Collection[str] = ()) -> list[str]:
        return []
