"""A run's folder, and what the run was made from. Imports nothing heavy: Snakemake asks whenever it parses."""

import json
from collections.abc import Sequence
from pathlib import Path

from clipgs.config import Config
from clipgs.core.files import write_bytes
from clipgs.stages import stage_settings


def run_path(config: Config) -> Path:
    """The folder of the run that the configuration names."""
    return config.output_path / "runs" / config.training.run


def _inputs_path(config: Config) -> Path:
    return run_path(config) / "inputs.json"


def run_shards(config: Config, shards: Sequence[str]) -> list[str]:
    """The shards that the run is made from: those it began with, if it began with these settings; else all of them.

    So objects that come later do not set off a training that is under way or done.
    """
    begun = begun_with(config)
    return begun if begun is not None else list(shards)


def begun_with(config: Config) -> list[str] | None:
    """The shards that a run of these very settings began with; None where there is no such run."""
    try:
        inputs = json.loads(_inputs_path(config).read_text())
    except (OSError, ValueError):
        return None
    return inputs["shards"] if inputs["settings"] == stage_settings(config, "train") else None


def begin(config: Config, shards: Sequence[str]) -> None:
    """Notes down which shards the run is made from."""
    inputs = {"settings": stage_settings(config, "train"), "shards": list(shards)}
    write_bytes(_inputs_path(config), (json.dumps(inputs, indent=1) + "\n").encode())
