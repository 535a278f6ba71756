"""The section `training`."""

from typing import Literal

from clipgs.config.fields import Section, recipe_setting, section, setting


class Augmentation(Section):
    """What an object is turned into, anew each time it is seen."""

    rotation: Literal["none", "y", "full"] = setting(
        "y", "name", "y: by any angle about the vertical; full: any rotation", assumed=True
    )
    tilt_sigma: float = setting(
        0.06, "radians", "a small rotation about each axis on top, standard deviation", assumed=True, ge=0
    )
    tilt_clip: float = setting(0.18, "radians", "and its largest", assumed=True, ge=0, le=3.2)
    scale_min: float = setting(0.8, "factor", "smallest size, the same along all axes", assumed=True, gt=0)
    scale_max: float = setting(1.25, "factor", "largest size", assumed=True, gt=0)
    shift: float = setting(0.1, "radii", "largest shift along each axis", assumed=True, ge=0)
    color_dropout: float = setting(0.5, "probability", "of an object that loses its colours", assumed=True, ge=0, le=1)


class Training(Section):
    """CLIP-GS, trained on the triplets and their features: one run."""

    run: str = setting(
        "base", "name", "the run's folder under runs/", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$"
    )
    seed: int = setting(0, "seed", "of the weights, the order, the views and the augmentation", ge=0)
    epochs: int = recipe_setting(
        "training.epochs", "epochs", "how often each object is seen", assumed=True, ge=1, le=100_000
    )
    batch: int = recipe_setting(
        "training.batch",
        "objects",
        "in a step, over all GPUs: each is contrasted with all others",
        assumed=True,
        ge=1,
        le=1_000_000,
    )
    micro_batch: int = recipe_setting(
        "training.micro_batch",
        "objects",
        "on a GPU at once; a larger share is computed in parts, and contrasted whole",
        ge=1,
    )
    views: int = setting(5, "views", "pictures of each object in a step: K", ge=1, le=360)
    image_weight: float = setting(1.0, "weight", "loss L_text + w L_img", ge=0)
    score_norm: Literal["none", "mean_one", "softmax"] = setting(
        "none",
        "name",
        "weight S of a view: its cosine with the text; over the mean of the object's views; or their softmax",
        assumed=True,
    )
    duplicate_captions: Literal["mask", "paper"] = setting(
        "mask", "name", "mask: objects of the same caption are no negatives of each other's text", assumed=True
    )
    lr: float = recipe_setting("training.lr", "a step", "largest learning rate of AdamW", assumed=True, gt=0)
    layer_decay: float = setting(
        0.95, "factor", "on the learning rate of each earlier block of the transformer", assumed=True, gt=0, le=1
    )
    weight_decay: float = setting(0.1, "a step", "of AdamW, on matrices", assumed=True, ge=0)
    warmup_epochs: float = setting(
        2.0, "epochs", "of a growing learning rate, before it falls along a cosine", assumed=True, ge=0
    )
    clip_norm: float = setting(5.0, "norm", "largest gradient of a step", assumed=True, gt=0)
    precision: Literal["bf16", "fp32"] = setting("bf16", "name", "of the arithmetic on CUDA; a CPU computes in fp32")
    logit_scale: float = setting(14.2857, "factor", "on the cosines at the start; it is learnt", assumed=True, gt=0)
    validate_epochs: int = setting(1, "epochs", "between two looks at the validation split", ge=1)
    augmentation: Augmentation = section(Augmentation)
