"""A run on a cluster that is safe to start again after any end of the last one."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from clipgs.config import Config, read_layers
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.lists import counted
from clipgs.operate.lock import OutputLock
from clipgs.operate.started import freeze
from clipgs.operate.status import find_snakefile

log = logging.getLogger(__name__)

_CANCEL_SECONDS = 120.0


def submit(config: Config, target: str, profile: Path | None, snakefile: Path | None, more: list[str]) -> None:
    """Cleans up after an earlier run, and becomes Snakemake.

    Jobs of an earlier run over this output are cancelled, by the prefix of their names: Snakemake would submit them a
    second time. The run's lock is removed, and unfinished files are made again. The configuration is written to
    `OUTPUT/run.yaml` and read from there, so editing a file does not affect a run that was started.

    Args:
        more: further arguments of Snakemake.

    Raises:
        ClipgsError: another run holds the output, or its jobs do not end.
    """
    snakefile = snakefile or find_snakefile()
    profile = profile or snakefile.parent / "profiles" / "slurm"
    workflow = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile)]
    settings = _profile(profile)
    prefix = job_prefix(config.output_path)
    with OutputLock(config.output_path):
        cancel_leftovers(prefix)
        workflow += ["--configfile", str(freeze(config))]
        if any(Path(".snakemake", "locks").glob("*")):
            log.info("removing the lock of a run that was killed")
            subprocess.run([*workflow, "--unlock"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    named = ["--slurm-jobname-prefix", prefix] if settings.get("executor") == "slurm" else []
    command = [*workflow, "--workflow-profile", str(profile), "--rerun-incomplete", *named, target, *more]
    log.info("jobs are named %s_...: %s", prefix, " ".join(command[1:]))
    sys.stderr.flush()
    os.execv(sys.executable, command)


def job_prefix(output: Path) -> str:
    """The prefix of the names of all jobs over an output."""
    return f"clipgs-{hashlib.sha256(str(output.absolute()).encode()).hexdigest()[:8]}"


def _profile(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file():
        raise UsageError(f"{file} does not exist; --profile names the folder of a profile")
    settings = read_layers(file)
    if "CHANGE_ME" in str(settings.get("default-resources")):
        raise UsageError(f"{file}: set slurm_account, and the partitions, to those of your cluster")
    return settings


def cancel_leftovers(prefix: str) -> None:
    """Cancels the user's own jobs with that prefix, and waits until the last has ended.

    Raises:
        ClipgsError: SLURM does not answer, or some jobs do not end.
    """
    jobs = _queued(prefix) if shutil.which("squeue") else []
    if not jobs:
        return
    log.info("cancelling %d jobs that an earlier run left in the queue", len(jobs))
    _slurm("scancel", *jobs)
    deadline = time.monotonic() + _CANCEL_SECONDS
    while left := _queued(prefix):
        if time.monotonic() > deadline:
            what = counted(len(left), "job of an earlier run does not end", "jobs of an earlier run do not end")
            raise ClipgsError(f"{what}: scancel {' '.join(left)}, and run again")
        time.sleep(1)


def _queued(prefix: str) -> list[str]:
    """Ids of the user's own jobs in the queue, an array as one, that have not ended."""
    lines = [line.split(maxsplit=1) for line in _slurm("squeue", "--me", "--noheader", "--format=%A %j").splitlines()]
    return sorted({number for number, name in lines if name.startswith(f"{prefix}_")})


def _slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClipgsError(f"{command[0]}: {' '.join(done.stderr.split())}")
    return done.stdout
