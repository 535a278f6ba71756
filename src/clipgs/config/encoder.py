"""The section `encoder`."""

from typing import Literal

from clipgs.config.fields import Section, recipe_setting, setting


class Encoder(Section):
    """CLIP-GS: a splat to an embedding in the teacher's space."""

    size: Literal["tiny", "small", "base", "large", "giant"] = recipe_setting(
        "encoder.size", "name", "of the transformer, as Uni3D's: 6, 23, 88, 307 or 1,017 M parameters"
    )
    gaussians: int = recipe_setting(
        "encoder.gaussians",
        "Gaussians",
        "most that are read of an object; of more, those farthest apart",
        assumed=True,
        ge=16,
    )
    groups: int = recipe_setting("encoder.groups", "patches", "of an object", assumed=True, ge=1, le=4096)
    group_size: int = recipe_setting("encoder.group_size", "Gaussians", "in a patch", assumed=True, ge=1, le=1024)
    min_opacity: float = setting(0.05, "alpha", "more transparent Gaussians are left out", assumed=True, ge=0, lt=1)
    radius_fraction: float = setting(
        0.99, "fraction", "of the Gaussians lie within radius 1; 1 as in Uni3D", assumed=True, gt=0.5, le=1
    )
    outlier_radii: float = setting(2.0, "radii", "Gaussians farther from the median are left out", assumed=True, ge=1)
    attributes: list[Literal["position", "color", "opacity", "scale", "rotation"]] = setting(
        ["position", "color", "opacity", "scale", "rotation"],
        "names",
        "what is read of a Gaussian besides the patch's centre; what is left out is zero",
    )
    point_attributes: Literal["position_color", "all"] = setting(
        "position_color", "name", "what branch one reads; all: those of branch two, with weights that start at zero"
    )
    refinement: bool = setting(True, "switch", "branch two, the GS Refinement Block")
    refinement_width: int = recipe_setting(
        "encoder.refinement_width", "channels", "of its convolutions", assumed=True, ge=8, le=4096
    )
    orders: list[Literal["xyz", "z", "z-trans", "hilbert", "hilbert-trans"]] = setting(
        ["xyz", "hilbert", "z"], "names", "along which its convolutions run", assumed=True, min_length=1
    )
    order_fusion: Literal["average", "concatenate", "sample"] = setting(
        "average", "name", "what becomes of the orders; sample: one an object and step, all when encoding", assumed=True
    )
    order_depth: int = setting(10, "bits", "of a cell's coordinates", assumed=True, ge=1, le=16)
    batch_norm: Literal["sync", "local", "frozen"] = setting(
        "sync", "name", "statistics of all processes' batches, of each one's own, or the start's", assumed=True
    )
    drop_path: float = setting(
        0.2, "fraction", "of the last block's branches left out in training, less before", assumed=True, ge=0, lt=1
    )
    patch_dropout: float = setting(0.5, "fraction", "of the patches left out in training", assumed=True, ge=0, lt=1)
    initialisation: Literal["uni3d", "eva02", "points", "none"] = setting(
        "none", "name", "first weights: Uni3D's, timm's image model, our own point encoder's (a run), or random ones"
    )
    weights: str | None = setting(
        None, "path", "their file, or for points the run's folder; eva02 without one: timm's own download"
    )
