"""The section `fit`."""

from typing import Literal

from clipgs.config.fields import Section, recipe_setting, setting


class Fit(Section):
    """One splat an object, by gradient descent on its views."""

    gaussians: int = recipe_setting("fit.gaussians", "Gaussians", "a fixed number an object", ge=16, le=200_000)
    steps: int = recipe_setting("fit.steps", "steps", "steps of Adam, one view each", ge=1, le=100_000)
    ssim_weight: float = setting(0.2, "weight", "loss (1 - w) L1 + w (1 - SSIM)", assumed=True, ge=0, le=1)
    alpha_weight: float = setting(0.2, "weight", "of the L1 between the alphas", assumed=True, ge=0)
    random_ground: bool = setting(True, "switch", "a random ground colour each step, against floaters", assumed=True)
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "name", "of the learning rates; cosine ends at 5 %", assumed=True
    )
    lr_factor: float = recipe_setting("fit.lr_factor", "factor", "on all learning rates", assumed=True, gt=0)
    lr_means: float = setting(8e-5, "a step", "learning rate of the positions", assumed=True, gt=0)
    lr_scales: float = setting(1e-2, "a step", "learning rate of the log-scales", assumed=True, gt=0)
    lr_quats: float = setting(3e-3, "a step", "learning rate of the quaternions", assumed=True, gt=0)
    lr_opacities: float = setting(2.5e-2, "a step", "learning rate of the opacity logits", assumed=True, gt=0)
    lr_colors: float = setting(2e-2, "a step", "learning rate of the colour logits", assumed=True, gt=0)
    disc_spacing: float = setting(0.8, "spacings", "first radius of a Gaussian", assumed=True, gt=0)
    disc_thickness: float = setting(0.1, "of the radius", "first thickness along the normal", assumed=True, gt=0, le=1)
    disc_opacity: float = setting(0.6, "alpha", "first opacity", assumed=True, gt=0, lt=1)
    relocate_below: float = setting(
        0.005, "alpha", "more transparent Gaussians are moved to where they help", assumed=True, ge=0, lt=1
    )
    prune_below: float = setting(
        0.004,
        "alpha",
        "more transparent Gaussians are not written; under 1/255 none is drawn",
        assumed=True,
        ge=0,
        lt=1,
    )
    min_psnr: float = setting(20.0, "dB", "held-out quality below this is a failed row", assumed=True, ge=0)
