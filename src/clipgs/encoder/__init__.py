"""The encoder: orders, patches, tokens, transformer, and published weights.

Everything is imported when it is first used: commands that import this package need no torch for it.
"""

from importlib import import_module
from typing import Any

MODEL, CONFIG = "model.safetensors", "config.yaml"  # files of a trained encoder: a run's folder, or a published one
_MODULE_OF = {"ClipGS": "model", "build": "model", "load": "trained", "prepare": "groups"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
