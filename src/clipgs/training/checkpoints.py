"""States that training resumes from, and the best model so far. All files are safetensors, so none can run code."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipgs.core.bundles import read_metadata, write_tensors
from clipgs.core.errors import ClipgsError

_FORMAT = 2  # of the notes; raised when they change
_STATE = re.compile(r"step-(\d{8})\.safetensors")
_BEST = re.compile(r"best-(\d{8})\.safetensors")


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    notes: dict[str, Any],
) -> None:
    """Writes the state after `step` steps, then removes all other states, and all models but the best one.

    Args:
        names: of the optimizer's parameters, in its order.
        notes: more values of the state; `best_step` names the best model so far.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()["state"]
    for index, name in enumerate(names):
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state[index].items()}
    tensors |= {f"parameter.{name}": parameter for name, parameter in _loose(optimizer, names, model).items()}
    _save(folder / f"step-{step:08d}.safetensors", tensors, {"format": _FORMAT, "step": step, **notes})
    best = f"best-{notes.get('best_step', -1):08d}.safetensors"
    for file in folder.glob("*.safetensors"):
        state = _STATE.fullmatch(file.name)
        if (state and int(state[1]) != step) or (_BEST.fullmatch(file.name) and file.name != best):
            file.unlink(missing_ok=True)


def _loose(optimizer: torch.optim.Optimizer, names: Sequence[str], model: nn.Module) -> dict[str, nn.Parameter]:
    """The optimizer's parameters that are not the model's."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    known = dict(model.named_parameters())
    return {name: parameter for name, parameter in zip(names, parameters, strict=True) if name not in known}


def save_best(folder: Path, step: int, model: dict[str, Tensor]) -> None:
    """Writes the model after `step` steps. `save_state` keeps it while it is the best one."""
    _save(folder / f"best-{step:08d}.safetensors", model, {"step": step})


def best(folder: Path, step: int) -> dict[str, Tensor]:
    """The model that `save_best` wrote, on the CPU."""
    return load_file(folder / f"best-{step:08d}.safetensors")


class UnusableStateError(Exception):
    """A state that cannot be gone on with. Its text is a sentence without the name of the file."""


def read_notes(folder: Path) -> dict[str, Any] | None:
    """The notes of the last state, or None where there is no state.

    Raises:
        UnusableStateError: it is damaged, as is the best model that it names, or of another version of the program.
    """
    file = _last(folder)
    if file is None:
        return None
    try:
        notes = read_metadata(file)
        if notes.get("format") != _FORMAT:
            raise UnusableStateError("another version of the program wrote it")
        if "best_step" in notes:
            read_metadata(folder / f"best-{notes['best_step']:08d}.safetensors")
    except ClipgsError:
        raise UnusableStateError("its file, or that of its best model, is damaged") from None
    return notes


def _last(folder: Path) -> Path | None:
    return max((file for file in folder.glob("*.safetensors") if _STATE.fullmatch(file.name)), default=None)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    """Loads the last state into model and optimizer. They stay as they were if it does not fit.

    Raises:
        UnusableStateError: its file is damaged, or has other tensors than the model.
    """
    file = _last(folder)
    assert file is not None
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):
        raise UnusableStateError("its file is damaged") from None
    loose, moments = _loose(optimizer, names, model), {}
    wanted = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    wanted |= {f"parameter.{name}": parameter.shape for name, parameter in loose.items()}
    found = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    moments = {index: _below(f"optimizer.{name}.", tensors) for index, name in enumerate(names)}
    if found != wanted or not all(moments.values()):
        raise UnusableStateError("its tensors are not those of the model")
    with torch.no_grad():
        for name, parameter in loose.items():
            parameter.copy_(tensors[f"parameter.{name}"])
    model.load_state_dict(_below("model.", tensors))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def set_aside(folder: Path, *more: Path) -> str:
    """Moves the states and `more` files of their run to a folder beside them; returns where they are, in words."""
    kept = folder.with_name(folder.name + ".old")
    replaced = kept.exists()
    if replaced:
        shutil.rmtree(kept)
    os.replace(folder, kept)
    for file in more:
        with suppress(FileNotFoundError):
            os.replace(file, kept / file.name)
    return f"{kept}{', in place of an earlier one' if replaced else ''}"


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, Any]) -> None:
    write_tensors(path, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, notes, checksum=False)
