"""Ready splats: the stage `fit` moves objects that come as splats into the canonical frame instead of fitting them."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from clipgs.catalog.records import shard_path
from clipgs.catalog.sources import READY_SPLATS, source
from clipgs.catalog.sources.digests import unchanged
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.core.errors import ObjectError
from clipgs.core.runner import Compute, Files, Results, Row, Task, good, in_workers
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.quaternions import product, rotation_matrices
from clipgs.splats.read import read
from clipgs.splats.rows import Limit
from clipgs.stages import table

_VISIBLE = 0.05  # opacity; the bounding box ignores more transparent Gaussians
_FLOATER = 0.25  # of the core box's longest side: an antenna or a tip is nearer to the box, a floater farther
_SMALLEST, _LARGEST = 1e-15, 1e15  # as for meshes: no object is smaller or larger in any unit

# Rotations of an axis to +Y; quaternions w, x, y, z.
_TURNS = {"y": (1.0, 0.0, 0.0, 0.0), "-y": (0.0, 1.0, 0.0, 0.0), "z": (math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0)}


class ReadySplat(NamedTuple):
    """The payload of a task: the object's frozen row, and the hash of its file."""

    config: Config
    row: Row
    sha256: str


def tasks(config: Config, shard: str) -> list[Task]:
    """One task for each fetched object of the shard that is a splat already."""
    frozen = {row["uid"]: row for row in read_table(shard_path(config, shard)) if row["source"] in READY_SPLATS}
    fetched = good(table(config, "meshes", shard))
    hashes = {uid: row["sha256"] for uid, row in fetched.items() if uid in frozen}
    return [Task(uid, sha256, ReadySplat(config, frozen[uid], sha256)) for uid, sha256 in hashes.items()]


def beside(fit: Compute, config: Config, threads: int) -> Compute:
    """A `compute` that gives ready splats to workers, and all other tasks to `fit`."""
    place_all = in_workers(_place, threads, config.workers.fit_limits)

    def compute(tasks: list[Task]) -> Results:
        ready = [task for task in tasks if isinstance(task.payload, ReadySplat)]
        others = [task for task in tasks if not isinstance(task.payload, ReadySplat)]
        yield from place_all(ready)
        yield from fit(others)

    return compute


def _place(payload: ReadySplat) -> tuple[Row, Files]:
    """Row and PLY of one ready splat. Its quality stays null, because it has no held-out views."""
    torch.set_num_threads(1)
    config, row, sha256 = payload
    objects = source(config, row["source"])
    limit = Limit(config.catalog.splats.max_gaussians, "catalog.splats.max_gaussians")
    with unchanged(objects, row, sha256) as file:
        try:
            found = read(file, limit)
        except ValueError as error:
            raise ObjectError(str(error)) from None
    gaussians = Gaussians.from_rows(found.rows).prune(config.fit.prune_below)
    if len(gaussians) == 0:
        raise ObjectError("none of its Gaussians can be seen")
    if found.origin.any():
        gaussians = replace(gaussians, means=gaussians.means.double() + torch.from_numpy(found.origin))
    placed, centre, scale = place(gaussians, objects.up_axis(row), config.catalog.splats.box_fraction)
    notes = [f"{found.harmonics} spherical harmonics above degree 0 are dropped"] if found.harmonics else []
    note = "; ".join([*notes, *found.notes]) or None
    return {"gaussians": len(placed), "centre": centre, "scale": scale, "note": note}, [("ply", placed.to_ply())]


def place(
    gaussians: Gaussians,  # [N, *]
    up_axis: str,  # y, -y or z
    box_fraction: float,
) -> tuple[Gaussians, list[float], float]:
    """Moves one splat into the canonical frame: Y up, its bounding box centred, the longest side 1.

    The core box holds `box_fraction` of the visible Gaussians along each axis. Gaussians that are outside it by more
    than a quarter of its longest side are floaters; the bounding box is that of the others. The colours need no
    rotation, because they have no spherical harmonics above degree 0; they are clamped to [0, 1].

    Returns:
        the splat; centre [3] and scale of placed = (rotated - centre) * scale.

    Raises:
        ObjectError: it has no size, or an absurd one.
    """
    turn = torch.tensor(_TURNS[up_axis], dtype=torch.float64)
    rotation = rotation_matrices(turn).round(decimals=12)  # quarter turns are exact
    means = gaussians.means.double() @ rotation.T
    visible = gaussians.opacities >= _VISIBLE
    shown = means[visible] if visible.any() else means
    tail = (1 - box_fraction) / 2
    ordered = shown.sort(dim=0).values
    low, high = ordered[round(tail * (len(shown) - 1))], ordered[round((1 - tail) * (len(shown) - 1))]
    margin = _FLOATER * (high - low).max()
    body = shown[((shown >= low - margin) & (shown <= high + margin)).all(dim=1)]
    if len(body):
        low, high = body.min(dim=0).values, body.max(dim=0).values
    size, reach = float((high - low).max()), float(means.abs().max())
    if reach > _LARGEST:
        raise ObjectError(f"it reaches to {reach:.3g}, which is no size of an object")
    if size < max(_SMALLEST, reach * 1e-12):
        raise ObjectError("it has no size: its visible Gaussians are all at one point")
    centre, scale = (low + high) / 2, 1 / size
    placed = replace(
        gaussians,
        means=((means - centre) * scale).float(),
        quats_wxyz=product(turn, gaussians.quats_wxyz.double()).float(),
        log_scales=(gaussians.log_scales.double() + math.log(scale)).float(),
        colors=gaussians.colors.clamp(0, 1),
    )
    return placed, centre.tolist(), scale
