"""A process ends with the one that started it, which may be killed and cannot tell it then."""

import ctypes
import os
import signal
import sys

PARENT = "CLIPGS_PARENT"  # in the environment of a command: the process that started it, and that it ends with
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Ends this process if `parent` has ended, and on Linux when the thread of it that started this one does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
