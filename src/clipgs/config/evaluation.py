"""The section `evaluation`."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from clipgs.config.fields import Section, recipe_setting, section, setting


class Baselines(Section):
    """Files of other people's models, to be measured on the same objects; null: the row stays empty."""

    uni3d: str | None = setting(None, "path", "checkpoint of Uni3D")
    openshape: str | None = setting(None, "path", "checkpoint of OpenShape's PointBERT")
    ulip2: str | None = setting(None, "path", "checkpoint of ULIP-2's coloured PointBERT")
    eva02_e_14_plus: str | None = setting(
        None, "path", "weights of Uni3D's teacher EVA02-E-14-plus; download: fetch them"
    )
    vit_bigg_14: str | None = setting(
        None, "path", "weights of OpenShape's and ULIP-2's teacher ViT-bigG-14; download: fetch them"
    )


class Evaluation(Section):
    """How well a run does: retrieval, zero-shot and few-shot classification. Protocols: docs/protocols.md."""

    split: Literal["test", "validation", "train", "all"] = setting(
        "test", "name", "whose objects are the gallery, and are asked about"
    )
    pictures: list[Literal["splats", "meshes"]] = setting(
        ["splats", "meshes"],
        "names",
        "whose pictures are asked with; those that the teacher has not seen go through it now, if they are kept",
        min_length=1,
    )
    per: Literal["object", "group"] = setting(
        "object", "name", "gallery: every object, or one of each group of one shape", assumed=True
    )
    seed: int = setting(0, "seed", "of pictures that stand for objects, episodes and intervals", ge=0)
    resamples: int = setting(1000, "samples", "of the bootstrap, for intervals", ge=2, le=100_000)
    templates: str | None = setting(
        None, "path", "prompts for the names of classes: lines with {}; default: our own", assumed=True
    )
    classes: str | None = setting(
        None,
        "path",
        "names of the classes, one a line; default: those of LVIS for Objaverse, else all categories there are",
    )
    class_names: Literal["spoken", "raw"] = setting(
        "spoken", "name", "spoken: teddy bear for teddy_bear; raw: as the names are", assumed=True
    )
    few_shot: list[Annotated[str, StringConstraints(pattern=r"^[1-9]\d*-way [1-9]\d*-shot$")]] = setting(
        ["5-way 5-shot", "10-way 5-shot", "20-way 5-shot", "50-way 5-shot", "10-way 10-shot"],
        "cells",
        "episodes of so many classes with so many objects of each to learn from",
    )
    few_shot_support: Literal["train", "same"] = setting(
        "train", "name", "which split is learnt from; same: the one that is asked about, other groups", assumed=True
    )
    few_shot_queries: int = setting(20, "objects", "asked about of each class, or what there is", ge=1, le=10_000)
    few_shot_strict: bool = setting(False, "switch", "leave out classes with fewer")
    few_shot_epochs: int = recipe_setting(
        "evaluation.few_shot_epochs",
        "epochs",
        "of fine-tuning the encoder on an episode's objects; 0: only a classifier on its frozen embeddings",
        assumed=True,
        ge=0,
        le=10_000,
    )
    few_shot_lr: float = setting(1e-4, "a step", "largest learning rate of fine-tuning", assumed=True, gt=0)
    baselines: Baselines = section(Baselines)
    examples: int = setting(8, "queries", "of each kind shown with their nearest objects", ge=0, le=100)
