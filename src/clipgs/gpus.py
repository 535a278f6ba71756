"""Which GPUs there are, and one of them for this process. Imports nothing heavy: Snakemake counts them when it parses.

Several processes of one machine share its GPUs by lock files: whoever takes one holds its lock until it ends, however
it ends. Where a batch system chose the GPU, its choice stands.
"""

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
_BATCH_SYSTEMS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_ASK_AGAIN_SECONDS = 1.0
_held: list[IO[str]] = []  # the lock of the GPU that this process took, open until the process ends


def visible_gpus(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> list[str]:
    """Names of the NVIDIA GPUs that a process may use, as CUDA_VISIBLE_DEVICES takes them.

    What that variable says, where it is set; else one for each device file of the driver. No driver is started, which
    can take seconds: a broken one is found when a fit starts.
    """
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        # CUDA ignores what follows the first name that it does not know, and -1 is none
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    numbers = [re.fullmatch(r"nvidia(\d+)", file.name) for file in (root / "dev").glob("nvidia[0-9]*")]
    count = sum(number is not None for number in numbers) or (root / "dev" / "dxg").exists()  # Windows shows it as one
    return [str(index) for index in range(count)]


def take_gpu(*, alone: bool = True, environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Takes a GPU for the life of this process, before CUDA starts: it sets CUDA_VISIBLE_DEVICES.

    Args:
        alone: waits for one that no other process of this user's has taken alone; else takes any.

    Returns:
        The GPU's name; None where there is none to choose from, or where a batch system has chosen.
    """
    gpus = visible_gpus(environment)
    if _held or not gpus or any(name in environment for name in _BATCH_SYSTEMS):
        return None
    if not alone:
        environment[VISIBLE] = gpus[os.getpid() % len(gpus)]
        return environment[VISIBLE]
    folder = Path(tempfile.gettempdir()) / f"clipgs-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    told = False
    while True:
        for gpu in gpus:
            lock = open(folder / f"{gpu}.lock", "w")  # noqa: SIM115
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            _held.append(lock)
            environment[VISIBLE] = gpu
            return gpu
        if not told:
            log.info("all GPUs (%s) are in use by other runs of yours; waiting for one", ", ".join(gpus))
            told = True
        time.sleep(_ASK_AGAIN_SECONDS)
