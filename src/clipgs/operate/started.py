"""The configuration that a run was started with, kept in its output, so that the commands that look after the output
need no `--config`, and say what to type next with the user's own files."""

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
    """Notes a run's configuration in its output, and the overlays and single values that gave it to Snakemake."""
    with whole(config.output_path / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    with whole(config.output_path / START) as temporary:
        temporary.write_text(
            json.dumps({"folder": os.getcwd(), "files": list(files), "values": values}, indent=1) + "\n"
        )
    with whole(LAST) as temporary:
        temporary.write_text(config.output + "\n")


def arguments_of(files: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Snakemake's arguments for a configuration: overlays, and single values as `--config` takes them."""
    named = ["--configfile", *files] if files else []
    given = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()}".removesuffix("\n...")
             for key, value in values.items()]  # fmt: skip
    return named + (["--config", *given] if given else [])


def standing_at(output: Path | None) -> Config:
    """The configuration of an output: that of its last run, from whatever folder it is asked for.

    Args:
        output: the folder; default: the output that the working folder lies in, else the one that the last run from
            here wrote, else that of ./config.yaml. Where the run was started elsewhere, this process goes there, since
            its paths are relative to that folder.

    Raises:
        UsageError: `output` is none of a run.
    """
    if output is None:
        found = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / CONFIG).is_file()), None)
        found = found or _last()
    elif not (output / CONFIG).is_file():
        raise UsageError(f"{output} holds no {CONFIG}, which every run writes into its output")
    else:
        found = output
    if found is None:
        return layered([])
    config, place = read(found / CONFIG), found.resolve()
    try:
        start = json.loads((found / START).read_text())
        os.environ[RUN_ARGUMENTS] = shlex.join(arguments_of(start["files"], start["values"]))
        os.chdir(start["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it was brought from another machine
    moved = config.output_path.resolve() != place
    return config.model_copy(update={"output": str(place)}) if moved else config


def layered(files: Sequence[str], values: dict[str, Any] | None = None) -> Config:
    """Overlays and single values over ./config.yaml, as Snakemake lays `--configfile` and `--config` over it."""
    os.environ[RUN_ARGUMENTS] = shlex.join(arguments_of(files, values or {}))
    layers = [*([PROJECT_FILE] if Path(PROJECT_FILE).exists() else []), *files]
    return check(merge(read_layers(*layers), values or {}), where=" + ".join(layers) or "config")


def edited(config: Config) -> bool:
    """Whether the files that gave this configuration to the last run say something else now."""
    try:
        start = json.loads((config.output_path / START).read_text())
        return layered(start["files"], start["values"]) != config
    except (OSError, ValueError, KeyError, TypeError, ClipgsError):
        return False  # they have gone, or are being edited


def _last() -> Path | None:
    try:
        output = Path(LAST.read_text().strip())
    except OSError:
        return None
    return output if (output / CONFIG).is_file() else None
