"""The stages of the workflow, each once.

The command line, the settings of the rules, status, retry, verify and plan are made from STAGES. A new stage is a
function in its package's `stages.py`, a line here, and a rule (docs/architecture.md).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from clipgs.config import Caption, Config, Http, Section, check, merge
from clipgs.core.bundles import read_table
from clipgs.core.files import check as check_file
from clipgs.core.runner import Job, Row
from clipgs.core.seeds import canonical_json


@dataclass(frozen=True)
class Stage:
    """A stage: a rule, a command, and the function `clipgs.PACKAGE.stages.NAME`."""

    name: str  # of the command; the rule and the function have underscores instead of dashes
    package: str  # of the function
    help: str  # what it does, for `--help`
    # Dotted settings that its result depends on. What earlier stages made reaches it through its input files.
    keys: tuple[str, ...] = ()
    version: int = 1  # raised when the stage's code changes its output
    per: tuple[str, ...] = ("shard",)  # what a job works on: a shard, several shards, a row and seed, or everything: ()
    folder: str = ""  # of its files under the output; of a stage over shards `FOLDER/S.parquet` is its table
    bundle: str = ""  # suffix of the file beside the table, with the objects' data
    after: tuple[str, ...] = ()  # the stages whose files it reads
    by_object: bool = False  # makes each object's row by itself, so failed objects can be retried without the others
    threads: bool = True  # the function takes the number of threads or processes that it may use

    @property
    def rule(self) -> str:
        return self.name.replace("-", "_")

    @property
    def function(self) -> Callable[..., None]:
        """Imported at its first use: most stages import numpy or torch, and parsing the workflow must not."""
        return getattr(import_module(f"clipgs.{self.package}.stages"), self.rule)

    def files(self, output: Path, shard: str) -> list[Path]:
        """Its table and, where it has one, its bundle of a shard."""
        return [output / self.folder / f"{shard}{suffix}" for suffix in (".parquet", self.bundle) if suffix]


_TEACHER = tuple(f"teacher.{key}" for key in ("name", "pretrained", "preprocess", "tokenizer", "images", "precision"))
_SAMPLED_BY = ("seed", "catalog.folder.up_axis", "meshes", "points")
_CAMERAS = ("views.count", "views.fov_degrees", "views.distance")
_UP_AXES = ("catalog.folder.up_axis", "catalog.splats.up_axis")

# In the order of the workflow. Captions depend on keys that `_caption_keys` gives.
_ALL = (
    Stage("freeze", "catalog", "freeze new objects into new shards",
          per=("shards",), folder="catalog/shards", threads=False),
    Stage("label", "catalog", "write the labels of a shard's objects: category, text, licence, credit, page",
          folder="catalog/labels", after=("freeze",)),
    Stage("objects", "catalog", "write one table of all objects",
          per=(), folder="catalog", after=("freeze",), threads=False),
    Stage("fetch", "meshes", "download or locate the mesh files of a shard's objects, and check them",
          keys=("seed", "meshes.max_file_mb", "catalog.splats.max_gaussians"), folder="meshes", after=("freeze",),
          by_object=True),
    Stage("sample", "meshes", "sample coloured surface points",
          keys=_SAMPLED_BY, version=2, folder="points", bundle=".npz", after=("fetch",),
          by_object=True),
    Stage("view", "meshes", "render views of the meshes, with their cameras",
          keys=("seed", "catalog.folder.up_axis", "meshes", "views"), version=2, folder="views", bundle=".tar",
          after=("fetch",), by_object=True),
    Stage("fit", "splats", "fit one Gaussian splat to the views of each object",
          keys=("seed", "catalog.splats.up_axis", "catalog.splats.box_fraction", "views", "fit"), folder="splats",
          bundle=".tar", after=("fetch", "sample", "view"), by_object=True),
    Stage("render", "splats", "render the splats from the canonical cameras",
          keys=("render", *_CAMERAS), folder="renders", bundle=".tar", after=("fit",), by_object=True),
    Stage("caption", "triplets", "give every object its caption",
          version=2, folder="captions", after=("label", "fetch")),
    Stage("pack", "triplets", "pack splats, renders and captions into WebDataset tars",
          keys=(*_UP_AXES, *_CAMERAS, "render.pixels"), version=4, folder="triplets", bundle=".tar",
          after=("label", "fetch", "sample", "view", "fit", "render", "caption")),
    Stage("index", "triplets", "write the index, the dataset card and the contact sheet",
          keys=("pack", "teacher.name", "teacher.pretrained", "teacher.preprocess", "teacher.tokenizer"), version=4,
          per=(), folder="triplets", after=("objects", "view", "pack"), threads=False),
    Stage("teacher", "training", "train the small teacher on renders, captions and categories",
          keys=("seed", "teacher.small"), version=2, per=(), folder="teacher", after=("pack",)),
    Stage("embed-images", "teacher", "encode all renders of a shard's objects with the teacher",
          keys=("views.count", *_TEACHER), version=2, folder="features", after=("teacher", "render", "view")),
    Stage("embed-texts", "teacher", "encode a shard's captions with the teacher",
          keys=_TEACHER, version=3, folder="features", after=("teacher", "embed-images", "pack")),
    Stage("train", "training", "train CLIP-GS on the triplets and their features",
          keys=("encoder", "training", *_TEACHER), version=2, per=(), folder="runs",
          after=("pack", "embed-images", "embed-texts")),
    Stage("embed-shapes", "evaluation", "encode every splat with the run's encoder",
          keys=("training.run",), per=(), folder="evaluation", after=("pack", "index", "train"),
          threads=False),
    Stage("evaluate", "evaluation", "measure the run: retrieval, zero-shot and few-shot classification",
          keys=("evaluation", "training.run", "views.count", *_TEACHER), version=3, per=(), folder="evaluation",
          after=("index", "teacher", "embed-images", "embed-texts", "embed-shapes")),
    Stage("baselines", "evaluation", "measure other people's models on the same objects, where their files are",
          keys=("encoder", "evaluation", "training.run", "views.count", "teacher"), version=2, per=(),
          folder="evaluation", after=("evaluate",), threads=False),
    Stage("ablation-points", "evaluation", "write the surface points of a shard's meshes as splats",
          keys=("encoder.gaussians", "ablations.point_colors", *_SAMPLED_BY), version=3,
          folder="ablations/points/triplets", bundle=".tar",
          after=("sample", "pack")),
    Stage("ablation-start", "evaluation", "train the point encoder that the rows of a seed start from",
          keys=("encoder", "training", *_TEACHER), version=2, per=("seed",), folder="ablations/points/runs",
          after=("ablation-points", "embed-images", "embed-texts")),
    Stage("ablation-train", "evaluation", "train a row of the ablation with a seed",
          keys=("encoder", "training", *_TEACHER), version=2, per=("row", "seed"), folder="runs",
          after=("ablation-start", "pack", "embed-images", "embed-texts")),
    Stage("ablation-evaluate", "evaluation", "measure a row of the ablation with a seed",
          keys=("encoder", "evaluation", "training.run", "views.count", *_TEACHER), version=2,
          per=("row", "seed"), folder="evaluation",
          after=("pack", "index", "teacher", "embed-images", "embed-texts", "ablation-start", "ablation-train")),
    Stage("ablations", "evaluation", "put the ablation's runs into one table",
          keys=("evaluation", "ablations", "encoder", "training", "views.count", "teacher"), per=(),
          folder="evaluation", after=("index", "embed-images", "embed-texts", "ablation-evaluate"), threads=False),
    Stage("report", "report", "write one page of what was made: renders, tables, curves, splats to turn",
          keys=("report", "pack.title", "views.pixels", "views.held_out"), per=(), folder="report",
          after=("view", "pack", "index", "evaluate", "baselines"), threads=False),
)  # fmt: skip
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
OF_RULE: dict[str, Stage] = {stage.rule: stage for stage in _ALL}


def retriable() -> dict[str, Stage]:
    """The stages that make each object by itself and write it into files of the shard."""
    return {name: stage for name, stage in STAGES.items() if stage.by_object}


def fed_by(name: str) -> list[str]:
    """The stages by object that read a stage's files, directly or through each other, in their order."""
    reached = {name}
    for stage in STAGES.values():
        if stage.by_object and reached & set(stage.after):
            reached.add(stage.name)
    return [each for each in STAGES if each in reached - {name}]


# --- settings --------------------------------------------------------------------------------------------------------

RUNTIME = "CLIPGS_RUNTIME"  # in the environment of a stage: the keys that change no result (others: --settings)
# What the settings of a rule have besides keys.
_BESIDES = frozenset({"stage", "version", "labels", "curation", "captions", "excluded", "retry", "shown", "files"})


def stage_settings(config: Config, name: str, **more: str) -> str:
    """The part of the configuration that a stage's result depends on, as canonical JSON with the stage's version.

    It is the only param of the stage's rule, and `from_settings` reads it back.
    """
    stage = STAGES[name]
    keys = stage.keys + (_caption_keys(config) if name == "caption" else ())
    picked: dict[str, Any] = {}
    values = config.model_dump(mode="json")
    for key in keys:
        *parents, last = key.split(".")
        target, source = picked, values
        for parent in parents:
            target, source = target.setdefault(parent, {}), source[parent]
        target[last] = source[last]
    return canonical_json({"stage": name, "version": stage.version, **more, **picked})


def _caption_keys(config: Config) -> tuple[str, ...]:
    """What captions depend on: images and teacher only where they are used, and `http` only where it writes.

    `coca` is left out there alone: elsewhere it always was among the settings, and others would make captions again.
    """
    caption = config.caption
    http = caption.writer == "http"
    keys = [f"caption.{name}" for name in Caption.model_fields if name != "http" and not (http and name == "coca")]
    if http:
        keys += [f"caption.http.{name}" for name, field in Http.model_fields.items() if not _is_runtime(field)]
    images = ("views.count", "teacher.images") if caption.writer else ()
    seed = ("seed",) if caption.uses_coca else ()
    return (*keys, *seed, *images, *(_TEACHER if caption.uses_teacher else ()))


def _is_runtime(field: FieldInfo) -> bool:
    return field.json_schema_extra["runtime"]  # type: ignore[index, return-value]  # `setting` always sets it


def runtime_settings(config: Config) -> str:
    """The keys that change no result, as canonical JSON: what a command needs besides its stage's settings."""

    def pick(section: Section) -> dict[str, Any]:
        picked = {}
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, Section):
                picked[name] = pick(value)
            elif _is_runtime(field):
                picked[name] = value
        return {name: value for name, value in picked.items() if value != {} or name == "columns"}

    return canonical_json(pick(config))


def from_settings(*layers: str) -> Config:
    """Reads what `stage_settings` and `runtime_settings` wrote."""
    values = merge(*(json.loads(layer) for layer in layers))
    return check({key: value for key, value in values.items() if key not in _BESIDES})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Each key that differs, dotted: `fit.steps 5000 -> 3000`."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} {_shown(before)} -> {_shown(after)}")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


# --- a shard's files -------------------------------------------------------------------------------------------------


def job(config: Config, name: str, shard: str) -> Job:
    """A stage's work on one shard."""
    stage = STAGES[name]
    return Job(
        output=config.output_path,
        stage=name,
        shard=shard,
        folder=stage.folder,
        settings=stage_settings(config, name),
        max_failed_fraction=config.workers.max_failed_fraction,
        catalog=STAGES["freeze"].files(config.output_path, shard)[0],
    )


def may_lack(config: Config, file: Path) -> bool:
    """Whether a file is one of those that Snakemake removes: the bundles of the folders in `temporary`."""
    return file.parent.name in config.temporary and file.suffix in {stage.bundle for stage in STAGES.values()}


def path(config: Config, folder: str, shard: str, suffix: str) -> Path:
    """The path of a stage's file of a shard."""
    return config.output_path / folder / f"{shard}{suffix}"


def table(config: Config, folder: str, shard: str, columns: list[str] | None = None) -> list[Row]:
    """All rows of an earlier stage, its file checked. Images in it are only read where `columns` names them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = path(config, folder, shard, ".parquet")
    check_file(where)
    if columns is None:
        columns = [field.name for field in pq.read_schema(where) if not pa.types.is_binary(field.type)]
    return read_table(where, columns)
