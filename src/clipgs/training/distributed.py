"""Several processes that train one model: who is who, features gathered with their gradients, one process a GPU."""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import IO, Any

import torch
from torch import Tensor, distributed

from clipgs.config import Config
from clipgs.core.errors import ClipgsError
from clipgs.core.processes import PARENT
from clipgs.stages import runtime_settings, stage_settings

log = logging.getLogger(__name__)

_PATIENCE = timedelta(hours=12)  # while another process writes the records of its shards


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device
    _waiting_room: Any = None  # a group on the CPU, whose patience is longer than that of the GPUs' own

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier(group=self._waiting_room)

    def gather(
        self,
        share: Tensor,  # [B / world, ...]
    ) -> Tensor:  # [B, ...]
        """The shares of all processes in the order of their ranks, differentiable in this one's own.

        The gradient counts `world` times, because averaging the parameters' gradients over the processes, as
        DistributedDataParallel does, divides it by as much. So where every process computes the loss of the whole
        batch, the averaged gradient is that of the whole batch.
        """
        return _Gather.apply(share, self) if self.world > 1 else share

    def mean(self, tensor: Tensor) -> None:
        """Replaces the tensor by its mean over all processes."""
        if self.world > 1:
            distributed.all_reduce(tensor)
            tensor /= self.world

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        box = [value]
        if self.world > 1:
            distributed.broadcast_object_list(box, group=self._waiting_room)
        return box[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, share: Tensor, ranks: Ranks) -> Tensor:
        context.ranks, context.rows = ranks, len(share)
        shares = [torch.empty_like(share) for _ in range(ranks.world)]
        distributed.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        start = context.ranks.rank * context.rows
        return context.ranks.world * gradient[start : start + context.rows], None


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """This process, as `torchrun` started it, or alone; NCCL between GPUs, gloo between CPUs.

    Args:
        device: `cuda` or `cpu`; each process of a machine takes the GPU of its number there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and local >= torch.cuda.device_count():
        raise ClipgsError(
            f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()}; "
            "start no more processes than that (torchrun --nproc-per-node)"
        )
    where = torch.device(device, local) if device == "cuda" else torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        yield Ranks(0, 1, where)
        return
    distributed.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        waiting_room = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        yield Ranks(distributed.get_rank(), world, where, waiting_room)
    finally:
        distributed.destroy_process_group()


def launched() -> bool:
    """Whether this process is one of several that were started together, by `torchrun` or by `launch`."""
    return "WORLD_SIZE" in os.environ


def processes_here() -> int:
    """How many of them this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launch(config: Config, processes: int) -> None:
    """Runs `clipgs train` in several processes on this machine, waits for them, and logs what they log.

    As `torchrun --standalone` does, but the fault of one is told in its own line, and the others end with it.

    Raises:
        ClipgsError: one of them failed.
    """
    runtime = {"CLIPGS_RUNTIME": runtime_settings(config)}
    settings = stage_settings(config, "train")
    together([sys.executable, "-m", "clipgs", "train", "--settings", settings], processes, runtime)


def together(command: list[str], processes: int, environment: dict[str, str]) -> None:
    """Runs a command of clipgs in several processes of one group, which end with this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", **os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), PARENT: str(os.getpid())}
    running, readers = [], []
    try:
        for rank in range(processes):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
            readers.append(Thread(target=_tell, args=(running[-1].stderr,), daemon=True))
            readers[-1].start()
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            time.sleep(0.2)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process, reader in zip(running, readers, strict=True):
            process.wait()
            reader.join()
            process.stderr.close()
    if any(process.returncode for process in running):
        raise ClipgsError(f"one of {processes} processes failed; its error stands above")


def _tell(lines: IO[str]) -> None:
    for line in lines:
        log.info("%s", line.rstrip())
