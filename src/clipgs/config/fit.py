"""The section `fit`."""

from typing import Literal

from clipgs.config.fields import Section, recipe_setting, setting


class Fit(Section):
    """One splat per object, fitted to its views by gradient descent."""

    gaussians: int = recipe_setting("fit.gaussians", "Gaussians", ge=16, le=200_000)
    """A fit has this many Gaussians from start to end."""
    steps: int = recipe_setting("fit.steps", "steps", ge=1, le=100_000)
    """A fit takes this many steps of Adam, each on one view."""
    ssim_weight: float = setting(0.2, "weight", assumed=True, ge=0, le=1)
    """The loss is (1 - w) L1 + w (1 - SSIM), with this value as w."""
    alpha_weight: float = setting(0.2, "weight", assumed=True, ge=0)
    """The loss adds the L1 distance between rendered and true alpha, times this weight."""
    random_ground: bool = setting(True, "true or false", assumed=True)
    """Each step draws a random background colour, which suppresses floaters. false means white."""
    schedule: Literal["cosine", "constant"] = setting("cosine", "name", assumed=True)
    """`cosine` lowers the learning rates to 5 % of their start. `constant` keeps them."""
    lr_factor: float = recipe_setting("fit.lr_factor", "factor", assumed=True, gt=0)
    """All learning rates of a fit are multiplied by this factor."""
    lr_means: float = setting(8e-5, "learning rate", assumed=True, gt=0)
    """Adam updates the positions with this learning rate."""
    lr_scales: float = setting(1e-2, "learning rate", assumed=True, gt=0)
    """Adam updates the log-scales with this learning rate."""
    lr_quats: float = setting(3e-3, "learning rate", assumed=True, gt=0)
    """Adam updates the quaternions with this learning rate."""
    lr_opacities: float = setting(2.5e-2, "learning rate", assumed=True, gt=0)
    """Adam updates the opacity logits with this learning rate."""
    lr_colors: float = setting(2e-2, "learning rate", assumed=True, gt=0)
    """Adam updates the colour logits with this learning rate."""
    disc_spacing: float = setting(0.8, "factor", assumed=True, gt=0)
    """A Gaussian starts as a disc. Its radius is this factor times the distance to its neighbours."""
    disc_thickness: float = setting(0.1, "fraction", assumed=True, gt=0, le=1)
    """The disc's thickness along the normal is this fraction of its radius."""
    disc_opacity: float = setting(0.6, "opacity", assumed=True, gt=0, lt=1)
    """Gaussians start with this opacity."""
    relocate_below: float = setting(0.005, "opacity", assumed=True, ge=0, lt=1)
    """Gaussians with a lower opacity are moved onto visible ones during the fit."""
    prune_below: float = setting(0.004, "opacity", assumed=True, ge=0, lt=1)
    """Gaussians with a lower opacity are dropped after the fit. Below 1/255 none is ever drawn."""
    min_psnr: float = setting(20.0, "dB", assumed=True, ge=0)
    """A splat with a lower PSNR on the held-out views is recorded as failed."""
