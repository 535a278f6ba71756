"""One process of several, as torchrun starts them: takes a step and writes the gradients. Run by test_loop.py."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from clipgs import config as configuration
from clipgs.encoder import ClipGS
from clipgs.training import distributed
from clipgs.training.data import TrainingBatches, TrainingData, compact
from clipgs.training.loop import Trainer
from tests.training.small_dataset import SHAPE

SHARDS = ["00000", "00001"]


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


if __name__ == "__main__":
    with distributed.ranks("cpu") as ranks:
        for folder in map(Path, sys.argv[1:]):
            found, norms = gradients(configuration.read(folder / "config.yaml"), ranks)
            save_file({**found, **norms}, folder / f"rank{ranks.rank}.safetensors")
