"""A fit's steps on CUDA: each step fits all objects of a batch, and the host only queues the steps.

nvcc compiles the kernels (`kernels.cu`) at the first use, in a few seconds, and the cache keeps them. A step is
captured once as a CUDA graph and replayed; the views, backgrounds and rates of all steps are tables on the device. Sums
over pixels have no fixed order, so results repeat to about 0.1 dB, not bit for bit.
"""

import ctypes
import functools
import hashlib
import logging
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from clipgs.config import Config, Fit
from clipgs.core.devices import find_nvcc
from clipgs.core.errors import ClipgsError
from clipgs.splats.fitting.relocate import relocate_batch
from clipgs.splats.fitting.schedule import BETA_1, BETA_2, EPSILON, Schedule
from clipgs.splats.fitting.start import Prepared
from clipgs.splats.gaussians import Views
from clipgs.splats.losses import WINDOW
from clipgs.splats.rasterizer import kernels

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cu")
OLDEST_CAPABILITY = (8, 0)  # the loss's kernel needs 58 KB of shared memory a block
MOST_OBJECTS = 512  # a sort key has 31 bits, and 22 of them hold the depth
REGION = 32  # pixels, as in the kernels
MOST_A_BATCH = 128  # of 256 pixels: larger batches gain little
BATCH_PICTURE_BYTES = 3e9  # on the host, which holds two batches
GROUP_OBJECTS = 32  # on one stream: while one group waits for its fullest tile, the others draw

_NAMES = ("BLUR", "NEAR", "FIELD_MARGIN", "ALPHA_MIN", "ALPHA_MAX", "TRANSMITTANCE_MIN", "PARAMETERS")
_SHARED = {
    **{name: getattr(kernels, name) for name in _NAMES},
    **{"LOG2_ALPHA_MIN": math.log2(kernels.ALPHA_MIN), "ALPHA_MIN_INVERSE": 1 / kernels.ALPHA_MIN},
    **{"BETA_1": BETA_1, "BETA_2": BETA_2, "EPSILON": EPSILON},
}
# The numbers that the kernels share with the CPU engine, as compiler options: integers, and float32 literals.
CONSTANTS = tuple(
    f"-DCLIPGS_{name}={value}{'f' if isinstance(value, float) else ''}" for name, value in _SHARED.items()
)


class _Arguments(ctypes.Structure):
    """`struct Fit` of the kernels: sizes, weights, then pointers to the plan, the parameters and the buffers."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("objects", "gaussians", "views", "width", "height", "steps")),
        *((name, ctypes.c_float) for name in ("ssim_weight", "alpha_weight")),
        *((name, ctypes.c_void_p) for name in ("rgba", "cameras", "order", "grounds", "rates", "step")),
        *((name, ctypes.c_void_p) for name in ("raw", "moments", "records", "projected_box")),
        *((name, ctypes.c_void_p) for name in ("keys", "sorted_keys", "sorted", "boxes", "drawn", "lists", "counts")),
        *((name, ctypes.c_void_p) for name in ("frame", "pixel_gradients", "sums", "blue_sums")),
    )


class CudaFit:
    """A batch's fit, step by step, in buffers made once.

    Attributes:
        raw: [B, 14, N], the raw parameters: means, quaternions, log-scales, opacity logits, colour logits.
        moments: [B, 2, 14, N], of Adam.
        frame: [B, H, W, 4], the last step's images: colour without a background, transmittance.
        pixel_gradients: [B, H, W, 4], of the last step's loss by colour and alpha; 0 or stale far from anything drawn.
    """

    def __init__(
        self,
        raw: Tensor,  # [B, 14, N] on the CUDA device, from `start`
        views: Views,  # [B, V, ...] on the same device
        settings: Fit,
        plans: Sequence[Schedule],  # B of them
    ):
        objects, count, height, width = views.rgba.shape[:4]
        gaussians, steps, device = raw.shape[2], settings.steps, raw.device
        if objects > MOST_OBJECTS:
            raise ValueError(f"At most {MOST_OBJECTS} objects can be fitted in one batch, not {objects}.")
        self._library = library(torch.cuda.get_device_capability(device), device.index)
        self.settings, self.plans = settings, plans
        regions = -(-width // REGION) * -(-height // REGION)

        def table(arrays: list[np.ndarray], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).to(device, dtype).contiguous()

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        steps_of = np.arange(1, steps + 1)
        rates = plans[0].rates / (1 - BETA_1**steps_of)[:, None]
        rates = np.concatenate([rates, 1 / (1 - BETA_2**steps_of)[:, None]], axis=1)
        Ks = views.Ks
        lenses = torch.stack([Ks[..., 0, 0], Ks[..., 1, 1], Ks[..., 0, 2], Ks[..., 1, 2]], dim=-1)
        self._tensors = {
            "rgba": views.rgba.contiguous(),
            "cameras": torch.cat([views.viewmats[..., :3, :].flatten(-2), lenses], dim=-1).float().contiguous(),
            "order": table([plan.views for plan in plans], torch.int32),
            "grounds": table([plan.grounds for plan in plans], torch.float32),
            "rates": torch.from_numpy(rates.astype(np.float32)).to(device),
            "step": torch.zeros(1, dtype=torch.int32, device=device),
            "raw": raw.float().clone(memory_format=torch.contiguous_format),
            "moments": torch.zeros(objects, 2, kernels.PARAMETERS, gaussians, device=device),
            "records": empty(objects, gaussians, 12),
            "projected_box": empty(objects, gaussians, dtype=torch.int32),
            "keys": empty(objects * gaussians, dtype=torch.int32),
            "sorted_keys": empty(objects * gaussians, dtype=torch.int32),
            "sorted": empty(objects * gaussians, dtype=torch.int64),
            "boxes": empty(objects, gaussians, 2, dtype=torch.int32),
            "drawn": empty(objects, dtype=torch.int32),
            "lists": empty(objects, regions, gaussians, dtype=torch.int32),
            "counts": empty(objects, regions, dtype=torch.int32),
            "frame": empty(objects, height, width, 4),
            "pixel_gradients": torch.zeros(objects, height, width, 4, device=device),
            "sums": torch.zeros(objects, gaussians, 8, device=device),
            "blue_sums": torch.zeros(objects, gaussians, device=device),
        }
        self.raw, self.moments = self._tensors["raw"], self._tensors["moments"]
        self.frame, self.pixel_gradients = self._tensors["frame"], self._tensors["pixel_gradients"]
        sizes, weights = (
            (objects, gaussians, count, width, height, steps),
            (settings.ssim_weight, settings.alpha_weight),
        )
        pointers = {name: tensor.data_ptr() for name, tensor in self._tensors.items()}
        self._arguments = _Arguments(*sizes, *weights, **pointers)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0

    def queue(self, kernel: str) -> None:
        """Queue one part of the step: project, draw, loss, differentiate or update.

        Raises:
            RuntimeError: CUDA reports an error.
        """
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = getattr(self._library, kernel)(ctypes.byref(self._arguments), 0, stream)
        if error:
            raise RuntimeError(f"CUDA error {error} in the fit's kernel {kernel!r}.")

    def draw(self) -> None:
        """Queue the drawing of the next step's view into `frame`."""
        tensors = self._tensors
        self.queue("project")
        # by object, then by depth, then by row
        torch.sort(tensors["keys"], stable=True, out=(tensors["sorted_keys"], tensors["sorted"]))
        self.queue("draw")

    def _step(self) -> None:
        self.draw()
        self.queue("loss")
        self.queue("differentiate")
        self.queue("update")
        self._tensors["step"].add_(1)

    def step(self, number: int) -> None:
        """Queue one view an object and one step of Adam; `number` must count up from 0."""
        if number in self.plans[0].relocations:
            uniforms = np.stack([plan.relocation_rng.random(self.raw.shape[2], np.float32) for plan in self.plans])
            relocate_batch(
                self.raw, self.moments, self.settings.relocate_below, torch.from_numpy(uniforms).to(self.raw.device)
            )
        if self._graph is not None:
            self._graph.replay()
        elif self._eager_steps == 0:  # loads the kernels, which is not allowed during a capture
            self._step()
            self._eager_steps += 1
        else:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile, for the next batch or to measure the last.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._step()
            self._graph.replay()


def _fit(
    prepared: Sequence[Prepared],  # B of them
    views: Views,  # [B, V, ...] on a CUDA device
    settings: Fit,
) -> Tensor:  # [B, 14, N] on the device
    """The raw parameters after all steps; see `clipgs.splats.fitting.fit`."""
    device = views.rgba.device
    raw = np.stack([one.raw for one in prepared])
    plans = [one.schedule for one in prepared]
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        groups = []
        for first in range(0, len(raw), GROUP_OBJECTS):
            part = slice(first, first + GROUP_OBJECTS)
            stream = torch.cuda.Stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                one = CudaFit(torch.from_numpy(raw[part]).to(device), views[part], settings, plans[part])
            groups.append((stream, one))
        for number in range(settings.steps):
            for stream, one in groups:
                with torch.cuda.stream(stream):
                    one.step(number)
        for stream, _ in groups:
            here.wait_stream(stream)
        return torch.cat([one.raw for _, one in groups])


def objects_a_batch(settings: Fit, views: int, pixels: int) -> int:
    """The number of objects to fit at once: enough to keep the GPU busy, within its memory and the host's."""
    regions = (-(-pixels // REGION)) ** 2
    gaussian = 4 * (3 * kernels.PARAMETERS + 12 + 2 + 4 + 9 + regions) + 60
    on_device = pixels**2 * (4 * views + 32) + settings.gaussians * gaussian + 20 * settings.steps
    free, _ = torch.cuda.mem_get_info()
    # stacking the views of a batch needs their memory twice
    most = min(0.5 * free / (on_device + pixels**2 * 4 * views), BATCH_PICTURE_BYTES / (pixels**2 * 4 * views))
    return max(1, min(MOST_A_BATCH, int(most)))


@functools.cache
def library(capability: tuple[int, int], device: int) -> ctypes.CDLL:
    """The kernels for the current device, compiled for its compute capability unless the cache has them.

    `device` is its index: the kernels are loaded and their window is set once for each device.

    Raises:
        ClipgsError: the GPU is too old, or there is no nvcc, or it fails.
    """
    if capability < OLDEST_CAPABILITY:
        oldest, here = (".".join(map(str, version)) for version in (OLDEST_CAPABILITY, capability))
        raise ClipgsError(
            f"fitting needs a GPU of compute capability {oldest} or newer, but this one has {here}; "
            "use another GPU, or device: cpu"
        )
    target = "sm_{}{}".format(*capability)
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(CONSTANTS).encode()).hexdigest()[:16]
    folder = Config().cache_path / "kernels"
    place = folder / f"fit-{target}-{key}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            _compile(target, place)
    loaded = ctypes.CDLL(str(place))
    if error := loaded.set_window((ctypes.c_float * len(WINDOW))(*WINDOW)):
        raise RuntimeError(f"CUDA error {error} when the fit's kernels were loaded.")
    return loaded


def _compile(target: str, place: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        raise ClipgsError(
            "fitting on CUDA needs the CUDA toolkit's compiler nvcc, which was not found: install the toolkit and set "
            "CUDA_HOME, or use device: cpu"
        )
    log.info("compiling the fit's kernels for %s", target)
    partial = place.with_suffix(f".{os.getpid()}")
    command = [nvcc, "-O3", "-std=c++17", f"-arch={target}", "-shared", "-Xcompiler", "-fPIC", "-o", str(partial)]
    done = subprocess.run([*command, *CONSTANTS, str(SOURCE)], capture_output=True, text=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ClipgsError(f"{nvcc} could not compile the fit's kernels: {lines[-1]}")
    partial.replace(place)
