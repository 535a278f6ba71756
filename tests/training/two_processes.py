"""One process of several, as torchrun starts them for test_distributed.py: takes a step and writes the gradients."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from clipgs import config as configuration
from clipgs.encoder import ClipGS
from clipgs.training import distributed
from clipgs.training.data import TrainingBatches, TrainingData, compact
from clipgs.training.trainer import Trainer
from tests.training.small_dataset import SHAPE

SHARDS = ["00000", "00001"]
ALONE = distributed.Ranks(0, 1, torch.device("cpu"))
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def gradients(config, ranks, seed=0):
    """Parameter to its gradient in the first step, before it is clipped; and the loss."""
    torch.manual_seed(seed)
    data = TrainingData(config, SHARDS, [compact(config, shard) for shard in SHARDS])
    model = ClipGS(config.encoder, data.dim, SHAPE)
    torch.nn.init.normal_(model.tokenizer.add.weight, std=0.1)  # so that every parameter has a gradient
    trainer = Trainer(config, ranks, model, data)
    found = {}

    def keep(*_):
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        found["log_scale"] = trainer.log_scale.grad.clone()

    trainer.optimizer.step = keep
    batches = TrainingBatches(data, data.split("train"), config, ranks.rank, ranks.world)
    pending = trainer.train_step(batches(0))
    found["loss"] = pending.numbers[0]
    norms = {name: value for name, value in model.state_dict().items() if "running" in name}
    return found, norms


def assert_equal_gradients(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    assert len(ours) > 40
    for name, gradient in theirs.items():
        # Relative to the largest entry, and to the largest of all where a gradient vanishes.
        size = max(gradient.abs().max().item(), 1e-3)
        assert (ours[name] - gradient).abs().max().item() < tolerance * size, name


if __name__ == "__main__":
    with distributed.ranks("cpu") as ranks:
        for folder in map(Path, sys.argv[1:]):
            found, norms = gradients(configuration.read(folder / "config.yaml"), ranks)
            save_file({**found, **norms}, folder / f"rank{ranks.rank}.safetensors")
