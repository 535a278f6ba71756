"""The section `workers`."""

from clipgs.config.fields import Section, setting
from clipgs.core.runner import Limits


class Workers(Section):
    """Processes and limits. Nothing here changes a result."""

    threads: int = setting(0, "processes", "most a job uses; 0: all cores of the run", runtime=True, ge=0, le=1024)
    load_timeout_seconds: int = setting(300, "s", "for loading, sampling or rendering one mesh", runtime=True, ge=1)
    load_memory_mb: int = setting(1500, "MB", "one mesh may take", runtime=True, ge=400)
    fit_timeout_seconds: int = setting(7200, "s", "for fitting one object on a CPU", runtime=True, ge=1)
    fit_memory_mb: int = setting(1000, "MB", "one fit on a CPU may take", runtime=True, ge=500)
    checkpoint_steps: int = setting(500, "steps", "between two states that training can go on from", runtime=True, ge=1)
    loaders: int = setting(4, "threads", "that read ahead of training", runtime=True, ge=1, le=256)
    gpus: int = setting(0, "GPUs", "of this machine that training uses; 0: all", runtime=True, ge=0)
    compile: bool = setting(True, "switch", "torch.compile the encoder on CUDA", runtime=True)
    max_failed_fraction: float = setting(
        0.9, "fraction", "a shard of 100 objects or more fails as a whole above it", runtime=True, gt=0, le=1
    )

    @property
    def load_limits(self) -> Limits:
        """For one mesh."""
        return Limits(self.load_timeout_seconds, self.load_memory_mb)

    @property
    def fit_limits(self) -> Limits:
        """For one splat on a CPU."""
        return Limits(self.fit_timeout_seconds, self.fit_memory_mb)
