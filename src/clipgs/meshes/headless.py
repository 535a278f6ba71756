"""OpenGL on machines without a display."""

import functools
import os
import re
from typing import Any

from clipgs.core.devices import visible_gpus
from clipgs.core.errors import ClipgsError

_REMEDY = "install it with: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri"


def context() -> Any:
    """The process's OpenGL 3.3 context (`moderngl.Context`), made through EGL at the first call.

    The environment variable EGL_DEVICE_ID chooses the device, else any GPU draws; without GPUs, Mesa's llvmpipe draws
    on the CPU.

    Raises:
        ClipgsError: the machine has no EGL, no device, or not the chosen device; or the process was forked from one
            that had drawn.
    """
    made, process = _context()
    if process != os.getpid():  # the threads of the graphics stayed behind, and to draw would wait for them for ever
        raise ClipgsError("OpenGL cannot be used in a process that was forked after another had drawn; spawn it")
    return made


@functools.cache
def _context() -> tuple[Any, int]:
    """The context, and the process that made it."""
    try:
        import moderngl
    except ImportError as error:
        raise ClipgsError(f"OpenGL cannot be used through EGL ({error}); {_REMEDY}") from error

    # Each worker draws on one of several GPUs; EGL lists GPUs before software renderers.
    gpus = len(visible_gpus())
    chosen = os.environ.get("EGL_DEVICE_ID")
    wanted = chosen or str(os.getpid() % gpus if gpus > 1 else 0)
    if not wanted.isdecimal():
        raise ClipgsError(f"EGL_DEVICE_ID is {wanted}, which is not the number of a device")
    try:
        made = _made(moderngl, int(wanted))
    except Exception as error:  # moderngl's are plain exceptions
        found = re.search(r"found (\d+) devices", str(error))
        count = int(found[1]) if found else 0
        if chosen and count:
            raise ClipgsError(f"EGL_DEVICE_ID is {wanted}, but EGL has the devices 0 to {count - 1}") from error
        if not count:
            raise ClipgsError(f"OpenGL cannot be used through EGL ({error}); {_REMEDY}") from error
        made = _made(moderngl, int(wanted) % count)  # the driver shows EGL fewer GPUs than CUDA
    made.gc_mode = "auto"  # what Python forgets leaves the graphics' memory
    return made, os.getpid()


def _made(moderngl: Any, device: int) -> Any:
    return moderngl.create_context(standalone=True, backend="egl", device_index=device)
