"""The commands that are no stages: their arguments, and what each calls.

Modules are imported inside the functions: most import numpy or torch, which `clipgs --help` and the stages' jobs need
not wait for.
"""

import logging
import os
import shlex
import sys
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clipgs import config as configuration
from clipgs.catalog.records import PICTURE_SUFFIXES
from clipgs.config import Config
from clipgs.core.errors import ClipgsError, UsageError, snakemake
from clipgs.core.files import Given
from clipgs.core.lists import counted
from clipgs.encoder import MODEL, no_run, run_folder
from clipgs.operate import started

log = logging.getLogger(__name__)

Argument = tuple[tuple[str, ...], dict[str, Any]]
_Run = TypeVar("_Run", bound=Callable[..., int | None])


def positive(text: str) -> int:
    """A whole number from 1 on, of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def port(text: str) -> int:
    """The number of a port, of the command line."""
    if not text.isdecimal() or int(text) >= 65536:
        raise ArgumentTypeError(f"{text} is no whole number from 0 to 65535")
    return int(text)


def argument(*names: str, **more: Any) -> Argument:
    """As `ArgumentParser.add_argument` takes it."""
    return names, more


CORES = argument("--threads", type=positive, default=os.cpu_count() or 1, help="processes or threads at most")
CONFIGURATION = (
    argument("--config", action="append", metavar="FILE", help="YAML over ./config.yaml; later ones win"),
    argument("--log", type=Path, metavar="FILE", help="write the log there too"),
)
_SNAKEFILE = argument("--snakefile", type=Path, metavar="FILE", help="default: that of this folder")
_RUN = argument("--run", metavar="FOLDER", help="of a finished run (default: runs/ and the configured name)")
_FORMATS = ("splat", "gltf", "ply")
_FITS = ("demo", "quick", "fast", "paper")
_PRESET = argument("--preset", choices=_FITS, help="of a mesh's fit (default: paper on a GPU, quick on a CPU)")
_FOLDER = argument("--to", required=True, type=Path, metavar="FOLDER", help="where the files go")
_SNAKEMAKE = "further arguments: --snakemake='--jobs 50'"


@dataclass(frozen=True)
class Operation:
    """A command that is no stage."""

    run: Callable[..., int | None]  # gets the options, and the configuration if `on_output`; None: exit code 0
    example: str  # without `clipgs`
    arguments: tuple[Argument, ...]  # besides those that every command has
    on_output: bool  # works on an output: without `--config` the configuration is that of the output's last run
    anywhere: bool  # also where there is neither a configuration nor an output

    @property
    def name(self) -> str:
        return self.run.__name__.replace("_", "-")

    @property
    def help(self) -> str:
        """The docstring of the function."""
        text = self.run.__doc__ or self.name
        return f"{text[0].lower()}{text[1:].rstrip('.')}"


OPERATIONS: list[Operation] = []


def operation(
    example: str, *arguments: Argument, on_output: bool = True, anywhere: bool = False
) -> Callable[[_Run], _Run]:
    """Adds the function below to OPERATIONS."""

    def add(run: _Run) -> _Run:
        OPERATIONS.append(Operation(run, example, arguments, on_output, anywhere))
        return run

    return add


@operation(
    "splat chair.glb -o chair.ply",
    argument("meshes", nargs="+", type=Path, metavar="MESH", help="mesh files, or folders of them"),
    argument("-o", "--to", metavar="FILE", help="a .ply, .splat or .glb; of several meshes the folder"),
    argument("--format", choices=_FORMATS, help="default: by the suffix of -o, else ply"),
    _PRESET,
    argument("--gaussians", type=positive, metavar="N", help="instead of the preset's"),
    argument("--steps", type=positive, metavar="N", help="of the fit, instead of the preset's"),
    argument("--pixels", type=positive, metavar="N", help="of the views that are fitted, instead of the preset's"),
    argument("--up-axis", choices=("auto", "y", "z"), default="auto", help="of the files (default: auto)"),
    argument("--seed", type=int, default=0, help="default: 0"),
    argument("--views-to", type=Path, metavar="FOLDER", help="write the views of the mesh and their cameras there"),
    argument("--picture", action=BooleanOptionalAction, default=True, help="of mesh and splat (default: yes)"),
    CORES,
    on_output=False,
)
def splat(options: Namespace) -> int:
    """Fit a splat to each mesh, without a run of the workflow."""
    from clipgs.operate import splat as module

    return module.splat(options)


@operation("plan --config configs/objaverse_240k.yaml")
def plan(options: Namespace, config: Config) -> None:
    """Print what a run will need: disk, jobs and hours of each stage."""
    from clipgs.operate.estimate import plan_text

    sys.stdout.write(plan_text(config))


@operation("status", argument("target", nargs="?", help="of the workflow (default: triplets)"), _SNAKEFILE)
def status(options: Namespace, config: Config) -> None:
    """Print how far a run is: stages by shards, failures, quality, disk, what is left to do."""
    from clipgs.operate import status as module

    sys.stdout.write(module.status(config, options.target, options.snakefile))
    if not options.config and started.edited(config):
        sys.stdout.write("the configuration was edited after this run began; --config shows what would run now\n")


@operation(
    "submit --config mine.yaml",
    argument("target", nargs="?", default="triplets", help="of the workflow (default: triplets)"),
    argument("--profile", type=Path, metavar="FOLDER", help="default: profiles/slurm in the folder of the Snakefile"),
    _SNAKEFILE,
    argument("--snakemake", type=shlex.split, default=[], metavar="ARGS", help=_SNAKEMAKE),
    *CONFIGURATION,
    on_output=False,
)
def submit(options: Namespace) -> None:
    """Run the workflow on a SLURM cluster; safe to repeat after a kill."""
    from clipgs.operate import submit as module

    # As Snakemake reads it: the files as they are now, not those of the last run.
    config = started.layered(options.config or [])
    module.submit(config, options.target, options.profile, options.snakefile, options.snakemake)


@operation(
    "verify --threads 8",
    argument("--set-aside", action="store_true", help="move damaged files away: the next run makes them"),
    CORES,
)
def verify(options: Namespace, config: Config) -> int:
    """Compare every file of the output with its checksum."""
    from clipgs.operate import verify as module

    count, damaged = module.verify(config, options.threads, set_aside=options.set_aside)
    sys.stdout.writelines(f"{line}\n" for line in damaged)
    sys.stdout.write(f"{count - len(damaged):,} of {count:,} files are whole\n")
    return 1 if damaged else 0


@operation(
    "retry fit",
    argument("stage", help="one that makes objects one by one, such as fetch or fit"),
    argument("shards", nargs="*", metavar="shard", help="only these shards"),
)
def retry(options: Namespace, config: Config) -> None:
    """Make the next run try a stage's failed objects again, and no others."""
    from clipgs.operate import retry as module

    found = module.retry(config, options.stage, options.shards)
    if not found:
        sys.stdout.write(f"no object failed at {options.stage}\n")
        return
    for stage, shards in found.items():
        count = sum(shards.values())
        failed = counted(count, f"failed object of {stage}", f"failed objects of {stage}")
        tried = f"{'is' if count == 1 else 'are'} tried again by the next run"
        sys.stdout.write(f"{failed} in {counted(len(shards), 'shard')} {tried}\n")
    sys.stdout.write(f"the next run: {snakemake('triplets')}\n")


@operation(
    "exclude UID",
    argument("uids", nargs="*", metavar="UID", help="objects that leave; or their files, as in `clipgs status`"),
    argument("--list", type=Path, metavar="FILE", help="text or CSV file with one uid a line"),
    argument("--replaced", action="store_true", help="objects whose file has other bytes now; the new file stays"),
    argument("--gone", action="store_true", help="objects whose file has gone from the source"),
    argument("--unlisted", action="store_true", help="objects that the manifest or the selection leaves out now"),
    argument("--reason", help="for the dataset card (default: on request, or what became of the file)"),
    argument(
        "--undo", action="store_true", help="take them in again; with --gone and so on those that are there again"
    ),
)
def exclude(options: Namespace, config: Config) -> None:
    """Take objects out of the dataset: the next run packs their shards again."""
    from clipgs.catalog import excluded
    from clipgs.catalog.shards import back, lost
    from clipgs.catalog.sources.objaverse import read_uids

    chosen = {name: why for name, why in excluded.WHY_LOST.items() if getattr(options, name)}
    uids = list(options.uids) + (read_uids(options.list, "--list") if options.list else [])
    if not uids and not chosen:
        kinds = ", ".join(f"--{name}" for name in excluded.WHY_LOST)
        raise UsageError(f"name the objects, or a file with one uid a line in --list, or give one of {kinds}")
    reason_of = dict.fromkeys(uids, excluded.NO_REASON)
    found = (back if options.undo else lost)(config) if chosen else {}
    for name, why in chosen.items():
        said = "is in the source again" if options.undo else why
        sys.stdout.writelines(f"{uid} {said}: {file}\n" for uid, file in found[name])
        reason_of |= {uid: why for uid, _ in found[name]}
    if not reason_of:
        kinds = " or ".join(chosen)
        none = f"no object that was excluded as {kinds} is in the source again"
        sys.stdout.write(f"{none if options.undo else f'no object of this output is {kinds}'}\n")
        return
    shards: set[str] = set()
    for reason in sorted(set(reason_of.values())):
        named = [uid for uid, why in reason_of.items() if why == reason]
        shards |= {*excluded.exclude(config, named, options.reason or reason, undo=options.undo)}
    sys.stdout.write(f"the next run packs these shards again: {' '.join(sorted(shards))}; {snakemake('triplets')}\n")


@operation(
    'search "a red chair"',
    argument("query", help="a text, or a .png, .jpg or .webp file"),
    _RUN,
    argument("--count", type=positive, default=5, metavar="K", help="how many (default: 5)"),
    argument("--triplets", type=Path, metavar="FOLDER", help="to search (default: those of the run)"),
    argument("--picture", type=Path, default=Path("search.png"), metavar="FILE", help="default: search.png"),
)
def search(options: Namespace, config: Config) -> None:
    """Print the splats nearest to a text or to the picture in a file, and write a picture of them."""
    run = run_folder(config, options.run)
    _check_search(run, options)
    log.info("search: loading PyTorch and the encoder in %s", run)

    from clipgs.report import search as module

    kept = {"triplets": options.triplets, "picture": options.picture, "device": config.device}
    found = module.search(options.query, run, k=options.count, **kept)
    sys.stdout.write("".join(f"{one.score:.3f}  {one.uid}  {one.caption}\n" for one in found))
    log.info("search: %s shows them", options.picture)


def _check_search(run: Path, options: Namespace) -> None:
    """What a search needs, before PyTorch is loaded for it.

    Raises:
        UsageError: a file that the user names cannot be read or written so.
        ClipgsError: there is no finished run, or nothing to search.
    """
    if options.query.lower().endswith(PICTURE_SUFFIXES) and not Path(options.query).is_file():
        raise UsageError(f"there is no picture {options.query}")
    if options.picture.suffix.lower() != ".png":
        raise UsageError(f"--picture {options.picture}: it is written as PNG, so its name must end in .png")
    if not options.picture.parent.is_dir():
        raise UsageError(f"--picture {options.picture}: there is no folder {options.picture.parent}")
    if not (run / MODEL).exists():
        raise ClipgsError(no_run(run))
    triplets = options.triplets or run.resolve().parent.parent / "triplets"
    if not any(triplets.glob("*.tar")):
        raise ClipgsError(f"{triplets} has no triplets; make them with: {snakemake('triplets')}")


@operation(
    "embed chair.ply table.glb photo.jpg -o vectors.npz",
    argument("files", nargs="+", type=Given.of, metavar="FILE", help="splats (.ply), meshes or pictures"),
    _RUN,
    argument("-o", "--to", type=Path, metavar="FILE", help=".npy, or .npz with the names (default: JSON is printed)"),
    _PRESET,
    CORES,
    anywhere=True,
)
def embed(options: Namespace, config: Config) -> int:
    """Write the vectors of splats, meshes and pictures in the space of the teacher."""
    from clipgs.report import vectors as module

    run = run_folder(config, options.run)
    return module.embed(run, options.files, options.to, options.preset, options.threads, config.device)


@operation(
    'compare chair.ply "a red chair" "a table"',
    argument("given", nargs="+", type=Given.of, metavar="FILE|TEXT", help="splats (.ply), meshes, pictures; texts"),
    _RUN,
    _PRESET,
    CORES,
    anywhere=True,
)
def compare(options: Namespace, config: Config) -> int:
    """Print the cosines of files with texts, or with each other."""
    from clipgs.report import vectors as module

    run = run_folder(config, options.run)
    return module.compare(run, options.given, options.preset, options.threads, config.device)


@operation(
    "serve",
    _RUN,
    argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine alone)"),
    argument("--port", type=port, default=8700, help="0 takes a free one (default: 8700)"),
)
def serve(options: Namespace, config: Config) -> None:
    """Show an output as a local page: search, filters, splats that turn, failures; until Ctrl-C."""
    from clipgs.serve import server

    run = run_folder(config, options.run).absolute()
    finished = (run / MODEL).exists()
    if options.run is not None:
        if not finished:
            raise UsageError(no_run(run))
        if not options.config and not options.output:
            output = run.parent.parent
            kept = (output / started.CONFIG).is_file()
            config = started.of_output(output) if kept else config.model_copy(update={"output": str(output)})
    server.serve(config, run if finished else None, options.host, options.port)


@operation(
    "export results/triplets --format gltf --to splats",
    argument("inputs", nargs="+", metavar="INPUT", help="PLY files, tars of triplets, or folders of either"),
    argument("--format", required=True, choices=_FORMATS, help="gltf: binary, .glb"),
    _FOLDER,
    argument("--uid", action="append", default=[], help="only this object; may be given several times"),
    on_output=False,
)
def export(options: Namespace) -> None:
    """Write splats as files of other programs: .splat, glTF (KHR_gaussian_splatting) or PLY."""
    from clipgs.splats import export as module

    module.export(options.inputs, options.to, options.format, options.uid)


@operation(
    "fetch-teacher ViT-B-16-SigLIP webli --to models/siglip",
    argument("name", help="of a model of open_clip, or hf-hub:ORG/REPO"),
    argument("tag", nargs="?", help="of its weights; a repository has its own"),
    _FOLDER,
    argument("--check", action=BooleanOptionalAction, default=True, help="open the model at the end (default: yes)"),
    anywhere=True,
)
def fetch_teacher(options: Namespace, config: Config) -> None:
    """Bring a teacher and its tokenizer from the hub into a folder for machines without network; safe to repeat."""
    from clipgs.teacher import fetch as module

    record = module.fetch(options.name, options.tag, options.to, config.catalog.downloads)
    size = sum(file.bytes or 0 for file in record.files.values())
    sys.stdout.write(f"{options.to} is whole: {', '.join(record.files)} ({size / 1e9:.2f} GB)\n")
    if options.check:
        sys.stdout.write(f"{module.check(config, options.to)}\n")
    sys.stdout.write(f"in config.yaml, with the path on the machine of the run:\n\n{module.advised(options.to)}")


@operation(
    "publish results/runs/base --to clip-gs-base",
    argument("run", type=Path, help="the run's folder"),
    _FOLDER,
    argument("--full", action="store_true", help="weights in single precision, not half"),
    on_output=False,
)
def publish(options: Namespace) -> None:
    """Write a finished run as a folder to upload: weights, settings, model card."""
    from clipgs.training import runs

    runs.publish(options.run, options.to, half=not options.full)


@operation(
    "config > config.yaml",
    argument("--schema", action="store_true", help="as JSON schema, for editors"),
    argument("--recipe", default="paper", choices=("demo", "fast", "paper"), help="default: paper"),
    on_output=False,
)
def config(options: Namespace) -> None:
    """Print the whole configuration with units and meanings."""
    sys.stdout.write(configuration.schema() if options.schema else configuration.to_yaml(options.recipe))


@operation(
    "doctor",
    argument("--install-converter", action="store_true", help="of .fbx, .blend and .abc: Blender's library, 1 GB"),
    argument("--python", type=Path, metavar="FILE", help="the Python 3.13 that it needs (default: it is looked for)"),
    anywhere=True,
)
def doctor(options: Namespace, config: Config) -> int:
    """Check what this machine has, with a remedy for what it lacks."""
    from clipgs.operate import converter
    from clipgs.operate import doctor as module

    if options.install_converter:
        sys.stdout.write(converter.install(options.python) + "\n")
        return 0
    if options.python:
        raise UsageError("--python goes with --install-converter")
    checks = module.doctor(config.output_path, config)
    sys.stdout.write(module.format(checks) + "\n")
    return 1 if any(check.status == "missing" for check in checks) else 0
