"""The section `training`."""

from typing import Literal

from clipgs.config.fields import Section, recipe_setting, section, setting


class Augmentation(Section):
    """Random changes of an object, drawn each time training sees it."""

    rotation: Literal["none", "y", "full"] = setting(
        "y",
        "name",
        "`y` rotates by any angle about the vertical axis, `full` by any rotation, and `none` not at all.",
        assumed=True,
    )
    tilt_sigma: float = setting(
        0.06,
        "radians",
        "A small tilt about each axis, with this standard deviation, is added unless `rotation` is `full`.",
        assumed=True,
        ge=0,
    )
    tilt_clip: float = setting(
        0.18, "radians", "The tilt about an axis is at most this large.", assumed=True, ge=0, le=3.2
    )
    scale_min: float = setting(
        0.8,
        "factor",
        "An object is scaled by a random factor of at least this value, the same along all axes.",
        assumed=True,
        gt=0,
    )
    scale_max: float = setting(1.25, "factor", "The random factor is at most this value.", assumed=True, gt=0)
    shift: float = setting(
        0.1, "radii", "An object is moved by a random distance of up to this value along each axis.", assumed=True, ge=0
    )
    color_dropout: float = setting(
        0.5, "probability", "An object turns grey with this probability.", assumed=True, ge=0, le=1
    )


class Training(Section):
    """One training run of CLIP-GS, on the triplets and their teacher features."""

    run: str = setting(
        "base",
        "name",
        "The run is written to this folder under runs/.",
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9_.-]+$",
    )
    seed: int = setting(
        0,
        "integer",
        "The first weights, the order of objects, the sampled images and the augmentation follow from this seed.",
        ge=0,
    )
    epochs: int = recipe_setting(
        "training.epochs", "epochs", "Training sees each object this many times.", assumed=True, ge=1, le=100_000
    )
    batch: int = recipe_setting(
        "training.batch",
        "objects",
        "A step contrasts this many objects with each other, counted over all GPUs.",
        assumed=True,
        ge=1,
        le=1_000_000,
    )
    micro_batch: int = recipe_setting(
        "training.micro_batch",
        "objects",
        "A GPU encodes at most this many objects at once. The loss still contrasts the whole batch.",
        ge=1,
    )
    views: int = setting(
        5, "images", "A step samples this many images of each object, called K in the paper.", ge=1, le=360
    )
    image_weight: float = setting(1.0, "weight", "The loss is L_text + w L_img, with this value as w.", ge=0)
    score_norm: Literal["none", "mean_one", "softmax"] = setting(
        "none",
        "name",
        "An image's weight in L_img is its cosine with the text (`none`), that cosine over the object's mean "
        "cosine (`mean_one`), or the softmax of the object's cosines (`softmax`).",
        assumed=True,
    )
    duplicate_captions: Literal["mask", "paper"] = setting(
        "mask",
        "name",
        "`mask` leaves objects with the same caption out of each other's negatives in L_text. `paper` keeps them.",
        assumed=True,
    )
    lr: float = recipe_setting(
        "training.lr", "learning rate", "The learning rate of AdamW rises to this value.", assumed=True, gt=0
    )
    layer_decay: float = setting(
        0.95,
        "factor",
        "Each block of the transformer has the learning rate of the next block times this factor.",
        assumed=True,
        gt=0,
        le=1,
    )
    weight_decay: float = setting(
        0.1,
        "factor",
        "AdamW decays matrices, but no vectors and biases, by this factor times the learning rate.",
        assumed=True,
        ge=0,
    )
    warmup_epochs: float = setting(
        2.0,
        "epochs",
        "The learning rate rises for this long, and then falls to zero along a cosine.",
        assumed=True,
        ge=0,
    )
    clip_norm: float = setting(
        5.0, "norm", "A gradient with a larger norm is scaled down to this norm.", assumed=True, gt=0
    )
    precision: Literal["bf16", "fp32"] = setting(
        "bf16", "name", "The encoder trains in this precision on CUDA. A CPU always computes in fp32."
    )
    logit_scale: float = setting(
        14.2857,
        "factor",
        "Cosines in the loss are multiplied by a learned factor, which starts at this value.",
        assumed=True,
        gt=0,
    )
    validate_epochs: int = setting(1, "epochs", "This many epochs lie between two validations.", ge=1)
    augmentation: Augmentation = section(Augmentation)
