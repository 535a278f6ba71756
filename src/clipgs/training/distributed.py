"""Several processes that train one model: their ranks, gathered features with gradients, and the start by torchrun."""

import logging
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
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from clipgs.config import Config
from clipgs.core.errors import ClipgsError
from clipgs.core.processes import PARENT, end_with
from clipgs.stages import runtime_settings, stage_settings

log = logging.getLogger(__name__)

_TIMEOUT, _CPU_TIMEOUT = timedelta(minutes=30), timedelta(hours=12)  # records of many shards may take hours
_FAULT = "clipgs train: "  # what the command says before a fault


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device
    _cpu_group: Any = None  # for `barrier` and `broadcast`, with a longer timeout than the GPUs' group

    @property
    def is_main(self) -> bool:
        """Whether this process, of rank 0, writes the run's files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world > 1:
            distributed.barrier(group=self._cpu_group)

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

    def broadcast(self, value: Any) -> Any:
        """The value of the main process."""
        box = [value]
        if self.world > 1:
            distributed.broadcast_object_list(box, group=self._cpu_group)
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
    """This process as torchrun started it, or alone; NCCL between GPUs, gloo between CPUs.

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
    distributed.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        cpu_group = distributed.new_group(backend="gloo", timeout=_CPU_TIMEOUT)
        yield Ranks(distributed.get_rank(), world, where, cpu_group)
    finally:
        distributed.destroy_process_group()


def launched() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def processes_here() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gpus_to_launch(config: Config) -> int:
    """The number of processes that this one is to start, one a GPU; 1 in a process that was started so."""
    if launched():
        return 1
    visible = torch.cuda.device_count()  # those that a scheduler left, too
    return min(config.workers.gpus or visible, visible)


def launch(config: Config, processes: int) -> None:
    """Runs `clipgs train` in several processes of this machine under torchrun, and logs what they log.

    torchrun ends with this process and they with torchrun, however it ends.

    Raises:
        ClipgsError: one of them failed; with its own words, where it said why.
    """
    command = [sys.executable, "-m", __name__, "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "clipgs", "train", "--settings", stage_settings(config, "train")]
    own = {"CLIPGS_RUNTIME": runtime_settings(config), PARENT: str(os.getpid())}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **own}
    faults = []
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
        assert torchrun.stderr is not None
        try:
            for line in torchrun.stderr:
                if line.startswith(_FAULT):  # every process may have the same one
                    faults.append(line.removeprefix(_FAULT).strip())
                else:
                    log.info("%s", line.rstrip())
        except BaseException:
            torchrun.terminate()
            raise
    if torchrun.returncode:
        raise ClipgsError(faults[0] if faults else f"one of {processes} processes failed; its error stands above")


def _torchrun() -> None:
    """torchrun on this process's arguments, in one line where it would print a traceback of its own."""
    end_with(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    logging.disable(logging.ERROR)
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f"process {rank} ended with exit code {failure.exitcode}")


if __name__ == "__main__":
    _torchrun()
