"""Fitting on CUDA: each step's gradients against autograd through the CPU engine and the plain loss."""

import re

import numpy as np
import pytest
import torch

from clipgs.config import Fit
from clipgs.core.errors import ClipgsError
from clipgs.splats.fitting import cuda as fit_cuda
from clipgs.splats.fitting import fit
from clipgs.splats.fitting.schedule import BETA_1, schedule
from clipgs.splats.fitting.start import start
from clipgs.splats.gaussians import Views
from clipgs.splats.losses import fit_loss
from clipgs.splats.rasterizer import rasterize
from tests.splats.balls import SETTINGS, balls

ROWS = {"means": 3, "quats": 4, "log_scales": 3, "opacity_logits": 1, "color_logits": 3}


def crop(views: Views, height: int, width: int) -> Views:
    """The pictures' upper left corner: the cameras need not change."""
    return Views(views.rgba[..., :height, :width, :].contiguous(), views.viewmats, views.Ks)


def scene(objects: int, height: int, width: int, **changes) -> tuple[torch.Tensor, Views, Fit]:
    """Half-fitted raw parameters [B, 14, N] on the CPU, views, settings."""
    points, views = balls(objects, points=900)
    settings = SETTINGS.model_copy(update={"gaussians": 300, **changes})
    tables = torch.from_numpy(np.stack([start(points[b], settings, seed=b) for b in range(objects)]))
    noise = torch.randn(tables.shape, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.01] * 3 + [0.3] * 4 + [0.5] * 3 + [1.5] + [0.5] * 3)
    return tables + noise * scale[:, None], crop(views, height, width), settings


def reference(raw: torch.Tensor, views: Views, settings: Fit, plans, number: int):
    """Pictures, and the gradient by the raw parameters, from autograd."""
    raw = raw.clone().requires_grad_()
    means, quats, log_scales, logits, colors = raw.movedim(1, 2).split(tuple(ROWS.values()), dim=2)
    chosen = [plan.views[number] for plan in plans]
    rows = torch.arange(len(plans))
    grounds = torch.from_numpy(np.stack([plan.grounds[number] for plan in plans]))
    rgba = views.rgba[rows, chosen].float() / 255
    targets = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * grounds[:, None, None]
    images, alphas = rasterize(
        means,
        quats,
        log_scales.exp(),
        logits[..., 0].sigmoid(),
        colors.sigmoid(),
        views.viewmats[rows, chosen][:, None],
        views.Ks[rows, chosen][:, None],
        *views.rgba.shape[-2:-4:-1],
        backgrounds=grounds[:, None],
    )
    loss = fit_loss(
        images[:, 0], alphas[:, 0], targets, rgba[..., 3:], settings.ssim_weight, settings.alpha_weight
    ).sum()
    loss.backward()
    return images[:, 0].detach(), alphas[:, 0].detach(), raw.grad


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("objects", "height", "width", "changes"),
    [
        (1, 40, 40, {}),
        (3, 37, 22, {}),
        (2, 40, 40, {"ssim_weight": 0.0, "alpha_weight": 0.0, "random_ground": False}),
        (2, 9, 40, {"ssim_weight": 1.0}),
    ],
)
def test_a_steps_gradients_are_those_of_autograd(objects, height, width, changes):
    raw, views, settings = scene(objects, height, width, **changes)
    plans = [schedule(settings, views.rgba.shape[1], seed) for seed in range(objects)]
    images, alphas, gradients = reference(raw, views, settings, plans, 0)
    one = fit_cuda.CudaFit(raw.cuda(), views.to("cuda"), settings, plans)
    one.step(0)
    frame = one.frame.cpu()
    grounds = torch.from_numpy(np.stack([plan.grounds[0] for plan in plans]))
    ours = frame[..., :3] + frame[..., 3:] * grounds[:, None, None]
    # An alpha that float32 puts on either side of 1/255 changes a pixel by up to that much.
    assert (ours - images).abs().max() < 1 / 255 + 1e-4
    assert (ours - images).abs().mean() < 1e-5
    assert (1 - frame[..., 3:] - alphas).abs().mean() < 1e-5
    mine = one.moments[:, 0].cpu() / (1 - BETA_1)  # the first moment after one step
    parts = zip(ROWS, mine.split(tuple(ROWS.values()), 1), gradients.split(tuple(ROWS.values()), 1), strict=True)
    for name, part, expected in parts:
        assert (part - expected).norm() < 1e-2 * expected.norm(), name


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(40, 40), (37, 22), (5, 3)])
@pytest.mark.parametrize("weights", [(0.2, 0.2), (0.0, 0.5), (1.0, 0.0)])
def test_the_loss_is_fit_loss(height, width, weights):
    raw, views, settings = scene(2, height, width, ssim_weight=weights[0], alpha_weight=weights[1])
    plans = [schedule(settings, views.rgba.shape[1], seed) for seed in range(2)]
    one = fit_cuda.CudaFit(raw.cuda(), views.to("cuda"), settings, plans)
    random = torch.Generator().manual_seed(2)
    colors = torch.rand(2, height, width, 3, generator=random).double()
    passed = torch.rand(2, height, width, 1, generator=random).double() * 0.9 + 0.05
    one.frame.copy_(torch.cat([colors * (1 - passed), passed], dim=-1))
    one.queue("loss")

    drawn, alphas = (colors * (1 - passed)).requires_grad_(), (1 - passed).requires_grad_()
    chosen = [plan.views[0] for plan in plans]
    ground = torch.from_numpy(np.stack([plan.grounds[0] for plan in plans])).double()[:, None, None]
    rgba = views.rgba[torch.arange(2), chosen].double() / 255
    targets = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * ground
    fit_loss(drawn + (1 - alphas) * ground, alphas, targets, rgba[..., 3:], *weights).sum().backward()
    expected = torch.cat([drawn.grad, alphas.grad], dim=-1)
    ours = one.pixel_gradients.cpu().double()
    assert (ours - expected).norm() < 1e-4 * expected.norm()
    assert (ours - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.gpu
def test_replayed_steps_are_the_eager_ones():
    raw, views, settings = scene(2, 40, 40, steps=30)
    plans = [schedule(settings, views.rgba.shape[1], seed) for seed in range(2)]
    replayed = fit_cuda.CudaFit(raw.cuda(), views.to("cuda"), settings, plans)
    eager = fit_cuda.CudaFit(raw.cuda(), views.to("cuda"), settings, plans)
    for number in range(3):  # the later, the farther apart the unordered sums take them
        replayed.step(number)
        eager._step()
        assert (replayed.frame - eager.frame).abs().mean() < 1e-4
    assert replayed._graph is not None


@pytest.mark.gpu
def test_an_objects_fit_does_not_depend_on_its_batch():
    points, views = balls(3)
    settings = SETTINGS.model_copy(update={"steps": 20})
    together = fit(points.to("cuda"), views.to("cuda"), settings, seeds=[1, 2, 3])
    alone = fit(points[1:2].to("cuda"), views[1:2].to("cuda"), settings, seeds=[2])
    assert (together.means[1] - alone.means[0]).abs().mean() < 1e-4


def test_the_kernels_and_the_host_agree_on_the_arguments():
    body = re.search(r"struct Fit {(.*?)\n};", fit_cuda.SOURCE.read_text(), re.DOTALL)[1]
    declared = re.sub(r"//.*|const |_t\b|[*;]", "", body).split("\n")
    names = [name.strip() for line in declared for name in " ".join(line.split()[1:]).split(",") if line.strip()]
    assert names == [name for name, _ in fit_cuda._Arguments._fields_]


def test_the_kernels_get_every_number_that_they_share():
    wanted = set(re.findall(r"\bCLIPGS_\w+", fit_cuda.SOURCE.read_text()))
    given = dict(constant.removeprefix("-D").split("=") for constant in fit_cuda.CONSTANTS)
    assert wanted == set(given)
    assert given["CLIPGS_PARAMETERS"] == "14"
    # as the kernels held them when they were measured
    floats = {name.removeprefix("CLIPGS_"): np.float32(value[:-1]) for name, value in given.items() if value[-1] == "f"}
    one = np.float32(1)
    assert floats == {
        **{"BLUR": np.float32(0.3), "NEAR": np.float32(0.01), "FIELD_MARGIN": np.float32(0.3)},
        **{"ALPHA_MIN": one / np.float32(255), "ALPHA_MIN_INVERSE": np.float32(255), "ALPHA_MAX": np.float32(0.999)},
        **{"LOG2_ALPHA_MIN": np.float32(-7.99435344), "TRANSMITTANCE_MIN": np.float32(1e-4)},
        **{"BETA_1": np.float32(0.9), "BETA_2": np.float32(0.999), "EPSILON": np.float32(1e-15)},
    }


def test_kernels_of_other_numbers_are_others_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []

    def compile_nothing(target, place):
        compiled.append(place)
        raise ClipgsError("stop here")

    monkeypatch.setattr(fit_cuda, "_compile", compile_nothing)
    for constants in (fit_cuda.CONSTANTS, fit_cuda.CONSTANTS, ("-DCLIPGS_BLUR=0.1f", *fit_cuda.CONSTANTS[1:])):
        monkeypatch.setattr(fit_cuda, "CONSTANTS", constants)
        with pytest.raises(ClipgsError, match="stop here"):
            fit_cuda.library.__wrapped__((9, 0), 0)
    assert compiled[0] == compiled[1] != compiled[2]


def test_what_cannot_be_compiled_is_said(monkeypatch, tmp_path):
    with pytest.raises(ClipgsError, match=r"capability 8\.0 or newer, but this one has 7\.5"):
        fit_cuda.library.__wrapped__((7, 5), 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fit_cuda, "find_nvcc", lambda: None)
    with pytest.raises(ClipgsError, match=r"nvcc, which was not found.*CUDA_HOME.*device: cpu"):
        fit_cuda.library.__wrapped__((9, 0), 0)
