"""Prompts: sentences with the name of a class, and the embedding of a class as their mean."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from clipgs.core.errors import UsageError

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
    try:
        text = Path(path).read_text(encoding="utf-8")
        listed = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"evaluation.templates: {path} cannot be read ({error})") from None
    found = tuple(str(line).strip() for line in listed if str(line).strip())
    wrong = next((line for line in found if line.count("{}") != 1), None)
    if wrong is not None or not found:
        reason = "the file is empty" if wrong is None else f"{wrong!r} has {wrong.count('{}')}"
        raise UsageError(f"evaluation.templates: {path}: each line needs one {{}} for the class name, but {reason}")
    return found


def class_embeddings(
    names: Sequence[str],
    prompts: Sequence[str],
    encode: Callable[[list[str]], Tensor],  # texts to [n, D], of any length
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
