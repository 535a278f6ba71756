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
_SNAKEFILES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")  # where Snakemake looks for it


def write(config: Config, files: Sequence[str], values: dict[str, Any], snakefile: Path) -> None:
    """Writes a run's configuration to its output, and what gave it to Snakemake: overlays and single values."""
    start = {"folder": os.getcwd(), "files": list(files), "values": values, "snakefile": str(snakefile.absolute())}
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


def arguments_of(
    files: Sequence[str], values: dict[str, Any], snakefile: Path | None = None, folder: Path | None = None
) -> list[str]:
    """Snakemake's arguments for a configuration: overlays, and single values as `--config` takes them.

    Args:
        snakefile: the workflow; named where Snakemake would not find it by itself.
        folder: that of the run, if commands are not typed there. Then all paths are whole.
    """
    found = next((file for file in _SNAKEFILES if folder is None and Path(file).is_file()), None)
    named = []
    if snakefile and (found is None or not snakefile.samefile(found)):
        named += ["--snakefile", str(snakefile)]
    if folder:
        named += ["--directory", str(folder)]
        files = [str(folder / file) for file in files]
    named += ["--configfile", *files] if files else []
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in values.items()}
    given = [f"{key}={text.strip()}".removesuffix("\n...") for key, text in texts.items()]
    return named + (["--config", *given] if given else [])


def of_output(output: Path | None, *, needed: bool = True) -> Config:
    """The configuration of an output's last run. It may be asked for from any folder.

    If the run was started in another folder, this process changes to that folder: the run's paths are relative to it.

    Args:
        output: the folder; default: the output that contains the working folder, else the output of the last run from
            here, else that of ./config.yaml.
        needed: without any of these there is nothing to work on; else the configuration is then that of the defaults.

    Raises:
        UsageError: `output` is not the output of a run, or there is nothing to work on.
    """
    if output and not (output / CONFIG).is_file():
        raise UsageError(f"{output} holds no {CONFIG}, which every run writes into its output")
    candidates = [output] if output else [Path.cwd(), *Path.cwd().parents, _last()]
    # A file run.yaml alone may be a user's own, so both are asked for where nobody named the folder.
    wanted = (CONFIG,) if output else (CONFIG, START)
    found = next((one for one in candidates if one and all((one / name).is_file() for name in wanted)), None)
    if found is None:
        if needed and not Path(PROJECT_FILE).is_file():
            raise UsageError(
                f"there is no {PROJECT_FILE} in this folder, and no run was started from it; change into the folder "
                "in which you run Snakemake, or name --output FOLDER or --config FILE"
            )
        return layered([])
    config, place = read(found / CONFIG), found.resolve()
    try:
        start = json.loads((found / START).read_text())
        folder, snakefile = Path(start["folder"]), Path(start.get("snakefile", ""))
        same = (folder / config.output).resolve() == place  # not a copy, nor moved since
        named = arguments_of(
            start["files"],
            start["values"],
            snakefile if snakefile.is_file() else None,
            folder if same and folder.resolve() != Path.cwd() else None,
        )
        os.environ[RUN_ARGUMENTS] = shlex.join(named)
        if same:
            os.chdir(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # it was brought from another machine
    moved = config.output_path.resolve() != place
    return config.model_copy(update={"output": str(place)}) if moved else config


def layered(files: Sequence[str], values: dict[str, Any] | None = None) -> Config:
    """Overlays and single values over ./config.yaml, as Snakemake applies `--configfile` and `--config`."""
    os.environ[RUN_ARGUMENTS] = shlex.join(arguments_of(files, values or {}))
    return _layered(files, values or {})


def _layered(files: Sequence[str], values: dict[str, Any]) -> Config:
    layers = [*([PROJECT_FILE] if Path(PROJECT_FILE).exists() else []), *files]
    return check(merge(read_layers(*layers), values), where=" + ".join(layers) or "config")


def edited(config: Config) -> bool:
    """Whether the files that gave this configuration to the last run were edited since."""
    try:
        start = json.loads((config.output_path / START).read_text())
        return _layered(start["files"], start["values"]) != config
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ClipgsError):
        return False  # they were removed, or are being edited


def origin(config: Config) -> str:
    """In which folder the last run over this output was started, and how it named it; empty where as this one."""
    try:
        folder = json.loads((config.output_path / START).read_text())["folder"]
        name = read(config.output_path / CONFIG).output
    except (OSError, ValueError, KeyError, TypeError, ClipgsError):
        return ""
    if (folder, name) == (os.getcwd(), config.output):
        return ""
    return f"the last run was in {folder} with output = {name}"


def _last() -> Path | None:
    try:
        return Path(LAST.read_text().strip())
    except OSError:
        return None
