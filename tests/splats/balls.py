"""Coloured balls (points on them, views of them, and settings that fit them in seconds), and random Gaussians."""

import numpy as np
import torch

from clipgs.config import Fit
from clipgs.splats.gaussians import Gaussians, Points, Views
from clipgs.splats.rasterizer import kernels, rasterize

PIXELS = 40
# Few steps of large ones: the rates of real fits suit hundreds.
RATES = {"lr_means": 1.6e-4, "lr_quats": 1e-3, "lr_scales": 5e-3, "lr_opacities": 5e-2, "lr_colors": 1e-2}
SETTINGS = Fit(gaussians=250, steps=60, lr_factor=3.0, disc_opacity=0.9, **RATES)


def random_gaussians(rows: int, seed: int = 0) -> Gaussians:
    random = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(rows, 3, generator=random),
        quats_wxyz=torch.randn(rows, 4, generator=random),
        log_scales=torch.randn(rows, 3, generator=random) - 4,
        opacity_logits=torch.randn(rows, generator=random),
        colors=torch.rand(rows, 3, generator=random),
    )


def balls(objects=1, points=600, views=8):
    """Points on coloured balls, and views of them: the colour is the position in space."""
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


def picture(table):
    """A table of raw parameters seen from the front."""
    means, quats, scales, opacities, colors = torch.from_numpy(table.T.copy()).split(kernels.PARTS, dim=1)
    viewmat, K = torch.eye(4)[None].clone(), torch.tensor([[[60.0, 0, 20], [0, 60, 20], [0, 0, 1]]])
    viewmat[0, 2, 3] = 2
    return rasterize(means, quats, scales.exp(), opacities[:, 0].sigmoid(), colors.sigmoid(), viewmat, K, 40, 40)[0]
