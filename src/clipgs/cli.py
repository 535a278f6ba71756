"""The `clipgs` command, made from STAGES and OPERATIONS: parse, call, exit code."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from clipgs import __version__
from clipgs.core.errors import ClipgsError, UsageError, advice
from clipgs.core.runner import PROGRESS, SCREEN, marked
from clipgs.operate import started
from clipgs.operate.operations import CONFIGURATION, CORES, OPERATIONS, Argument, Operation
from clipgs.stages import RUNTIME, STAGES, Stage, from_settings, job

log = logging.getLogger("clipgs")

# What a stage works on: how its argument is called in --help, and an example.
_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "shard": ({"help": "name of the shard, such as 00000"}, "00000"),
    "shards": ({"nargs": "+", "metavar": "shard", "help": "names or files of the new shards"}, "00000 00001"),
    "row": ({"help": "of the ablation, such as voting"}, "voting"),
    "seed": ({"type": int, "help": "of ablations.seeds"}, "0"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The `clipgs` command. Exit code 0; 1 for a failed run; 2 for wrong usage or configuration."""
    options = parser().parse_args(arguments)
    try:
        _log_to(getattr(options, "log", None))
        return options.call(options) or 0
    except ClipgsError as error:
        log.error("clipgs %s: %s", options.command, error)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # of the disk or the permissions: an object's error is a row
        log.error("clipgs %s: %s: %s%s", options.command, error.filename or "disk", error.strerror, advice(error))
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line: a command for each stage and operation."""
    whole = argparse.ArgumentParser(
        prog="clipgs",
        description="From 3D meshes to triplets of a Gaussian splat, 36 renders and a caption. "
        "Each stage of the workflow is a command; `snakemake triplets` runs them all.",
        epilog="example: snakemake --cores all triplets",
    )
    whole.add_argument("--version", action="version", version=f"clipgs {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example: clipgs {example}"
        )

    for stage in STAGES.values():
        words = [stage.name, *(_ARGUMENTS[name][1] for name in stage.per), "--config mine.yaml"]
        command = add(stage.name, stage.help, " ".join(words + ["--threads 8"] * stage.threads))
        for name in stage.per:
            command.add_argument(name, **_ARGUMENTS[name][0])
        _add(command, *[CORES] * stage.threads)
        command.add_argument("--settings", action="append", metavar="JSON", help="as the workflow gives them")
        _add(command, *CONFIGURATION)
        command.set_defaults(call=partial(_run_stage, stage))
    for operation in OPERATIONS:
        command = add(operation.name, operation.help, operation.example)
        _add(command, *operation.arguments)
        if operation.on_output:
            text = "an output: the configuration is that of its last run"
            command.add_argument("--output", type=Path, metavar="FOLDER", help=text)
            _add(command, *CONFIGURATION)
        command.set_defaults(call=partial(_operate, operation))
    return whole


def _add(command: argparse.ArgumentParser, *arguments: Argument) -> None:
    for names, more in arguments:
        command.add_argument(*names, **more)


def _run_stage(stage: Stage, options: argparse.Namespace) -> None:
    runtime = os.environ.get(RUNTIME)
    if options.settings or (runtime and not options.config):
        config = from_settings(*(options.settings or ()), runtime or "{}")
    else:
        config = started.layered(options.config or [])
    values = [getattr(options, name) for name in stage.per]
    if stage.per == ("shards",):
        values = [[Path(shard).stem for shard in options.shards]]
    more = {"threads": options.threads} if stage.threads else {}
    with marked(job(config, stage.name, options.shard)) if stage.per == ("shard",) else nullcontext():
        stage.function(config, *values, **more)


def _operate(operation: Operation, options: argparse.Namespace) -> int | None:
    for name, value in vars(options).items():
        if isinstance(value, Path):  # the configuration may be that of another folder
            setattr(options, name, value.absolute())
    if not operation.on_output:
        return operation.run(options)
    if not options.config:
        needed = not (operation.anywhere or getattr(options, "run", None))
        return operation.run(options, started.of_output(options.output, needed=needed))
    config = started.layered(options.config)
    return operation.run(options, config.model_copy(update={"output": str(options.output)} if options.output else None))


def _log_to(file: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file, mode="w")
        to_file.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk takes no log either
        if SCREEN in os.environ and to_file.stream is not None:
            # The terminal is the screen's. What libraries and other programs write goes into the log too.
            for output in (1, 2):
                os.dup2(to_file.stream.fileno(), output)
            os.environ[PROGRESS] = str(file.with_suffix(".progress").absolute())
            handlers = [to_file]
        else:
            handlers.append(to_file)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers)
    log.setLevel(logging.INFO)
