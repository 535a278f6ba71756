"""AdamW with a learning rate per block, and a cosine schedule, as for Uni3D; for training and few-shot learning."""

import math
import re
from typing import Any

import torch
from torch import nn

from clipgs.config import Training

_BETAS, _EPS = (0.9, 0.999), 1e-8  # Uni3D's
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def parameter_groups(model: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """Groups of parameters with one weight decay and one `factor` on the learning rate.

    Vectors and biases have no weight decay. The factor of block i of L is `layer_decay` to the power of L - 1 - i, so
    that early blocks, which keep most of the pre-trained features, change least (Bao et al., BEiT, 2022; Uni3D).
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    blocks = {name: int(found[1]) for name, _ in trained if (found := _BLOCK.search(name))}
    last = max(blocks.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained:
        factor = settings.layer_decay ** (last - blocks[name]) if name in blocks else 1.0
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        group = groups.setdefault((factor, decay), {"params": [], "names": [], "factor": factor, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], lr: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW over groups of `parameter_groups`. Call `set_learning_rates` before each step."""
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, eps=_EPS, fused=device.type == "cuda")


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float, factor: float) -> None:
    """Sets each group's learning rate to `lr` times the group's factor times `factor`, from `schedule`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"] * factor


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rates: rises over `warmup` steps, then falls to 0 along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
