"""The configuration as commented YAML and as JSON schema."""

import json
from typing import Any, get_args

from pydantic import BaseModel

from clipgs.config.recipes import KEYS, RECIPES
from clipgs.config.sections import Config


def schema() -> str:
    """The JSON schema of the configuration, for editors that check YAML against one."""
    made = Config.model_json_schema()
    for dotted in KEYS:
        *sections, last = dotted.split(".")
        place = made
        for name in sections:
            field = place["properties"][name]
            place = made["$defs"][field["$ref"].rpartition("/")[2]]
        own = place["properties"][last]
        limits = {name: own.pop(name) for name in list(own) if name not in ("default", "description", "title")}
        place["properties"][last] = {"anyOf": [limits, {"type": "null"}], **own}
    return json.dumps(made, indent=2) + "\n"


def to_yaml(recipe: str = "paper") -> str:
    """The whole configuration as commented YAML: every key with its value, unit and meaning.

    A key that the recipe gives is null; its comment says what each recipe makes of it.
    """
    lines = []

    def write(model: type[BaseModel], depth: int, prefix: str) -> None:
        for name, field in model.model_fields.items():
            indent = "  " * depth
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                lines.append(
                    f"{indent}{name}:  # {field.description}" if depth else f"\n{name}:  # {field.description}"
                )
                write(field.annotation, depth + 1, f"{prefix}{name}.")
                continue
            value = field.get_default(call_default_factory=True)
            value = list(value) if isinstance(value, tuple) else value
            extra: Any = field.json_schema_extra
            comment = f"{extra['unit']}: {field.description}"
            choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
            comment += f" ({' | '.join(choices)})" if choices else ""
            if prefix + name in KEYS:
                value = None
                comment += f"; null: the recipe's, {_of_recipes(KEYS[prefix + name])}"
            comment += "  # assumed" if extra["assumed"] else ""
            value = recipe if prefix + name == "recipe" else value
            lines.append(f"{indent}{name}: {json.dumps(value)}  # {comment}")

    write(Config, 0, "")
    return "\n".join(lines).lstrip() + "\n"


def _of_recipes(values: tuple[Any, ...]) -> str:
    """`128 in demo, 256 in fast and paper`."""
    recipes: dict[Any, list[str]] = {}
    for recipe, value in zip(RECIPES, values, strict=True):
        recipes.setdefault(value, []).append(recipe)
    return ", ".join(f"{value} in {' and '.join(names)}" for value, names in recipes.items())
