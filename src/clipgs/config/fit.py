"""The section `fit`."""

from typing import Literal

from clipgs.config.fields import Section, recipe_setting, setting


class Fit(Section):
    """One splat per object, fitted to its views by gradient descent."""

    gaussians: int = recipe_setting(
        "fit.gaussians", "Gaussians", "A fit has this many Gaussians from start to end.", ge=16, le=200_000
    )
    steps: int = recipe_setting(
        "fit.steps", "steps", "A fit takes this many steps of Adam, each on one view.", ge=1, le=100_000
    )
    ssim_weight: float = setting(
        0.2, "weight", "The loss is (1 - w) L1 + w (1 - SSIM), with this value as w.", assumed=True, ge=0, le=1
    )
    alpha_weight: float = setting(
        0.2,
        "weight",
        "The loss adds the L1 distance between rendered and true alpha, times this weight.",
        assumed=True,
        ge=0,
    )
    random_ground: bool = setting(
        True,
        "true or false",
        "Each step draws a random background colour, which suppresses floaters. false means white.",
        assumed=True,
    )
    schedule: Literal["cosine", "constant"] = setting(
        "cosine",
        "name",
        "`cosine` lowers the learning rates to 5 % of their start. `constant` keeps them.",
        assumed=True,
    )
    lr_factor: float = recipe_setting(
        "fit.lr_factor", "factor", "All learning rates of a fit are multiplied by this factor.", assumed=True, gt=0
    )
    lr_means: float = setting(
        8e-5, "learning rate", "Adam updates the positions with this learning rate.", assumed=True, gt=0
    )
    lr_scales: float = setting(
        1e-2, "learning rate", "Adam updates the log-scales with this learning rate.", assumed=True, gt=0
    )
    lr_quats: float = setting(
        3e-3, "learning rate", "Adam updates the quaternions with this learning rate.", assumed=True, gt=0
    )
    lr_opacities: float = setting(
        2.5e-2, "learning rate", "Adam updates the opacity logits with this learning rate.", assumed=True, gt=0
    )
    lr_colors: float = setting(
        2e-2, "learning rate", "Adam updates the colour logits with this learning rate.", assumed=True, gt=0
    )
    disc_spacing: float = setting(
        0.8,
        "factor",
        "A Gaussian starts as a disc. Its radius is this factor times the distance to its neighbours.",
        assumed=True,
        gt=0,
    )
    disc_thickness: float = setting(
        0.1,
        "fraction",
        "The disc's thickness along the normal is this fraction of its radius.",
        assumed=True,
        gt=0,
        le=1,
    )
    disc_opacity: float = setting(0.6, "opacity", "Gaussians start with this opacity.", assumed=True, gt=0, lt=1)
    relocate_below: float = setting(
        0.005,
        "opacity",
        "Gaussians with a lower opacity are moved onto visible ones during the fit.",
        assumed=True,
        ge=0,
        lt=1,
    )
    prune_below: float = setting(
        0.004,
        "opacity",
        "Gaussians with a lower opacity are dropped after the fit. Below 1/255 none is ever drawn.",
        assumed=True,
        ge=0,
        lt=1,
    )
    min_psnr: float = setting(
        20.0, "dB", "A splat with a lower PSNR on the held-out views is recorded as failed.", assumed=True, ge=0
    )
