"""Training of CLIP-GS in one process or several; a killed run resumes at any step.

The seeds of a step follow from its number: the order, the images, the augmentation and all random choices inside the
model. So a resumed run does the same steps as an undisturbed one.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipgs import encoder
from clipgs.catalog.records import frozen_shards
from clipgs.config import Config
from clipgs.core.errors import ClipgsError
from clipgs.core.prefetch import Prefetch
from clipgs.core.processes import usable_cores
from clipgs.core.runner import Progress
from clipgs.core.seeds import json_digest, seed_of
from clipgs.training import checkpoints, distributed, runs
from clipgs.training.augment import DRAWS, augment
from clipgs.training.data import Batch, TrainingBatches, TrainingData, compact
from clipgs.training.distributed import Ranks
from clipgs.training.identity import EPOCHS, bridged, obstacles, run_record
from clipgs.training.losses import image_voting_loss, multi_positive_loss, text_loss
from clipgs.training.metrics import MetricsFiles, Speed, validation_retrieval
from clipgs.training.optimizer import adamw, parameter_groups, schedule, set_learning_rates

log = logging.getLogger(__name__)

_MAX_LOGIT_SCALE = 100.0  # CLIP's (Radford et al., 2021)
_SPEED_EVERY_STEPS = 20
_LOGIT_SCALE = 1 / 0.07  # CLIP's too: where it starts if nothing else says so
_VALIDATION_VIEWS = 6  # of each object, whatever K is: runs of another K choose their step by the same images
_STATE_SHARE = 0.02  # of the time, at most, for states between those of every `checkpoint_steps`


def train(config: Config, device: str, threads: int) -> None:
    """One process of a run, from the shards to the finished model; see `stages.train`.

    Args:
        device: `cuda` or `cpu`.
        threads: of torch, on a CPU and in a single process.
    """
    if device == "cpu" and not distributed.launched():
        torch.set_num_threads(min(threads, usable_cores()))
    with distributed.ranks(device) as ranks:
        shards = ranks.broadcast(runs.begun_shards(config, "train") or frozen_shards(config))
        loaders = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # set by torchrun
        for shard in shards[ranks.rank :: ranks.world]:
            compact(config, shard, loaders)
        ranks.barrier()
        files = [compact(config, shard) for shard in shards]
        data = TrainingData(config, shards, files, pin=device == "cuda")
        torch.manual_seed(config.training.seed)
        trainer = Trainer(config, ranks, encoder.build(config.encoder, data.dim), data)
        if ranks.is_main:
            runs.begin(config, "train", shards, trainer.record["data"])
        trainer.run()


@contextmanager
def fixed_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics, as in training, but do not update the running ones."""
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)}
    for norm in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def middles(views: int, count: int) -> np.ndarray:
    """The middle view of each of `count` equal parts of the views, or every view where there are fewer.

    The canonical cameras go down a spiral, so the first views of all parts would look from too high.
    """
    count = min(count, views)
    return (np.arange(count) + 0.5) * views // count


class _Pending(NamedTuple):
    """Numbers of a step, being copied to the CPU."""

    step: int
    numbers: Tensor  # [len(_NUMBERS)]
    finite: Tensor  # [B] whether all numbers of an object are finite
    ready: Any  # a CUDA event, or None


_NUMBERS = ("loss", "loss_text", "loss_image", "logit_scale", "grad_norm")


class Trainer:
    """One process of a run.

    Args:
        model: `model(gaussians, neighbours) -> [B, D]` of unit length.
    """

    def __init__(self, config: Config, ranks: Ranks, model: nn.Module, data: TrainingData) -> None:
        settings = config.training
        self._config, self._settings, self._ranks, self._data = config, settings, ranks, data
        self.folder = runs.run_path(config)
        self._state = self.folder / "state"
        self.record = run_record(config, ranks.world, data.inputs)
        self._batches = TrainingBatches(data, data.split("train"), config, ranks.rank, ranks.world)
        self.steps = settings.epochs * self._batches.steps_per_epoch
        self._warmup = round(settings.warmup_epochs * self._batches.steps_per_epoch)
        self._validate_every = settings.validate_epochs * self._batches.steps_per_epoch
        self.model = model.to(ranks.device)
        if config.workers.compile and ranks.device.type == "cuda":
            self.model.compile()
        scale = settings.logit_scale or getattr(model, "first_logit_scale", None) or _LOGIT_SCALE
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), device=ranks.device))
        groups = parameter_groups(self.model, settings)
        temperature = {"factor": settings.logit_scale_lr, "weight_decay": 0.0}
        groups.append({"params": [self.log_scale], "names": ["log_scale"], **temperature})
        self.names = [name for group in groups for name in group.pop("names")]
        self.optimizer = adamw(groups, settings.lr, ranks.device)
        self._parallel = self.model
        if ranks.world > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self._parallel = nn.parallel.DistributedDataParallel(self.model, devices, broadcast_buffers=False)
        self.step = 0
        self._changes: list[str] = []  # of what the run is made from, on the way
        self._best: dict[str, Any] = {}
        self._unwritten_best: dict[str, Tensor] = {}
        self._state_written, self._state_seconds = time.monotonic(), 0.0
        self._pending: deque[_Pending] = deque()

    def run(self) -> None:
        """Trains to the last step and writes the finished run."""
        self._resume()
        with closing(MetricsFiles(self.folder, self.step)) if self._ranks.is_main else nullcontext() as metrics:
            self._train(metrics)
        self._finish()

    def _train(self, metrics: MetricsFiles | None) -> None:
        prefetch = Prefetch(self._batches, range(self.step, self.steps), self._config.workers.loaders)
        progress = Progress("train", (self.steps - self.step) * self._settings.batch) if metrics else None
        speed = Speed(prefetch)
        for batch in prefetch:
            self._pending.append(self.train_step(batch))
            self.step += 1
            speed.steps += 1
            at_end = self.step == self.steps
            validate = self.step % self._validate_every == 0 or at_end
            keep = self.step % self._config.workers.checkpoint_steps == 0 or at_end
            keep = keep or (validate and self._ranks.broadcast(self._state_is_cheap()))
            self._report(metrics, wait=validate or keep)
            if progress:
                progress.step(count=self._settings.batch)
            if metrics and (speed.steps >= _SPEED_EVERY_STEPS or at_end):
                metrics.write(self.step, speed.numbers(self._settings.batch), "speed")
            if validate:
                self._validate(metrics)
            if keep:
                self._save_state()
        if progress:
            progress.close()

    def train_step(self, batch: Batch) -> _Pending:
        """One step on this process's share of a batch.

        A share larger than `micro_batch` is encoded in parts without gradients. The loss of the whole batch gives the
        gradients of the embeddings, and the parts are encoded again with these (GradCache, Gao et al. 2021). Both
        passes make the same random choices, and only the first updates running statistics.
        """
        settings, ranks = self._settings, self._ranks
        self.model.train()
        batch = batch.to(ranks.device)
        size = settings.micro_batch
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        whole = len(parts) == 1
        with nullcontext() if whole else torch.no_grad():
            module = self._parallel if whole else self.model
            share = torch.cat([self._embed(module, part, index) for index, part in enumerate(parts)])
        leaf = share.detach().requires_grad_()
        losses, finite = self._losses(leaf, batch)
        losses[0].backward()
        assert leaf.grad is not None
        assert self.log_scale.grad is not None
        gradients = leaf.grad.split(size)
        if whole:
            share.backward(gradients[0])
        else:
            with fixed_running_statistics(self.model):
                for index, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
                    with self._keep_local(index < len(parts) - 1):
                        self._embed(self._parallel, part, index).backward(gradient)
        ranks.mean(self.log_scale.grad)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        set_learning_rates(self.optimizer, settings.lr, schedule(self.step, self.steps, self._warmup))
        self.optimizer.step()
        self.optimizer.zero_grad()
        scale = self.log_scale.detach().exp()
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
        return self._start_copy(torch.stack([*losses, scale, norm]).detach(), finite)

    def _embed(self, module: nn.Module, part: Batch, index: int) -> Tensor:
        """[b, D] of a part of the share, with the same random choices in each call."""
        torch.manual_seed(seed_of(self._settings.seed, "forward", str(self.step), str(self._ranks.rank), str(index)))
        seen = augment(part.gaussians(), part.draws)  # in single precision: bfloat16 moves positions by up to 0.008
        with self._autocast():
            return module(seen, part.neighbours).float()

    def _losses(
        self,
        leaf: Tensor,  # [B / world, D]
        batch: Batch,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """The losses of the whole batch (sum, text, images), and [B] whether all numbers of an object are finite."""
        gather, settings = self._ranks.gather, self._settings
        shape = gather(leaf)
        text, images = gather(batch.texts).float(), gather(batch.images).float()
        scores, captions = gather(batch.scores), gather(batch.captions)
        scale = self.log_scale.exp()
        of_text = text_loss(shape, text, scale, captions=captions if settings.duplicate_captions == "mask" else None)
        if settings.image_loss == "multi_positive":
            of_images = multi_positive_loss(shape, images, scale)
        else:
            norm, over = settings.score_norm, settings.over_views
            of_images = image_voting_loss(shape, images, scores, scale, score_norm=norm, over_views=over)
        rows = torch.cat([shape.detach(), text, images.flatten(1), scores], dim=1)
        return (of_text + settings.image_weight * of_images, of_text, of_images), rows.isfinite().all(dim=1)

    def _autocast(self) -> AbstractContextManager[Any]:
        cuda = self._ranks.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16, enabled=cuda and self._settings.precision == "bf16")

    def _keep_local(self, local: bool) -> AbstractContextManager[Any]:
        """If `local`, accumulates gradients in this process, without an average over all processes."""
        if local and isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    def _start_copy(self, numbers: Tensor, finite: Tensor) -> _Pending:
        if self._ranks.device.type != "cuda":
            return _Pending(self.step, numbers, finite, None)
        numbers, finite = (tensor.to("cpu", non_blocking=True) for tensor in (numbers, finite))
        ready = torch.cuda.Event()
        ready.record()
        return _Pending(self.step, numbers, finite, ready)

    def _report(self, metrics: MetricsFiles | None, wait: bool) -> None:
        """Checks and writes the numbers of the previous step, while the GPU computes this one; with `wait` of both."""
        while len(self._pending) > (0 if wait else 1):
            step, numbers, finite, ready = self._pending.popleft()
            if ready is not None:
                ready.synchronize()
            values = dict(zip(_NUMBERS, numbers.tolist(), strict=True))
            if not finite.all() or not all(map(math.isfinite, values.values())):
                raise self._not_finite(step, finite.numpy(), values)
            if metrics:
                metrics.write(step + 1, {**values, "lr": self._settings.lr * schedule(step, self.steps, self._warmup)})

    def _not_finite(self, step: int, finite: np.ndarray, values: dict[str, float]) -> ClipgsError:
        """The error of a step, the same in every process."""
        uids = self._data.uids[self._batches.objects(step)[~finite]].tolist()
        if not uids:
            bad = next(name for name, value in values.items() if not math.isfinite(value))
            return ClipgsError(f"step {step + 1}: {bad} is not finite, but all embeddings are; lower training.lr")
        if len(uids) == len(finite):
            return ClipgsError(f"step {step + 1}: no embedding is finite any more; lower training.lr")
        named = ", ".join(f"{uid} (shard {self._data.shard_of(uid)})" for uid in uids[:3])
        more = f" and {len(uids) - 3} more" if len(uids) > 3 else ""
        return ClipgsError(
            f"step {step + 1}: the loss is not finite, because of {named}{more}: the embedding of its splat, text "
            "or images is not finite; check its PLY and features, or exclude it (clipgs exclude)"
        )

    @torch.no_grad()
    def _validate(self, metrics: MetricsFiles | None) -> None:
        """Measures retrieval on the validation split; keeps the model if it is the best so far.

        A handful of objects cannot tell which model is the best: then the newest is kept.
        """
        self._average_statistics()
        objects = self._data.split("validation")
        if len(objects) == 0:
            return
        self.model.eval()
        ranks, settings = self._ranks, self._settings
        share = -(-len(objects) // ranks.world)
        mine = np.resize(objects, share * ranks.world)[ranks.rank * share :][:share]  # padded with the first ones
        views = middles(self._data.pictures, _VALIDATION_VIEWS)
        size = min(settings.micro_batch, share)
        chunks = [mine[start : start + size] for start in range(0, share, size)]

        def read(index: int) -> Batch:
            some = chunks[index]
            return self._data.batch(some, np.tile(views, (len(some), 1)), np.zeros((len(some), DRAWS), np.float32))

        parts = []
        for batch in Prefetch(read, range(len(chunks)), self._config.workers.loaders):
            batch = batch.to(ranks.device)
            with self._autocast():
                # `forward` is not compiled: another batch size and mode would compile the model once more.
                shapes = self.model.forward(batch.gaussians(), batch.neighbours).float()
            parts.append((shapes, batch.texts.float(), batch.images.float(), batch.captions))
        shapes, texts, images, captions = (ranks.gather(torch.cat(tensors))[: len(objects)] for tensors in zip(*parts))  # noqa: B905
        numbers = validation_retrieval(shapes, texts, images, captions)
        score = (numbers["text_mrr"] + numbers["image_mrr"]) / 2
        too_few = len(objects) < settings.choose_from
        if too_few or not self._best or score > self._best["best_score"]:
            self._best = {"best_step": self.step, "best_score": score, "validation": numbers}
            if ranks.is_main:  # written with the next state
                self._unwritten_best = {
                    name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
                }
        if metrics:
            metrics.write(self.step, {f"validation_{name}": value for name, value in numbers.items()})
            listed = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            log.info("train: step %d: %s", self.step, listed)

    def _average_statistics(self) -> None:
        """Averages the running statistics of batch norms over the processes."""
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    self._ranks.mean(statistic)

    def _state_is_cheap(self) -> bool:
        """Whether writing a state takes a small part of the time since the last one."""
        return self._state_seconds <= _STATE_SHARE * (time.monotonic() - self._state_written)

    def _save_state(self) -> None:
        self._average_statistics()
        start = time.monotonic()
        if self._ranks.is_main:
            if self._unwritten_best:
                checkpoints.save_best(self._state, self._best["best_step"], self._unwritten_best)
                self._unwritten_best = {}
            notes = {"record": self.record, "changes": self._changes, **self._best}
            checkpoints.save_state(self._state, self.step, self.model, self.optimizer, self.names, notes)
        self._state_written = time.monotonic()
        self._state_seconds = self._state_written - start

    def _resume(self) -> None:
        """Goes on from the last state, if that is of this run."""
        ranks = self._ranks
        notes = ranks.broadcast(self._usable_state() if ranks.is_main else None)
        if notes is None:
            return
        if not ranks.is_main:
            checkpoints.load_state(self._state, self.model, self.optimizer, self.names)
        self.step = notes["step"]
        self._best = {name: notes[name] for name in ("best_step", "best_score", "validation") if name in notes}
        changes = bridged(notes["record"], self.record, self.step, self.steps)
        self._changes = notes["changes"] + [f"after step {self.step}, {change}" for change in changes]
        what = f"resumes after step {self.step} of {self.steps}"
        if self.step == self.steps:
            what = f"all {self.steps} steps of these inputs are done, so there is nothing to train"
        if ranks.is_main:
            log.info("train: %s", "; ".join([what, *changes]))

    def _usable_state(self) -> dict[str, Any] | None:
        """The notes of the last state, loaded. One that cannot be gone on with is set aside, and the log says why."""
        try:
            notes = checkpoints.read_notes(self._state)
            if notes is None:
                return None
            if different := obstacles(notes["record"], self.record):
                raise checkpoints.UnusableStateError(f"it is of other inputs: {different}")
            if notes["step"] > self.steps:
                raise checkpoints.UnusableStateError(
                    f"it is after step {notes['step']}, and {EPOCHS} = {self._settings.epochs} ends at {self.steps}"
                )
            checkpoints.load_state(self._state, self.model, self.optimizer, self.names)
            return notes
        except checkpoints.UnusableStateError as error:
            kept = checkpoints.set_aside(self._state, *(self.folder / name for name in MetricsFiles.NAMES))
            log.warning("train: begins anew, because the last state cannot be used: %s; it is kept in %s", error, kept)
            return None

    def _finish(self) -> None:
        """Writes the finished run with the best model."""
        if not self._ranks.is_main:
            return
        data = self._data
        step, model = self.step, self.model.state_dict()
        if self._best:
            step = self._best["best_step"]
            model = checkpoints.best(self._state, step)
        which = runs.chosen(self._config, len(data.split("validation")))
        notes = {
            "dim": data.dim,
            "teacher": data.teacher,
            "pictures": data.pictures,
            "objects": {split: len(data.split(split)) for split in ("train", "validation")},
            "shards": data.shards,
            "data_sha256": json_digest(self.record["data"]),  # of `data` in inputs.json
            "step": step,
            "steps": self.steps,
            "logit_scale": self.log_scale.exp().item(),
            "validation": self._best.get("validation", {}),
            "changes": self._changes,
        }
        runs.write_run(self.folder, self._config, model, notes)
        log.info("train: wrote step %d of %d, %s, to %s", step, self.steps, which, self.folder)
