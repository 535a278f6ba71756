"""The stage `train`: CLIP-GS on the triplets, in one process or many, to be killed and gone on with at any step.

What a step does depends on its number alone: the order, the views, the augmentation and every random choice inside the
model come from seeds made of it, so a run that goes on from a state repeats what it would have done.
"""

import json
import logging
import math
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from clipgs.catalog.shards import frozen_shards
from clipgs.config import Config, Training
from clipgs.core.errors import ClipgsError
from clipgs.core.processes import usable_cores
from clipgs.core.runner import Progress
from clipgs.core.seeds import seed_of
from clipgs.splats.stages import device as device_of
from clipgs.stages import stage_settings
from clipgs.training import checkpoints, distributed, runs
from clipgs.training.augment import DRAWS, augment
from clipgs.training.data import Batch, Prefetch, TrainingBatches, TrainingData, compact
from clipgs.training.distributed import Ranks
from clipgs.training.losses import image_voting_loss, text_loss

log = logging.getLogger(__name__)

_BETAS, _EPS = (0.9, 0.999), 1e-8  # Uni3D's
_MAX_LOGIT_SCALE = 100.0  # CLIP's (Radford et al., 2021)
_SPEED_EVERY_STEPS = 20
_STATE_SHARE = 0.02  # of the time, at most for states after validations; those every `checkpoint_steps` come anyway
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def train(config: Config, threads: int = 1) -> None:
    """Trains CLIP-GS on the training split of every shard, or goes on where it was killed.

    Writes `runs/RUN/`: `model.safetensors` (of the step that was best on the validation split), `config.yaml`,
    `README.md` (the model card), `metrics.jsonl`, `speed.jsonl`, `tensorboard/`. `state/` is what a killed run goes on
    from; `inputs.json` says which shards the run was made from.

    Raises:
        ClipgsError: inputs are missing or of several teachers, there are fewer objects than a batch holds, or a loss
            or gradient is not finite; the text names the object.
    """
    from clipgs import encoder

    device = device_of(config, config.workers.gpus)
    if device == "cuda" and not distributed.launched():
        gpus = min(config.workers.gpus or torch.cuda.device_count(), torch.cuda.device_count())  # a scheduler's too
        if gpus > 1:
            distributed.launch(config, gpus)
            return
    if device == "cpu" and not distributed.launched():
        torch.set_num_threads(min(threads, usable_cores()))
    with distributed.ranks(device) as ranks:
        shards = ranks.from_first(runs.begun_with(config) or frozen_shards(config))
        if ranks.first:
            runs.begin(config, shards)
        threads = max(1, usable_cores() // distributed.processes_here())
        for shard in shards[ranks.rank :: ranks.world]:
            compact(config, shard, threads)
        ranks.wait()
        files = [compact(config, shard) for shard in shards]
        data = TrainingData(config, shards, files, pin=device == "cuda")
        torch.manual_seed(config.training.seed)
        model = encoder.build(config.encoder, data.dim)
        Trainer(config, ranks, model, data).run()


# --- parts of a step -------------------------------------------------------------------------------------------------


def parameter_groups(model: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, each group with the `factor` of its learning rate.

    Vectors and biases are not decayed. Block i of L learns `layer_decay` to the power of L - 1 - i as fast as the rest,
    so that early blocks, which know most from before, change least (Bao et al., BEiT, 2022; Uni3D).
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    depth = max((int(found[1]) + 1 for name in names if (found := _BLOCK.search(name))), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = _BLOCK.search(name)
        factor = settings.layer_decay ** (depth - 1 - int(found[1])) if found else 1.0
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        group = groups.setdefault((factor, decay), {"params": [], "names": [], "factor": factor, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def rate(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rates: grows over `warmup` steps, then falls to 0 along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms take the batch's statistics as in training, and do not move their running ones."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Losses(NamedTuple):
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


# --- the run ---------------------------------------------------------------------------------------------------------


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
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, betas=_BETAS, eps=_EPS, fused=ranks.device.type == "cuda"
        )
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
        with _Metrics(self.folder, self.step) if self._ranks.first else nullcontext() as metrics:
            self._train(metrics)
        self._finish()

    def _train(self, metrics: "_Metrics | None") -> None:
        prefetch = Prefetch(self._batches, range(self.step, self.steps), self._config.workers.loaders)
        progress = Progress("train", (self.steps - self.step) * self._settings.batch) if metrics else None
        speed = _Speed(prefetch)
        for batch in prefetch:
            self._pending.append(self.train_step(batch))
            self.step += 1
            at_end = self.step == self.steps
            validate = self.step % self._validate_every == 0 or at_end
            keep = self.step % self._config.workers.checkpoint_steps == 0 or at_end
            keep = keep or (validate and self._ranks.from_first(self._state_is_cheap()))
            self._settle(metrics, all_of_them=validate or keep)
            if progress:
                progress.step(count=self._settings.batch)
            if metrics and (speed.steps(1) >= _SPEED_EVERY_STEPS or at_end):
                metrics.speed(self.step, speed.numbers(self._settings.batch))
            if validate:
                self._validate(metrics)
            if keep:
                self._keep()
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
        gradients = leaf.grad.split(size)
        if whole:
            share.backward(gradients[0])
        else:
            with still_statistics(self.model):
                for index, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
                    with self._apart(index < len(parts) - 1):
                        self._embed(self._parallel, part, index).backward(gradient)
        ranks.mean(self.log_scale.grad)
        norm = nn.utils.clip_grad_norm_(
            [parameter for group in self.optimizer.param_groups for parameter in group["params"]], settings.clip_norm
        )
        factor = rate(self.step, self.steps, self._warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * group["factor"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        scale = self.log_scale.detach().exp()
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
        numbers = torch.stack([losses.total, losses.text, losses.image, scale, norm]).detach()
        return self._on_its_way(numbers, losses.good)

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
    ) -> Losses:
        """The losses of the whole batch, which every process computes."""
        gather, settings = self._ranks.gather, self._settings
        shape = gather(leaf)
        text, images = gather(batch.texts).float(), gather(batch.images).float()
        scores, captions = gather(batch.scores), gather(batch.captions)
        scale = self.log_scale.exp()
        of_text = text_loss(shape, text, scale, captions=captions if settings.duplicate_captions == "mask" else None)
        of_images = image_voting_loss(shape, images, scores, scale, score_norm=settings.score_norm)
        rows = torch.cat([shape.detach(), text, images.flatten(1), scores], dim=1)
        return Losses(of_text + settings.image_weight * of_images, of_text, of_images, rows.isfinite().all(dim=1))

    def _autocast(self) -> AbstractContextManager[Any]:
        cuda = self._ranks.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16, enabled=cuda and self._settings.precision == "bf16")

    def _apart(self, apart: bool) -> AbstractContextManager[Any]:
        """Whether gradients stay with this process for now."""
        parallel = self._parallel
        return parallel.no_sync() if apart and parallel is not self.model else nullcontext()

    # --- numbers ---

    def _on_its_way(self, numbers: Tensor, good: Tensor) -> _Pending:
        if self._ranks.device.type != "cuda":
            return _Pending(self.step, numbers, good, None)
        numbers, good = (tensor.to("cpu", non_blocking=True) for tensor in (numbers, good))
        ready = torch.cuda.Event()
        ready.record()
        return _Pending(self.step, numbers, good, ready)

    def _settle(self, metrics: "_Metrics | None", all_of_them: bool) -> None:
        """Looks at the numbers of the step before, while the GPU computes this one; or at those of both.

        Raises:
            ClipgsError: a loss or gradient is not finite.
        """
        while len(self._pending) > (0 if all_of_them else 1):
            step, numbers, good, ready = self._pending.popleft()
            if ready is not None:
                ready.synchronize()
            values = dict(zip(_NUMBERS, numbers.tolist(), strict=True))
            if not good.all() or not all(map(math.isfinite, values.values())):
                self._stop(step, good.numpy(), values)
            if metrics:
                metrics.step(step + 1, {**values, "lr": self._settings.lr * rate(step, self.steps, self._warmup)})

    def _stop(self, step: int, good: np.ndarray, values: dict[str, float]) -> None:
        if not self._ranks.first:
            raise SystemExit(1)  # the first process says why
        uids = self._data.uids[self._batches.objects(step)[~good]].tolist()
        if not uids:
            bad = next(name for name, value in values.items() if not math.isfinite(value))
            raise ClipgsError(
                f"step {step + 1}: {bad} is not finite, though every object's embedding is; lower training.lr"
            )
        if len(uids) == len(good):
            raise ClipgsError(f"step {step + 1}: no object's embedding is finite any more; lower training.lr")
        named = ", ".join(f"{uid} (shard {self._data.shard_of(uid)})" for uid in uids[:3])
        more = f" and {len(uids) - 3} more" if len(uids) > 3 else ""
        raise ClipgsError(
            f"step {step + 1}: the loss is not finite, because of {named}{more}: its splat, text or pictures give "
            "numbers that are not; look at its PLY and features, or leave it out of the catalog"
        )

    # --- validation, states, the end ---

    @torch.no_grad()
    def _validate(self, metrics: "_Metrics | None") -> None:
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
        numbers = retrieval(shapes, texts, images, captions)
        score = (numbers["text_mrr"] + numbers["image_mrr"]) / 2
        if not self._best or score > self._best["best_score"]:
            self._best = {"best_step": self.step, "best_score": score, "validation": numbers}
            if ranks.first:  # written when a state is, which may be many validations later
                self._unwritten_best = {
                    name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
                }
        if metrics:
            metrics.validation(self.step, numbers)

    def _average_statistics(self) -> None:
        """Running statistics that each process has of its own become those of all."""
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                self._ranks.mean(module.running_mean)
                self._ranks.mean(module.running_var)

    def _notes(self) -> dict[str, Any]:
        return {"settings": self._identity(), **self._best}

    def _identity(self) -> str:
        """What a state must agree in: the settings, the number of processes, and the objects."""
        return f"{stage_settings(self._config, 'train')} {self._ranks.world} {self._data.identity}"

    def _state_is_cheap(self) -> bool:
        """Whether one as long as the last would be a small part of the time since that one."""
        return self._state_seconds <= _STATE_SHARE * (time.monotonic() - self._state_written)

    def _keep(self) -> None:
        self._average_statistics()
        start = time.monotonic()
        if self._ranks.first:
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
        if self._ranks.first:
            log.info("train: goes on after step %d of %d", self.step, self.steps)

    def _finish(self) -> None:
        """Writes the finished run of the best state."""
        if not self._ranks.first:
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
        checkpoints.write_run(self.folder, self._config, model, notes)
        which = "the best on the validation split" if self._best else "the last"
        log.info("train: %s holds step %d of %d, %s", self.folder, step, self.steps, which)


def retrieval(
    shapes: Tensor,  # [n, D]
    texts: Tensor,  # [n, D]
    images: Tensor,  # [n, K, D]
    captions: Tensor,  # [n]
) -> dict[str, float]:
    """How well texts and pictures find their own shape among all: recall at 1 and mean reciprocal rank.

    A shape of the same caption is no wrong answer to a text. Equal similarities count against the own shape.
    """

    def ranks_of(queries: Tensor, right: Tensor) -> Tensor:
        """Wrong shapes that come before the query's own, [n]."""
        similar = queries @ shapes.T
        own = similar.diagonal()[:, None]
        return ((similar >= own) & ~right).sum(dim=1)

    itself = torch.eye(len(shapes), dtype=torch.bool, device=shapes.device)
    found = {
        "text": ranks_of(texts, captions[:, None] == captions[None, :]),
        "image": torch.cat([ranks_of(images[:, k], itself) for k in range(images.shape[1])]),
    }
    numbers = {}
    for name, ranks in found.items():
        numbers[f"{name}_r1"] = (ranks == 0).double().mean().item()
        numbers[f"{name}_mrr"] = (1 / (ranks.double() + 1)).mean().item()
    return numbers


class _Speed:
    """Samples a second, and the share of the time in which a step waited for its data."""

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch
        self._steps, self._start, self._waited = 0, time.perf_counter(), 0.0

    def steps(self, more: int) -> int:
        self._steps += more
        return self._steps

    def numbers(self, batch: int) -> dict[str, float]:
        """Since the last time it was asked."""
        now, waited = time.perf_counter(), self._prefetch.waited_seconds
        seconds = now - self._start
        numbers = {
            "samples_per_second": self._steps * batch / seconds,
            "data_wait_fraction": (waited - self._waited) / seconds,
        }
        self._steps, self._start, self._waited = 0, now, waited
        return numbers


class _Metrics:
    """`metrics.jsonl`, which a killed and resumed run writes to the same bytes; `speed.jsonl`; TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = _cut(folder / "metrics.jsonl", step).open("a")
        self._speed = _cut(folder / "speed.jsonl", step).open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, numbers: dict[str, float]) -> None:
        self._write(self._metrics, step, "", numbers)

    def validation(self, step: int, numbers: dict[str, float]) -> None:
        self._write(self._metrics, step, "validation_", numbers)
        log.info("train: step %d: %s", step, ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))

    def speed(self, step: int, numbers: dict[str, float]) -> None:
        self._write(self._speed, step, "", numbers)

    def _write(self, file: Any, step: int, prefix: str, numbers: dict[str, float]) -> None:
        numbers = {prefix + name: value for name, value in numbers.items()}
        file.write(json.dumps({"step": step, **numbers}) + "\n")
        file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._metrics.close()
        self._speed.close()
        self._board.close()


def _cut(file: Path, step: int) -> Path:
    """Leaves in a file of lines what was written up to a step: what is behind is done again."""
    kept = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    file.write_text("".join(kept))
    return file
