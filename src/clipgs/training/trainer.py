"""The training of CLIP-GS, in one process or many, to be killed and resumed at any step.

What a step does depends on its number alone: the order, the views, the augmentation and every random choice inside the
model come from seeds made of it, so a resumed run repeats what it would have done.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipgs import encoder
from clipgs.catalog.shards import frozen_shards
from clipgs.config import Config
from clipgs.core.errors import ClipgsError
from clipgs.core.prefetch import Prefetch
from clipgs.core.processes import usable_cores
from clipgs.core.runner import Progress
from clipgs.core.seeds import seed_of
from clipgs.stages import stage_settings
from clipgs.training import checkpoints, distributed, runs
from clipgs.training.augment import DRAWS, augment
from clipgs.training.data import Batch, TrainingBatches, TrainingData, compact
from clipgs.training.distributed import Ranks
from clipgs.training.losses import image_voting_loss, text_loss
from clipgs.training.metrics import MetricsFiles, Speed, validation_retrieval
from clipgs.training.optimizer import adamw, parameter_groups, schedule, set_learning_rates

log = logging.getLogger(__name__)

_MAX_LOGIT_SCALE = 100.0  # CLIP's (Radford et al., 2021)
_SPEED_EVERY_STEPS = 20
_STATE_SHARE = 0.02  # of the time, at most for states after validations; those every `checkpoint_steps` come anyway


def train(config: Config, device: str, threads: int) -> None:
    """One process of a run, from the shards to the finished run; see `stages.train`.

    Args:
        device: `cuda` or `cpu`.
        threads: of torch on a CPU, where this process is the only one.
    """
    if device == "cpu" and not distributed.launched():
        torch.set_num_threads(min(threads, usable_cores()))
    with distributed.ranks(device) as ranks:
        shards = ranks.broadcast(runs.begun_with(config) or frozen_shards(config))
        if ranks.is_main:
            runs.begin(config, shards)
        loaders = max(1, usable_cores() // distributed.processes_here())
        for shard in shards[ranks.rank :: ranks.world]:
            compact(config, shard, loaders)
        ranks.barrier()
        files = [compact(config, shard) for shard in shards]
        data = TrainingData(config, shards, files, pin=device == "cuda")
        torch.manual_seed(config.training.seed)
        model = encoder.build(config.encoder, data.dim)
        Trainer(config, ranks, model, data).run()


@contextmanager
def fixed_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics, as in training, and do not update their running ones."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class _Losses(NamedTuple):
    total: Tensor
    text: Tensor
    image: Tensor
    good: Tensor  # [B] whether all numbers of an object are finite


class _Pending(NamedTuple):
    """Numbers of a step on their way to the CPU."""

    step: int
    numbers: Tensor  # [len(_NUMBERS)]
    good: Tensor  # [B]
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
        self._batches = TrainingBatches(data, data.split("train"), config, ranks.rank, ranks.world)
        self.steps = settings.epochs * self._batches.steps_per_epoch
        self._warmup = round(settings.warmup_epochs * self._batches.steps_per_epoch)
        self._validate_every = settings.validate_epochs * self._batches.steps_per_epoch
        self.model = model.to(ranks.device)
        if config.workers.compile and ranks.device.type == "cuda":
            self.model.compile()
        self.log_scale = nn.Parameter(torch.tensor(math.log(settings.logit_scale), device=ranks.device))
        groups = parameter_groups(self.model, settings)
        groups.append({"params": [self.log_scale], "names": ["log_scale"], "factor": 1.0, "weight_decay": 0.0})
        self.names = [name for group in groups for name in group.pop("names")]
        self.optimizer = adamw(groups, settings.lr, ranks.device)
        self._parallel = (
            nn.parallel.DistributedDataParallel(
                self.model, device_ids=[ranks.device] if ranks.device.type == "cuda" else None, broadcast_buffers=False
            )
            if ranks.world > 1
            else self.model
        )
        self.step = 0
        self._best: dict[str, Any] = {}
        self._unwritten_best: dict[str, Tensor] = {}
        self._state_written, self._state_seconds = time.monotonic(), 0.0
        self._pending: deque[_Pending] = deque()

    def run(self) -> None:
        """Trains to the end and writes the finished run."""
        self._resume()
        with MetricsFiles(self.folder, self.step) if self._ranks.is_main else nullcontext() as metrics:
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
                metrics.speed(self.step, speed.numbers(self._settings.batch))
            if validate:
                self._validate(metrics)
            if keep:
                self._save_state()
        if progress:
            progress.close()

    def train_step(self, batch: Batch) -> _Pending:
        """One step on this process's share of a batch.

        A share larger than `micro_batch` is embedded in parts without gradients, contrasted whole, and embedded again
        part by part with the gradients of the contrast (GradCache, Gao et al. 2021): the same random choices, and
        running statistics that move once.
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
        losses = self._losses(leaf, batch)
        losses.total.backward()
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
        norm = nn.utils.clip_grad_norm_(
            [parameter for group in self.optimizer.param_groups for parameter in group["params"]], settings.clip_norm
        )
        set_learning_rates(self.optimizer, settings.lr, schedule(self.step, self.steps, self._warmup))
        self.optimizer.step()
        self.optimizer.zero_grad()
        scale = self.log_scale.detach().exp()
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
        numbers = torch.stack([losses.total, losses.text, losses.image, scale, norm]).detach()
        return self._start_copy(numbers, losses.good)

    def _embed(self, module: nn.Module, part: Batch, index: int) -> Tensor:
        """[b, D] of a part of the share; the same random choices each time it is asked."""
        torch.manual_seed(seed_of(self._settings.seed, "forward", str(self.step), str(self._ranks.rank), str(index)))
        seen = augment(part.gaussians(), part.draws)  # in single precision: bfloat16 moves positions by up to 0.008
        with self._autocast():
            return module(seen, part.neighbours).float()

    def _losses(
        self,
        leaf: Tensor,  # [B / world, D]
        batch: Batch,
    ) -> _Losses:
        """The losses of the whole batch, which every process computes."""
        gather, settings = self._ranks.gather, self._settings
        shape = gather(leaf)
        text, images = gather(batch.texts).float(), gather(batch.images).float()
        scores, captions = gather(batch.scores), gather(batch.captions)
        scale = self.log_scale.exp()
        of_text = text_loss(shape, text, scale, captions=captions if settings.duplicate_captions == "mask" else None)
        of_images = image_voting_loss(shape, images, scores, scale, score_norm=settings.score_norm)
        rows = torch.cat([shape.detach(), text, images.flatten(1), scores], dim=1)
        return _Losses(of_text + settings.image_weight * of_images, of_text, of_images, rows.isfinite().all(dim=1))

    def _autocast(self) -> AbstractContextManager[Any]:
        cuda = self._ranks.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16, enabled=cuda and self._settings.precision == "bf16")

    def _keep_local(self, local: bool) -> AbstractContextManager[Any]:
        """Whether gradients are accumulated in this process and not averaged over all yet."""
        if local and isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    # --- numbers ---

    def _start_copy(self, numbers: Tensor, good: Tensor) -> _Pending:
        if self._ranks.device.type != "cuda":
            return _Pending(self.step, numbers, good, None)
        numbers, good = (tensor.to("cpu", non_blocking=True) for tensor in (numbers, good))
        ready = torch.cuda.Event()
        ready.record()
        return _Pending(self.step, numbers, good, ready)

    def _report(self, metrics: MetricsFiles | None, wait: bool) -> None:
        """Checks and writes the numbers of the step before, while the GPU computes this one.

        Args:
            wait: until this step is done, and its numbers are written too.

        Raises:
            ClipgsError: a loss or gradient is not finite.
        """
        while len(self._pending) > (0 if wait else 1):
            step, numbers, good, ready = self._pending.popleft()
            if ready is not None:
                ready.synchronize()
            values = dict(zip(_NUMBERS, numbers.tolist(), strict=True))
            if not good.all() or not all(map(math.isfinite, values.values())):
                raise self._not_finite(step, good.numpy(), values)
            if metrics:
                metrics.step(step + 1, {**values, "lr": self._settings.lr * schedule(step, self.steps, self._warmup)})

    def _not_finite(self, step: int, good: np.ndarray, values: dict[str, float]) -> ClipgsError:
        """The error of a step, which is the same in every process."""
        uids = self._data.uids[self._batches.objects(step)[~good]].tolist()
        if not uids:
            bad = next(name for name, value in values.items() if not math.isfinite(value))
            return ClipgsError(
                f"step {step + 1}: {bad} is not finite, though every object's embedding is; lower training.lr"
            )
        if len(uids) == len(good):
            return ClipgsError(f"step {step + 1}: no object's embedding is finite any more; lower training.lr")
        named = ", ".join(f"{uid} (shard {self._data.shard_of(uid)})" for uid in uids[:3])
        more = f" and {len(uids) - 3} more" if len(uids) > 3 else ""
        return ClipgsError(
            f"step {step + 1}: the loss is not finite, because of {named}{more}: its splat, text or pictures give "
            "numbers that are not; look at its PLY and features, or leave it out of the catalog"
        )

    # --- validation, states, the end ---

    @torch.no_grad()
    def _validate(self, metrics: MetricsFiles | None) -> None:
        """Retrieval over the validation split; keeps the model if it is the best so far."""
        self._average_statistics()
        objects = self._data.split("validation")
        if len(objects) == 0:
            return
        self.model.eval()
        ranks, settings = self._ranks, self._settings
        share = -(-len(objects) // ranks.world)
        mine = np.resize(objects, share * ranks.world)[ranks.rank * share :][:share]  # filled up with the first ones
        views = np.linspace(0, self._data.pictures, settings.views, endpoint=False).astype(int)
        size = min(settings.micro_batch, share)
        chunks = [mine[start : start + size] for start in range(0, share, size)]

        def read(index: int) -> Batch:
            some = chunks[index]
            return self._data.batch(some, np.tile(views, (len(some), 1)), np.zeros((len(some), DRAWS), np.float32))

        parts = []
        for batch in Prefetch(read, range(len(chunks)), self._config.workers.loaders):
            batch = batch.to(ranks.device)
            with self._autocast():
                # Not compiled: another batch size and mode would compile it once more.
                shapes = self.model.forward(batch.gaussians(), batch.neighbours).float()
            parts.append((shapes, batch.texts.float(), batch.images.float(), batch.captions))
        shapes, texts, images, captions = (ranks.gather(torch.cat(tensors))[: len(objects)] for tensors in zip(*parts))  # noqa: B905
        numbers = validation_retrieval(shapes, texts, images, captions)
        score = (numbers["text_mrr"] + numbers["image_mrr"]) / 2
        if not self._best or score > self._best["best_score"]:
            self._best = {"best_step": self.step, "best_score": score, "validation": numbers}
            if ranks.is_main:  # written when a state is, which may be many validations later
                self._unwritten_best = {
                    name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
                }
        if metrics:
            metrics.validation(self.step, numbers)

    def _average_statistics(self) -> None:
        """Averages the running statistics of batch norms over the processes, each of which has its own."""
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    self._ranks.mean(statistic)

    def _notes(self) -> dict[str, Any]:
        return {"settings": self._identity(), **self._best}

    def _identity(self) -> str:
        """What must be equal for a state to be resumed: the settings, the number of processes, and the objects."""
        return f"{stage_settings(self._config, 'train')} {self._ranks.world} {self._data.identity}"

    def _state_is_cheap(self) -> bool:
        """Whether one as long as the last would be a small part of the time since that one."""
        return self._state_seconds <= _STATE_SHARE * (time.monotonic() - self._state_written)

    def _save_state(self) -> None:
        self._average_statistics()
        start = time.monotonic()
        if self._ranks.is_main:
            if self._unwritten_best:
                checkpoints.save_best(self._state, self._best["best_step"], self._unwritten_best)
                self._unwritten_best = {}
            checkpoints.save_state(self._state, self.step, self.model, self.optimizer, self.names, self._notes())
        self._state_written = time.monotonic()
        self._state_seconds = self._state_written - start

    def _resume(self) -> None:
        notes = checkpoints.load_state(self._state, self.model, self.optimizer, self.names, self._identity())
        if notes is None:
            return
        self.step = notes["step"]
        self._best = {name: notes[name] for name in ("best_step", "best_score", "validation") if name in notes}
        if self._ranks.is_main:
            log.info("train: goes on after step %d of %d", self.step, self.steps)

    def _finish(self) -> None:
        """Writes the finished run of the best state."""
        if not self._ranks.is_main:
            return
        data = self._data
        step = self._best.get("best_step", self.step)
        model = checkpoints.best(self._state, step) if self._best else self.model.state_dict()
        if not self._best:
            log.warning("train: there is no validation split, so the last weights are taken")
        notes = {
            "dim": data.dim,
            "teacher": data.teacher,
            "pictures": data.pictures,
            "objects": {split: len(data.split(split)) for split in ("train", "validation")},
            "shards": data.shards,
            "step": step,
            "steps": self.steps,
            "logit_scale": self.log_scale.exp().item(),
            "validation": self._best.get("validation", {}),
        }
        runs.write_run(self.folder, self._config, model, notes)
        which = "the best on the validation split" if self._best else "the last"
        log.info("train: %s holds step %d of %d, %s", self.folder, step, self.steps, which)
