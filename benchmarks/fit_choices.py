"""What each choice of a fit gives: learning rates, starts, losses, views a step, a resolution schedule, priors, steps.

    python benchmarks/fit_choices.py                 # about five minutes on an H200
    python benchmarks/fit_choices.py --only steps    # the paper's table alone
    python benchmarks/fit_choices.py --only priors --px 128 --every 3    # the priors; on a CPU too

All objects are fitted in one batch at 256 px (`--px`); a row says what it changes, and gives the mean over the objects
on the held-out views. `floaters` is the share of visible Gaussians farther from the surface than 3 % of the object.
What the kernels of clipgs do not offer (several views a step, priors) runs through autograd, on a GPU with gsplat, with
a row of its own to compare with. Writes benchmarks/results/fit_choices.json.
"""

import argparse
import csv
import logging
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fit import STOCK_RATES, load_objects
from record import SHARED, commit, gpus, record
from torch import Tensor
from torch.nn.functional import avg_pool2d

from clipgs.config import Config, Fit, recipes
from clipgs.core.processes import usable_cores
from clipgs.splats.fitting import as_gaussians, fit, prepare, schedule
from clipgs.splats.fitting.cuda import CudaFit
from clipgs.splats.fitting.schedule import EPSILON, LAST_RATE
from clipgs.splats.gaussians import Gaussians, Points, Views
from clipgs.splats.losses import fit_loss
from clipgs.splats.quality import quality
from clipgs.splats.rasterizer import kernels, rasterize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COUNT = Config().views.count
FAR, VISIBLE = 0.03, 0.05  # of the object's longest side; opacity
PAPERS_STEPS = (1_000, 2_500, 5_000, 10_000, 20_000)
_log = logging.getLogger(__name__)


def fit_of(recipe: str, **more: Any) -> Fit:
    """The `fit` section of a recipe, with the 10,000 Gaussians that all results here have."""
    return Fit(**recipes.values(recipe)["fit"] | {"gaussians": 10_000} | more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "core", help="folder with manifest.csv")
    parser.add_argument("--every", type=int, default=1, help="every so many-th object by uid")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--only", nargs="+", choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--output", type=Path, help="of the JSON (default: benchmarks/results/fit_choices.json)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with open(arguments.data / "manifest.csv", newline="") as file:
        objects = sorted(csv.DictReader(file), key=lambda row: row["uid"])[:: arguments.every]
    if DEVICE.type == "cpu" and arguments.only != ["priors"]:
        parser.error("without a GPU there are only the priors: --only priors")
    points, views = load_objects([arguments.data / row["file"] for row in objects], arguments.px)
    views = views.to(DEVICE)
    if DEVICE.type == "cuda":
        fit(points.to(DEVICE), views[:, :COUNT], fit_of("paper", steps=20))  # loads the kernels
    results: dict[str, Any] = {"driver": gpus("name,driver_version")}
    settings = {"objects": len(objects), "px": arguments.px, "fit": fit_of("paper").model_dump(mode="json")}
    for name in arguments.only:
        results[name] = []
        for row in EXPERIMENTS[name](points, views):
            results[name].append(row)
            figures = ("psnr", "ssim", "floaters_percent", "seconds_an_object")
            _log.info("%-9s %-44s %s", name, row["what"], "  ".join(f"{row[key]:.4g}" for key in figures))
            record("fit_choices", settings, results, arguments.output)  # a run that is cut short leaves its rows
    return 0


def judged(what: str, points: Points, views: Views, gaussians: Gaussians, begin: float, **more: Any) -> dict[str, Any]:
    """A row of the table."""
    _wait()
    seconds = time.perf_counter() - begin
    rows, far = [], []
    for b in range(len(points.xyz)):
        one = gaussians[b].prune(fit_of("paper").prune_below)
        rows.append(quality(one, views[b, COUNT:]))
        seen = one.means[one.opacities > VISIBLE]
        nearest = torch.cdist(seen, points.xyz[b].to(DEVICE)).amin(dim=1)
        far.append((nearest > FAR).float().mean().item())
    return {
        "what": what,
        "psnr": statistics.fmean(row["psnr"] for row in rows),
        "ssim": statistics.fmean(row["ssim"] for row in rows),
        "alpha_iou": statistics.fmean(row["alpha_iou"] for row in rows),
        "floaters_percent": 100 * statistics.fmean(far),
        "gaussians": statistics.fmean(row["gaussians"] for row in rows),
        "seconds_an_object": seconds / len(gaussians),
        "batch": len(gaussians),
        "commit": commit(),
        **more,
    }


def ours(what: str, points: Points, views: Views, **changes: Any) -> dict[str, Any]:
    """A fit with some settings changed."""
    settings = fit_of("paper").model_copy(update=changes)
    clouds = points.to(DEVICE)
    _wait()
    begin = time.perf_counter()
    gaussians = fit(clouds, views[:, :COUNT], settings, seeds=[0] * len(points.xyz))
    return judged(what, points, views, gaussians, begin, steps=settings.steps)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def few_steps(points: Points, views: Views):
    """Which factor on 3DGS' learning rates makes the most of few steps."""
    for steps in (1_000, 1_250, 1_500):
        for factor in (3.0, 4.0, 5.0, 6.0):
            what = f"{steps} steps, rates x {factor:g}"
            yield ours(what, points, views, **STOCK_RATES | {"steps": steps, "lr_factor": factor})


def around_fast(points: Points, views: Views):
    """What each setting does to the recipe `fast` at 3DGS' learning rates."""
    fast = fit_of("fast").model_dump() | STOCK_RATES
    yield ours("fast", points, views, **fast)
    for name, values in {
        "lr_means": (0.5, 2.0),
        "lr_scales": (0.5, 2.0),
        "lr_quats": (0.5, 3.0),
        "lr_opacities": (0.5, 2.0),
        "lr_colors": (0.5, 2.0),
        "disc_spacing": (0.8, 1.25),
        "disc_thickness": (0.5, 3.0),
        "disc_opacity": (0.7, 1.4),
    }.items():
        for factor in values:
            yield ours(f"fast, {name} x {factor:g}", points, views, **fast | {name: fast[name] * factor})
    for rate in (0.01, 0.1):
        schedule.LAST_RATE = rate
        yield ours(f"fast, rates end at {rate:.0%}", points, views, **fast)
    schedule.LAST_RATE = LAST_RATE


TOGETHER = {
    "A: scales x 2, opacities x 0.5, colours x 2": {"lr_scales": 2.0, "lr_opacities": 0.5, "lr_colors": 2.0},
    "B: A, means x 0.5": {"lr_means": 0.5},
    "C: A, means x 0.25": {"lr_means": 0.25},
    "D: C, quaternions x 3": {"lr_means": 0.25, "lr_quats": 3.0},
    "E: D, thickness x 0.5": {"lr_means": 0.25, "lr_quats": 3.0, "disc_thickness": 0.5},
    "F: E, scales x 4": {"lr_means": 0.25, "lr_quats": 3.0, "disc_thickness": 0.5, "lr_scales": 4.0},
    "G: E, opacities x 0.25": {"lr_means": 0.25, "lr_quats": 3.0, "disc_thickness": 0.5, "lr_opacities": 0.25},
    "H: E, means x 0.12": {"lr_means": 0.12, "lr_quats": 3.0, "disc_thickness": 0.5},
}


def together(points: Points, views: Views):
    """What helped alone, together: rates of their own for positions, scales, opacities and colours."""
    for recipe, steps in (("fast", 1_250), ("fast", 1_000), ("paper", 5_000)):
        base = fit_of(recipe).model_dump() | STOCK_RATES | {"steps": steps}
        yield ours(f"{recipe}, {steps} steps", points, views, **base)
        for what, factors in TOGETHER.items():
            factors = TOGETHER["A: scales x 2, opacities x 0.5, colours x 2"] | factors
            changes = {name: base[name] * factor for name, factor in factors.items()}
            yield ours(f"{recipe}, {steps} steps, {what}", points, views, **base | changes)


def losses(points: Points, views: Views):
    """Grounds, schedule, alpha term, relocation: each against the default, with either recipe."""
    for recipe in ("fast", "paper"):
        base = fit_of(recipe).model_dump()
        yield ours(recipe, points, views, **base)
        changed = {
            "white ground": {"random_ground": False},
            "white ground, no alpha term": {"random_ground": False, "alpha_weight": 0.0},
            "constant rates": {"schedule": "constant"},
            "no alpha term": {"alpha_weight": 0.0},
            "nothing moved": {"relocate_below": 0.0},
            "L1 alone": {"ssim_weight": 0.0},
        }
        for what, changes in list(changed.items())[: 3 if recipe == "paper" else None]:
            yield ours(f"{recipe}, {what}", points, views, **base | changes)


def resolution(points: Points, views: Views):
    """The first part of the steps at half the pixels."""
    settings = fit_of("fast")
    rgba = views.rgba[:, :COUNT].float() / 255
    ink = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1).movedim(-1, 2)
    small = avg_pool2d(ink.flatten(0, 1), 2).unflatten(0, ink.shape[:2]).movedim(2, -1)
    small = torch.cat([small[..., :3] / small[..., 3:].clamp(min=1e-3), small[..., 3:]], dim=-1)
    Ks = views.Ks[:, :COUNT] * views.Ks.new_tensor([0.5, 0.5, 1])[:, None]
    half = Views((small.clamp(0, 1) * 255).round().to(torch.uint8), views.viewmats[:, :COUNT], Ks)
    tables, plans = starts(points, settings)
    for share in (0.0, 0.25, 0.5):
        first = int(share * settings.steps)
        plans = [schedule.schedule(settings, COUNT, 0) for _ in plans]
        _wait()
        begin = time.perf_counter()
        coarse = CudaFit(tables, half, settings, plans)
        for number in range(first):
            coarse.step(number)
        fine = CudaFit(coarse.raw, views[:, :COUNT], settings, plans)
        fine.moments.copy_(coarse.moments)
        fine._tensors["step"].fill_(first)
        for number in range(first, settings.steps):
            fine.step(number)
        yield judged(f"fast on one stream, {share:.0%} at half", points, views, as_gaussians(fine.raw), begin)


def autograd(points: Points, views: Views):
    """Several views a step through gsplat: as many pictures in fewer steps."""
    for count in (1, 2, 4):
        yield through_gsplat(f"{count} views a step, {1_500 // count} steps", points, views, 1_500 // count, count)


def priors(points: Points, views: Views):
    """Priors on opacity and on scale, through gsplat, over every third object."""
    some = torch.arange(0, len(points.xyz), 3)
    for what, opacity, scale in (("no prior", 0, 0), ("opacity prior 0.01", 0.01, 0), ("scale prior 1", 0, 1.0)):
        yield through_gsplat(what, points[some], views[some.to(DEVICE)], 1_500, 1, opacity, scale)


def through_gsplat(
    what: str, points: Points, views: Views, steps: int, count: int, opacity_prior: float = 0, scale_prior: float = 0
) -> dict[str, Any]:
    """A row of `by_autograd` with the recipe `fast`."""
    settings = fit_of("fast").model_copy(update={"steps": steps})
    tables, plans = starts(points, settings.model_copy(update={"steps": steps * count}))
    _wait()
    begin = time.perf_counter()
    raw = by_autograd(tables, views[:, :COUNT], settings, plans, count, opacity_prior, scale_prior)
    return judged(f"autograd, {what}", points, views, as_gaussians(raw), begin, steps=steps)


def papers_steps(points: Points, views: Views):
    """The paper's own table: quality, bytes and seconds by the number of steps."""
    clouds, seen = points.to(DEVICE), views[:, :COUNT]
    for steps in PAPERS_STEPS:
        settings = fit_of("paper", steps=steps)
        _wait()
        begin = time.perf_counter()
        gaussians = fit(clouds, seen, settings, seeds=[0] * len(points.xyz))
        row = judged(f"{steps} steps", points, views, gaussians, begin, steps=steps)
        sizes = [len(gaussians[b].prune(settings.prune_below).to("cpu").to_ply()) for b in range(0, len(points.xyz), 8)]
        yield row | {"bytes": statistics.fmean(sizes)}


EXPERIMENTS: dict[str, Callable] = {
    "few_steps": few_steps,
    "around_fast": around_fast,
    "together": together,
    "losses": losses,
    "resolution": resolution,
    "autograd": autograd,
    "priors": priors,
    "steps": papers_steps,
}


def starts(points: Points, settings: Fit) -> tuple[Tensor, list]:
    """Raw parameters [B, 14, N] on the GPU, and the plans."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        prepared = list(pool.map(lambda b: prepare(points[b], COUNT, settings, 0), range(len(points.xyz))))
    raw, plans = zip(*prepared, strict=True)
    return torch.from_numpy(np.stack(raw)).to(DEVICE), list(plans)


def by_autograd(
    tables: Tensor,  # [B, 14, N]
    views: Views,  # [B, V, ...]
    settings: Fit,
    plans: list,
    count: int,  # views a step
    opacity_prior: float,
    scale_prior: float,
) -> Tensor:  # [B, 14, N]
    """A batched fit by gsplat, autograd and one Adam, without relocation."""
    groups = [part.movedim(1, 2).contiguous().requires_grad_() for part in tables.split(kernels.PARTS, dim=1)]
    rates = (settings.lr_means, settings.lr_quats, settings.lr_scales, settings.lr_opacities, settings.lr_colors)
    optimizer = torch.optim.Adam(
        [{"params": [group], "lr": rate * settings.lr_factor} for group, rate in zip(groups, rates, strict=True)],
        eps=EPSILON,
        fused=True,
    )
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + np.cos(np.pi * min(step / settings.steps, 1))),
    )
    order = torch.from_numpy(np.stack([plan.views for plan in plans])).to(DEVICE)
    grounds = torch.from_numpy(np.stack([plan.grounds for plan in plans])).to(DEVICE)
    rows = torch.arange(len(plans), device=DEVICE)[:, None]
    height, width = views.rgba.shape[2:4]
    for number in range(settings.steps):
        part = slice(number * count, (number + 1) * count)
        chosen, ground = order[:, part], grounds[:, part]
        rgba = views.rgba[rows, chosen].float() / 255
        targets = torch.lerp(ground[:, :, None, None].expand_as(rgba[..., :3]), rgba[..., :3], rgba[..., 3:])
        means, quats, log_scales, logits, colors = groups
        opacities, scales = logits[..., 0].sigmoid(), log_scales.exp()
        images, alphas = rasterize(
            means,
            quats,
            scales,
            opacities,
            colors.sigmoid(),
            views.viewmats[rows, chosen],
            views.Ks[rows, chosen],
            width,
            height,
            backgrounds=ground,
        )
        loss = fit_loss(
            images.flatten(0, 1),
            alphas.flatten(0, 1),
            targets.flatten(0, 1),
            rgba[..., 3:].flatten(0, 1),
            settings.ssim_weight,
            settings.alpha_weight,
        )
        loss = loss.sum() / count + opacity_prior * opacities.mean(1).sum() + scale_prior * scales.mean((1, 2)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay.step()
    return torch.cat([group.detach() for group in groups], dim=2).movedim(2, 1)


if __name__ == "__main__":
    sys.exit(main())
