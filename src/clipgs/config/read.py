"""Reading the configuration: files, layers, and errors of one line."""

import difflib
import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from clipgs.config.fields import Section, meaning, section_of
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
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error.errors()[0])}") from None
    caption = config.caption
    if caption.writer == "http" and caption.http.model is None:
        raise UsageError(f"{where}: caption.http.model: `http` needs the name that the server has for its model")
    if caption.uses_teacher and config.teacher.name == "train":
        key, instead = "captioner", ""
        if not caption.teacher_chooses:
            key = "min_score"
        elif caption.writer == "http":
            key, instead = "http.candidates", ", or set caption.http.candidates to 1"
        raise UsageError(
            f"{where}: caption.{key} needs a teacher, and teacher.name = train is trained on the captions themselves; "
            f"name a model of open_clip in teacher.name{instead}"
        )
    if config.teacher.name == "train":
        own = config.teacher
        for key, stated in (("preprocess", any(own.preprocess.model_dump().values())), ("tokenizer", own.tokenizer)):
            if stated:
                raise UsageError(f"{where}: teacher.{key}: the small teacher of `train` has its own; leave it out")
    return config


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
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
            raise UsageError(f"{path}{line} is not YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(layer, dict):
            raise UsageError(f"{path} must hold keys and values, not a {type(layer).__name__}")
        layers.append(layer)
    return merge(*layers)


def _fields(model: type[Section] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted name to field, of all sections and settings."""
    found = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field
        if section := section_of(field):
            found |= _fields(section, f"{prefix}{name}.")
    return found


def setting_names() -> list[str]:
    """Dotted names of all settings."""
    return [name for name, field in _fields().items() if not section_of(field)]


def _explain(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    dotted, known = ".".join(path), _fields()
    if dotted in _GONE:
        return f"{dotted} is no key any more: {_GONE[dotted]}"
    if error["type"] == "extra_forbidden":
        same = [name for name in setting_names() if name.rsplit(".", 1)[-1] == path[-1]]  # right key, wrong section
        nearest = same or difflib.get_close_matches(dotted, sorted(known), n=1, cutoff=0.3)
        section = dotted.removesuffix(path[-1])
        siblings = sorted({name.removeprefix(section).split(".")[0] for name in known if name.startswith(section)})
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"{dotted} is not a key{hint} (allowed here: {', '.join(siblings)})"
    message = error["msg"].removeprefix("Value error, ")
    text = f"{dotted} = {json.dumps(error['input'], default=str)}: {message[0].lower()}{message[1:]}"
    names = [".".join(path[:count]) for count in range(len(path), 0, -1)]  # items of lists are no fields
    field = next((known[name] for name in names if name in known), None)
    if field is None:
        return text
    if error["type"] == "list_type":
        text += f"; write [{error['input']}]"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = difflib.get_close_matches(error["input"], map(str, get_args(field.annotation)), n=1)
        text += f"; did you mean {near[0]}?" if near else ""
    extra: Any = field.json_schema_extra
    return f"{text} ({extra['unit']}: {meaning(field.description)})" if extra else text
