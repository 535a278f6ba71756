"""Splats: Gaussians as tensors and files, fitting them to views, rendering and judging them.

Everything is imported when it is first used: commands that import this package need no torch for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipgs.splats.fitting import fit as fit
    from clipgs.splats.from_mesh import fit_mesh as fit_mesh
    from clipgs.splats.gaussians import Gaussians as Gaussians
    from clipgs.splats.gaussians import Points as Points
    from clipgs.splats.gaussians import Views as Views
    from clipgs.splats.rasterizer import rasterize as rasterize

_MODULE_OF = {
    "Gaussians": "gaussians",
    "Points": "gaussians",
    "Views": "gaussians",
    "fit": "fitting",
    "fit_mesh": "from_mesh",
    "rasterize": "rasterizer",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
