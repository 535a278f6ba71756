"""Few-shot classification by fine-tuning: a linear probe on frozen embeddings first, then encoder and probe together.

LP-FT (Kumar et al., ICLR 2022): a random head would distort the encoder's features before the head has learnt anything,
above all with few objects.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipgs.config import Config
from clipgs.core.prefetch import Prefetch
from clipgs.core.processes import usable_cores
from clipgs.encoder import prepare
from clipgs.encoder.batch_norm import BatchNorm
from clipgs.encoder.trained import load
from clipgs.evaluation.fewshot import Episode, Predict, probe, unit_rows
from clipgs.splats.gaussians import Gaussians
from clipgs.training.augment import augment, draw
from clipgs.training.optimizer import adamw, parameter_groups, schedule, set_learning_rates
from clipgs.triplets.dataset import TripletDataset

_BATCH = 32  # objects a step, as in Point-BERT's few-shot runs
_CACHED = 2_000  # prepared splats: about 1 GB at 10,000 Gaussians


def fine_tuning(
    config: Config,
    run: Path,
    uids: Sequence[str],
    embeddings: np.ndarray,  # [n, D] by the run
) -> Predict:
    """Fine-tunes the run's encoder for each episode, on its augmented support, and classifies the queries.

    Training takes `evaluation.few_shot_epochs` at `evaluation.few_shot_lr`, with the run's layer decay, weight decay
    and augmentation. Batch norms keep the run's statistics, because an episode has only a few objects.
    """
    trained = load(run, None if config.device == "auto" else config.device)
    model, settings, device = trained.model, trained.config, trained.device
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = unit_rows(embeddings)
    dataset = TripletDataset(config.output_path / "triplets")
    place = {str(uid): i for i, uid in enumerate(dataset.uids)}

    @lru_cache(_CACHED)  # episodes have many objects in common
    def prepared(row: int) -> Gaussians:
        return prepare(dataset.gaussians(place[uids[row]]), settings.encoder, uids[row])

    def read(rows: np.ndarray) -> Gaussians:
        return Gaussians.stack([*Prefetch(prepared, rows.tolist(), usable_cores())])

    def embed(gaussians: Gaussians) -> Tensor:
        half = device.type == "cuda" and settings.training.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return model(gaussians).float()

    def predict(episode: Episode) -> np.ndarray:
        model.load_state_dict(start)
        head = _linear(probe(frozen[episode.support], episode.support_labels, episode.seed)).to(device)
        generator = np.random.default_rng(episode.seed)
        torch.manual_seed(episode.seed % 2**63)
        groups = parameter_groups(model, settings.training)
        groups.append({"params": list(head.parameters()), "factor": 1.0, "weight_decay": 0.0})
        optimizer = adamw(groups, config.evaluation.few_shot_lr, device)
        splats, labels = read(episode.support), torch.from_numpy(episode.support_labels).to(device)
        parts = -(-len(labels) // _BATCH)
        steps = config.evaluation.few_shot_epochs * parts
        model.train()
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        for step in range(steps):
            if step % parts == 0:
                order = np.array_split(generator.permutation(len(labels)), parts)
            some = order[step % parts]
            draws = torch.from_numpy(draw(settings.training.augmentation, len(some), generator)).to(device)
            loss = F.cross_entropy(head(embed(augment(splats[some].to(device), draws))), labels[some])
            loss.backward()
            nn.utils.clip_grad_norm_([one for group in groups for one in group["params"]], settings.training.clip_norm)
            set_learning_rates(optimizer, config.evaluation.few_shot_lr, schedule(step, steps, parts))
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        batches = np.split(episode.queries, range(_BATCH, len(episode.queries), _BATCH))
        with torch.no_grad():
            return torch.cat([head(embed(read(rows).to(device))).argmax(dim=1) for rows in batches]).cpu().numpy()

    return predict


def _linear(fitted: Any) -> nn.Linear:
    """The probe, with its standardisation, as one layer on unit embeddings."""
    scaler, classifier = fitted[0], fitted[-1]
    weight, bias = classifier.coef_, classifier.intercept_
    if len(weight) == 1:  # scikit-learn has one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias - weight @ scaler.mean_))
    return layer
