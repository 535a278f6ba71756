"""The encoder: orders, patches, tokens, transformer, and published weights.

Everything is imported when it is first used: commands that import this package need no torch for it.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from clipgs.config import Config
from clipgs.core.errors import snakemake

MODEL, CONFIG = "model.safetensors", "config.yaml"  # files of a trained encoder: a run's folder, or a published one
_RUNS_NAMED = 5  # in an error
_MODULE_OF = {"ClipGS": "model", "build": "model", "load": "trained", "prepare": "groups"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


def weights_file(weights: str) -> Path:
    """The file that `encoder.weights` names: itself, or the model in a run's folder."""
    path = Path(weights).expanduser()
    return path / MODEL if path.is_dir() else path


def run_folder(config: Config, named: str | None) -> Path:
    """The run whose encoder a command takes: the one that the user names, or else the configured one.

    Args:
        named: its folder, or that under the output; None: the user names none.
    """
    given = f"runs/{config.training.run}" if named is None else named
    return Path(given) if Path(given).exists() else config.output_path / given


def no_run(path: Path) -> str:
    """Why a path is not the folder of a finished run, and which such folders there are near it and here."""
    if path.is_file():
        return f"{path} is a file; name its folder, {path.parent}"
    near = [place.glob(f"{below}/{MODEL}") for place in (path, path.parent) for below in ("*", "runs/*")]
    runs = sorted({str(file.parent) for files in (*near, Path().glob(f"*/runs/*/{MODEL}")) for file in files})
    more = f" and {len(runs) - _RUNS_NAMED} more" if len(runs) > _RUNS_NAMED else ""
    there_are = f"finished runs: {', '.join(runs[:_RUNS_NAMED])}{more}" if runs else "there is no finished run here"
    if path.is_dir():
        return f"{path} has no {MODEL}; train the run first: {snakemake('train')} ({there_are})"
    return f"there is no folder {path} ({there_are}); a published run must be downloaded first"
