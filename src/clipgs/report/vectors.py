"""The commands `embed` and `compare`: files and texts in the space of the teacher."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clipgs.catalog.records import PICTURE_SUFFIXES, SUFFIXES
from clipgs.core.errors import ObjectError, UsageError
from clipgs.core.files import Given, whole
from clipgs.core.lists import counted
from clipgs.core.runner import Row
from clipgs.encoder.trained import TrainedEncoder, load
from clipgs.report.search import read_picture
from clipgs.splats.from_mesh import FittedMesh, Preset, ToFit, fit_many, settings
from clipgs.splats.read import SUFFIXES as SPLAT_SUFFIXES
from clipgs.splats.read import is_splat

log = logging.getLogger(__name__)

_ARRAYS = (".npy", ".npz")
_SHOWN = 32  # characters of a text above its column


def embed(run: Path, given: Sequence[Given], to: Path | None, preset: Preset | None, threads: int, device: str) -> int:
    """Writes or prints one vector a file, in their order; returns 1 if a file has none. Its row is then NaN.

    `.npy` holds [n, D] float32, `.npz` that as `vectors` and the names as `files`.

    Raises:
        UsageError: no argument is a file, or `to` has another suffix.
        ClipgsError: there is no such run.
    """
    missing = [one.text for one in given if one.file is None]
    if len(missing) == len(given):
        raise UsageError(f"there is no file {missing[0]}")
    if to is not None and to.suffix.lower() not in _ARRAYS:
        raise UsageError(f"{to}: vectors are written as {' or '.join(_ARRAYS)}")
    encoder = load(run, None if device == "auto" else device)
    rows: list[np.ndarray | None] = [None] * len(given)
    for index, vector in _vectors(encoder, given, preset, threads):
        rows[index] = vector
        if to is None and vector is not None:
            sys.stdout.write(json.dumps({"file": given[index].text, "vector": vector.tolist()}) + "\n")
    failed = sum(row is None for row in rows)
    if to is not None:
        vectors = np.stack([np.full(encoder.dim, np.nan, np.float32) if row is None else row for row in rows])
        with whole(to) as temporary, temporary.open("wb") as file:
            if to.suffix.lower() == ".npy":
                np.save(file, vectors, allow_pickle=False)
            else:
                np.savez(file, vectors=vectors, files=np.array([one.text for one in given]))
        log.info("embed: %s of %d dimensions in %s", counted(len(given) - failed, "vector"), encoder.dim, to)
    return 1 if failed else 0


def compare(run: Path, given: Sequence[Given], preset: Preset | None, threads: int, device: str) -> int:
    """Prints the cosines of each file with each text or, without texts, with each file; returns 1 if a file has none.

    Raises:
        UsageError: there is nothing to compare, or a text looks like a file that is not there.
        ClipgsError: there is no such run.
    """
    files, texts = [one for one in given if one.file], [one.text for one in given if one.file is None]
    if lost := [text for text in texts if Path(text).suffix.lower() in (*SUFFIXES, *PICTURE_SUFFIXES)]:
        raise UsageError(f"there is no file {lost[0]}")
    if not files:
        raise UsageError("none of these is a file: name a splat, a mesh or a picture")
    if not texts and len(files) == 1:
        raise UsageError("there is nothing to compare with: name a text or a second file")
    encoder = load(run, None if device == "auto" else device)
    found = sorted(_vectors(encoder, files, preset, threads), key=lambda pair: pair[0])
    vectors = {files[index]: vector for index, vector in found if vector is not None}
    if vectors:
        names, rows = [one.text for one in vectors], np.stack([*vectors.values()])
        columns = encoder.encode_text(texts).numpy() if texts else rows
        _print(names, texts or names, rows.astype(np.float64) @ columns.T)
    return 1 if any(vector is None for _, vector in found) else 0


def _print(
    rows: Sequence[str],
    columns: Sequence[str],
    cosines: np.ndarray,  # [rows, columns]
) -> None:
    heads = [text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "\N{HORIZONTAL ELLIPSIS}" for text in columns]
    first = max(map(len, rows), default=0)
    widths = [max(6, len(head)) for head in heads]
    lines = [
        ("", heads),
        *((name, [f"{value:.3f}" for value in values]) for name, values in zip(rows, cosines, strict=True)),
    ]
    for name, cells in lines:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write("  ".join([name.ljust(first), *padded]) + "\n")


def _vectors(
    encoder: TrainedEncoder, given: Sequence[Given], preset: Preset | None, threads: int
) -> Iterator[tuple[int, np.ndarray | None]]:
    """The index and the vector [D] float32 of each file; None, with a line of the log, for one that has none."""
    for index, result in _results(encoder, given, preset, threads):
        if isinstance(result, str):
            one = given[index]
            reason = result.removeprefix(f"{ObjectError.__name__}: ").removeprefix(str(one.file)).lstrip(": ")
            log.error("%s: %s", one.text, reason)
            yield index, None
        else:
            yield index, result


def _results(
    encoder: TrainedEncoder, given: Sequence[Given], preset: Preset | None, threads: int
) -> Iterator[tuple[int, np.ndarray | str]]:
    """The index of each file with its vector or its error. Meshes come last, because they must be fitted first."""
    meshes: list[tuple[Path, int]] = []
    for index, (_, file) in enumerate(given):
        if file is None:
            yield index, "there is no such file"
            continue
        suffix = file.suffix.lower()
        if suffix in SUFFIXES and not is_splat(file):
            meshes.append((file, index))
            continue
        try:
            if suffix in PICTURE_SUFFIXES:
                vector = encoder.encode_images(read_picture(file))[0]
            elif suffix in SPLAT_SUFFIXES:
                vector = encoder.encode(file)[0]
            else:
                raise ObjectError(f"it is no splat, no mesh and no picture ({' '.join(PICTURE_SUFFIXES)})")
            yield index, vector.numpy()
        except (ObjectError, UsageError, ValueError, OSError) as error:
            yield index, str(error)
    if not meshes:
        return
    log.info("fitting %s", counted(len(meshes), "mesh", "meshes"))
    config = settings(preset)
    jobs = [(ToFit(config, file), index) for file, index in meshes]
    for place, row in fit_many(jobs, threads, _kept):
        index = meshes[place][1]
        try:
            yield index, row if isinstance(row, str) else encoder.encode(row["splat"])[0].numpy()
        except (ObjectError, ValueError) as error:
            yield index, str(error)


def _kept(_: int, fitted: FittedMesh) -> Row:
    return {"splat": fitted.gaussians}
