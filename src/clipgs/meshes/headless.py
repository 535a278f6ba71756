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

    pyrender 0.1.45 imports pyglet, and with it a display, for a viewer that is not used here: a stand-in
    takes the viewer's place. It also reads `np.infty`, which numpy 2 has no more. Which GPU draws is the
    environment's EGL_DEVICE_ID, else any of those there are; without one, Mesa's llvmpipe draws on the CPU.

    Raises:
        ClipgsError: the machine has no EGL, nothing that draws, or not that device.
    """
    if "pyrender" in sys.modules:
        return sys.modules["pyrender"]
    os.environ["PYOPENGL_PLATFORM"] = "egl"
    if not hasattr(np, "infty"):
        np.infty = np.inf  # type: ignore[attr-defined]  # noqa: NPY201
    viewer = ModuleType("pyrender.viewer")
    viewer.Viewer = None  # type: ignore[attr-defined]  # a made module has what it is given
    sys.modules["pyrender.viewer"] = viewer
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)  # it tells that it is not there
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
    # Of several GPUs each worker draws on one; EGL lists them before what draws on the CPU.
    gpus = min(len(visible_gpus()), devices)
    wanted = os.environ.setdefault("EGL_DEVICE_ID", str(os.getpid() % gpus if gpus > 1 else 0))
    if not wanted.isdecimal() or int(wanted) >= devices:
        raise ClipgsError(f"EGL_DEVICE_ID asks for {wanted}, and EGL has the devices 0 to {devices - 1}")

    # A renderer that is deleted collects garbage, and would search all that was imported every time.
    gc.freeze()
    return pyrender
