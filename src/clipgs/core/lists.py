"""Lists that users write by hand: files of lines, CSV files, and the names in them.

All are UTF-8, with or without a byte order mark. An error names the file, and the line where one is wrong.
"""

import csv
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

from clipgs.core.errors import UsageError

_SHOWN = 3  # names in a message
_MANY = 5_000  # names among which the nearest one is not looked for: it takes seconds


@contextmanager
def _opened(path: Path | str, key: str, newline: str | None = None) -> Iterator[TextIO]:
    try:
        with open(Path(path).expanduser(), encoding="utf-8-sig", newline=newline) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{key}: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{key}: {path}{_not_utf8(Path(path).expanduser())}; save it as UTF-8") from None


def _not_utf8(path: Path) -> str:
    """Where a file is no UTF-8: `, line 3, is not UTF-8`."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return " is UTF-16"
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number}, is not UTF-8"
    return " is not UTF-8"


def read_text(path: Path | str, key: str) -> str:
    """The text of a file; `key` names the setting in errors.

    Raises:
        UsageError: the file cannot be read, or is not UTF-8.
    """
    with _opened(path, key) as file:
        return file.read()


def read_lines(path: Path | str, key: str) -> list[tuple[int, str]]:
    """Number and text of each line, without empty lines and the spaces around a line. Raises as `read_text`."""
    lines = enumerate(read_text(path, key).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_rows(path: Path | str, key: str, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a CSV file, without empty rows; the number is that of the row's last line.

    Where the first row has no comma but semicolons or tabs, these separate the cells: spreadsheets write them so where
    the comma is the decimal mark.

    Raises:
        UsageError: as `read_text`, or the file is not CSV (`strict`: its quotes are wrong).
    """
    with _opened(path, key, newline="") as file:
        head: list[str] = []
        while not head or (head[-1] and not head[-1].strip()):
            head.append(file.readline())
        separator = next((one for one in ",;\t" if one in head[-1]), ",")
        reader = csv.reader(chain(head, file), strict=strict, delimiter=separator)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UsageError(f"{key}: {path}, line {reader.line_num}: {error}") from None


def alike(name: str) -> str:
    """The form in which names are compared: without case, with spaces, underscores and dashes alike."""
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


class Names:
    """A list of names, in which another spelling of a name is found too, if only one name could be meant."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(dict.fromkeys(names))
        self._exact = set(self._names)
        self._alike: dict[str, str | None] = {}
        for name in self._names:
            self._alike[alike(name)] = None if alike(name) in self._alike else name

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def find(self, name: str | None) -> str | None:
        """The name of the list that is meant; None if it is none of them."""
        if name is None or name in self._exact:
            return name
        return self._alike.get(alike(name))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those that are none of the list."""
        return [name for name in names if self.find(name) is None]

    def shown(self, unknown: Sequence[str]) -> str:
        """The first of them, with what may have been meant: `sofe (did you mean sofa?), couch and 3 more`."""
        if len(unknown) == 1:
            return unknown[0] + did_you_mean(unknown[0], self._names)
        near = (did_you_mean(name, self._names).removeprefix("; ") for name in unknown[:_SHOWN])
        first = [f"{name} ({hint})" if hint else name for name, hint in zip(unknown, near, strict=False)]
        return enumerated([*first, *unknown[_SHOWN:]])


def enumerated(names: Iterable[str]) -> str:
    """The first names: `sofa, couch, bed and 3 more`."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def counted(count: int, one: str, many: str = "") -> str:
    """`1 object`, `2 objects`; with `many` where an s at the end does not do: `1 file is`, `2 files are`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean X?` for the known name that is nearest; nothing if none is near."""
    of_key = {alike(one): one for one in known}
    wanted = [key for key in (alike(name),) if key in of_key] if len(of_key) > _MANY else of_key
    near = difflib.get_close_matches(alike(name), wanted, n=1, cutoff=cutoff)
    return f"; did you mean {of_key[near[0]]}?" if near else ""
