"""A design is a caption and, built only when asked for, the pieces it describes; dice choose both."""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from clipgs.shapes.geometry import Mesh
from clipgs.shapes.paint import Paint

T = TypeVar("T")
Pieces = Iterable[tuple[Mesh, Paint]]


@dataclass(frozen=True)
class Design:
    caption: str
    pieces: Callable[[], Pieces]


class Dice:
    """Choices from a name, the same on every machine.

    Only `random()` of Python's generator is used: its documentation promises to keep that sequence.
    """

    def __init__(self, name: str) -> None:
        self._random = random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")).random

    def number(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both possible."""
        return low + int((high - low + 1) * self._random())

    def one(self, *options: T) -> T:
        return options[int(len(options) * self._random())]

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def two(self, *options: str) -> tuple[str, str]:
        """Two different options."""
        first = self.one(*options)
        return first, self.one(*(option for option in options if option != first))


NUMBERS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def an(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def words(*parts: str) -> str:
    """The parts that are not empty, a space between them."""
    return " ".join(part for part in parts if part)
