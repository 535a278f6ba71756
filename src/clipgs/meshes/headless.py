"""pyrender on machines without a display."""

import gc
import logging
import os
import sys
import warnings
from types import ModuleType

import numpy as np

from clipgs.core.devices import visible_gpus
from clipgs.core.errors import ClipgsError

_REMEDY = "install it with: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri"


def import_pyrender() -> ModuleType:
    """pyrender, set to draw through EGL.

    pyrender 0.1.45 imports pyglet, which needs a display, for a viewer that is not used here, so an empty module
    replaces the viewer. It also reads `np.infty`, which numpy 2 no longer has. The environment variable EGL_DEVICE_ID
    chooses the GPU, else any GPU draws; without GPUs, Mesa's llvmpipe draws on the CPU.

    Raises:
        ClipgsError: the machine has no EGL, no device, or not the chosen device.
    """
    if "pyrender" in sys.modules:
        return sys.modules["pyrender"]
    os.environ["PYOPENGL_PLATFORM"] = "egl"
    if not hasattr(np, "infty"):
        np.infty = np.inf  # type: ignore[attr-defined]  # noqa: NPY201
    viewer = ModuleType("pyrender.viewer")
    viewer.Viewer = None  # type: ignore[attr-defined]
    sys.modules["pyrender.viewer"] = viewer
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)  # it logs its own absence
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyOpenGL 3.1.0, which pyrender pins, is older than today's Python
        try:
            import pyrender
            from pyrender.platforms import egl

            devices = len(egl.query_devices())
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            raise ClipgsError(f"OpenGL cannot be used through EGL ({error}); {_REMEDY}") from error
    if devices == 0:
        raise ClipgsError(f"EGL has no device to draw with; {_REMEDY}")
    # Each worker draws on one of several GPUs; EGL lists GPUs before software renderers.
    gpus = min(len(visible_gpus()), devices)
    wanted = os.environ.setdefault("EGL_DEVICE_ID", str(os.getpid() % gpus if gpus > 1 else 0))
    if not wanted.isdecimal() or int(wanted) >= devices:
        raise ClipgsError(f"EGL_DEVICE_ID is {wanted}, but EGL has the devices 0 to {devices - 1}")
    gc.freeze()  # deleting a renderer collects garbage, and would scan all imported modules each time
    return pyrender
