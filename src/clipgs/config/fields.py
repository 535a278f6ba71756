"""What a section of the configuration is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from clipgs.config.recipes import KEYS, PAPER


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


def setting(
    default: Any, unit: str, meaning: str, *, assumed: bool = False, runtime: bool = False, **limits: Any
) -> Any:
    """A setting.

    Args:
        unit: of the value, or its kind, such as `path` or `name`.
        meaning: one or two sentences: what the value does, and what null means.
        assumed: the paper does not specify it.
        runtime: it cannot change a result (a place, a device, a limit), so it is in no stage's settings.
        limits: of pydantic's `Field`.
    """
    extra: dict[str, JsonValue] = {"unit": unit, "assumed": assumed, "runtime": runtime}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def recipe_setting(name: str, unit: str, meaning: str, *, assumed: bool = False, **limits: Any) -> Any:
    """A setting that the recipe gives where the user gives none; `name` is its dotted name."""
    return setting(KEYS[name][PAPER], unit, meaning, assumed=assumed, **limits)


def section(model: type[BaseModel]) -> Any:
    """A section inside another."""
    return Field(default_factory=model, description=(model.__doc__ or "").strip())
