"""The section `training`."""

from typing import Literal, Self

from pydantic import model_validator

from clipgs.config.fields import Section, recipe_setting, section, setting


class Augmentation(Section):
    """Random changes of an object, drawn each time training sees it."""

    rotation: Literal["none", "y", "full"] = setting("y", "name", assumed=True)
    """`y` rotates by any angle about the vertical axis, `full` by any rotation, and `none` not at all."""
    tilt_sigma: float = setting(0.06, "radians", assumed=True, ge=0)
    """A small tilt about each axis, with this standard deviation, is added unless `rotation` is `full`."""
    tilt_clip: float = setting(0.18, "radians", assumed=True, ge=0, le=3.2)
    """The tilt about an axis is at most this large."""
    scale_min: float = setting(0.8, "factor", assumed=True, gt=0)
    """An object is scaled by a random factor of at least this value, the same along all axes."""
    scale_max: float = setting(1.25, "factor", assumed=True, gt=0)
    """The random factor is at most this value."""
    shift: float = setting(0.1, "radii", assumed=True, ge=0)
    """An object is moved by a random distance of up to this value along each axis."""
    color_dropout: float = setting(0.5, "probability", assumed=True, ge=0, le=1)
    """An object turns grey with this probability."""


class Training(Section):
    """One training run of CLIP-GS, on the triplets and their teacher features."""

    run: str = setting("base", "name", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    """The run is written to this folder under runs/."""
    seed: int = setting(0, "integer", ge=0)
    """The first weights, the order of objects, the sampled images and the augmentation follow from this seed."""
    epochs: int = recipe_setting("training.epochs", "epochs", assumed=True, ge=1, le=100_000)
    """Training sees each object this many times."""
    batch: int = recipe_setting("training.batch", "objects", assumed=True, ge=2, le=1_000_000)
    """A step contrasts this many objects with each other, counted over all GPUs."""
    micro_batch: int = recipe_setting("training.micro_batch", "objects", ge=1)
    """A GPU encodes at most this many objects at once. The loss still contrasts the whole batch."""
    views: int = setting(5, "images", ge=1, le=360)
    """A step samples this many images of each object, called K in the paper."""
    image_weight: float = setting(1.0, "weight", ge=0)
    """The loss is L_text + w L_img, with this value as w."""
    image_loss: Literal["voting", "multi_positive"] = setting("voting", "name", assumed=True)
    """L_img is the Image Voting Loss (`voting`), or takes all sampled images of an object as positives of one softmax
    (`multi_positive`), in which the scores have no part."""
    score_norm: Literal["none", "mean_one", "softmax", "uniform"] = setting("none", "name", assumed=True)
    """An image's weight in L_img is its cosine with the text (`none`), that cosine over the object's mean cosine
    (`mean_one`), the softmax of the object's cosines (`softmax`), or 1 (`uniform`)."""
    over_views: Literal["mean", "sum"] = setting("mean", "name", assumed=True)
    """L_img is the mean over the images of an object, or their sum, which weighs K times as much."""
    duplicate_captions: Literal["mask", "paper"] = setting("mask", "name", assumed=True)
    """`mask` leaves objects with the same caption out of each other's negatives in L_text. `paper` keeps them."""
    lr: float = recipe_setting("training.lr", "learning rate", assumed=True, gt=0)
    """The learning rate of AdamW rises to this value."""
    layer_decay: float = setting(0.95, "factor", assumed=True, gt=0, le=1)
    """Each block of the transformer has the learning rate of the next block times this factor."""
    weight_decay: float = setting(0.1, "factor", assumed=True, ge=0)
    """AdamW decays matrices, but no vectors and biases, by this factor times the learning rate."""
    warmup_epochs: float = setting(2.0, "epochs", assumed=True, ge=0)
    """The learning rate rises for this long, and then falls to zero along a cosine."""
    clip_norm: float = setting(5.0, "norm", assumed=True, gt=0)
    """A gradient with a larger norm is scaled down to this norm."""
    precision: Literal["bf16", "fp32"] = setting("bf16", "name")
    """The encoder trains in this precision on CUDA. A CPU always computes in fp32."""
    logit_scale: float | None = setting(None, "factor", assumed=True, gt=0, le=100)
    """Cosines in the loss are multiplied by a learned factor, which starts at this value. null means that of the first
    weights if they have one, and otherwise 14.2857 (1 / 0.07, as in CLIP)."""
    logit_scale_lr: float = setting(10.0, "factor", assumed=True, ge=0)
    """The learning rate of this factor is `lr` times this. With 1 a run of few steps cannot move it."""
    validate_epochs: int = setting(1, "epochs", ge=1)
    """This many epochs lie between two validations."""
    choose_from: int = setting(100, "objects", assumed=True, ge=1)
    """The step with the best validation is kept if the validation split has at least this many objects. Fewer cannot
    tell steps apart, and the last step is kept."""
    augmentation: Augmentation = section(Augmentation)

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        """No setting may be given that nothing reads: two runs would be compared that are one."""
        if self.image_loss == "multi_positive" and self.over_views == "sum":
            raise ValueError("over_views = sum has no part in image_loss = multi_positive: leave it out")
        return self
