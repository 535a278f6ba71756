"""Prompts: the sentences that a class's name is put into, and the embedding of a class as their mean."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clipgs.core.errors import UsageError

# Our own. A published protocol's list is not ours to ship: `evaluation.templates` takes it as a file.
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

Encode = Callable[[Sequence[str]], np.ndarray]  # texts to [n, D], of any length


def templates(path: Path | str | None) -> tuple[str, ...]:
    """The templates of a file, one a line or a JSON list, each with one `{}` for the name; without a file our own.

    Raises:
        UsageError: the file cannot be read, is empty, or has a template without `{}`.
    """
    if path is None:
        return TEMPLATES
    try:
        text = Path(path).read_text(encoding="utf-8")
        listed = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"evaluation.templates: {path} cannot be read ({error})") from None
    found = tuple(str(line).strip() for line in listed if str(line).strip())
    wrong = next((line for line in found if line.count("{}") != 1), None)
    if wrong is not None or not found:
        raise UsageError(f"evaluation.templates: {path} needs lines with one {{}} for the name of the class"
                         + (f", which {wrong!r} is not" if found else "; it is empty"))  # fmt: skip
    return found


def class_embeddings(names: Sequence[str], prompts: Sequence[str], encode: Encode) -> np.ndarray:
    """[C, D] float32 unit length: of each name the mean of its prompts' unit embeddings.

    The way of CLIP (Radford et al. 2021, section 3.1.4, prompt ensembling), which OpenShape and Uni3D follow.
    """
    rows = []
    for name in names:
        embedded = np.asarray(encode([prompt.replace("{}", name) for prompt in prompts]), np.float64)
        embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
        mean = embedded.mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows, np.float32)
