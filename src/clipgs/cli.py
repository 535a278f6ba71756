"""One command a stage: parse, call, exit code."""

import argparse
import errno
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from clipgs import __version__
from clipgs import config as configuration
from clipgs.core.errors import ClipgsError, UsageError

log = logging.getLogger("clipgs")

# Stage to the module with its function; each takes (config, shard, threads).
_SHARD_STAGES = {
    "label": ("clipgs.catalog.shards", "write the labels (category, text, licence, credit) of a shard's objects"),
    "fetch": ("clipgs.meshes.stages", "make every object's mesh file lie on disk"),
    "sample": ("clipgs.meshes.stages", "sample coloured surface points"),
    "view": ("clipgs.meshes.stages", "render posed pictures of the meshes"),
    "fit": ("clipgs.splats.stages", "fit one Gaussian splat an object"),
    "render": ("clipgs.splats.stages", "render the splats from the canonical cameras"),
    "caption": ("clipgs.triplets.stages", "give every object its caption"),
    "pack": ("clipgs.triplets.stages", "pack splat, pictures and caption into WebDataset tars"),
    "embed-images": ("clipgs.teacher.stages", "put all pictures of a shard's objects through the teacher"),
    "embed-texts": ("clipgs.teacher.stages", "put a shard's captions through the teacher"),
}
# Stages over many shards: (config), and for `freeze` the names of the shards.
_MERGE_STAGES = {
    "freeze": ("clipgs.catalog.shards", "freeze new objects into new shards"),
    "objects": ("clipgs.catalog.shards", "write one table of all objects"),
    "index": ("clipgs.triplets.stages", "write the index, the dataset card and the contact sheet"),
    "embed-shapes": ("clipgs.evaluation.stages", "put every splat into the teacher's space with the run's encoder"),
    "baselines": (
        "clipgs.evaluation.stages",
        "measure other people's models on the same objects, where their files are",
    ),
    "ablations": ("clipgs.evaluation.ablations", "train and measure runs that differ in one thing: one table"),
    "report": ("clipgs.report.page", "write one page of what was made: pictures, tables, curves, splats to turn"),
}
# Stages over all shards that use many cores or a GPU: (config, threads).
_WHOLE_STAGES = {
    "teacher": ("clipgs.training.stages", "train the small teacher on renders, captions and categories"),
    "train": ("clipgs.training.stages", "train CLIP-GS on the triplets and their features"),
    "evaluate": ("clipgs.evaluation.stages", "measure the run: retrieval, zero-shot and few-shot classification"),
}

_ADVICE = {
    errno.ENOSPC: "; free some space or choose another `output`",
    errno.EDQUOT: "; your quota is used up: free some space or choose another `output`",
    errno.EACCES: "; choose an `output` that you may write",
    errno.EROFS: "; choose an `output` that you may write",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipgs",
        description="From 3D meshes to triplets of a Gaussian splat, 36 pictures and a caption. "
        "Each stage of the workflow is a command; `snakemake triplets` runs them all.",
        epilog="example: snakemake --cores all triplets",
    )
    parser.add_argument("--version", action="version", version=f"clipgs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: clipgs {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    for name, (_, text) in _SHARD_STAGES.items():
        command = add(name, text, f"{name} 00000 --config config.yaml --threads 8")
        command.add_argument("shard", help="name of the shard, such as 00000")
        command.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="most processes to use")
        _add_config(command)
    for name, (_, text) in _MERGE_STAGES.items():
        command = add(name, text, f"{name} {'00000 ' * (name == 'freeze')}--config config.yaml")
        _add_config(command)
        if name == "freeze":
            command.add_argument("shards", nargs="+", metavar="shard", help="names or files of the new shards")
        if name == "ablations":
            command.add_argument("--only", metavar="ROW:SEED", help="train and measure this one, and write no table")
    for name, (_, text) in _WHOLE_STAGES.items():
        command = add(name, text, f"{name} --config config.yaml --threads 8")
        command.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="most threads to use")
        _add_config(command)
    command = add(
        "export",
        "write splats as files of other programs: .splat, glTF (KHR_gaussian_splatting) or PLY",
        "export results/triplets --format gltf --to splats",
    )
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="PLY files, tars of triplets, or folders of either")
    command.add_argument("--format", required=True, choices=("splat", "gltf", "ply"), help="gltf: binary, .glb")
    command.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="one file an object goes there")
    command.add_argument("--uid", action="append", default=[], help="only this object; may be given several times")
    command = add(
        "search",
        "print the splats nearest to a text or to the picture in a file, and write a picture of them",
        'search "a red chair" --run runs/base',
    )
    command.add_argument("query", help="a text, or a .png, .jpg or .webp file")
    command.add_argument("--run", required=True, metavar="FOLDER", help="of a finished run; also relative to `output`")
    command.add_argument("--count", type=_positive, default=5, metavar="K", help="how many (default: 5)")
    command.add_argument("--triplets", type=Path, metavar="FOLDER", help="to search (default: those of the run)")
    command.add_argument("--picture", type=Path, default=Path("search.png"), metavar="FILE", help="default: search.png")
    _add_config(command)
    command = add(
        "publish",
        "write a finished run as a folder to upload: weights, settings, model card",
        "publish results/runs/base --to clip-gs-base",
    )
    command.add_argument("run", type=Path, help="the run's folder")
    command.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="weights, settings and card go there")
    command.add_argument("--full", action="store_true", help="weights in single precision, not half")
    command = add("plan", "print what a run will need: disk, jobs and hours a stage", "plan --config config.yaml")
    _add_config(command)
    command = add(
        "status",
        "print how far a run is: stages by shards, failures, disk, what is left to do",
        "status --config config.yaml",
    )
    command.add_argument("target", nargs="?", help="of the workflow (default: triplets)")
    command.add_argument("--snakefile", type=Path, metavar="FILE", help="default: that of this folder")
    _add_config(command)
    command = add(
        "submit",
        "run the workflow on a SLURM cluster; safe to repeat after a kill",
        "submit --config config.yaml --config mine.yaml",
    )
    command.add_argument("target", nargs="?", default="triplets", help="of the workflow (default: triplets)")
    command.add_argument("--profile", type=Path, metavar="FOLDER", help="default: profiles/slurm beside the Snakefile")
    command.add_argument("--snakefile", type=Path, metavar="FILE", help="default: that of this folder")
    command.add_argument(
        "--snakemake", type=shlex.split, default=[], metavar="ARGS", help="further arguments: --snakemake='--jobs 50'"
    )
    _add_config(command)
    command = add("verify", "hold every file of the output against its .check file", "verify --threads 8")
    command.add_argument("--set-aside", action="store_true", help="move damaged files away: the next run makes them")
    command.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="files to read at once")
    _add_config(command)
    command = add("retry", "make the next run try a stage's failed objects again, and no others", "retry fit")
    command.add_argument("stage", help="fetch, sample, view, fit or render")
    command.add_argument("shards", nargs="*", metavar="shard", help="only these shards")
    _add_config(command)
    command = add("exclude", "take objects out of the dataset: the next run packs their shards again", "exclude UID")
    command.add_argument("uids", nargs="*", metavar="UID", help="objects that leave")
    command.add_argument("--list", type=Path, metavar="FILE", help="text or CSV file with one uid a line")
    command.add_argument("--reason", default="on request", help="stands in the dataset card")
    command.add_argument("--undo", action="store_true", help="take them in again")
    _add_config(command)
    command = add(
        "move", "move the output, with Snakemake's record of what its files were made of", "move /big/results"
    )
    command.add_argument("to", metavar="FOLDER", help="what `output` will be from now on")
    _add_config(command)
    command = add("summary", "print what was made: objects, failures, quality, places", "summary")
    _add_config(command)
    command = add("config", "print the whole configuration with units and meanings", "config > config.yaml")
    command.add_argument("--schema", action="store_true", help="as JSON schema, for editors")
    command = add("doctor", "check what this machine has, with a remedy for what it lacks", "doctor")
    _add_config(command)
    return parser


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="YAML over the defaults, later ones win (default: config.yaml, where there is one)",
    )
    command.add_argument("--settings", action="append", metavar="JSON", help="settings as the workflow gives them")
    command.add_argument("--log", type=Path, metavar="FILE", help="write the log there too")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _config(options: argparse.Namespace) -> configuration.Config:
    runtime = os.environ.get("CLIPGS_RUNTIME")  # set by the workflow, together with --settings
    if options.settings or (runtime and not options.config):
        return configuration.from_settings(*(options.settings or ()), runtime or "{}")
    files = options.config or [file for file in ("config.yaml",) if Path(file).exists()]
    return configuration.read(*files)


def _run(options: argparse.Namespace) -> int:
    name = options.command
    if name == "config":
        text = configuration.schema() if options.schema else configuration.to_yaml()
        sys.stdout.write(text)
        return 0
    if name == "export":
        import_module("clipgs.splats.export").export(options.inputs, options.to, options.format, options.uid)
        return 0
    if name == "publish":
        import_module("clipgs.training.runs").publish(options.run, options.to, half=not options.full)
        return 0
    config = _config(options)
    if name in _SHARD_STAGES:
        function: Callable[..., Any] = getattr(import_module(_SHARD_STAGES[name][0]), name.replace("-", "_"))
        with import_module("clipgs.core.runner").marked(config, name, options.shard):
            function(config, options.shard, options.threads)
        return 0
    if name in _WHOLE_STAGES:
        getattr(import_module(_WHOLE_STAGES[name][0]), name.replace("-", "_"))(config, options.threads)
        return 0
    if name in _MERGE_STAGES:
        more: dict[str, Any] = {}
        if name == "freeze":
            more["shards"] = [Path(shard).stem for shard in options.shards]
        if name == "ablations":
            more["only"] = options.only
        getattr(import_module(_MERGE_STAGES[name][0]), name.replace("-", "_"))(config, **more)
        return 0
    if name == "search":
        run, below = Path(options.run), config.output_path / options.run
        run = below if below.exists() and not run.exists() else run
        kept = {"triplets": options.triplets, "picture": options.picture, "device": config.device}
        found = import_module("clipgs.report.search").search(options.query, run, k=options.count, **kept)
        sys.stdout.write("".join(f"{one.score:.3f}  {one.uid}  {one.caption}\n" for one in found))
        log.info("search: %s shows them", options.picture)
        return 0
    if name == "plan":
        sys.stdout.write(import_module("clipgs.operate.estimate").plan_text(config))
        return 0
    if name in ("status", "submit", "verify", "retry", "exclude", "move"):
        return _keep_up(options, config)
    if name == "summary":
        sys.stdout.write(import_module("clipgs.triplets.stages").summary(config))
        return 0
    doctor = import_module("clipgs.operate.doctor")
    checks = doctor.doctor(config.output_path)
    sys.stdout.write(doctor.format(checks) + "\n")
    return 1 if any(check.status == "missing" for check in checks) else 0


def _keep_up(options: argparse.Namespace, config: configuration.Config) -> int:
    """The commands that look after an output."""
    name, run_again = options.command, "run the workflow again, for instance: snakemake triplets\n"
    if name == "status":
        sys.stdout.write(import_module("clipgs.operate.status").status(config, options.target, options.snakefile))
        return 0
    if name == "submit":
        submit = import_module("clipgs.operate.submit").submit
        submit(config, options.target, options.profile, options.snakefile, options.snakemake)
    if name == "verify":
        count, damaged = import_module("clipgs.operate.verify").verify(
            config, options.threads, set_aside=options.set_aside
        )
        sys.stdout.writelines(f"{line}\n" for line in damaged)
        sys.stdout.write(f"{count - len(damaged):,} of {count:,} files are whole\n")
        return 1 if damaged else 0
    if name == "retry":
        found = import_module("clipgs.operate.retry").retry(config, options.stage, options.shards)
        text = f"{sum(found.values()):,} failed objects in {len(found):,} shards are tried again; {run_again}"
        sys.stdout.write(text if found else f"no object failed at {options.stage}\n")
        return 0
    if name == "move":
        count = import_module("clipgs.operate.move").move(config, options.to)
        sys.stdout.write(
            f"moved, with the history of {count:,} files; now set in your configuration: output: {options.to}\n"
        )
        return 0
    uids = list(options.uids)
    if options.list:
        uids += import_module("clipgs.catalog.sources.objaverse").read_uids(options.list)
    if not uids:
        raise UsageError("name the objects, or a file with one uid a line in --list")
    shards = import_module("clipgs.catalog.excluded").exclude(config, uids, options.reason, undo=options.undo)
    sys.stdout.write(f"shards that are packed again: {' '.join(shards)}; {run_again}")
    return 0


def _log_to(file: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, mode="w"))
        handlers[-1].handleError = lambda record: None  # type: ignore[method-assign]  # a full disk takes no log either
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers)
    log.setLevel(logging.INFO)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `clipgs` command. Exit code 0; 1 for a failed run; 2 for wrong usage or configuration."""
    options = _parser().parse_args(arguments)
    try:
        _log_to(getattr(options, "log", None))
        return _run(options)
    except UsageError as error:
        log.error("clipgs %s: %s", options.command, error)
        return 2
    except ClipgsError as error:
        log.error("clipgs %s: %s", options.command, error)
        return 1
    except OSError as error:  # the disk's fault or the permissions', never an object's: those are rows
        advice = _ADVICE.get(error.errno or 0, "")
        log.error("clipgs %s: %s: %s%s", options.command, error.filename or "disk", error.strerror or error, advice)
        return 1
    except KeyboardInterrupt:
        return 130
