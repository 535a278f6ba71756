"""Splats: Gaussians as tensors and files, fitting them to views, rendering and judging them.

Everything is imported when it is first used: commands that import this package need no torch for it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_MODULE_OF = {
    "Gaussians": "gaussians",
    "Points": "gaussians",
    "Views": "gaussians",
    "fit": "fit",
    "rasterize": "rasterize",
}


class _Package(ModuleType):
    """`fit` and `rasterize` are each a function and the module it stands in.

    Importing a module sets it as an attribute of its package. Here the function is set in its place, so that
    `clipgs.splats.fit(...)` means the same whatever was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _MODULE_OF.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
