"""The configuration that a run was started with, kept in its output.

Commands that work on the output then need no `--config`, and name the user's own files in what to type next.
"""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipgs.config import PROJECT_FILE, Config, check, merge, read, read_layers
from clipgs.core.errors import RUN_ARGUMENTS, ClipgsError, UsageError
from clipgs.core.files import whole

CONFIG, START = "run.yaml", "run.json"
# In the folder in which Snakemake runs: the output of the run that was started there last.
LAST = Path(".snakemake", "clipgs-output")


def write(config: Config, files: Sequence[str], values: dict[str, Any]) -> None:
    """Writes a run's configuration to its output, and the overlays and single values that gave it to Snakemake."""
    start = {"folder": os.getcwd(), "files": list(files), "values": values}
    freeze(config)
    with whole(config.output_path / START) as temporary:
        temporary.write_text(json.dumps(start, indent=1) + "\n")
    with whole(LAST) as temporary:
        temporary.write_text(config.output + "\n")


def freeze(config: Config) -> Path:
    """Writes the configuration to `OUTPUT/run.yaml`, and returns that path."""
    with whole(config.output_path / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return config.output_path / CONFIG


def arguments_of(files: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Snakemake's arguments for a configuration: overlays, and single values as `--config` takes them."""
    named = ["--configfile", *files] if files else []
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in values.items()}
    given = [f"{key}={text.strip()}".removesuffix("\n...") for key, text in texts.items()]
    return named + (["--config", *given] if given else [])


def of_output(output: Path | None) -> Config:
    """The configuration of an output's last run. It may be asked for from any folder.

    If the run was started in another folder, this process changes to that folder: the run's paths are relative to it.

    Args:
        output: the folder; default: the output that contains the working folder, else the output of the last run from
            here, else that of ./config.yaml.

    Raises:
        UsageError: `output` is not the output of a run.
    """
    if output and not (output / CONFIG).is_file():
        raise UsageError(f"{output} holds no {CONFIG}, which every run writes into its output")
    candidates = [output] if output else [Path.cwd(), *Path.cwd().parents, _last()]
    # A file run.yaml alone may be a user's own, so both are asked for where nobody named the folder.
    wanted = (CONFIG,) if output else (CONFIG, START)
    found = next((one for one in candidates if one and all((one / name).is_file() for name in wanted)), None)
    if found is None:
        return layered([])
    config, place = read(found / CONFIG), found.resolve()
    try:
        start = json.loads((found / START).read_text())
        os.environ[RUN_ARGUMENTS] = shlex.join(arguments_of(start["files"], start["values"]))
        if (Path(start["folder"]) / config.output).resolve() == place:  # not a copy, nor moved since
            os.chdir(start["folder"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # it was brought from another machine
    moved = config.output_path.resolve() != place
    return config.model_copy(update={"output": str(place)}) if moved else config


def layered(files: Sequence[str], values: dict[str, Any] | None = None) -> Config:
    """Overlays and single values over ./config.yaml, as Snakemake applies `--configfile` and `--config`."""
    os.environ[RUN_ARGUMENTS] = shlex.join(arguments_of(files, values or {}))
    layers = [*([PROJECT_FILE] if Path(PROJECT_FILE).exists() else []), *files]
    return check(merge(read_layers(*layers), values or {}), where=" + ".join(layers) or "config")


def edited(config: Config) -> bool:
    """Whether the files that gave this configuration to the last run were edited since."""
    try:
        start = json.loads((config.output_path / START).read_text())
        return layered(start["files"], start["values"]) != config
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ClipgsError):
        return False  # they were removed, or are being edited


def _last() -> Path | None:
    try:
        return Path(LAST.read_text().strip())
    except OSError:
        return None
