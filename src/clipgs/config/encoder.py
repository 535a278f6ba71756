"""The section `encoder`."""

from typing import Literal, Self

from pydantic import model_validator

from clipgs.config.fields import Section, recipe_setting, setting


class Encoder(Section):
    """The CLIP-GS encoder, which maps a splat to the teacher's embedding space."""

    size: Literal["tiny", "small", "base", "large", "giant"] = recipe_setting("encoder.size", "name")
    """The transformer has the size of this Uni3D model: 6, 23, 88, 307 or 1,017 M parameters."""
    gaussians: int = recipe_setting("encoder.gaussians", "Gaussians", assumed=True, ge=16)
    """The encoder reads at most this many Gaussians of a splat (`choice`)."""
    groups: int = recipe_setting("encoder.groups", "patches", assumed=True, ge=1, le=4096)
    """A splat is divided into this many patches."""
    group_size: int = recipe_setting("encoder.group_size", "Gaussians", assumed=True, ge=1, le=1024)
    """A patch has this many Gaussians."""
    choice: Literal["farthest", "weight"] = setting("farthest", "name", assumed=True)
    """Of a splat with more Gaussians, those that lie farthest from each other are read, or some drawn by opacity times
    area (`weight`), which keeps more of what is seen."""
    min_opacity: float = setting(0.05, "opacity", assumed=True, ge=0, lt=1)
    """Gaussians with a lower opacity are left out."""
    radius_fraction: float = setting(0.99, "fraction", assumed=True, gt=0.5, le=1)
    """A splat is scaled so that this share of its Gaussians lies within radius 1. Uni3D has 1."""
    outlier_radii: float = setting(2.0, "radii", assumed=True, ge=1)
    """Gaussians farther than this from the median position are left out."""
    attributes: list[Literal["position", "color", "opacity", "scale", "rotation"]] = setting(
        ["position", "color", "opacity", "scale", "rotation"], "names"
    )
    """The tokenizer reads the patch centres and these attributes of the Gaussians. Other attributes are set to zero."""
    attribute_encoding: Literal["paper", "standardised", "covariance"] = setting("paper", "name", assumed=True)
    """`paper` reads opacity, scale and rotation through sigmoids and as a matrix. `standardised` reads the opacity and
    the logarithms of the sorted scales, and gives all channels the same weight at first. `covariance` also reads
    rotation as two symmetric matrices, which are equal for equal Gaussians."""
    point_attributes: Literal["position_color", "all"] = setting("position_color", "name")
    """Branch one reads position and colour, or all attributes. Loaded weights get zeros for attributes that they
    lack."""
    patch_pooling: Literal["max", "weighted"] = setting("max", "name", assumed=True)
    """Both branches take the maximum over the Gaussians of a patch. `weighted` adds their mean, weighted by opacity
    times area."""
    texture: bool = setting(False, "true or false", assumed=True)
    """Branch two also reads how the colours of a patch vary: their covariance, and where they grow brighter."""
    refinement: bool = setting(True, "true or false")
    """The tokenizer includes branch two, the GS Refinement Block."""
    refinement_along: Literal["patches", "gaussians"] = setting("patches", "name", assumed=True)
    """The convolutions of the refinement block run along the patches of a splat, or along the Gaussians inside each
    patch, which takes far longer."""
    refinement_width: int = recipe_setting("encoder.refinement_width", "channels", assumed=True, ge=8, le=4096)
    """The convolutions of the refinement block have this many channels."""
    orders: list[Literal["xyz", "z", "z-trans", "hilbert", "hilbert-trans"]] = setting(
        ["xyz", "hilbert", "z"], "names", assumed=True, min_length=1
    )
    """The convolutions of the refinement block run along the patches, or along their Gaussians, in these orders."""
    order_fusion: Literal["average", "concatenate", "sample"] = setting("average", "name", assumed=True)
    """The results of the orders are averaged or concatenated. `sample` trains on one random order per object and step
    (along Gaussians: per part of a batch), and encodes with the average of all."""
    order_depth: int = setting(10, "bits", assumed=True, ge=1, le=16)
    """Each coordinate of a patch centre is rounded to this many bits before the patches are ordered."""
    batch_norm: Literal["sync", "local", "frozen"] = setting("sync", "name", assumed=True)
    """Batch norms take statistics of all processes (`sync`), of one process (`local`), or of the first weights
    (`frozen`)."""
    drop_path: float = setting(0.2, "probability", assumed=True, ge=0, lt=1)
    """Training skips branches of the last block with this probability, and of earlier blocks less often."""
    patch_dropout: float = setting(0.5, "fraction", assumed=True, ge=0, lt=1)
    """Training drops this share of the patches."""
    initialisation: Literal["uni3d", "eva02", "points", "none"] = setting("none", "name")
    """The first weights are Uni3D's (`uni3d`), those of timm's EVA-02 (`eva02`) or of a point encoder trained by a run
    (`points`), or random (`none`)."""
    weights: str | None = setting(None, "path")
    """The first weights are read from this file, or for `points` from a run's folder. null means a download from timm,
    for `eva02` only."""

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        """No setting may be given that nothing reads: two runs would be compared that are one."""
        if self.texture and not (self.refinement and self.refinement_along == "patches"):
            raise ValueError("texture is read by a refinement block along patches: leave it out")
        if self.patch_pooling == "weighted" and self.refinement and self.refinement_along == "gaussians":
            raise ValueError(
                "patch_pooling = weighted has no part in a refinement block along gaussians: set it to max"
            )
        return self
