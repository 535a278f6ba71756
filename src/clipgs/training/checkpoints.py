"""States that training resumes from, and the best model so far. All files are safetensors, so none can run code."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clipgs.core.bundles import read_metadata, write_tensors

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
    _save(folder / f"step-{step:08d}.safetensors", tensors, {"step": step, **notes})
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


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[str], settings: str
) -> dict[str, Any] | None:
    """Loads the last state into model and optimizer; returns its notes, or None if no state has these settings."""
    files = sorted(file for file in folder.glob("*.safetensors") if _STATE.fullmatch(file.name))
    if not files or (notes := read_metadata(files[-1]))["settings"] != settings:
        return None
    tensors = load_file(files[-1])
    with torch.no_grad():
        for name, parameter in _loose(optimizer, names, model).items():
            parameter.copy_(tensors[f"parameter.{name}"])
    model.load_state_dict(_below("model.", tensors))
    moments = {index: _below(f"optimizer.{name}.", tensors) for index, name in enumerate(names)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return notes


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, Any]) -> None:
    write_tensors(path, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, notes, checksum=False)
