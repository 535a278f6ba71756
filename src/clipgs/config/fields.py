"""What a section of the configuration is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from clipgs.config.recipes import KEYS, PAPER


class Section(BaseModel):
    """Settings of one subject. The docstring below a setting is its meaning, in plain sentences."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True
    )


def setting(default: Any, unit: str, *, assumed: bool = False, runtime: bool = False, **limits: Any) -> Any:
    """A setting.

    Args:
        unit: or the kind of the value: `path`, `name`.
        assumed: the paper leaves it open.
        runtime: it cannot change a result (a place, a device, a limit), so it is in no stage's settings.
        limits: of pydantic's `Field`.
    """
    extra: dict[str, JsonValue] = {"unit": unit, "assumed": assumed, "runtime": runtime}
    return Field(default, json_schema_extra=extra, **limits)


def recipe_setting(name: str, unit: str, *, assumed: bool = False, **limits: Any) -> Any:
    """A setting that the recipe gives where the user gives none; `name` is its dotted name."""
    return setting(KEYS[name][PAPER], unit, assumed=assumed, **limits)


def section(model: type[BaseModel]) -> Any:
    """A section inside another."""
    return Field(default_factory=model, description=model.__doc__)


def meaning(description: str | None) -> str:
    """A docstring in one line."""
    return " ".join((description or "").split())
