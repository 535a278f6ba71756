"""What would stop a stage and can be known before the first job: names, files, the network, the GPU, the disk.

Snakemake's main process checks names when it reads the workflow, and the rest for the stages of its plan. The stages
have their own errors: these come earlier. Imports no torch.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from clipgs.catalog.shards import Plan, labels_path, shard_path, shard_sizes
from clipgs.catalog.sources import source
from clipgs.catalog.sources.annotations import AnnotatedSource
from clipgs.config import Coca, Config, Teacher
from clipgs.core.bundles import read_table
from clipgs.core.devices import without_cuda
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.lists import enumerated
from clipgs.core.web import is_loopback, token
from clipgs.evaluation.rows import ABLATION, check_uni3ds_space, has_uni3d
from clipgs.operate.estimate import rates, size_text
from clipgs.stages import STAGES
from clipgs.teacher import hub, names
from clipgs.triplets.captions import cannot_write, listed_captions, located
from clipgs.triplets.chat import base_url

HOPELESS = 3.0  # a run that needs this many times the free disk is refused: the estimates are not that wrong
_MOST_LABELS = 100_000  # objects whose labels are asked for before they are frozen


class Jobs(NamedTuple):
    """What a run will do."""

    shards: Mapping[str, Sequence[str]]  # stage to the shards of its jobs; a stage over everything has none
    plan: Plan
    dry: bool = False  # nothing is run
    local: bool = True  # this machine runs the jobs


class Findings(NamedTuple):
    """What would stop the run, and what the user should know; a sentence each."""

    errors: list[str]
    notes: list[str]


def of_names(config: Config) -> Findings:
    """Names of models that open_clip does not have, and of runs that are the ablations'.

    Paths are left to `of_jobs`: a file may come until it is needed.
    """

    def misspelt(key: str, settings: Teacher | Coca) -> list[str]:
        path = settings.pretrained or ""
        if ":" not in settings.name and not ("/" in path or path.endswith(names.SUFFIXES)):
            _found(key, settings)
        return []

    return _gathered([partial(_run, config), *(partial(misspelt, key, settings) for key, settings in _models(config))])


def _uni3d(config: Config, jobs: Jobs) -> list[str]:
    """Whether Uni3D can be a row of the ablation."""
    check_uni3ds_space(config)
    return []


def _run(config: Config) -> list[str]:
    if (run := config.training.run).startswith(ABLATION):
        raise UsageError(f"config: training.run = {run}: these names are those of the ablations' runs; choose another")
    return []


def of_jobs(config: Config, jobs: Jobs) -> Findings:
    """What the stages of these jobs need and do not find."""
    needed = jobs.shards.keys()
    return _gathered(partial(check, config, jobs) for check, stages in _CHECKS.items() if needed & stages)


def of_settings(config: Config, plan: Plan) -> Findings:
    """As `of_jobs`, for a run of every stage. The disk is left out, and what only an ablation needs."""
    jobs = Jobs(dict.fromkeys(STAGES, ()), plan, dry=True)
    return _gathered(partial(check, config, jobs) for check in _CHECKS if check not in (_disk, _writable, _uni3d))


def _gathered(checks: Iterable[Callable[[], list[str]]]) -> Findings:
    found = Findings([], [])
    for check in checks:
        try:
            found.notes.extend(check())
        except ClipgsError as error:
            found.errors.append(str(error))
    return found


# --- models of open_clip ---------------------------------------------------------------------------------------------


def _models(config: Config) -> Iterator[tuple[str, Teacher | Coca]]:
    if config.teacher.name != "train":
        yield "teacher", config.teacher
    if config.caption.uses_coca:
        yield "caption.coca", config.caption.coca


def _found(key: str, settings: Teacher | Coca) -> names.Found | None:
    """Where the weights of a model are; None if this open_clip cannot be read without an import."""
    try:
        return names.find(settings, key, names.installed)
    except UsageError:
        raise
    except Exception:  # another version may be written otherwise; then the stage alone knows
        return None


def _teacher(config: Config, jobs: Jobs) -> list[str]:
    unused = jobs.shards.keys() & _SEES == {"caption"} and not config.caption.uses_teacher
    return [] if unused or config.teacher.name == "train" else _available("teacher", config.teacher, jobs)


def _coca(config: Config, jobs: Jobs) -> list[str]:
    settings = config.caption.coca
    if not config.caption.uses_coca:
        return []
    architecture = names.installed(settings.name).architecture
    if not architecture and (found := _found("caption.coca", settings)):
        architecture = found.architecture
    if architecture and (reason := cannot_write(architecture)):
        raise UsageError(f"config: caption.coca.name = {settings.name}: {reason}")
    return _available("caption.coca", settings, jobs)


def _endpoint(config: Config, jobs: Jobs) -> list[str]:
    settings = config.caption.http
    if config.caption.writer != "http":
        return []
    address = base_url(settings.address)
    if reason := unwritable(config.cache_path):
        raise UsageError(f"config: cache = {config.cache_path}: {reason}; answers of caption.http are kept there")
    notes = []
    if jobs.local and (silence := hub.silence(address)):
        text = f"config: caption.http.address = {settings.address}: it cannot be reached ({silence}); start the server"
        if silence.unreachable and not jobs.dry:  # one that is silent may be busy
            raise UsageError(f"{text}, or correct the address")
        notes.append(f"{text}, or correct the address before a run")
    if token(settings.token_variable) is None and not is_loopback(address):
        variable = settings.token_variable
        notes.append(f"caption.http: the environment variable {variable} holds no token; many servers need none")
    elif urlsplit(address).scheme == "http" and not is_loopback(address):
        notes.append(f"caption.http: the token in {settings.token_variable} goes to {address} unencrypted")
    return notes


def _available(key: str, settings: Teacher | Coca, jobs: Jobs) -> list[str]:
    """Notes on what will be downloaded, and on what cannot be told from the weights."""
    found = _found(key, settings)
    if found is None:
        return []
    notes, missing = [], []  # of the missing: address, what it is, what to do
    if isinstance(found.weights, hub.Download):
        if not found.weights.cached:
            missing.append((found.weights.address, f"the weights of {found.weights.what}", "are", names.elsewhere(key)))
    else:
        if problem := names.misfit(found, settings.name):
            raise UsageError(f"config: {key}: {problem}; name the model of these weights, or other weights")
        if found.weights.is_file():
            notes += _unknown(key, settings, found)
    if problem := hub.unknown_to_timm(found.architecture, key, settings.name):
        raise UsageError(problem)
    for files in hub.text_files(found.architecture, found.folder):
        if problem := hub.no_transformers(key, settings.name):
            raise UsageError(problem)
        if files.folder is None:
            what = f"{files.what} of {settings.name} ({files.repository})"
            missing.append((hub.endpoint(), what, "is", hub.text_remedy(key)))
    for address, what, verb, remedy in missing:
        # A dry run and a cluster's login node ask nobody.
        hub.require(address, f"config: {key}: {what} {verb}", remedy, ask=jobs.local and not jobs.dry)
        notes.append(f"{key}: {what} will be downloaded from {urlsplit(address).hostname or address}")
    return notes


def _unknown(key: str, settings: Teacher | Coca, found: names.Found) -> list[str]:
    """What a file of weights does not tell, and the user must know."""
    known, name, notes = names.installed(settings.name), settings.name, []
    tags = [names.as_preprocess(entry) for entry in known.tags.values()]
    if tags and found.preprocess not in tags:
        notes.append(f"{key}.preprocess is that of no tag of {name}: {names.in_words(found.preprocess or {})}")
    other = names.other_gelu(name)
    if other in known.models:
        tags_of = ", ".join(tag for tag, entry in known.tags.items() if names.same_gelu(name, entry, known))
        notes.append(
            f"{key}: weights of {name} and {other} look alike, and their features differ; {name} is right for weights "
            f"like those of {tags_of or 'no tag'}"
        )
    return notes


# --- files that the configuration names ------------------------------------------------------------------------------


def _first_weights(config: Config, jobs: Jobs) -> list[str]:
    settings = config.encoder
    if settings.initialisation == "none" or (jobs.shards.keys().isdisjoint({"train"}) and not has_uni3d(config)):
        return []
    if settings.weights is None:
        if settings.initialisation != "eva02":
            what = (
                "a checkpoint of Uni3D" if settings.initialisation == "uni3d" else "the folder of a point encoder's run"
            )
            raise UsageError(
                f"config: encoder.weights: encoder.initialisation = {settings.initialisation} needs {what}"
            )
        return []
    path = Path(settings.weights).expanduser()
    if settings.initialisation == "points" and path.is_dir():
        path /= "model.safetensors"
    if not path.is_file():
        raise UsageError(f"config: encoder.weights = {settings.weights}: {path} does not exist")
    return []


def _baselines(config: Config, jobs: Jobs) -> list[str]:
    for name, path in config.evaluation.baselines.model_dump().items():
        teacher = name in ("eva02_e_14_plus", "vit_bigg_14")
        if path is not None and not (teacher and path == "download") and not Path(path).expanduser().is_file():
            raise UsageError(f"config: evaluation.baselines.{name} = {path}: there is no such file")
    return []


def _prompts(config: Config, jobs: Jobs) -> list[str]:
    settings = config.evaluation
    if not (settings.templates or settings.classes):
        return []
    from clipgs.evaluation.prompts import listed_classes, templates, unmatched  # imports numpy

    templates(settings.templates)
    if not settings.classes:
        return []
    note = unmatched(settings.classes, listed_classes(settings.classes), categories(config, jobs.plan))
    return [note] if note else []


def categories(config: Config, made: Plan) -> set[str | None]:
    """The categories of the catalog, as far as they are known before the objects are frozen."""
    tables = [labels_path(config, shard) for shard in made.shards]
    if all(table.exists() for table in tables):
        return {row["category"] for table in tables for row in read_table(table, ["category"])}
    objects = source(config)
    if isinstance(objects, AnnotatedSource) or made.objects > _MOST_LABELS:
        return set()
    return {label["category"] for label in objects.labels(objects.locators())}


def _listed_captions(config: Config, jobs: Jobs) -> list[str]:
    if config.caption.captioner != "cap3d":
        return []
    path = Path(str(located(config).cap3d)).expanduser()
    rows = listed_captions(path)
    first = next(rows, None)
    if first is None:
        raise UsageError(f"config: caption.cap3d: {path} is empty")
    if jobs.plan.pending:  # their uids are not known
        return []
    tables = [read_table(shard_path(config, shard), ["uid", "sha256"]) for shard in jobs.plan.frozen]
    known = {row[name] for row in chain(*tables) for name in ("uid", "sha256")}
    if not any(key in known for key, _ in chain([first], rows)):
        ours = enumerated(row["uid"] for row in chain(*tables))
        raise UsageError(f"config: caption.cap3d: {path} has a caption of no object; the objects are {ours}")
    return []


# --- this machine ----------------------------------------------------------------------------------------------------


def _gpu(config: Config, jobs: Jobs) -> list[str]:
    if config.device == "cuda" and jobs.local and (reason := without_cuda()):
        raise UsageError(f"config: device = cuda, but {reason}; see `clipgs doctor`, or set `device: cpu`")
    return []


def _writable(config: Config, jobs: Jobs) -> list[str]:
    folders = {"output": config.output_path}
    if {"freeze", "fetch"} & jobs.shards.keys() and config.catalog.source not in ("folder", "splats"):
        folders["cache"] = config.cache_path
    reasons = {key: reason for key, folder in folders.items() if (reason := unwritable(folder))}
    texts = [
        f"config: {key} = {folders[key]}: {reason}; choose a folder for `{key}` that you may write"
        for key, reason in reasons.items()
    ]
    if texts and not jobs.dry:
        raise UsageError(texts[0])
    return texts


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written or made; None where it can."""
    place = existing(folder)
    if not place.is_dir():
        return f"{place} is a file"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


def existing(folder: Path) -> Path:
    """The folder or, where it is not there yet, the nearest that is."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _disk(config: Config, jobs: Jobs) -> list[str]:
    sizes, needed = shard_sizes(config, jobs.plan), 0.0
    for name, (size, *_) in rates(config).items():
        stage = STAGES[name]
        for shard in jobs.shards.get(name, ()) if stage.folder not in config.temporary else ():
            files = stage.files(config.output_path, shard)
            there = sum(file.stat().st_size for file in files if file.exists())  # is replaced
            needed += max(0.0, sizes.get(shard, 0) * size - there)
    free = shutil.disk_usage(existing(config.output_path)).free
    text = f"config: output = {config.output}: the run needs about {size_text(needed)}, and {size_text(free)} are free"
    if needed > HOPELESS * free:
        raise UsageError(f"{text}; free some space or choose another `output`")
    return [text] if needed > free else []


_SEES = {"embed-images", "embed-texts", "evaluate", "ablation-evaluate", "caption"}
_EVALUATES = {"evaluate", "ablation-evaluate", "baselines"}
_TRAINS = {"train", "ablation-train", "ablation-evaluate"}
_ON_GPU = _SEES | _TRAINS | {"fit", "render", "teacher", "embed-shapes", "baselines", "ablation-start"}
_CHECKS: dict[Callable[[Config, Jobs], list[str]], set[str]] = {
    _writable: set(STAGES),
    _disk: {"sample", "view", "fit", "render", "pack"},
    _gpu: _ON_GPU - {"caption"},
    _teacher: _SEES,
    _coca: {"caption"},
    _endpoint: {"caption"},
    _first_weights: _TRAINS,
    _prompts: _EVALUATES,
    _baselines: {"baselines"},
    _uni3d: {"ablation-start", "ablation-train", "ablation-evaluate"},
    _listed_captions: {"caption"},
}
