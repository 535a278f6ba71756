"""What the readers of text files share: encodings and numbers."""

import re

import numpy as np

from clipgs.core.errors import ObjectError

_NOT_A_NUMBER = re.compile(rb"(?i)[-+]?(?:nan\([a-z]*\)|1\.#(?:ind|inf|qnan|snan)0*)")  # as some C libraries write it


def numbers(text: bytes, kind: str, comments: tuple[bytes, ...] = ()) -> np.ndarray:
    """The numbers [N] float64 of a text that white space divides. Lines that begin with one of `comments` are left out.

    Raises:
        ObjectError: a word is no number. `kind` is the format that the sentence names.
    """
    found = parsed(text)
    if found is None:
        if comments:
            begin = rb"(?:\A|(?<=[\r\n]))[ \t]*(?:" + b"|".join(map(re.escape, comments)) + b")"
            text = re.sub(begin + rb"[^\r\n]*", b"", text)
        text = _NOT_A_NUMBER.sub(b"nan", text)
        found = parsed(text)
    if found is None:
        wrong = next((word for word in text.split() if not _is_number(word)), b"")
        shown = wrong[:40].decode("latin-1")
        raise ObjectError(f"the {kind} file has {shown!r} where a number should be: it is damaged")
    return found


def whole(values: np.ndarray, what: str) -> np.ndarray:
    """The values as int64.

    Raises:
        ObjectError: `what` is not a whole number, for some value.
    """
    if values.dtype.kind == "f" and not ((values == np.round(values)) & (np.abs(values) < 2**53)).all():
        raise ObjectError(f"{what} is no whole number")
    return values.astype(np.int64)


def parsed(text: bytes, kind: str = "float64") -> np.ndarray | None:
    """All numbers [N] of a text that white space divides, of a numpy type; None if a word is no such number."""
    import pyarrow as pa  # it reads numbers five times as fast as numpy
    import pyarrow.compute as pc

    text = text.strip()
    if not text:
        return np.zeros(0, kind)
    words = pc.ascii_split_whitespace(pa.array([text.decode("latin-1")], pa.large_string())).values
    try:
        return pc.cast(words, kind).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
