"""The section `workers`."""

from clipgs.config.fields import Section, setting
from clipgs.core.runner import Limits


class Workers(Section):
    """Processes and limits, none of which changes a result."""

    threads: int = setting(
        0, "cores", "A job uses at most this many cores. 0 means all cores of the run.", runtime=True, ge=0, le=1024
    )
    load_timeout_seconds: int = setting(
        300, "seconds", "A mesh that takes longer to load, sample or render is recorded as failed.", runtime=True, ge=1
    )
    load_memory_mb: int = setting(
        1500,
        "MB",
        "A mesh that takes more memory to load, sample or render is recorded as failed.",
        runtime=True,
        ge=400,
    )
    fit_timeout_seconds: int = setting(
        7200, "seconds", "An object that takes longer to fit on a CPU is recorded as failed.", runtime=True, ge=1
    )
    fit_memory_mb: int = setting(
        1000, "MB", "An object that takes more memory to fit on a CPU is recorded as failed.", runtime=True, ge=500
    )
    checkpoint_steps: int = setting(
        500,
        "steps",
        "At most this many steps lie between two checkpoints from which training can resume.",
        runtime=True,
        ge=1,
    )
    loaders: int = setting(
        4, "threads", "This many threads read objects ahead of training.", runtime=True, ge=1, le=256
    )
    gpus: int = setting(0, "GPUs", "Training uses this many GPUs of this machine. 0 means all.", runtime=True, ge=0)
    compile: bool = setting(True, "true or false", "The encoder is compiled with torch.compile on CUDA.", runtime=True)
    max_failed_fraction: float = setting(
        0.9,
        "fraction",
        "A stage stops if a larger share of a shard of 100 or more objects fails.",
        runtime=True,
        gt=0,
        le=1,
    )

    @property
    def load_limits(self) -> Limits:
        """For one mesh."""
        return Limits(self.load_timeout_seconds, self.load_memory_mb)

    @property
    def fit_limits(self) -> Limits:
        """For one splat on a CPU."""
        return Limits(self.fit_timeout_seconds, self.fit_memory_mb)
