"""How many samples a second one GPU trains the encoder with, beside Uni3D's way of doing it in the same run.

    python benchmarks/encoder.py                                        # on a GPU; under four minutes
    python benchmarks/encoder.py --device cpu --size tiny --samples 64  # whether it runs at all

Ours is CLIP-GS as a training job runs it: compiled, the GS Refinement Block included, rows in farthest-point order and
neighbours from the store, no patch dropout. Uni3D's way is its point encoder on timm's blocks, eager, with
farthest-point sampling and neighbours found in every step; a second row leaves both out. All read the same store of
different objects, mapped into memory, through the same loader, and take a contrastive step with AdamW in bfloat16. A
row's time is that of one pass over all samples, loading included (Uni3D's: over some of them). TFLOP/s are those of
matrix products and attention, forward and backward, that are done; `written_out` those of Uni3D's layers one by one.
Writes benchmarks/results/encoder.json.
"""

import argparse
import contextlib
import logging
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from record import commit, record
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipgs.config import Encoder
from clipgs.encoder import ClipGS
from clipgs.encoder.groups import farthest_points, nearest, take
from clipgs.encoder.transformer import TIMM_NAMES
from clipgs.splats.gaussians import Gaussians

BAR = 1_000  # samples a second of ours, on one H200
NUMBERS = (3, 4, 3, 1, 3)  # of a Gaussian: means, quats_wxyz, log_scales, opacity_logits, colors
AHEAD = 4  # batches that are read before they are asked for
READERS = 4  # threads
DIM = 1024
BATCH = 120  # the largest tensors, of 64 x 512 x 512 numbers an object, then have under 2^31: shorter indices
PARTS = 6  # shapes that an object is put together of
ATTENTION = {
    "auto": (),
    "cudnn": (SDPBackend.CUDNN_ATTENTION,),
    "flash": (SDPBackend.FLASH_ATTENTION,),
}
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="base")
    parser.add_argument("--samples", type=int, default=20_480, help="different objects in the store")
    parser.add_argument("--batch", type=int, action="append", help="of ours; several: the best counts")
    parser.add_argument("--mode", default="default", help="of torch.compile, such as max-autotune-no-cudagraphs")
    parser.add_argument("--attention", choices=sorted(ATTENTION), action="append", help="kernel of ours")
    parser.add_argument("--uni3d-batch", type=int, default=64)
    parser.add_argument("--uni3d-steps", type=int, default=40, help="0 leaves Uni3D's way out")
    parser.add_argument("--profile", action="store_true", help="name the kernels that ours spends its time in")
    parser.add_argument("--folder", type=Path, help="for the store (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="of the JSON (default: benchmarks/results/encoder.json)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    on_gpu = arguments.device == "cuda"
    settings = Encoder(size=arguments.size, drop_path=0.0, patch_dropout=0.0)
    if not on_gpu:  # to see that it runs
        settings = settings.model_copy(update={"gaussians": 512, "groups": 32, "group_size": 8})
        arguments.batch, arguments.uni3d_batch, arguments.uni3d_steps = [16], 16, 2
        if arguments.output is None:
            arguments.output = Path(tempfile.gettempdir()) / "encoder.json"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        begin = time.perf_counter()
        store = make(Path(folder), arguments.samples, settings, arguments.device)
        _log.info("%d objects made in %.1f s", arguments.samples, time.perf_counter() - begin)
        return _run(arguments, settings, store)


def _run(arguments: argparse.Namespace, settings: Encoder, store: "Store") -> int:
    rows: list[dict[str, Any]] = []
    device = torch.device(arguments.device)

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        _tell(row)
        # after each row: a run that is cut short leaves those that it made
        shown = {"samples": len(store), "bar": BAR, "encoder": settings.model_dump(mode="json")}
        record("encoder", shown, {"rows": rows, "commit": commit()}, arguments.output)

    written_out = flops(Uni3DStep(settings, device, find=False), store, device)
    if arguments.uni3d_steps:
        for find in (True, False):
            step = Uni3DStep(settings, device, find)
            batches = Batches(store, arguments.uni3d_batch, arguments.uni3d_steps, device)
            way = "uni3d, centres and neighbours found in each step" if find else "uni3d, both from the store"
            keep({"way": way, **timed(step, batches), **rates(written_out, written_out)})
            del step
    executed = flops(ClipGSStep(settings, device), store, device)
    for batch in arguments.batch or [BATCH]:
        for attention in arguments.attention or ["auto"]:
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            step = ClipGSStep(settings, device, arguments.mode if device.type == "cuda" else None, attention)
            begin = time.perf_counter()
            for one in Batches(store, batch, 3, device):
                step(one)
            compile_seconds = time.perf_counter() - begin
            row = {"way": "clipgs", "mode": arguments.mode, "attention": attention, "compile_s": compile_seconds}
            row |= timed(step, Batches(store, batch, len(store) // batch, device))
            keep({**row, **rates(executed, written_out)})
            if arguments.profile:
                profile(step, Batches(store, batch, 3, device))
            del step
    for row in rows:
        row["tflops"] = row["samples_per_second"] * row["gflop_a_sample"] / 1e3
        row["tflops_written_out"] = row["samples_per_second"] * row["gflop_a_sample_written_out"] / 1e3
    ours = max((row for row in rows if row["way"] == "clipgs"), key=lambda row: row["samples_per_second"])
    ours["bar"] = BAR
    ours["times_uni3d"] = [ours["samples_per_second"] / row["samples_per_second"] for row in rows[:2]]
    file = record(
        "encoder",
        {"samples": len(store), "bar": BAR, "encoder": settings.model_dump(mode="json")},
        {"rows": rows, "best": ours, "commit": commit()},
        arguments.output,
    )
    _log.info("%.0f samples a second, %.0f TFLOP/s; %s", ours["samples_per_second"], ours["tflops"], file)
    return 0 if device.type == "cpu" or ours["samples_per_second"] >= BAR else 1


def rates(executed: float, written_out: float) -> dict[str, float]:
    """Products of matrices and attention, forward and backward: those done, and those of Uni3D's layers as written."""
    return {"gflop_a_sample": executed / 1e9, "gflop_a_sample_written_out": written_out / 1e9}


def _tell(row: dict[str, Any]) -> None:
    _log.info(
        "%-50s batch %4d: %6.0f samples a second, %5.1f %% of it waiting for data, %.1f GB",
        row["way"],
        row["batch"],
        row["samples_per_second"],
        100 * row["waiting_for_data"],
        row["peak_memory_gb"],
    )


# --- the store -------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    rows: Tensor  # [B, N, 14] float16
    neighbours: Tensor  # [B, g, n] int16
    texts: Tensor  # [B, D] float16, unit length


class Store(NamedTuple):
    """Arrays in files, mapped: all fields of `Batch` over all objects."""

    rows: np.ndarray
    neighbours: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:  # type: ignore[override]
        return self.rows.shape[0]


def make(folder: Path, samples: int, settings: Encoder, device: str) -> Store:
    """Objects of random ellipsoids: positions on their surfaces, colours by part, the centres of the patches first."""
    N, g, n = settings.gaussians, settings.groups, settings.group_size
    shapes = {"rows": (np.float16, (N, 14)), "neighbours": (np.int16, (g, n)), "texts": (np.float16, (DIM,))}
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (samples, *shape))
        for name, (kind, shape) in shapes.items()
    }
    for first in range(0, samples, 256):
        chosen = slice(first, min(first + 256, samples))
        for name, values in zip(shapes, objects(chosen.stop - first, settings, device), strict=True):
            arrays[name][chosen] = values.cpu().numpy()
    for values in arrays.values():
        values.flush()
    return Store(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes))


def objects(B: int, settings: Encoder, device: str) -> Batch:
    N, g = settings.gaussians, settings.groups

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    part = torch.randint(PARTS, (B, N), device=device)
    surface = F.normalize(draw(B, N, 3), dim=-1)
    means = surface * take(0.1 + 0.3 * draw(B, PARTS, 3).abs(), part) + take(0.5 * draw(B, PARTS, 3), part)
    means = means - means.mean(1, keepdim=True)
    means = means / means.norm(dim=2).amax(1)[:, None, None]
    centres = farthest_points(means, g)
    rest = torch.ones(B, N, device=device).scatter_(1, centres, 0).argsort(dim=1, descending=True, stable=True)
    order = torch.cat([centres, rest[:, : N - g]], dim=1)
    means, part = take(means, order), part.gather(1, order)
    colors = (take(draw(B, PARTS, 3).sigmoid(), part) + 0.05 * draw(B, N, 3)).clamp(0, 1)
    rows = torch.cat([means, draw(B, N, 4), 0.5 * draw(B, N, 3) - 4.5, 2 * draw(B, N, 1) + 2, colors], dim=2).half()
    found = rows[..., :3].float()
    neighbours = torch.cat([nearest(some, some[:, :g], settings.group_size) for some in found.split(32)])
    return Batch(rows, neighbours.to(torch.int16), F.normalize(draw(B, DIM), dim=1).half())


class Batches:
    """Batches of different objects in a random order, read by threads, on the device; counts the time of waiting."""

    def __init__(self, store: Store, batch: int, steps: int, device: torch.device) -> None:
        self.store, self.batch, self.steps, self.device = store, batch, steps, device
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng(0).permutation(len(self.store))
        places = np.resize(order, (self.steps, self.batch))
        ready: queue.Queue[Any] = queue.Queue(AHEAD)

        def read() -> None:
            with ThreadPoolExecutor(READERS) as pool:
                for objects_of_batch in places:
                    parts = np.array_split(np.sort(objects_of_batch), READERS)
                    ready.put([pool.submit(self._read, part) for part in parts])

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for _ in range(self.steps):
            begin = time.perf_counter()
            parts = [future.result() for future in ready.get()]
            self.waited += time.perf_counter() - begin
            moved = [
                [values.to(self.device, non_blocking=True) for values in column] for column in zip(*parts, strict=True)
            ]
            yield Batch(*map(torch.cat, moved))

    def _read(self, rows: np.ndarray) -> Batch:
        parts = Batch(*(torch.from_numpy(values[rows]) for values in self.store))
        return Batch(*(part.pin_memory() for part in parts)) if self.device.type == "cuda" else parts


# --- the two ways ----------------------------------------------------------------------------------------------------


class Step:
    """Forward, contrastive loss, backward, AdamW: on one batch."""

    def __init__(self, model: nn.Module, forward: Callable[[Batch], Tensor], device: torch.device) -> None:
        self.model, self.forward, self.device = model, forward, device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def __call__(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            shapes = self.forward(batch)
        loss = contrastive(F.normalize(shapes.float(), dim=1), batch.texts.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def contrastive(
    shapes: Tensor,  # [B, D]
    texts: Tensor,  # [B, D]
) -> Tensor:  # []
    logits = shapes @ texts.T / 0.07
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class ClipGSStep(Step):
    def __init__(
        self, settings: Encoder, device: torch.device, mode: str | None = None, attention: str = "auto"
    ) -> None:
        model = ClipGS(settings, DIM).to(device).train()

        def embed(rows: Tensor, neighbours: Tensor) -> Tensor:
            means, quats, log_scales, logits, colors = rows.float().split(NUMBERS, dim=2)
            return model(Gaussians(means, quats, log_scales, logits[..., 0], colors), neighbours)

        compiled = torch.compile(embed, mode=mode, dynamic=False, fullgraph=True) if mode else embed
        self._attention = ATTENTION[attention]
        super().__init__(model, lambda batch: compiled(batch.rows, batch.neighbours), device)

    def __call__(self, batch: Batch) -> Tensor:
        with sdpa_kernel(list(self._attention)) if self._attention else contextlib.nullcontext():
            return super().__call__(batch)


class Uni3DStep(Step):
    def __init__(self, settings: Encoder, device: torch.device, find: bool) -> None:
        model = Uni3DWrittenOut(settings.size).to(device).train()

        def embed(batch: Batch) -> Tensor:
            xyz, rgb = batch.rows[..., :3].float(), batch.rows[..., 11:].float()
            with torch.no_grad():
                if find:
                    centres = take(xyz, farthest_points(xyz, settings.groups))
                    distance = torch.cdist(centres, xyz)
                    rows = distance.topk(settings.group_size, largest=False, sorted=False).indices
                else:
                    centres, rows = xyz[:, : settings.groups], batch.neighbours.long()
            patches = torch.cat([take(xyz, rows) - centres[:, :, None], take(rgb, rows)], dim=-1)
            return model(patches, centres)

        super().__init__(model, embed, device)


class Uni3DWrittenOut(nn.Module):
    """Uni3D's point encoder layer by layer, on timm's blocks."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.blocks = timm.create_model(TIMM_NAMES[size], num_classes=0)
        width = self.blocks.embed_dim
        self.blocks.patch_embed = nn.Identity()
        self.first = nn.Sequential(nn.Conv1d(6, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second = nn.Sequential(nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, 512, 1))
        self.project, self.embed = nn.Linear(512, width), nn.Linear(width, DIM)
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.class_token, self.class_position = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(
        self,
        patches: Tensor,  # [B, g, n, 6]
        centres: Tensor,  # [B, g, 3]
    ) -> Tensor:  # [B, D]
        B, g, n, _ = patches.shape
        points = self.first(patches.flatten(0, 1).transpose(1, 2))
        largest = points.amax(2, keepdim=True).expand(-1, -1, n)
        tokens = self.second(torch.cat([largest, points], dim=1)).amax(2).view(B, g, -1)
        tokens = torch.cat([self.class_token.expand(B, -1, -1), self.project(tokens)], dim=1)
        tokens = tokens + torch.cat([self.class_position.expand(B, -1, -1), self.position(centres)], dim=1)
        for block in self.blocks.blocks:
            tokens = block(tokens)
        return self.embed(self.blocks.fc_norm(tokens[:, 0]))


# --- measuring -------------------------------------------------------------------------------------------------------


def timed(step: Step, batches: Batches) -> dict[str, Any]:
    """One pass over the batches, after two to warm up."""
    device = batches.device
    for batch in Batches(batches.store, batches.batch, 2, device):
        step(batch)
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    losses = [step(batch) for batch in batches]
    _wait(device)
    seconds = time.perf_counter() - begin
    if not torch.stack(losses).isfinite().all():
        raise RuntimeError("a loss is not finite")
    return {
        "batch": batches.batch,
        "steps": batches.steps,
        "samples": batches.steps * batches.batch,
        "seconds": seconds,
        "samples_per_second": batches.steps * batches.batch / seconds,
        "waiting_for_data": batches.waited / seconds,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
        "losses": [float(losses[0]), float(losses[-1])],
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(step: Step, store: Store, device: torch.device) -> float:
    """Of products of matrices and of attention, forward and backward, a sample; counted on two objects, eager."""
    (batch,) = Batches(store, 2, 1, device)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return counter.get_total_flops() / 2


def profile(step: Step, batches: Batches) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as profiled:
        for batch in batches:
            step(batch)
        _wait(batches.device)
    _log.info(profiled.key_averages().table(sort_by="self_device_time_total", row_limit=45, max_name_column_width=90))


if __name__ == "__main__":
    sys.exit(main())
