"""The section `evaluation`."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from clipgs.config.fields import Section, recipe_setting, section, setting


class Baselines(Section):
    """Published models, measured on the same objects; null leaves the model's row of the table empty."""

    uni3d: str | None = setting(None, "path")
    """This file is a checkpoint of Uni3D."""
    openshape: str | None = setting(None, "path")
    """This file is a checkpoint of OpenShape's PointBERT."""
    ulip2: str | None = setting(None, "path")
    """This file is a checkpoint of ULIP-2's coloured PointBERT."""
    eva02_e_14_plus: str | None = setting(None, "path")
    """This file has the weights of EVA02-E-14-plus, Uni3D's teacher. `download` fetches them."""
    vit_bigg_14: str | None = setting(None, "path")
    """This file has the weights of ViT-bigG-14, the teacher of OpenShape and ULIP-2. `download` fetches them."""


class Evaluation(Section):
    """Retrieval, zero-shot and few-shot classification of a run; docs/protocols.md describes the protocols."""

    split: Literal["test", "validation", "train", "all"] = setting("test", "name")
    """The gallery and the queries are the objects of this split."""
    pictures: list[Literal["splats", "meshes"]] = setting(["splats", "meshes"], "names", min_length=1)
    """Image queries are renders of the splats, views of the meshes, or both. Missing teacher features are computed if
    the image files are kept."""
    per: Literal["object", "group"] = setting("object", "name", assumed=True)
    """The gallery has every object, or one object of each group (objects of the same shape)."""
    seed: int = setting(0, "integer", ge=0)
    """The choice of query images, the episodes and the confidence intervals follow from this seed."""
    resamples: int = setting(1000, "samples", ge=2, le=100_000)
    """Confidence intervals come from this many bootstrap samples."""
    templates: str | None = setting(None, "path", assumed=True)
    """This file has one prompt per line, with {} for the class name. null means built-in prompts."""
    classes: str | None = setting(None, "path")
    """This file has one class name per line. null means the LVIS categories for Objaverse, and otherwise all categories
    of the dataset."""
    class_names: Literal["spoken", "raw"] = setting("spoken", "name", assumed=True)
    """`spoken` turns teddy_bear into teddy bear. `raw` leaves class names as they are."""
    zeroed: list[Literal["position", "color", "opacity", "scale", "rotation"]] = setting([], "names")
    """Each of these attributes is set to zero in turn and the gallery encoded again. What retrieval loses is what the
    encoder has from that attribute."""
    few_shot: list[Annotated[str, StringConstraints(pattern=r"^([2-9]|[1-9]\d+)-way [1-9]\d*-shot$")]] = setting(
        ["5-way 5-shot", "10-way 5-shot", "20-way 5-shot", "50-way 5-shot", "10-way 10-shot"], "episodes"
    )
    """Each entry is a kind of few-shot episode: the number of classes (way, 2 or more), and of support objects per
    class (shot)."""
    few_shot_support: Literal["train", "same"] = setting("train", "name", assumed=True)
    """Support objects come from the training split (`train`), or from other groups of the evaluated split (`same`)."""
    few_shot_queries: int = setting(20, "objects", ge=1, le=10_000)
    """A class in an episode has up to this many query objects."""
    few_shot_strict: bool = setting(False, "true or false")
    """Classes with fewer query objects are left out."""
    few_shot_epochs: int = recipe_setting("evaluation.few_shot_epochs", "epochs", assumed=True, ge=0, le=10_000)
    """Each episode fine-tunes the encoder for this many epochs. 0 means only a classifier on frozen embeddings."""
    few_shot_lr: float = setting(1e-4, "learning rate", assumed=True, gt=0)
    """The learning rate of fine-tuning rises to this value."""
    baselines: Baselines = section(Baselines)
    examples: int = setting(8, "queries", ge=0, le=100)
    """The report shows this many queries of each task, with the objects nearest to them."""
