"""The user's classes and prompts (sentences with the name of a class), and the embedding of a class as their mean.

Imports no torch: both lists are read before the first job.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipgs.core.errors import UsageError
from clipgs.core.lists import Names, enumerated, read_lines, read_text

if TYPE_CHECKING:
    from torch import Tensor

# Our own. The lists of published protocols are not ours to ship; `evaluation.templates` reads them from a file.
TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a rendering of a {}",
    "a 3D model of a {}",
    "a 3D rendering of one {}",
    "a picture of the {}",
    "a {} on a white background",
    "a {} seen from the front",
    "a {} seen from the side",
    "a {} seen from above",
    "a {} seen from below",
    "a small {}",
    "a large {}",
    "a simple {}",
    "a detailed {}",
    "a toy {}",
    "a low-poly {}",
    "a scan of a {}",
    "a computer graphics image of a {}",
)


def templates(path: Path | str | None) -> tuple[str, ...]:
    """The templates of a file, or ours without one. The file has one per line or is a JSON list; `{}` is the name.

    Raises:
        UsageError: the file cannot be read, is empty, or has a template without `{}`.
    """
    if path is None:
        return TEMPLATES
    key = "config: evaluation.templates"
    text = read_text(path, key)
    if text.lstrip().startswith("["):
        try:
            listed = [str(prompt).strip() for prompt in json.loads(text)]
        except ValueError as error:
            raise UsageError(f"{key}: {path} is not a JSON list ({error})") from None
        found = [(f"prompt {number}", prompt) for number, prompt in enumerate(listed, start=1) if prompt]
    else:
        found = [(f"line {number}", line) for number, line in read_lines(path, key)]
    if not found:
        raise UsageError(f"{key}: {path} is empty")
    for place, prompt in found:
        if (count := prompt.count("{}")) != 1:
            raise UsageError(
                f"{key}: {path}, {place}: each prompt needs one {{}} for the class name, but {prompt!r} has {count}"
            )
    return tuple(prompt for _, prompt in found)


def listed_classes(path: Path | str) -> list[str]:
    """The class names of a file, one per line, each once.

    Raises:
        UsageError: the file cannot be read or is empty.
    """
    key = "config: evaluation.classes"
    names = list(dict.fromkeys(line for _, line in read_lines(path, key)))
    if not names:
        raise UsageError(f"{key}: {path} is empty")
    return names


def unmatched(path: Path | str | None, names: Sequence[str], categories: Iterable[str | None]) -> str | None:
    """A sentence on the classes of the user's file that are no category of the dataset; None where all are.

    Raises:
        UsageError: none is, and the dataset has categories.
    """
    listed, known = Names(names), Names(sorted({category for category in categories if category}))
    met = {listed.find(category) for category in known}
    unknown = [name for name in names if name not in met]
    if path is None or not unknown or not len(known):
        return None
    if len(unknown) == len(names):
        text = f"config: evaluation.classes: {path} names no category of the dataset: {known.shown(unknown)}"
        raise UsageError(f"{text}; its categories are {enumerated(known)}")
    return f"{len(unknown):,} of {len(names):,} classes are no category of the dataset: {known.shown(unknown)}"


def class_embeddings(
    names: Sequence[str],
    prompts: Sequence[str],
    encode: Callable[[list[str]], "Tensor"],  # texts to [n, D], of any length
) -> np.ndarray:
    """[C, D] float32 of unit length: the mean of the unit embeddings of each name's prompts.

    CLIP's prompt ensembling (Radford et al. 2021, section 3.1.4), which OpenShape and Uni3D use too.
    """
    rows = []
    for name in names:
        embedded = np.asarray(encode([prompt.replace("{}", name) for prompt in prompts]).cpu(), np.float64)
        embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
        mean = embedded.mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows, np.float32)
