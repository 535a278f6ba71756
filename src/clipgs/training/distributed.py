"""Several processes that train one model: ranks, gathered features with gradients, and their launch by torchrun."""

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
from clipgs.stages import RUNTIME, runtime_settings, stage_settings

log = logging.getLogger(__name__)

_TIMEOUT, _CPU_TIMEOUT = timedelta(minutes=30), timedelta(hours=12)  # records of many shards may take hours
_ERROR = "clipgs train: "  # prefix of the command's error messages


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of the run."""

    rank: int
    world: int
    device: torch.device
    _cpu_group: Any = None  # for `barrier` and `broadcast`, with a longer timeout than on GPUs

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            distributed.barrier(group=self._cpu_group)

    def gather(
        self,
        share: Tensor,  # [B / world, ...]
    ) -> Tensor:  # [B, ...]
        """The shares of all processes in the order of their ranks, with gradients for this process's own share.

        Every process computes the loss of the whole batch. The gradient counts `world` times, because
        DistributedDataParallel averages gradients over the processes: the average is then that of the whole batch.
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
    """This process as torchrun started it, or alone; with NCCL between GPUs, gloo between CPUs.

    Args:
        device: `cuda` or `cpu`. Process i of a machine uses its GPU i.

    Raises:
        ClipgsError: there are more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and local >= torch.cuda.device_count():
        raise ClipgsError(
            f"process {local} of this machine has no GPU, because torch sees {torch.cuda.device_count()}; "
            "start fewer processes (torchrun --nproc-per-node)"
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


def gpus_to_launch(config: Config) -> int:
    """The number of processes to start, one per GPU; 1 in a process that torchrun started."""
    if launched():
        return 1
    visible = torch.cuda.device_count()  # a scheduler may hide some
    return min(config.workers.gpus or visible, visible)


def launch(config: Config, processes: int) -> None:
    """Runs `clipgs train` under torchrun in several processes of this machine, and logs their log lines.

    torchrun ends with this process, and the processes end with torchrun, even if they are killed.

    Raises:
        ClipgsError: a process failed; the text is its error message if it has one.
    """
    command = [sys.executable, "-m", __name__, "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "clipgs", "train", "--settings", stage_settings(config, "train")]
    own = {RUNTIME: runtime_settings(config), PARENT: str(os.getpid())}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **own}
    errors = []
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
        assert torchrun.stderr is not None
        try:
            for line in torchrun.stderr:
                if line.startswith(_ERROR):  # often the same one in every process
                    errors.append(line.removeprefix(_ERROR).strip())
                else:
                    log.info("%s", line.rstrip())
        except BaseException:
            torchrun.terminate()
            raise
    if torchrun.returncode:
        raise ClipgsError(errors[0] if errors else f"one of {processes} processes failed; see its error above")


def _torchrun() -> None:
    """Runs torchrun with this process's arguments; a failure is one line instead of torchrun's traceback."""
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
