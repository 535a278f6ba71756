"""The section `workers`."""

from clipgs.config.fields import Section, setting
from clipgs.core.runner import Limits


class Workers(Section):
    """Processes and limits, none of which changes a result."""

    threads: int = setting(0, "cores", runtime=True, ge=0, le=1024)
    """A job uses at most this many cores. 0 means all cores of the run."""
    load_timeout_seconds: int = setting(300, "seconds", runtime=True, ge=1)
    """A mesh that takes longer to load, sample or render is recorded as failed."""
    load_memory_mb: int = setting(1500, "MB", runtime=True, ge=400)
    """A mesh that takes more memory to load, sample or render is recorded as failed."""
    fit_timeout_seconds: int = setting(7200, "seconds", runtime=True, ge=1)
    """An object that takes longer to fit on a CPU is recorded as failed."""
    fit_memory_mb: int = setting(1000, "MB", runtime=True, ge=500)
    """An object that takes more memory to fit on a CPU is recorded as failed."""
    checkpoint_steps: int = setting(500, "steps", runtime=True, ge=1)
    """At most this many steps lie between two checkpoints from which training can resume."""
    loaders: int = setting(4, "threads", runtime=True, ge=1, le=256)
    """This many threads read objects ahead of training."""
    gpus: int = setting(0, "GPUs", runtime=True, ge=0)
    """Training uses this many GPUs of this machine. 0 means all."""
    compile: bool = setting(True, "true or false", runtime=True)
    """The encoder is compiled with torch.compile on CUDA."""
    max_failed_fraction: float = setting(0.9, "fraction", runtime=True, gt=0, le=1)
    """A stage stops if a larger share of a shard of 100 or more objects fails."""

    @property
    def load_limits(self) -> Limits:
        """Of one mesh."""
        return Limits(self.load_timeout_seconds, self.load_memory_mb, "workers.load_")

    @property
    def fit_limits(self) -> Limits:
        """Of one splat on a CPU."""
        return Limits(self.fit_timeout_seconds, self.fit_memory_mb, "workers.fit_")
