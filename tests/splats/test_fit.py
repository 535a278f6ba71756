"""Fitting: the start, the steps, what is moved, and that an object's result is its own."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from clipgs.config import Fit
from clipgs.core.errors import ObjectError
from clipgs.splats.fitting import CpuFit, evenly_spaced, fit, relocate, start
from clipgs.splats.gaussians import Points, Views
from clipgs.splats.quality import quality
from clipgs.splats.rasterizer import kernels, rasterize

PIXELS = 40
# Few steps of large ones: the rates of real fits suit hundreds.
RATES = {"lr_means": 1.6e-4, "lr_quats": 1e-3, "lr_scales": 5e-3, "lr_opacities": 5e-2, "lr_colors": 1e-2}
SETTINGS = Fit(gaussians=250, steps=60, lr_factor=3.0, disc_opacity=0.9, **RATES)


def balls(objects=1, points=600, views=8):
    """Points on coloured balls, and pictures of them: the colour is where the surface is in space."""
    xyz, viewmats = [], []
    for b in range(objects):
        rng = np.random.default_rng(b)
        normals = rng.normal(size=(points, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        xyz.append(normals * (0.4 + 0.05 * b))
    xyz = torch.tensor(np.stack(xyz), dtype=torch.float32)
    for angle in np.linspace(0, 2 * np.pi, views, endpoint=False):
        c, s = np.cos(angle), np.sin(angle)
        viewmats.append([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 2.0], [0, 0, 0, 1]])
    viewmats = torch.tensor(viewmats, dtype=torch.float32).repeat(objects, 1, 1, 1)
    K = torch.tensor([[PIXELS, 0, PIXELS / 2], [0, PIXELS, PIXELS / 2], [0, 0, 1.0]])
    Ks = K.repeat(objects, views, 1, 1)

    rows, columns = torch.meshgrid(torch.arange(PIXELS) + 0.5, torch.arange(PIXELS) + 0.5, indexing="ij")
    rays = torch.stack([columns / PIXELS - 0.5, rows / PIXELS - 0.5, torch.ones_like(rows)], dim=-1)
    rgba = torch.zeros(objects, views, PIXELS, PIXELS, 4)
    for b in range(objects):
        for v in range(views):
            rotation, translation = viewmats[b, v, :3, :3], viewmats[b, v, :3, 3]
            eye, direction = -rotation.T @ translation, rays @ rotation
            a, h = (direction**2).sum(-1), (direction * eye).sum(-1)
            under_root = h * h - a * ((eye**2).sum() - (0.4 + 0.05 * b) ** 2)
            hit = under_root > 0
            where = eye + direction * ((-h - under_root.clamp_min(0).sqrt()) / a)[..., None]
            rgba[b, v, hit] = torch.cat([where + 0.5, torch.ones(PIXELS, PIXELS, 1)], dim=-1)[hit]
    rgba = (rgba.clamp(0, 1) * 255).round().to(torch.uint8)
    return Points(xyz, xyz + 0.5, xyz / xyz.norm(dim=-1, keepdim=True)), Views(rgba, viewmats, Ks)


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


def test_the_seed_counts():
    points, views = balls()
    first, second = (fit(points, views, SETTINGS, seeds=[seed]) for seed in (1, 2))
    assert not torch.equal(first.means, second.means)


def test_discs_lie_in_the_surface():
    points, _ = balls(points=1000)
    table = start(points.xyz[0].numpy(), points.rgb[0].numpy(), points.normals[0].numpy(), SETTINGS, seed=0)
    w, x, y, z = table[kernels.QUATS : kernels.SCALES].astype(np.float64)
    third_axis = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
    means = table[: kernels.QUATS].T
    np.testing.assert_allclose(third_axis, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    scales = np.exp(table[kernels.SCALES : kernels.OPACITIES])
    np.testing.assert_allclose(scales[0], scales[1])
    np.testing.assert_allclose(scales[2], SETTINGS.disc_thickness * scales[0], rtol=1e-5)
    # 250 points are about 0.08 apart on a ball of radius 0.4
    assert 0.06 < np.median(scales[0] / SETTINGS.disc_spacing) < 0.11
    np.testing.assert_allclose(1 / (1 + np.exp(-table[kernels.COLORS :])), (means.T + 0.5).clip(1e-3, 0.999), atol=1e-5)


def test_the_points_taken_are_spread_over_all():
    xyz = balls(points=4000)[0].xyz[0].numpy()

    def nearest(chosen):
        return cKDTree(xyz[chosen]).query(xyz[chosen], k=2)[0][:, 1]

    even = evenly_spaced(xyz, 1000, np.random.default_rng(0))
    by_chance = np.random.default_rng(0).permutation(4000)[:1000]
    assert len(set(even)) == 1000
    assert nearest(even).mean() > 1.15 * nearest(by_chance).mean()
    assert np.array_equal(even, evenly_spaced(xyz, 1000, np.random.default_rng(0)))


def test_points_in_one_place_are_taken_too():
    assert len(set(evenly_spaced(np.ones((30, 3)), 10, np.random.default_rng(0)))) == 10
    assert len(set(evenly_spaced(np.ones((30, 3)), 30, np.random.default_rng(0)))) == 30


def test_normals_straight_down_or_missing_still_give_a_disc():
    points = np.random.default_rng(0).random((300, 3))
    normals = np.tile([0.0, 0, -1], (300, 1))
    normals[::2] = 0
    table = start(points, points, normals, SETTINGS, seed=0)
    assert np.isfinite(table).all()
    np.testing.assert_allclose(np.linalg.norm(table[kernels.QUATS : kernels.SCALES], axis=0), 1, rtol=1e-5)


def picture(table):
    """A table of raw parameters seen from the front."""
    means, quats, scales, opacities, colors = torch.from_numpy(table.T.copy()).split([3, 4, 3, 1, 3], dim=1)
    viewmat, K = torch.eye(4)[None].clone(), torch.tensor([[[60.0, 0, 20], [0, 60, 20], [0, 0, 1]]])
    viewmat[0, 2, 3] = 2
    return rasterize(means, quats, scales.exp(), opacities[:, 0].sigmoid(), colors.sigmoid(), viewmat, K, 40, 40)[0]


def test_the_dead_are_moved_and_the_picture_stays():
    rng = np.random.default_rng(3)
    table = np.zeros((kernels.PARAMETERS, 60), np.float32)
    table[:2] = rng.uniform(-0.5, 0.5, (2, 60))
    table[kernels.QUATS] = 1
    table[kernels.SCALES : kernels.OPACITIES] = np.log(0.08)
    table[kernels.OPACITIES] = 0.5
    table[kernels.COLORS :] = rng.normal(size=(3, 60))
    table[kernels.OPACITIES, 40:] = -9.0
    moments = np.ones((2, *table.shape), np.float32)
    before, untouched = picture(table), table.copy()

    assert relocate(table, moments, 0.005, np.random.default_rng(0)) == 20
    opacities = 1 / (1 + np.exp(-table[kernels.OPACITIES]))
    assert opacities.min() > 0.005
    moved = np.flatnonzero((table != untouched).any(axis=0))
    assert set(range(40, 60)) <= set(moved)
    assert not moments[:, :, moved].any()
    assert moments[:, :, np.setdiff1d(np.arange(60), moved)].all()
    assert (picture(table) - before).abs().max() < 0.1
    assert (picture(table) - before).abs().mean() < 0.01
    assert relocate(table, moments, 0.005, np.random.default_rng(0)) == 0


def test_a_step_goes_down_the_loss_and_tells_it():
    points, views = balls()
    settings = SETTINGS.model_copy(update={"random_ground": False})
    losses = []

    class Watched(CpuFit):
        def step(self, number):
            losses.append(super().step(number))
            return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fit.__globals__, "CpuFit", Watched)
        fit(points, views, settings)
    assert len(losses) == 60
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])


def test_progress_is_told():
    points, views = balls()
    calls = []
    settings = SETTINGS.model_copy(update={"steps": 250})
    fit(points, views, settings, progress=lambda step, steps: calls.append((step, steps)))
    assert calls == [(100, 250), (200, 250), (250, 250)]


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
