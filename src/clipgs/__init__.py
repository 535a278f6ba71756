"""clipgs: from 3D meshes to triplets of Gaussian splat, pictures and caption."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("clipgs")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

# Imported when first used: most of them import torch, which parsing the workflow must not.
_EXPORTS = {
    "ClipGS": "clipgs.encoder",
    "Gaussians": "clipgs.splats",
    "Points": "clipgs.splats",
    "Views": "clipgs.splats",
    "TripletDataset": "clipgs.triplets",
    "fit_mesh": "clipgs.splats",
    "load": "clipgs.encoder",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'clipgs' has no attribute {name!r}")


__all__ = ["ClipGS", "Gaussians", "Points", "TripletDataset", "Views", "__version__", "fit_mesh", "load"]
