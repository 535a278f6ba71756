"""Reading the configuration: files, layers, and errors of one line."""

import difflib
import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from clipgs.config.fields import meaning
from clipgs.config.sections import Config
from clipgs.core.errors import UsageError

PROJECT_FILE = "config.yaml"  # of the folder in which a run is started: the lowest layer
# Keys that there were once, and what to write now.
_GONE = {
    "fit.preset": "write `recipe: fast` (or paper, demo) at the top level",
    "workers.ablations": "rows and seeds are jobs of the workflow now; leave it out",
}


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; later layers win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def check(values: dict[str, Any], where: str = "config") -> Config:
    """Makes a `Config` of nested mappings.

    Raises:
        UsageError: one line with the key, what is allowed and the nearest right name.
    """
    try:
        config = Config.model_validate(_typed(Config, values))
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error.errors()[0])}") from None
    if config.caption.uses_teacher and config.teacher.name == "train":
        key = "min_score" if config.caption.writer != "consensus" else "captioner"
        raise UsageError(
            f"{where}: caption.{key} needs a teacher, and teacher.name = train is trained on the captions themselves; "
            "name a model of open_clip in teacher.name"
        )
    return config


def _typed(model: type[BaseModel], values: Any) -> Any:
    """The values with numbers, switches and nulls that came as text: Snakemake's `--config` nests only strings."""
    if not isinstance(values, dict):
        return values
    typed = dict(values)
    for name, field in model.model_fields.items():
        value = typed.get(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if name in typed:
                typed[name] = _typed(field.annotation, value)
        elif isinstance(value, str) and (value in ("null", "None") or str not in _scalar_types(field.annotation)):
            typed[name] = _scalar(value)
        elif isinstance(value, list) and float in _scalar_types(field.annotation):
            typed[name] = [_scalar(item) if isinstance(item, str) else item for item in value]
    return typed


def _scalar(text: str) -> Any:
    for read in (int, float, yaml.safe_load):  # YAML takes 1e-3 for text
        try:
            return read(text)
        except (ValueError, yaml.YAMLError):
            continue
    return text


def _scalar_types(annotation: Any) -> set[Any]:
    arguments = get_args(annotation)
    if not arguments:
        return {annotation}
    return {type(argument) if isinstance(argument, str) else argument for argument in arguments}


def read(*paths: str | Path) -> Config:
    """Reads YAML files over the defaults, later ones winning.

    Raises:
        UsageError: a file is missing, is not YAML, or has a wrong key or value.
    """
    return check(read_layers(*paths), where=" + ".join(str(path) for path in paths) or "config")


def read_layers(*paths: str | Path) -> dict[str, Any]:
    """The values of YAML files, later ones winning, unchecked.

    Raises:
        UsageError: a file is missing, or is not YAML with keys and values.
    """
    layers = []
    for path in paths:
        try:
            layer = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(layer, dict):
            raise UsageError(f"{path} must hold keys and values, not a {type(layer).__name__}")
        layers.append(layer)
    return merge(*layers)


def _field(path: tuple[str, ...]) -> FieldInfo | None:
    model: Any = Config
    field = None
    for name in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            break
        field = model.model_fields[name]
        model = field.annotation
    return field


def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _explain(error: Any) -> str:
    path = tuple(str(part) for part in error["loc"])
    dotted = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = setting_names()
        sections = {name.rsplit(".", i)[0] for name in known for i in range(name.count(".") + 1)}
        near = difflib.get_close_matches(dotted, sorted(sections | set(known)), n=1, cutoff=0.3)
        same = [name for name in known if name.rsplit(".", 1)[-1] == path[-1]]  # right key, wrong section
        nearest = same[:1] or near
        siblings = sorted(
            {
                name[len(dotted) - len(path[-1]) :].split(".")[0]
                for name in known
                if name.startswith(dotted[: len(dotted) - len(path[-1])])
            }
        )
        if dotted in _GONE:
            return f"{dotted} is no key any more: {_GONE[dotted]}"
        return (
            f"{dotted} is not a key"
            + (f"; did you mean {nearest[0]}?" if nearest else "")
            + f" (allowed here: {', '.join(siblings)})"
        )
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    field = _field(path)
    extra: Any = (field.json_schema_extra if field else None) or {}
    text = f"{dotted} = {json.dumps(error['input'], default=str)}: {message}"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        allowed = get_args(field.annotation) if field is not None else ()
        near = difflib.get_close_matches(error["input"], [str(value) for value in allowed], n=1)
        text += f"; did you mean {near[0]}?" if near else ""
    if field is not None and field.description and extra:
        text += f" ({extra['unit']}: {meaning(field.description)})"
    return text
