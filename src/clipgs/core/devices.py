"""The GPUs of the machine, those of this process, and their compiler. Imports nothing heavy: Snakemake counts GPUs.

Several processes of one machine share its GPUs by lock files: a process that takes a GPU holds its lock until it ends.
Where a batch system or the process that started this one chose the GPU, its choice is kept.
"""

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import MutableMapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout

from clipgs.core.errors import ClipgsError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Set where the GPU is chosen already: by a batch system, or by the parent of the processes that train one model.
_CHOSEN_BY = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "WORLD_SIZE")
_ASK_AGAIN_SECONDS = 1.0
_held: list[FileLock] = []  # the locks of the GPUs that this process took, kept until it ends


def visible_gpus(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> list[str]:
    """Names of the NVIDIA GPUs that a process may use, as CUDA_VISIBLE_DEVICES takes them.

    These are the names in that variable if it is set, and else one for each device file of the driver. No driver is
    started, which can take seconds: a broken one is found when a fit starts.
    """
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        # CUDA ignores what follows the first name that it does not know, and -1 is none
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    devices = sum(file.name.removeprefix("nvidia").isdigit() for file in (root / "dev").glob("nvidia[0-9]*"))
    count = devices or (root / "dev" / "dxg").exists()  # Windows shows all as one
    return [str(index) for index in range(count)]


def take_gpus(count: int = 1, *, alone: bool = True, environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Takes GPUs for the life of this process, before CUDA starts: it sets CUDA_VISIBLE_DEVICES.

    Args:
        count: how many, or all if there are fewer; 0: all.
        alone: waits until no other process of this user has taken them alone; else takes any one.

    Returns:
        Their names; none if there are no GPUs, or if the batch system or the parent process chose.
    """
    gpus = visible_gpus(environment)
    if _held or not gpus or any(name in environment for name in _CHOSEN_BY):
        return []
    gpus = _locked(gpus, min(count or len(gpus), len(gpus))) if alone else [gpus[os.getpid() % len(gpus)]]
    environment[VISIBLE] = ",".join(gpus)
    return gpus


def _locked(gpus: list[str], count: int) -> list[str]:
    """Waits until `count` GPUs are free, and takes them all at once: two processes with a part each would block."""
    folder = Path(tempfile.gettempdir()) / f"clipgs-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = {gpu: FileLock(folder / f"{gpu}.lock", blocking=False, thread_local=False) for gpu in gpus}
    waiting = False
    while True:
        taken: list[str] = []
        for gpu, lock in locks.items():
            if len(taken) < count:
                with suppress(Timeout):  # another process has it
                    lock.acquire()
                    taken.append(gpu)
        if len(taken) == count:
            _held.extend(locks[gpu] for gpu in taken)
            return taken
        for gpu in taken:
            locks[gpu].release()
        if not waiting:
            log.info("waiting for %d of the GPUs %s: other runs of yours hold them", count, ", ".join(gpus))
        waiting = True
        time.sleep(_ASK_AGAIN_SECONDS)


def find_nvcc() -> str | None:
    """The CUDA compiler: that of CUDA_HOME or CUDA_PATH, else of PATH, else of the usual place; None without any."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [f"{home}/bin/nvcc" for home in homes if home] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, candidates)), None)


def without_cuda(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Why CUDA cannot be used, as far as it can be told without an import of torch, which takes seconds; else None."""
    spec = find_spec("torch")
    about = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    if re.search(r"^hip\b[^=]*= *['\"]", about, re.MULTILINE):
        return None  # AMD's GPUs have other device files
    if about and not re.search(r"^cuda\b[^=]*= *['\"]", about, re.MULTILINE):
        return "this torch is a CPU-only build"
    return None if visible_gpus(environment) else "this machine has no GPU, or CUDA_VISIBLE_DEVICES hides it"


def choose_device(wanted: str, gpus: int = 1, *, alone: bool = True) -> str:
    """`cuda` or `cpu`, as `wanted` (`auto`: cuda if there is a GPU). This process takes `gpus` of the GPUs (0: all).

    With `alone` it takes GPUs that no other process has: a fit keeps a GPU busy, rendering does not.

    Raises:
        ClipgsError: CUDA is wanted, and torch sees none.
    """
    if wanted == "cpu" or (wanted == "auto" and not visible_gpus()):
        return "cpu"
    take_gpus(gpus, alone=alone)
    import torch  # once the GPU is chosen, and not at all where there is none

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise ClipgsError("config: device = cuda, but torch sees no GPU; see `clipgs doctor`, or set `device: cpu`")
    return "cpu"
