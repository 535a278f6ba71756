"""The folder of a run: its inputs, the finished model with its card, and the folder to publish.

Imports nothing heavy, because Snakemake reads a run's shards whenever it parses.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clipgs import __version__
from clipgs.config import SMALL_TEACHER, Config
from clipgs.core.bundles import read_metadata, write_tensors
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check, remove_sidecar, sha256_of, write_bytes
from clipgs.core.lists import counted
from clipgs.encoder import CONFIG, MODEL, no_run
from clipgs.stages import stage_settings
from clipgs.training.identity import same_but_epochs

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

CARD = "README.md"


def run_path(config: Config) -> Path:
    """The folder of the configured run."""
    return config.output_path / "runs" / config.training.run


def _inputs_path(config: Config, stage: str) -> Path:
    folder = run_path(config) if stage == "train" else config.output_path / stage
    return folder / "inputs.json"


def begun_shards(config: Config, stage: str) -> list[str]:
    """The shards that a training (`train`, `teacher`) of the same settings began with; none if there is no such one.

    It keeps them: objects that come later do not restart a running or finished training. One of other epochs does too:
    it goes on.
    """
    try:
        inputs = json.loads(_inputs_path(config, stage).read_text())
        return inputs["shards"] if same_but_epochs(inputs["settings"], stage_settings(config, stage)) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def forget(config: Config, stage: str) -> None:
    """Removes what `begin` wrote."""
    path = _inputs_path(config, stage)
    path.unlink(missing_ok=True)
    remove_sidecar(path)


def begin(config: Config, stage: str, shards: Sequence[str], data: Mapping[str, Any] | None = None) -> None:
    """Writes what a training is made from to its `inputs.json`: settings, shards and, of a run, all that it reads.

    Args:
        data: of `identity.run_record`.
    """
    inputs = {"settings": stage_settings(config, stage), "shards": list(shards), **({"data": data} if data else {})}
    write_bytes(_inputs_path(config, stage), (json.dumps(inputs, indent=1) + "\n").encode())


def write_run(folder: Path, config: Config, model: Mapping[str, "Tensor"], notes: dict[str, Any]) -> None:
    """Writes `model.safetensors`, `config.yaml` and the model card `README.md`.

    Args:
        model: the encoder's state.
        notes: the metadata of the model's file: `dim`, `teacher`, `pictures`, `objects`, `shards`, `data_sha256`,
            `step`, `steps`, `logit_scale`, `validation` and `changes` (of epochs or processes, on the way).
    """
    settings = json.loads(stage_settings(config, "train"))
    values = {key: value for key, value in settings.items() if key not in ("stage", "version")}
    about = f"# The settings of this run, clipgs {__version__}. Read by clipgs.load; other keys have no part in it.\n"
    write_bytes(folder / CONFIG, (about + yaml.safe_dump(values, sort_keys=False)).encode())
    write_tensors(folder / MODEL, {name: tensor.detach().cpu() for name, tensor in model.items()}, notes)
    write_bytes(folder / CARD, card(config, notes).encode())


def chosen(config: Config, validation: int) -> str:
    """Which step of a run is kept, and why, where the validation split has so many objects."""
    if validation >= config.training.choose_from:
        return f"the best on the {validation:,} objects of the validation split"
    few = counted(validation, "object") if validation else "no objects"
    return (
        f"the last: the validation split has {few}, and the best step is chosen on {config.training.choose_from:,} or "
        "more (training.choose_from)"
    )


def card(config: Config, notes: dict[str, Any]) -> str:
    """The model card, in the format of model hubs."""
    teacher, scores, which = notes["teacher"], notes["validation"], chosen(config, notes["objects"]["validation"])
    measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(scores.items()))
    changes = "".join(f"\nChanged on the way, {change}.\n" for change in notes["changes"])
    return f"""---
library_name: clipgs
license: unknown
tags: [gaussian-splatting, 3d, clip, retrieval, zero-shot-classification]
pipeline_tag: feature-extraction
---

# {config.training.run}: CLIP-GS

An encoder that puts a 3D Gaussian splat into the space of {teacher["teacher"]} ({teacher["pretrained"]}), trained with
clipgs {__version__}, an independent build of the paper [CLIP-GS](https://arxiv.org/abs/2412.19142) (ICCV 2025).

    import clipgs
    encoder = clipgs.load("THIS FOLDER")
    encoder.encode("chair.ply")                # [1, {notes["dim"]}], unit length
    encoder.encode_text(["a red chair"])       # [1, {notes["dim"]}], needs the teacher's weights;
                                               # a file or folder elsewhere: load("THIS FOLDER", teacher=PLACE)

A splat is read as PLY with spherical harmonics of degree 0, Y up; at most {config.encoder.gaussians:,} of its Gaussians
are seen (`encoder.choice`: {config.encoder.choice}).

## How it was trained

{notes["objects"]["train"]:,} objects in {len(notes["shards"])} shards, {config.training.epochs} epochs in batches of
{config.training.batch:,}, {config.training.views} of {notes["pictures"]} pictures an object and step. All settings are
in `config.yaml`. The teacher's weights have the SHA-256 `{teacher["weights_sha256"]}`.
{changes}
## How good it is

Step {notes["step"]:,} of {notes["steps"]:,}, {which}.
No object of the test split was seen; `snakemake evaluate` measures on it.

| validation | |
| --- | --- |
{measured or "| there was no validation split | |"}

## Licence

The weights were made from objects and captions of many authors; the dataset card and `CREDITS.csv` of the triplets name
them and their licences. State here, and as `license` at the top, under which licence you publish the weights.
"""


def publish(run: Path, folder: Path, half: bool = True) -> None:
    """Writes a folder to upload: the weights of a finished run (in half precision if `half`), settings, model card.

    Raises:
        ClipgsError: the run is not finished, or a file is damaged.
    """
    from safetensors.torch import load_file

    if not (run / MODEL).exists():
        raise ClipgsError(no_run(run))
    for name in (MODEL, CONFIG, CARD):
        check(run / name)
    tensors = load_file(run / MODEL)
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    notes = read_metadata(run / MODEL) | {"trained_sha256": sha256_of(run / MODEL)}
    write_tensors(folder / MODEL, tensors, notes, checksum=False)
    for name in (CONFIG, CARD):
        shutil.copyfile(run / name, folder / name)
    small = run.parent.parent / "teacher"
    if notes["teacher"]["teacher"] == SMALL_TEACHER and small.is_dir():  # others cannot download it
        shutil.copytree(small, folder / "teacher", dirs_exist_ok=True, copy_function=shutil.copyfile)
    log.info("publish: wrote %s, %s and %s to %s", MODEL, CONFIG, CARD, folder)
