"""The configuration as commented YAML, as JSON schema and as a page of the documentation."""

import json
import re
import textwrap
from typing import Any, get_args

from clipgs.config.fields import Section, meaning, section_of
from clipgs.config.recipes import KEYS, RECIPES
from clipgs.config.sections import Config

WIDTH = 120  # characters of a line


def schema() -> str:
    """The JSON schema of the configuration, for editors that check YAML against one."""
    made = Config.model_json_schema()
    for dotted in KEYS:
        section, key = dotted.split(".")
        properties = made["$defs"][made["properties"][section]["$ref"].rpartition("/")[2]]["properties"]
        own = properties[key]
        limits = {name: own.pop(name) for name in list(own) if name not in ("default", "description", "title")}
        own["description"] = _with_recipes(meaning(own["description"]), dotted)
        properties[key] = {"anyOf": [limits, {"type": "null"}], **own}
    return json.dumps(made, indent=2) + "\n"


def to_yaml(recipe: str = "paper") -> str:
    """The whole configuration as YAML: above each key its meaning, after its value the unit or the choices.

    A key that the recipe gives is null; its meaning ends with the value in each recipe.
    """
    lines: list[str] = []

    def write(model: type[Section], depth: int, prefix: str) -> None:
        indent = "  " * depth
        for name, field in model.model_fields.items():
            key, text = prefix + name, meaning(field.description)
            if section := section_of(field):
                lines.extend(["", f"{indent}{name}:  # {text}"])
                write(section, depth + 1, f"{key}.")
                lines.append("")
                continue
            value = recipe if key == "recipe" else None if key in KEYS else field.get_default()
            extra: Any = field.json_schema_extra
            comment = "  # " + (" | ".join(_choices(field.annotation)) or extra["unit"])
            comment += "  # assumed" if extra["assumed"] else ""
            wrapped = textwrap.wrap(_with_recipes(text, key), WIDTH - len(indent) - 2, break_on_hyphens=False)
            lines.extend(f"{indent}# {part}" for part in wrapped)
            line = f"{indent}{name}: {json.dumps(value)}{comment}"
            if isinstance(value, list) and len(line) > WIDTH:
                lines.append(f"{indent}{name}:{comment}")
                lines.extend(f"{indent}  - {json.dumps(item)}" for item in value)
            elif isinstance(value, str) and len(line) > WIDTH:
                lines.append(f"{indent}{name}: >-{comment}")
                lines.extend(textwrap.wrap(value, WIDTH, initial_indent=f"{indent}  ", subsequent_indent=f"{indent}  "))
            else:
                lines.append(line)

    write(Config, 0, "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def to_markdown() -> str:
    """Every setting as a `confval` of Sphinx, below a heading for each section: type, limits, default, meaning."""
    parts: list[str] = []

    def write(model: type[Section], prefix: str) -> None:
        types = model.model_json_schema()["properties"]
        sections = {name: found for name, field in model.model_fields.items() if (found := section_of(field))}
        for name, field in model.model_fields.items():
            if name in sections:
                continue
            key = prefix + name
            extra: Any = field.json_schema_extra
            default = json.dumps(None if key in KEYS else field.get_default())
            kind = _kind(types[name])
            unit = "" if _choices(field.annotation) or extra["unit"] in kind else f" ({extra['unit']})"
            assumed = "\n\nThe paper leaves it open." if extra["assumed"] else ""
            text = _with_recipes(meaning(field.description), key)
            parts.append(f"```{{confval}} {key}\n:type: {kind}{unit}\n:default: `{default}`\n\n{text}{assumed}\n```")
        for name, found in sections.items():
            about = meaning(model.model_fields[name].description)
            parts.append(f"##{'#' * prefix.count('.')} {prefix}{name}\n\n{about}")
            write(found, f"{prefix}{name}.")

    write(Config, "")
    return "\n\n".join(parts) + "\n"


_LIMITS = {"minimum": "at least", "exclusiveMinimum": "over", "maximum": "at most", "exclusiveMaximum": "under"}
_KINDS = {"boolean": "true or false", "string": "text", "object": "mapping"}


def _kind(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words: `integer, at least 1`."""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(schema["enum"])
    kind = schema["type"]
    if kind == "array":
        return f"list, each: {_kind(schema.get('items') or schema['prefixItems'][0])}"
    return ", ".join(
        [_KINDS.get(kind, kind), *(f"{word} {schema[name]}" for name, word in _LIMITS.items() if name in schema)]
    )


def _choices(annotation: Any) -> list[str]:
    """The values that a setting, or each item of a list, may have, where they are names."""
    found: list[str] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str) else _choices(argument)
    return found


def _with_recipes(meaning: str, key: str) -> str:
    """Adds what null means, where a recipe gives the key: `null means 128 in demo, 256 in fast and paper.`"""
    if key not in KEYS:
        return meaning
    recipes: dict[Any, list[str]] = {}
    for recipe, value in zip(RECIPES, KEYS[key], strict=True):
        recipes.setdefault(value, []).append(recipe)
    values = ", ".join(f"{value} in {' and '.join(names)}" for value, names in recipes.items())
    return f"{meaning} null means {values}."
