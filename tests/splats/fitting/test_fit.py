"""Fitting: what comes out is better than the start, each object's own, and errors name what is wrong."""

import pytest
import torch

from clipgs.core.errors import ObjectError
from clipgs.splats.fitting import fit, prepare
from clipgs.splats.quality import quality
from clipgs.splats.rasterizer import kernels
from tests.splats.balls import SETTINGS, balls


def test_a_fit_improves_on_its_start():
    points, views = balls()
    first = fit(points, views, SETTINGS.model_copy(update={"steps": 1, "lr_factor": 1e-9}))
    fitted = fit(points, views, SETTINGS)
    before, after = quality(first[0], views[0])["psnr"], quality(fitted[0], views[0])["psnr"]
    assert before > 18  # discs of the right colour in the right place are a picture already
    assert after > before + 4
    assert fitted.means.shape == (1, 250, 3)
    assert fitted.colors.min() >= 0
    assert fitted.colors.max() <= 1


def test_an_object_does_not_depend_on_its_batch():
    points, views = balls(3)
    seeds = [5, 6, 7]
    together = fit(points, views, SETTINGS, seeds=seeds)
    for b in range(3):
        alone = fit(points[b : b + 1], views[b : b + 1], SETTINGS, seeds=seeds[b : b + 1])
        for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "colors"):
            assert torch.equal(getattr(together, name)[b], getattr(alone, name)[0])


def test_what_is_prepared_gives_the_same_fit():
    points, views = balls(2)
    prepared = [prepare(points[b], views.rgba.shape[1], SETTINGS, seed) for b, seed in enumerate((5, 6))]
    ahead, at_once = fit(prepared, views, SETTINGS), fit(points, views, SETTINGS, seeds=[5, 6])
    for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "colors"):
        assert torch.equal(getattr(ahead, name), getattr(at_once, name))
    with pytest.raises(ValueError, match="2 objects are prepared, but the views are of 1"):
        fit(prepared, views[:1], SETTINGS)
    with pytest.raises(ValueError, match="have their own seeds"):
        fit(prepared, views, SETTINGS, seeds=[5, 6])


def test_one_prepared_object_that_does_not_stay_finite_leaves_the_others():
    points, views = balls(2)
    settings = SETTINGS.model_copy(update={"steps": 5})
    prepared = [prepare(points[b], views.rgba.shape[1], settings, b) for b in range(2)]
    prepared[0].raw[0, :] = float("nan")
    fitted = fit(prepared, views, settings)
    assert not fitted.means[0].isfinite().all()
    assert fitted.means[1].isfinite().all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_fit_moves_what_has_died(device):
    points, views = balls()
    prepared = prepare(points[0], views.rgba.shape[1], SETTINGS, seed=0)
    prepared.raw[kernels.OPACITIES, 200:] = -9.0
    prepared.raw[: kernels.QUATS, 200:] = 50.0  # far beside every picture: only a move brings them back
    fitted = fit([prepared], views.to(device), SETTINGS)
    assert fitted.means.abs().max() < 1


def test_the_seed_counts():
    points, views = balls()
    first, second = (fit(points, views, SETTINGS, seeds=[seed]) for seed in (1, 2))
    assert not torch.equal(first.means, second.means)


def test_wrong_input_is_named():
    points, views = balls(2)
    with pytest.raises(ValueError, match=r"700 Gaussians.*fit\.gaussians.*600 points.*points\.count"):
        fit(points, views, SETTINGS.model_copy(update={"gaussians": 700}))
    with pytest.raises(ValueError, match="2 objects, views of 1, and there are 2 seeds"):
        fit(points, views[:1], SETTINGS)
    with pytest.raises(ValueError, match="there are 1 seeds"):
        fit(points, views, SETTINGS, seeds=[1])
    points.xyz[1, 3, 0] = float("nan")
    with pytest.raises(ObjectError, match="not finite"):
        fit(points, views, SETTINGS)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    pytest.importorskip("gsplat", reason="needs gsplat")
    points, views = balls(2)
    settings = SETTINGS.model_copy(update={"steps": 300})
    ours = fit(points, views, settings, seeds=[1, 2])
    theirs = fit(points.to("cuda"), views.to("cuda"), settings, seeds=[1, 2]).to("cpu")
    for b in range(2):
        assert abs(quality(ours[b], views[b])["psnr"] - quality(theirs[b], views[b])["psnr"]) < 0.2
