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
        KeyError: there is no such recipe.
    """
    if recipe not in RECIPES:
        raise KeyError(recipe)
    nested: dict[str, Any] = {}
    for key, of_recipes in KEYS.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = of_recipes[RECIPES.index(recipe)]
    return nested


def fill(given: Any, recipe: Any) -> Any:
    """`given` (nested) with the recipe's value where a key is missing or null; what is no mapping stays as it is."""
    if not isinstance(given, dict):
        return given
    filled = dict(given)
    for key, value in recipe.items():
        if isinstance(value, dict):
            filled[key] = fill(given.get(key) or {}, value)
        elif given.get(key) is None:
            filled[key] = value
    return filled
