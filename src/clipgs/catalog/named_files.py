"""The files that a mesh names: how statements spell their names, and where they are."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from clipgs.core.errors import ObjectError

# Where pictures lie beside an object, in ShapeNetCore.v2, Google Scanned Objects and others.
_NEAR = (
    *("textures", "texture", "images", "materials", "maps", "materials/textures"),
    *("..", "../textures", "../texture", "../images", "../materials", "../maps", "../materials/textures"),
)
# Of bytes that are no UTF-8, the likeliest first.
_ENCODINGS = ("cp1252", "cp1250", "cp1251", "gbk", "shift_jis", "euc_kr", "big5")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_OPTION = re.compile(
    r"-(?:(?P<words>type|imfchan|colorspace|texres|clamp|cc|blendu|blendv)\s+(?P<word>\S+)"
    rf"|(?P<numbers>[a-z]+)(?P<values>(?:\s+{NUMBER}(?!\S))*)(?:\s+(?:on|off)(?!\S))?)(?:\s+|$)",
    re.IGNORECASE,
)

META = "meta.json"  # of a splat whose numbers are pictures in its folder
# The files that gsplat writes beside a meta.json which does not name them, and the mask that uCO3D adds.
_OF_GSPLAT = ("means_l.png", "means_u.png", "scales.png", "quats.png", "opacities.png", "sh0.png")
_MASK = "fg_mask.npz"

Layout = tuple[float, float, float, float]  # scale and offset of u and v, v upwards
PLAIN: Layout = (1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class PictureStatement:
    """The picture that a statement of an MTL names, with its options."""

    name: str
    layout: Layout = PLAIN
    clamped: bool = False


class NamedFiles:
    """Opens files in the folder of an object's file, or below it; or anywhere below `root`, a folder of the user's.

    Whatever a name says, a file is opened only if its path, with links resolved, lies there. A file that is not where
    its name says is looked for:

    - with a name that differs in case or in the form of its accents, if there is one only;
    - with the letters that its bytes mean in another encoding;
    - of a path with a drive or a root (another machine's) and of a path that leads nowhere: by its last part, beside;
    - of a picture: by the last part in the folders where data sets keep them, such as `../materials/textures`.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.home = path.parent.resolve()
        self.root = self.home if root is None else root.resolve()

    def find(self, *names: str, beside: Path | None = None, picture: bool = False) -> Path | None:
        """The file of the first of the names that leads to one; None if none does.

        Args:
            names: spellings of one name, the likeliest first.
            beside: the folder of the file that has the name; by default that of the object.
            picture: it is one, so it is also looked for in the folders that pictures have.
        """
        folders = list(dict.fromkeys([beside or self.home, self.home]))
        paths = [path for name in names if (path := _relative(name)) is not None]
        paths += [path.strip() for path in paths]  # a name may begin with a blank
        paths = list(dict.fromkeys([*paths, *(other for path in paths for other in _in_other_encodings(path))]))
        tries = [(folder, path) for path in paths for folder in folders if not path.startswith("/")]
        lasts = list(dict.fromkeys(path.rpartition("/")[2] for path in paths))
        tries += [(folder, last) for last in lasts for folder in folders]
        if picture:
            tries += [(folder, f"{near}/{last}") for last in lasts for folder in folders for near in _NEAR]
        for exact in (True, False):
            for folder, relative in tries:
                found = self._at(folder, relative, exact=exact)
                if found is not None:
                    return found
        return None

    def _at(self, folder: Path, relative: str, *, exact: bool) -> Path | None:
        """The file at a relative path, if it may be opened."""
        try:
            path = (folder / relative).resolve() if exact else self._in_other_case(folder.resolve(), relative)
            return path if path is not None and self._allowed(path) and path.is_file() else None
        except (OSError, RuntimeError, ValueError):  # a name that is too long, a loop of links, no permission, a NUL
            return None

    def _allowed(self, path: Path) -> bool:
        return path.is_relative_to(self.root) or path.is_relative_to(self.home)

    def _in_other_case(self, path: Path, relative: str) -> Path | None:
        """As `folder / relative`, where the one entry of a folder with the same letters in another case will do."""
        for part in relative.split("/"):
            if not self._allowed(path):  # no other folder is listed
                return None
            following = path / part
            if part not in ("", ".", "..") and not following.exists():
                alike = _listed(path, path.stat().st_mtime_ns).get(_without_case(part), [])
                if len(alike) != 1:
                    return None
                following = path / alike[0]
            path = following.resolve()
        return path

    def get(self, *names: str, beside: Path | None = None, picture: bool = False) -> bytes:
        """Bytes of the file that `find` finds.

        Raises:
            ObjectError: there is no such file, or it may not be opened.
        """
        path = self.find(*names, beside=beside, picture=picture)
        if path is None:
            raise ObjectError(self._reason(names[0], beside or self.home))
        return self.bytes_of(path)

    def bytes_of(self, path: Path) -> bytes:
        """Bytes of a file that `find` has found."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise ObjectError(f"it names {shown(path.name)}, which could not be read: {error}") from error

    def _reason(self, name: str, beside: Path) -> str:
        label, relative = shown(name.strip()), _relative(name)
        if relative is None or relative.startswith("/"):
            return f"it names {label}, which is not a file in its own folder, so it was not opened"
        try:
            path = (beside / relative).resolve()
            if not self._allowed(path):
                how = "which" if ".." in relative.split("/") else "a link that"
                return f"it names {label}, {how} leads out of {self._place()}, so it was not opened"
        except (OSError, RuntimeError) as error:
            return f"it names {label}, which could not be read: {error}"
        return f"it names {label}, which is missing from its folder"

    def _place(self) -> str:
        return "its own folder" if self.root == self.home else f"the folder {self.root.name}"


@lru_cache(maxsize=8)
def _listed(folder: Path, _: int) -> dict[str, list[str]]:
    """The names in a folder by those without case. Kept until the folder changes: one may hold 100,000 objects."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(_without_case(name), []).append(name)
    return found


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def decoded(data: bytes) -> str:
    """Text in UTF-8 or UTF-16. Bytes of other encodings stand for themselves, as in Latin-1.

    So a name that two files have is the same in both, which guesses at their encodings do not promise. `find` knows
    what such a name may mean.
    """
    head = data[:4096]
    zeros = [head[start::2].count(0) for start in (0, 1)]
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif max(zeros) > len(head) // 4:
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _in_other_encodings(name: str) -> list[str]:
    """What a name may be whose bytes were taken for Latin-1."""
    found: list[str] = []
    with suppress(UnicodeEncodeError):
        raw = b"" if name.isascii() else name.encode("latin-1")
        for encoding in _ENCODINGS if raw else ():
            with suppress(UnicodeDecodeError):
                found.append(raw.decode(encoding))
    return found


def picture_files(meta: Any) -> list[str]:
    """The files that belong to the content of a meta.json: empty if it is not that of a splat (SOG, gsplat)."""
    if not isinstance(meta, dict) or not isinstance(meta.get("means"), dict):
        return []
    if "files" not in meta["means"]:
        return [*_OF_GSPLAT, _MASK]
    lists = [part["files"] for part in meta.values() if isinstance(part, dict) and isinstance(part.get("files"), list)]
    return [name for names in lists for name in names if isinstance(name, str)]


def file_of_uri(uri: str) -> str:
    """The path in a URI of a file; other text as it is. Many programs write file://name, without a root."""
    parsed = urlparse(uri.replace("\\", "/"))
    return parsed.netloc + parsed.path if parsed.scheme.lower() == "file" else uri


def _relative(name: str) -> str | None:
    """A name with forward slashes; with one in front if it is a path of another machine. None if it is a URL."""
    path = name.replace("\\", "/")
    if re.match(r"\s*[A-Za-z]:", path):
        return "/" + path.strip()[2:].lstrip("/")
    if "\0" in path or not path.strip() or re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:", path):
        return None
    return path


def shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")


def picture_names(statement: str) -> list[str]:
    """The names, as `spellings`, of the picture of a map statement without its keyword; empty if it has none."""
    described = picture_statement(statement)
    return [] if described is None else spellings(described.name)


def spellings(name: str) -> list[str]:
    """The file names that a statement may mean, the likeliest first: as it is; without comment, quotes or escapes."""
    plain = bare(name)
    return list(dict.fromkeys([name, plain, plain.strip("\"'"), plain.replace("\\ ", " ")]))


def several(names: str) -> list[str]:
    """The words of a list of file names, of which some may be quoted or have escaped blanks."""
    found: Iterable[tuple[str, str]] = re.findall(r"\"([^\"]+)\"|((?:\\ |\S)+)", bare(names))
    return [quoted or word for quoted, word in found]


def bare(text: str) -> str:
    """The text without a comment. A name may hold a #, but not behind a blank."""
    return re.sub(r"(?:^|\s+)#.*", "", text).strip()


def picture_statement(text: str) -> PictureStatement | None:
    """The picture of a map statement; None if it names none."""
    scale, offset = [1.0, 1.0], [0.0, 0.0]
    clamped = False
    while option := _OPTION.match(text):
        text = text[option.end() :]
        kind = (option["words"] or option["numbers"]).lower()
        if kind in ("s", "o"):
            numbers = [float(number) for number in option["values"].split()][:2]
            (scale if kind == "s" else offset)[: len(numbers)] = numbers
        elif kind == "clamp":
            clamped = option["word"].lower() == "on"
    return PictureStatement(text, (scale[0], scale[1], offset[0], offset[1]), clamped) if text else None
