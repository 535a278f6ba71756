"""Several processes that train one model: who is who, features gathered with their gradients, one process a GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from clipgs.config import Config, runtime_settings, stage_settings
from clipgs.storage import ClipgsError

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
    """Whether `torchrun`, or something like it, started this process."""
    return "WORLD_SIZE" in os.environ


def launch(config: Config, processes: int) -> None:
    """Runs `clipgs train` in as many processes on this machine as are asked for, and waits for them.

    Raises:
        ClipgsError: one of them failed; it has said why.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "clipgs", "train", "--settings", stage_settings(config, "train")]
    environment = {**os.environ, "CLIPGS_RUNTIME": runtime_settings(config)}
    done = subprocess.run(command, env=environment)
    if done.returncode:
        raise ClipgsError(f"one of {processes} training processes failed; its error stands above")
