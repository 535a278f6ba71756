"""Published weights: checkpoints of Uni3D, OpenShape and ULIP-2, and timm's EVA-02.

No code in a checkpoint runs: only tensors, plain values and a few harmless classes are read, and the error for anything
else names it. A key that is neither used nor listed as unused is an error too.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipgs.config import Encoder
from clipgs.core.bundles import read_metadata
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.encoder import weights_file
from clipgs.encoder.groups import farthest_points, nearest, take
from clipgs.encoder.pointbert import OPENSHAPE_HEAD, OPENSHAPE_SIZES, OpenShape, OpenShapeSize, Ulip2
from clipgs.encoder.tokenizer import POINT_CHANNELS, POINT_FEATURES, PointEncoder
from clipgs.encoder.transformer import SIZES, TIMM_NAMES, PatchTransformer, Shape

State = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

# Classes besides torch's own in published checkpoints. numpy.core was renamed numpy._core, and files have either name.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]  # of a private module
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)
# Keys that the point encoders do not use; Uni3D's checkpoints hold a whole image model of EVA-02.
EVA02_DEAD = frozenset(
    {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token", "head.weight", "head.bias"}
)
ULIP2_DEAD = frozenset({"encoder.first_conv.1.num_batches_tracked", "encoder.second_conv.1.num_batches_tracked"})
UNI3D_DEAD = ULIP2_DEAD | {f"visual.{key}" for key in EVA02_DEAD}
OPENSHAPE_DEAD = frozenset(f"ppat.sa.mlp_bns.{layer}.num_batches_tracked" for layer in range(3))
# Groups and group size of the published models. Models of other sizes are small ones for tests.
UNI3D_PATCHES, ULIP2_PATCHES, SMALL_PATCHES = (512, 64), (512, 32), (64, 16)
ULIP2_SIZE = (384, 18)  # width and depth
STATISTICS = ("running_mean", "running_var")  # of a batch norm


class Uni3D(nn.Module):
    """Uni3D's point encoder (Zhou et al., 2024). Its configuration has rotary embeddings, but its code applies none."""

    def __init__(self, shape: Shape, features: int, dim: int, groups: int, group_size: int) -> None:
        super().__init__()
        self.groups, self.group_size = groups, group_size
        self.points = PointEncoder(features=features)
        self.project = nn.Linear(features, shape.width)
        self.transformer = PatchTransformer(shape, dim)

    def forward(
        self,
        xyz: Tensor,  # [B, P, 3], centred, divided by the largest radius
        rgb: Tensor,  # [B, P, 3] in [0, 1]; 0.4 where there is none
    ) -> Tensor:  # [B, D], of any length
        centres = take(xyz, farthest_points(xyz, self.groups))
        rows = nearest(xyz, centres, self.group_size)
        patches = torch.cat([take(xyz, rows) - centres[:, :, None], take(rgb, rows)], dim=-1)
        return self.transformer(self.project(self.points(patches)), centres)


def load(path: Path | str, groups: int | None = None, group_size: int | None = None) -> nn.Module:
    """A published point encoder, in evaluation mode, on the CPU: `model(xyz, rgb)` gives [B, D], of any length.

    Reads checkpoints of Uni3D, of OpenShape's PointBERT and of ULIP-2's coloured PointBERT, as published (half
    precision, wrapped in `module` or `state_dict`, with or without `module.` before each key), and safetensors.
    The checkpoint's tensors determine widths and depths.

    Args:
        path: the checkpoint.
        groups, group_size: number of patches, and points in each; checkpoints do not contain them. Default: those of
            the published models: 512 of 64 (Uni3D), 512 of 32 (ULIP-2), those of the scaling (OpenShape); 64 of 16
            for a transformer of an unpublished size.

    Raises:
        UsageError: there is no such file.
        ClipgsError: it cannot be read, has a class that is not known to be harmless, is of another model, lacks a key,
            or has an unknown key.
    """
    path = Path(path).expanduser()
    state = read_state(path)
    if any(key.startswith("ppat.") for key in state):
        return _openshape(path, state, groups, group_size)
    if "pc_projection" in state:
        return _ulip2(path, state, groups, group_size)
    if any("point_encoder.visual." in key or key.startswith("visual.blocks.") for key in state):
        weights, shape = uni3d_weights(path, state)
        features, dim = weights["project.weight"].shape[1], len(weights["transformer.embed.weight"])
        default = UNI3D_PATCHES if shape in SIZES.values() else SMALL_PATCHES
        model = Uni3D(shape, features, dim, groups or default[0], group_size or default[1])
        return fill(model, weights, f"{path} does not fit its model").eval()
    shown = ", ".join(sorted(state)[:3])
    raise ClipgsError(f"{path} is not a checkpoint of Uni3D, OpenShape or ULIP-2: its keys are {shown}, ...")


# --- reading ---------------------------------------------------------------------------------------------------------


def fill(model: Model, weights: State, failure: str) -> Model:
    """The model with all these weights.

    Raises:
        ClipgsError: a weight is missing, unknown or of another shape; the message begins with `failure`.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ClipgsError(f"{failure}: {shorten(str(error).splitlines()[1], 200)}") from None
    return model


def read_state(path: Path) -> State:
    """The tensors of a checkpoint of any layout, in float32 and without the prefix `module.`."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except SafetensorError as error:
            raise ClipgsError(f"{path} cannot be read as safetensors ({error})") from None
    else:
        content = read_checkpoint(path)
    for wrapper in ("module", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ClipgsError(f"{path} holds no weights")
    return {
        str(key).removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }


def read_checkpoint(path: Path) -> Any:
    """The content of a file of `torch.save`. A class outside `HARMLESS` is an error that names it."""
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|(?:class|function|type) (\S+)", str(error))
        what = next(filter(None, named.groups())) if named else "one of its classes"
        raise ClipgsError(
            f"{path} is not loaded: {what} is not among the classes known to be harmless; "
            "save the weights alone, as a dict of tensors or as safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise ClipgsError(f"{path} cannot be read as a checkpoint ({' '.join(str(error).split())[:200]})") from None


class _Keys:
    """A checkpoint's tensors. Each can be taken once, so that the remaining keys are known at the end."""

    def __init__(self, path: Path, state: State, dead: frozenset[str], prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self._state, self._dead = dict(state), dead

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def take(self, key: str) -> Tensor:
        try:
            return self._state.pop(key)
        except KeyError:
            raise ClipgsError(f"{self.path} has no {self.prefix}{key}") from None

    def layers(self, names: Mapping[str, str], *statistics: str) -> State:
        """Weight, bias and statistics of each layer under its new name; a 1 x 1 convolution's weight as a matrix."""
        taken = {}
        for (key, to), name in product(names.items(), ("weight", "bias", *statistics)):
            tensor = self.take(f"{key}.{name}")
            taken[f"{to}.{name}"] = tensor.flatten(1) if tensor.ndim > 2 else tensor
        return taken

    def depth(self, prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in self._state if key.startswith(prefix)})

    def end(self) -> None:
        """Raises ClipgsError for keys that were neither taken nor are listed as unused."""
        unknown = sorted(self._state.keys() - self._dead)
        if unknown:
            shown = ", ".join(self.prefix + key for key in unknown[:3])
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise ClipgsError(f"{self.path} has unknown weights: {shown}{more}")


def _point_encoder(keys: _Keys, to: str) -> State:
    """Uni3D's and ULIP-2's mini-PointNet."""
    first, second = "encoder.first_conv", "encoder.second_conv"
    convolutions = {f"{first}.0": "conv1", f"{first}.3": "conv2", f"{second}.0": "conv3", f"{second}.3": "conv4"}
    norms = {f"{first}.1": f"{to}.norm1", f"{second}.1": f"{to}.norm3"}
    return {
        **keys.layers({key: f"{to}.{name}" for key, name in convolutions.items()}),
        **keys.layers(norms, *STATISTICS),
    }


# --- Uni3D and EVA ---------------------------------------------------------------------------------------------------


def uni3d_weights(path: Path, state: State) -> tuple[State, Shape]:
    """A Uni3D checkpoint under the names of `Uni3D`, and the transformer's shape."""
    inside = {key.removeprefix("point_encoder."): value for key, value in state.items() if key != "logit_scale"}
    keys = _Keys(path, inside, UNI3D_DEAD, "point_encoder.")
    blocks, shape = _eva_blocks(keys, "visual.")
    layers = {
        "encoder2trans": "project",
        "pos_embed.0": "transformer.position.0",
        "pos_embed.2": "transformer.position.2",
        "trans2embed": "transformer.embed",
    }
    weights = _point_encoder(keys, "points") | keys.layers(layers) | blocks
    weights["transformer.class_token"] = (keys.take("cls_token") + keys.take("cls_pos")).flatten()
    keys.end()
    return weights, shape


def _eva_blocks(keys: _Keys, prefix: str) -> tuple[State, Shape]:
    """EVA's blocks and last norm from any of timm's layouts: projections and gates in one matrix or in several."""
    weights: State = {}
    depth = keys.depth(f"{prefix}blocks.")
    if depth == 0:
        raise ClipgsError(f"{keys.path} has no {keys.prefix}{prefix}blocks")
    for block in range(depth):
        key, to = f"{prefix}blocks.{block}", f"transformer.blocks.{block}"
        names = ["norm1", "norm2", "attn.proj", "mlp.fc2"]
        if f"{key}.attn.q_proj.weight" in keys:
            parts = [keys.take(f"{key}.attn.{name}_proj.weight") for name in "qkv"]
            weights[f"{to}.attn.qkv.weight"] = torch.cat(parts)
            weights[f"{to}.attn.q_bias"] = keys.take(f"{key}.attn.q_proj.bias")
            weights[f"{to}.attn.v_bias"] = keys.take(f"{key}.attn.v_proj.bias")
        else:
            for name in ("qkv.weight", "q_bias", "v_bias"):
                weights[f"{to}.attn.{name}"] = keys.take(f"{key}.attn.{name}")
        if f"{key}.mlp.fc1_g.weight" in keys:
            for name in ("weight", "bias"):
                parts = [keys.take(f"{key}.mlp.fc1_{half}.{name}") for half in "gx"]
                weights[f"{to}.mlp.fc1.{name}"] = torch.cat(parts)
        else:
            names.append("mlp.fc1")
        if f"{key}.mlp.norm.weight" in keys:
            names.append("mlp.norm")
        weights |= keys.layers({f"{key}.{name}": f"{to}.{name}" for name in names})
    mlp = f"transformer.blocks.{depth - 1}.mlp"
    width, hidden = weights[f"{mlp}.fc2.weight"].shape
    gated, hidden_norm = len(weights[f"{mlp}.fc1.weight"]) == 2 * hidden, f"{mlp}.norm.weight" in weights
    weights |= keys.layers({f"{prefix}fc_norm": "transformer.norm"})
    heads = next((shape.heads for shape in SIZES.values() if shape.width == width), width // 64)
    return weights, Shape(width, depth, heads, hidden, gated, hidden_norm)


def uni3d_start(settings: Encoder) -> tuple[State, Shape]:
    """Initial weights of CLIP-GS from a Uni3D checkpoint."""
    if settings.weights is None:
        raise UsageError("encoder.weights must name a checkpoint of Uni3D, such as model.pt of uni3d-b-no-lvis")
    path = Path(settings.weights).expanduser()
    read = read_state(path)
    weights, shape = uni3d_weights(path, read)
    if (features := len(weights["points.conv4.bias"])) != POINT_FEATURES:
        raise ClipgsError(f"{path}: its point encoder has {features} features, but CLIP-GS needs {POINT_FEATURES}")
    state = {key if key.startswith("transformer.") else f"tokenizer.{key}": weights[key] for key in weights}
    if "logit_scale" in read:
        state["logit_scale"] = read["logit_scale"].exp()
    return state, _checked(settings, shape, path)


def eva02_start(settings: Encoder) -> tuple[State, Shape]:
    """Initial weights of the transformer's blocks from timm's image model of the same size; the rest is random."""
    if settings.weights is None:
        import timm

        name = TIMM_NAMES[settings.size]
        try:
            state = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
        except Exception as error:  # the hub's client raises many kinds without a network
            raise ClipgsError(f"timm cannot download {name} ({error}); set encoder.weights to its file") from None
        path = Path(name)
    else:
        path = Path(settings.weights).expanduser()
        state = read_state(path)
    keys = _Keys(path, state, EVA02_DEAD)
    weights, shape = _eva_blocks(keys, "")
    keys.end()
    return weights, _checked(settings, shape, path)


def points_start(settings: Encoder) -> tuple[State, Shape]:
    """Initial weights from a run of this project that trained the point encoder alone (`encoder.refinement: false`)."""
    if settings.weights is None:
        raise UsageError("encoder.weights must name the run of the point encoder, such as runs/points")
    file = weights_file(settings.weights)
    state = read_state(file)
    depth = len({key.split(".")[2] for key in state if key.startswith("transformer.blocks.")})
    try:
        width, hidden = state["transformer.blocks.0.mlp.fc2.weight"].shape
    except KeyError:
        raise ClipgsError(f"{file} is not a model of clipgs") from None
    shape = SIZES[settings.size]._replace(width=width, hidden=hidden, depth=depth)
    if (scale := read_metadata(file).get("logit_scale")) is not None:
        state["logit_scale"] = torch.tensor(float(scale))
    return state, _checked(settings, shape, file)


def _checked(settings: Encoder, shape: Shape, path: Path) -> Shape:
    """The shape, unless it is that of another `encoder.size`."""
    name = next((name for name, known in SIZES.items() if known == shape), None)
    if name not in (None, settings.size):
        raise UsageError(f"{path} is of size {name}: set encoder.size: {name}, or use another file")
    return shape


def start_from(model: nn.Module, state: State) -> list[str]:
    """Copies the weights into the model; returns the names of the layers that stay as initialised.

    If the model's first layer reads more channels than the weights have, the weights of the others are zeros. Only the
    projection to the embedding may differ in shape.

    Raises:
        ClipgsError: other weights differ in shape.
    """
    own = model.state_dict()
    fitting = {}
    for key, value in state.items():
        if key not in own:
            continue
        if key == "tokenizer.points.conv1.weight" and value.shape[1] == POINT_CHANNELS:
            value = nn.functional.pad(value, (0, own[key].shape[1] - POINT_CHANNELS))
        if value.shape == own[key].shape:
            fitting[key] = value
        elif not key.startswith("transformer.embed."):
            shapes = f"{list(value.shape)}, and the model has {list(own[key].shape)}"
            raise ClipgsError(f"initial weights: {key} is {shapes}")
    model.load_state_dict(fitting, strict=False)
    return sorted({key.rsplit(".", 1)[0] for key, _ in model.named_parameters() if key not in fitting})


# --- the two PointBERTs ----------------------------------------------------------------------------------------------


def _ulip2(path: Path, state: State, groups: int | None, group_size: int | None) -> nn.Module:
    inside = {key.removeprefix("point_encoder."): value for key, value in state.items() if key != "logit_scale"}
    inside = {key: value for key, value in inside.items() if not key.startswith("open_clip_model.")}  # the teacher
    keys = _Keys(path, inside, ULIP2_DEAD)
    depth = keys.depth("blocks.blocks.")
    layers = {name: name for name in ("reduce_dim", "pos_embed.0", "pos_embed.2", "norm")}
    weights = {name: keys.take(name) for name in ("cls_token", "cls_pos", "pc_projection")}
    for block in range(depth):
        key, to = f"blocks.blocks.{block}", f"blocks.{block}"
        layers |= {f"{key}.norm1": f"{to}.norm1", f"{key}.attn.proj": f"{to}.out", f"{key}.norm2": f"{to}.norm2"}
        layers |= {f"{key}.mlp.{name}": f"{to}.{name}" for name in ("fc1", "fc2")}
        weights[f"{to}.qkv.weight"] = keys.take(f"{key}.attn.qkv.weight")
    weights |= _point_encoder(keys, "encoder") | keys.layers(layers)
    keys.end()
    width, features = weights["reduce_dim.weight"].shape
    heads = width // 64 if width % 64 == 0 else width // 32
    dim = weights["pc_projection"].shape[1]
    default = ULIP2_PATCHES if (width, depth) == ULIP2_SIZE else SMALL_PATCHES
    model = Ulip2(width, depth, heads, features, dim, groups or default[0], group_size or default[1])
    return fill(model, weights, f"{path} does not fit its model").eval()


def _openshape(path: Path, state: State, groups: int | None, group_size: int | None) -> nn.Module:
    keys = _Keys(path, state, OPENSHAPE_DEAD)
    depth = keys.depth("ppat.transformer.layers.")
    layers = {"ppat.lift.0": "lift.0", "ppat.lift.2": "lift.1", "proj": "proj"}
    layers |= {f"ppat.sa.mlp_convs.{layer}": f"sa.mlp_convs.{layer}" for layer in range(3)}
    norms = {f"ppat.sa.mlp_bns.{layer}": f"sa.mlp_bns.{layer}" for layer in range(3)}
    weights = {"cls_token": keys.take("ppat.cls_token")}
    for layer in range(depth):
        key, to = f"ppat.transformer.layers.{layer}", f"layers.{layer}"
        layers |= {f"{key}.0.norm": f"{to}.norm1", f"{key}.0.fn.to_out.0": f"{to}.out", f"{key}.1.norm": f"{to}.norm2"}
        layers |= {f"{key}.1.fn.net.0": f"{to}.fc1", f"{key}.1.fn.net.3": f"{to}.fc2"}
        weights[f"{to}.qkv.weight"] = keys.take(f"{key}.0.fn.to_qkv.weight")
    weights |= keys.layers(layers) | keys.layers(norms, *STATISTICS)
    keys.end()
    width, hidden = len(weights["cls_token"]), len(weights["layers.0.fc1.bias"])
    features, channels = len(weights["sa.mlp_convs.2.bias"]), weights["sa.mlp_convs.0.weight"].shape[1]
    size = OPENSHAPE_SIZES.get((width, depth, hidden, features))
    if size is None:
        raise ClipgsError(f"{path}: OpenShape has no scaling of width {width}, depth {depth}, hidden width {hidden}")
    size = OpenShapeSize(groups or size.groups, size.radius, group_size or size.group_size)
    heads = len(weights["layers.0.qkv.weight"]) // (3 * OPENSHAPE_HEAD)
    model = OpenShape(width, depth, heads, hidden, features, channels, len(weights["proj.bias"]), size)
    return fill(model, weights, f"{path} does not fit its model").eval()
