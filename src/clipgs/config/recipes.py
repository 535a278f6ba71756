"""Recipes: sets of values for one purpose. A key that the user gives wins over its recipe.

`demo` runs anywhere, offline, in minutes: a laptop's CPU, built-in objects, a teacher trained on them. `paper` is the
paper's: 5,000 steps and EVA-CLIP. `fast` is `paper` with the number of steps in which our fit reaches the quality of
the usual way of fitting (docs/decisions.md).
"""

from typing import Any

RECIPES = ("demo", "fast", "paper")
PAPER = RECIPES.index("paper")

# Dotted key to its value in each recipe, in the order of RECIPES.
KEYS: dict[str, tuple[Any, Any, Any]] = {
    "views.pixels": (128, 256, 256),
    "fit.gaussians": (6_000, 16_000, 16_000),
    "fit.steps": (1_500, 1_500, 5_000),
    "fit.lr_factor": (3.0, 4.0, 2.0),
    "render.pixels": (128, 256, 256),
    "teacher.name": ("train", "EVA02-E-14-plus", "EVA02-E-14-plus"),
    "encoder.size": ("tiny", "base", "base"),
    "encoder.gaussians": (2_048, 10_000, 10_000),
    "encoder.groups": (64, 512, 512),
    "encoder.group_size": (32, 64, 64),
    "encoder.refinement_width": (64, 256, 256),
    "training.epochs": (40, 50, 50),
    "training.batch": (12, 1024, 1024),
    "training.micro_batch": (64, 256, 256),
    "training.lr": (1e-3, 5e-4, 5e-4),
    "evaluation.few_shot_epochs": (0, 30, 30),
}


def values(recipe: str) -> dict[str, Any]:
    """The values of a recipe, nested as the configuration is.

    Raises:
        ValueError: there is no such recipe.
    """
    column = RECIPES.index(recipe)
    nested: dict[str, Any] = {}
    for key, of_recipes in KEYS.items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = of_recipes[column]
    return nested


def fill(given: dict[str, Any], recipe: str) -> dict[str, Any]:
    """`given` (nested) with the recipe's value where a key is missing or null."""
    filled = dict(given)
    for section, of_section in values(recipe).items():
        own = given.get(section) or {}
        if isinstance(own, dict):  # else it is an error, which the check of the types finds
            kept = {name: value for name, value in own.items() if name not in of_section or value not in (None, "null")}
            filled[section] = of_section | kept
    return filled
