"""What Snakemake would make of the files of an output, and why.

    python -m clipgs.operate.planned SNAKEFILE CONFIGFILE TARGET ...

It runs in a process of its own, because reading the workflow changes the environment of the process that does it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from clipgs.core.errors import ClipgsError
from clipgs.stages import differences

# As in profiles/default, which only the command line of Snakemake reads.
_TRIGGERS = ("mtime", "params", "input", "code")


@dataclass(frozen=True)
class Planned:
    """A job of the workflow, and whether Snakemake would run it."""

    rule: str
    wildcards: dict[str, str]
    files: list[str]
    there: bool  # all of its files are
    runs: bool
    why: str  # its own reason to run; empty if it only follows other jobs
    after: list[str]  # the rules of the jobs that run before it and change its inputs


def planned(values: dict[str, Any], snakefile: Path, targets: Sequence[str]) -> list[Planned]:
    """The jobs for these targets, those that are done included.

    Args:
        values: the whole configuration.

    Raises:
        ClipgsError: Snakemake cannot read the workflow.
    """
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [sys.executable, "-m", "clipgs.operate.planned", str(snakefile), file.name, *targets]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        text = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        own = [line.removeprefix("clipgs: ") for line in text if line.startswith("clipgs: ") and "note:" not in line]
        raise ClipgsError(own[-1] if own else f"Snakemake cannot read the workflow: {text[-1].strip()}")
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
    runs, reason = dag.needrun(job), dag.reason(job)
    before = {one.rule.name for one, files in dag.dependencies[job].items() if files and dag.needrun(one)}
    return Planned(
        rule=job.rule.name,
        wildcards=dict(job.wildcards_dict),
        files=[str(file) for file in job.output],
        there=all(Path(file).exists() for file in job.output),
        runs=runs,
        why=_why(job, reason) if runs else "",
        after=sorted(before) if runs else [],
    )


def _why(job: Any, reason: Any) -> str:
    """A job's own reason to run, in plain words."""
    if reason.forced and (lost := [file for file in map(str, job.output) if not Path(file).exists()]):
        return _and_more(lost, "missing")
    if reason.missing_output:
        missing = [file for file in map(str, job.output) if file in reason.missing_output]
        return _and_more(missing or sorted(map(str, reason.missing_output)), "missing")
    if reason.incomplete_output or reason.forced:
        return "it was begun and not finished" if reason.incomplete_output else "it was asked for"
    if reason.params_changed:
        old, new = (_settings(params) for params in (reason.params_changed.only_old, reason.params_changed.only_new))
        return "; ".join(differences(old, new)) or "its settings changed"
    if reason.updated_input:
        return _and_more(sorted(map(str, reason.updated_input)), "newer")
    if reason.input_changed:
        return "it is made from other files than before"
    if reason.code_changed:
        return "its command changed"
    return ""


def _and_more(files: list[str], what: str) -> str:
    return f"{files[0]} is {what}" + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")


def _settings(params: set[str]) -> dict[str, Any]:
    """The settings in the recorded params of a job: Snakemake keeps their representations."""
    import ast

    for text in params:
        try:
            return json.loads(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            continue
    return {}


if __name__ == "__main__":
    found = jobs(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    sys.stdout.write(json.dumps([asdict(job) for job in found]) + "\n")
