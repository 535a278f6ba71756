"""What a section of the configuration is made of."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from pydantic.fields import FieldInfo

from clipgs.config.recipes import KEYS, PAPER


class Section(BaseModel):
    """Settings of one subject. The docstring below a setting is its meaning, in plain sentences."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _read_text(cls, value: Any, validate: Callable[[Any], Any]) -> Any:
        """Reads numbers, switches and nulls that came as text: Snakemake's `--config` nests only strings."""
        try:
            return validate(None if value == "null" else value)
        except ValidationError:
            return validate([_scalar(item) for item in value] if isinstance(value, list) else _scalar(value))


def _scalar(value: Any) -> Any:
    for read in (int, float, yaml.safe_load) if isinstance(value, str) else ():  # YAML takes 1e-3 for text
        with suppress(ValueError, yaml.YAMLError):
            return read(value)
    return value


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


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds; None where it is a setting."""
    model = field.annotation
    return model if isinstance(model, type) and issubclass(model, Section) else None


def meaning(description: str | None) -> str:
    """A docstring in one line."""
    return " ".join((description or "").split())
