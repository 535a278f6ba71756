"""pyrender on machines without a display."""

import gc
import os
import sys
import warnings
from types import ModuleType

import numpy as np


def import_pyrender() -> ModuleType:
    """pyrender, set to draw through EGL.

    pyrender 0.1.45 imports pyglet, and with it a display, for a viewer that is not used here: a stand-in
    takes the viewer's place. It also reads `np.infty`, which numpy 2 has no more. Which GPU draws is the
    environment's EGL_DEVICE_ID; without a GPU, Mesa's llvmpipe draws on the CPU.
    """
    if "pyrender" in sys.modules:
        return sys.modules["pyrender"]
    os.environ["PYOPENGL_PLATFORM"] = "egl"
    if not hasattr(np, "infty"):
        np.infty = np.inf  # noqa: NPY201
    viewer = ModuleType("pyrender.viewer")
    viewer.Viewer = None
    sys.modules["pyrender.viewer"] = viewer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyOpenGL 3.1.0, which pyrender pins, is older than today's Python
        import pyrender

    # A renderer that is deleted collects garbage, and would search all that was imported every time.
    gc.freeze()
    return pyrender
