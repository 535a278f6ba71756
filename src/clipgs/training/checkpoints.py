"""A run's files: the states that training goes on from, the finished model with its card, and both read again.

Everything is safetensors, JSON and YAML: nothing that is read can run.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clipgs import __version__
from clipgs.config import SMALL_TEACHER, Config, read
from clipgs.core.errors import ClipgsError
from clipgs.core.files import atomic, check, sha256_of, whole, write_bytes
from clipgs.core.processes import usable_cores
from clipgs.core.seeds import canonical_json
from clipgs.stages import stage_settings

if TYPE_CHECKING:
    from clipgs.splats.gaussians import Gaussians
    from clipgs.triplets.dataset import TripletDataset

log = logging.getLogger(__name__)

MODEL, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
_STATE = re.compile(r"step-(\d{8})\.safetensors")
_BEST = re.compile(r"best-(\d{8})\.safetensors")
_ENCODE_BATCH = 16  # objects


# --- states ----------------------------------------------------------------------------------------------------------


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    notes: dict[str, Any],
) -> None:
    """Writes what training goes on from after `step` steps, then removes older states and models they alone named.

    Args:
        names: of the optimizer's parameters, in its order.
        notes: what else to remember; `best_step` names the best model so far.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()["state"]
    for index, name in enumerate(names):
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state[index].items()}
    tensors |= {f"parameter.{name}": parameter for name, parameter in _loose(optimizer, names, model)}
    _save(folder / f"step-{step:08d}.safetensors", tensors, {"step": step, **notes})
    best = f"best-{notes.get('best_step', -1):08d}.safetensors"
    for file in folder.glob("*.safetensors"):
        older = _STATE.fullmatch(file.name) and int(_STATE.fullmatch(file.name)[1]) != step
        if older or (_BEST.fullmatch(file.name) and file.name != best):
            file.unlink(missing_ok=True)


def _loose(
    optimizer: torch.optim.Optimizer, names: Sequence[str], model: nn.Module
) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters that are not the model's."""
    known = {id(parameter) for parameter in model.parameters()}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    yield from ((name, p) for name, p in zip(names, parameters, strict=True) if id(p) not in known)


def save_best(folder: Path, step: int, model: dict[str, Tensor]) -> None:
    """Writes the model's state as it was after `step` steps; a state that names the step keeps it."""
    _save(folder / f"best-{step:08d}.safetensors", model, {"step": step})


def best(folder: Path, step: int) -> dict[str, Tensor]:
    """The model that `save_best` wrote, on the CPU."""
    return _load(folder / f"best-{step:08d}.safetensors")[0]


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[str], settings: str
) -> dict[str, Any] | None:
    """Puts model and optimizer back where they were; the state's notes, or None if there is none of these settings."""
    files = sorted(file for file in folder.glob("*.safetensors") if _STATE.fullmatch(file.name))
    if not files:
        return None
    tensors, notes = _load(files[-1])
    if notes["settings"] != settings:
        return None
    with torch.no_grad():
        for name, parameter in _loose(optimizer, names, model):
            parameter.copy_(tensors[f"parameter.{name}"])
    model.load_state_dict(_below("model.", tensors))
    moments = {index: _below(f"optimizer.{name}.", tensors) for index, name in enumerate(names)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return notes


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save(path: Path, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with whole(path) as temporary:
        save_file(plain, temporary, {"clipgs": canonical_json(notes)})


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["clipgs"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ClipgsError(f"{path} cannot be read ({error}); remove it, and training begins at its start") from None


# --- a finished run --------------------------------------------------------------------------------------------------


def write_run(folder: Path, config: Config, model: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Writes `model.safetensors`, `config.yaml` and the model card `README.md`.

    Args:
        model: the encoder's state.
        notes: `dim`, `teacher`, `objects`, `shards`, `step`, `steps`, `logit_scale` and `validation`, kept in the
            file's metadata.
    """
    settings = json.loads(stage_settings(config, "train"))
    values = {key: value for key, value in settings.items() if key not in ("stage", "version")}
    about = f"# The settings of this run, clipgs {__version__}. Read by clipgs.load; other keys have no part in it.\n"
    write_bytes(folder / CONFIG, (about + yaml.safe_dump(values, sort_keys=False)).encode())
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(model.items())}
    with atomic(folder / MODEL) as temporary:
        save_file(plain, temporary, {"clipgs": canonical_json(notes)})
    write_bytes(folder / CARD, card(config, notes).encode())


def card(config: Config, notes: dict[str, Any]) -> str:
    """The model card, in the form that model hubs read."""
    teacher, scores = notes["teacher"], notes["validation"]
    measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(scores.items()))
    return f"""---
library_name: clipgs
tags: [gaussian-splatting, 3d, clip, retrieval, zero-shot-classification]
pipeline_tag: feature-extraction
---

# {config.training.run}: CLIP-GS

An encoder that puts a 3D Gaussian splat into the space of {teacher["teacher"]} ({teacher["pretrained"]}), trained with
[clipgs](https://arxiv.org/abs/2412.19142), an independent build of the paper CLIP-GS (ICCV 2025).

    import clipgs
    encoder = clipgs.load("THIS FOLDER")
    encoder.encode("chair.ply")                # [1, {notes["dim"]}], unit length
    encoder.encode_text(["a red chair"])       # [1, {notes["dim"]}], needs the teacher's weights

A splat is read as PLY with spherical harmonics of degree 0, Y up; its first {config.encoder.gaussians:,} Gaussians in
farthest-point order are seen.

## How it was trained

{notes["objects"]["train"]:,} objects in {len(notes["shards"])} shards, {config.training.epochs} epochs in batches of
{config.training.batch:,}, {config.training.views} of {notes["pictures"]} pictures an object and step. All settings are
in `config.yaml`. The teacher's weights have the SHA-256 `{teacher["weights_sha256"]}`.

## How good it is

Step {notes["step"]:,} of {notes["steps"]:,}, the best on the {notes["objects"]["validation"]:,} objects of the
validation split. No object of the test split was seen; `snakemake evaluate` measures on it.

| validation | |
| --- | --- |
{measured or "| there was no validation split; these are the last weights | |"}

## Licence

The weights were made from objects and captions of many authors; the dataset card and `CREDITS.csv` of the triplets name
them and their licences. State here under which licence you publish the weights.
"""


def publish(run: Path, folder: Path, half: bool = True) -> None:
    """Copies what others need of a finished run into a folder that can be uploaded as it is: weights (in half
    precision), settings, model card.

    Raises:
        ClipgsError: the run is not finished, or damaged.
    """
    for name in (MODEL, CONFIG, CARD):
        check(run / name)
    tensors, notes = _load(run / MODEL)
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    notes["trained_sha256"] = sha256_of(run / MODEL)
    _save(folder / MODEL, tensors, notes)
    for name in (CONFIG, CARD):
        shutil.copyfile(run / name, folder / name)
    small = run.parent.parent / "teacher"
    if notes["teacher"]["teacher"] == SMALL_TEACHER and small.is_dir():  # nobody else has it
        shutil.copytree(small, folder / "teacher", dirs_exist_ok=True)
    log.info("%s holds %s, %s and %s", folder, MODEL, CONFIG, CARD)


# --- in Python -------------------------------------------------------------------------------------------------------


def load(run: str | Path, device: str | torch.device | None = None) -> "TrainedEncoder":
    """The encoder of a finished run, or of a published folder.

    Args:
        run: the folder with `model.safetensors` and `config.yaml`.
        device: where to compute; default: the GPU, where there is one.

    Raises:
        ClipgsError: a file is missing or damaged, or does not belong to the others.
    """
    return TrainedEncoder(Path(run), device)


class TrainedEncoder:
    """Splats and texts as vectors of one space."""

    def __init__(self, run: Path, device: str | torch.device | None = None) -> None:
        from clipgs import encoder

        if not (run / MODEL).exists():
            raise ClipgsError(f"{run} has no {MODEL}; train the run first: snakemake train")
        self.run = run
        place = run if (run / "teacher").is_dir() else run.parent.parent  # a published folder brings a small teacher
        self.config = read(run / CONFIG).model_copy(update={"output": str(place)})
        tensors, self.notes = _load(run / MODEL)
        self.dim: int = self.notes["dim"]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = encoder.ClipGS(self.config.encoder, self.dim)
        try:
            self.model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ClipgsError(f"{run / MODEL} does not fit {run / CONFIG}: {shorten(first, 200)}") from None
        self.model.to(self.device).eval()
        self._teacher: Any = None
        self._gallery: tuple[list[str], Tensor] | None = None

    def encode(self, splats: "Gaussians | str | Path | Sequence[Gaussians | str | Path]") -> Tensor:
        """[n, D] float32 of unit length, on the CPU, one row a splat.

        Args:
            splats: Gaussians [N, *] or a batch [B, N, *], the path of a PLY, or a list of either.
        """
        from clipgs.encoder import prepare
        from clipgs.splats.gaussians import Gaussians

        if isinstance(splats, Gaussians):
            splats = [splats] if splats.means.ndim == 2 else [splats[i] for i in range(len(splats))]
        elif isinstance(splats, str | Path):
            splats = [splats]

        def prepared(i: int) -> Gaussians:
            splat = splats[i]
            return prepare(splat if isinstance(splat, Gaussians) else Gaussians.load(splat), self.config.encoder)

        return self._through(prepared, len(splats))

    def encode_dataset(self, dataset: "TripletDataset", done: Callable[[int], None] = lambda count: None) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, of the splats of packed triplets, in their order.

        Args:
            done: told the number of objects after each batch of them.
        """
        from clipgs.encoder import prepare

        def prepared(i: int) -> "Gaussians":
            return prepare(dataset.gaussians(i), self.config.encoder, str(dataset.uids[i]))

        return self._through(prepared, len(dataset), done)

    @torch.no_grad()
    def _through(
        self, prepared: "Callable[[int], Gaussians]", count: int, done: Callable[[int], None] = lambda count: None
    ) -> Tensor:  # [count, D]
        """Cleaning a splat and finding its centres takes longer than the encoder: threads do it ahead."""
        from clipgs.splats.gaussians import Gaussians
        from clipgs.training.data import Prefetch

        ahead, rows = iter(Prefetch(prepared, range(count), usable_cores())), []
        while some := list(islice(ahead, _ENCODE_BATCH)):
            rows.append(self.model(Gaussians.stack(some).to(self.device)).float().cpu())
            done(len(some))
        return torch.cat(rows) if rows else torch.empty(0, self.dim)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, by the teacher that the run was trained with."""
        return torch.as_tensor(self._load_teacher().encode_texts(list(texts))).float().cpu()

    def encode_images(self, images: Tensor) -> Tensor:
        """[n, D] float32 of unit length, on the CPU, of pictures [n, H, W, 3] uint8, by the teacher."""
        return torch.as_tensor(self._load_teacher().encode_images(images)).float().cpu()

    def _load_teacher(self) -> Any:
        if self._teacher is None:
            from clipgs.teacher import model as teacher

            found = teacher.load(self.config)
            if found.weights_sha256 != self.notes["teacher"]["weights_sha256"]:
                trained = self.notes["teacher"]
                raise ClipgsError(
                    f"{self.run} was trained with {trained['teacher']} ({trained['pretrained']}), and the weights "
                    f"found for it are others; texts and splats would not lie in one space"
                )
            self._teacher = found
        return self._teacher

    def search(self, text: str, k: int = 5, triplets: str | Path | None = None) -> list[tuple[str, float]]:
        """The k objects nearest to a text: (uid, cosine), the nearest first.

        Args:
            triplets: the dataset to search, `triplets/` of an output; default: the one that the run lies beside. Its
                objects are encoded at the first search.
        """
        from clipgs.triplets.dataset import TripletDataset

        if self._gallery is None or triplets is not None:
            dataset = TripletDataset(triplets or self.run.parent.parent / "triplets")
            self._gallery = (dataset.uids.tolist(), self.encode_dataset(dataset))
        uids, shapes = self._gallery
        cosines, order = (shapes @ self.encode_text([text])[0]).sort(descending=True, stable=True)
        return [(uids[i], float(cosine)) for i, cosine in zip(order[:k].tolist(), cosines[:k], strict=True)]
