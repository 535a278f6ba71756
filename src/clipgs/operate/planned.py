"""What Snakemake would make of the files of an output, and why.

    python -m clipgs.operate.planned SNAKEFILE CONFIGFILE TARGET ...

It runs in a process of its own, because reading the workflow changes the environment of the process that does it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from clipgs.core.errors import ClipgsError
from clipgs.operate.reasons import plainly, why

# As in profiles/default, which only the command line of Snakemake reads.
_TRIGGERS = ("mtime", "params", "input", "code")
# Snakemake's names of the reasons that are a job's own.
_OWN = (
    *("forced", "missing_output", "incomplete_output", "updated_input"),
    *("params_changed", "input_changed", "code_changed"),
)


@dataclass(frozen=True)
class Planned:
    """A job of the workflow, and whether Snakemake would run it."""

    rule: str
    wildcards: dict[str, str]
    files: list[str]
    there: bool  # all of its files are
    runs: bool
    why: str  # its own reason to run; empty if it only follows other jobs


def planned(values: dict[str, Any], snakefile: Path, targets: Sequence[str]) -> list[Planned]:
    """The jobs for these targets, those that are done included.

    Args:
        values: the whole configuration.

    Raises:
        ClipgsError: Snakemake cannot read the workflow.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [sys.executable, "-m", "clipgs.operate.planned", str(snakefile), file.name, *targets]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        text = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        own = [line.removeprefix("clipgs: ") for line in text if line.startswith("clipgs: ") and "note:" not in line]
        plain = own[-1] if own else plainly(done.stderr, ())
        raise ClipgsError(plain or f"Snakemake cannot read the workflow: {text[-1].strip()}")
    return [Planned(**job) for job in json.loads(done.stdout.splitlines()[-1])]


def jobs(snakefile: Path, configfile: Path, targets: Sequence[str], forced: Sequence[str] = ()) -> list[Planned]:
    """As `planned`, in this process.

    Args:
        forced: rules that would run in any case, as with `--forcerun`.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, RerunTrigger, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False)) as api:
        read = api.workflow(
            ResourceSettings(cores=1), ConfigSettings(configfiles=[configfile]), snakefile=snakefile, workdir=Path.cwd()
        )
        read.dag(
            DAGSettings(
                targets=frozenset(targets),
                forcerun=frozenset(forced),
                force_incomplete=True,
                rerun_triggers=frozenset(map(RerunTrigger.parse_choice, _TRIGGERS)),
            )
        )
        workflow = read._workflow  # the public interface only prints
        workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True)
        workflow._build_dag()
        return [_read(workflow.dag, job) for job in workflow.dag.jobs if job.output]


def _read(dag: Any, job: Any) -> Planned:
    runs, reason, files = dag.needrun(job), dag.reason(job), [str(file) for file in job.output]
    own = any(getattr(reason, name) for name in _OWN)
    return Planned(
        rule=job.rule.name,
        wildcards=dict(job.wildcards_dict),
        files=files,
        there=all(map(os.path.exists, files)),
        runs=runs,
        why=why(str(reason), files) if runs and own else "",
    )


if __name__ == "__main__":
    found = jobs(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    sys.stdout.write(json.dumps([asdict(job) for job in found]) + "\n")
