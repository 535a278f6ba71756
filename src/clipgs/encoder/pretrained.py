"""Other people's weights: checkpoints of Uni3D, OpenShape and ULIP-2, and EVA-02's of timm.

Nothing in a checkpoint is run: tensors, plain values and a few harmless classes are read, anything else is an error
that names it. Every key is either used or stands by name among those known to do nothing.
"""

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipgs.config import Encoder
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.encoder.groups import farthest_points, nearest, take
from clipgs.encoder.pointbert import OPENSHAPE_HEAD, OPENSHAPE_SIZES, OpenShape, OpenShapeSize, Ulip2
from clipgs.encoder.tokenizer import CHANNELS, POINT_FEATURES, PointEncoder
from clipgs.encoder.transformer import SIZES, TIMM_NAMES, PatchTransformer, Shape

State = dict[str, Tensor]

# Classes besides torch's own that published checkpoints carry beside their tensors, by the names they were saved under.
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    # numpy's types leave out its private modules.
    *(
        (np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar")  # type: ignore[attr-defined]
        for core in ("core", "_core")
    ),
)
# Weights of Uni3D's image model that its point encoder never uses.
UNI3D_DEAD = frozenset(
    {
        "visual.patch_embed.proj.weight",
        "visual.patch_embed.proj.bias",
        "visual.pos_embed",
        "visual.cls_token",
        "visual.head.weight",
        "visual.head.bias",
        "encoder.first_conv.1.num_batches_tracked",
        "encoder.second_conv.1.num_batches_tracked",
    }
)
ULIP2_DEAD = frozenset({"encoder.first_conv.1.num_batches_tracked", "encoder.second_conv.1.num_batches_tracked"})
OPENSHAPE_DEAD = frozenset(f"ppat.sa.mlp_bns.{layer}.num_batches_tracked" for layer in range(3))
EVA02_DEAD = frozenset(
    {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token", "head.weight", "head.bias"}
)
# Groups and their size in the published models; a model of none of their sizes is small, and made for tests.
UNI3D_PATCHES, ULIP2_PATCHES, SMALL_PATCHES = (512, 64), (512, 32), (64, 16)
ULIP2_SIZE = (384, 18)  # width and depth


class Uni3D(nn.Module):
    """Uni3D's point encoder (Zhou et al., 2024). Rotary embeddings stand in its configuration and are never applied."""

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

    Takes checkpoints of Uni3D, of OpenShape's PointBERT and of ULIP-2's coloured PointBERT, as published (half
    precision, wrapped in `module` or `state_dict`, with or without `module.` before each key), and safetensors.
    Widths and depths are those of the checkpoint's tensors.

    Args:
        path: the checkpoint.
        groups, group_size: patches and points in each; no checkpoint says them. Default: the published models', which
            are 512 of 64 (Uni3D), 512 of 32 (ULIP-2), and those of the scaling (OpenShape); for a transformer of a
            size that was never published, 64 of 16.

    Raises:
        UsageError: there is no such file.
        ClipgsError: it cannot be read, holds a class that is not known to be harmless, is none of the three, lacks a
            key, or has one that is not known.
    """
    path = Path(path)
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
        return _filled(model, weights, path)
    shown = ", ".join(sorted(state)[:3])
    raise ClipgsError(f"{path} is no checkpoint of Uni3D, OpenShape or ULIP-2: its keys are {shown}, ...")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """The tensors of a checkpoint, of whatever layout, in float32 and without the prefix `module.`."""
    if not path.is_file():
        raise UsageError(f"{path} is not there")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

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
    """What `torch.save` wrote, if nothing in it could run.

    Raises:
        ClipgsError: the file is damaged, or names a class outside `HARMLESS`; the text says which.
    """
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|(?:class|function|type) (\S+)", str(error))
        what = f"it asks for {next(filter(None, named.groups()))}, which" if named else "it asks for what"
        raise ClipgsError(
            f"{path} is not read: {what} is not among the classes known to be harmless; "
            "save its weights alone, as a dict of tensors or as safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise ClipgsError(f"{path} cannot be read as a checkpoint ({' '.join(str(error).split())[:200]})") from None


class _Keys:
    """A checkpoint's tensors, taken one by one, so that what was not taken can be told."""

    def __init__(self, path: Path, state: State, dead: frozenset[str], prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self._state = dict(state)
        self._dead = dead

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def take(self, key: str) -> Tensor:
        try:
            return self._state.pop(key)
        except KeyError:
            raise ClipgsError(f"{self.path} has no {self.prefix}{key}") from None

    def layer(self, key: str, to: str) -> Iterator[tuple[str, Tensor]]:
        """Weight and bias; a 1 x 1 convolution's weight as a matrix."""
        yield f"{to}.weight", self.take(f"{key}.weight").flatten(1)
        yield f"{to}.bias", self.take(f"{key}.bias")

    def norm(self, key: str, to: str, statistics: bool = False) -> Iterator[tuple[str, Tensor]]:
        for name in ("weight", "bias", *(("running_mean", "running_var") if statistics else ())):
            yield f"{to}.{name}", self.take(f"{key}.{name}")

    def depth(self, prefix: str) -> int:
        numbers = {int(key[len(prefix) :].split(".")[0]) for key in self._state if key.startswith(prefix)}
        return len(numbers)

    def end(self) -> None:
        """Raises ClipgsError for keys that were neither taken nor are known to do nothing."""
        unknown = sorted(self._state.keys() - self._dead)
        if unknown:
            shown = ", ".join(self.prefix + key for key in unknown[:3])
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise ClipgsError(f"{self.path} has weights that are not known here: {shown}{more}")


def _filled(model: nn.Module, weights: State, path: Path) -> nn.Module:
    """The model with the weights, all of them; in evaluation mode."""
    own = model.state_dict()
    for key, value in weights.items():
        if key not in own or own[key].shape != value.shape:
            expected = list(own[key].shape) if key in own else "nothing"
            raise ClipgsError(f"{path} has {list(value.shape)} where {expected} belongs ({key})")
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    if missing:
        raise ClipgsError(f"{path} lacks the weights of {', '.join(missing[:3])}")
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _point_encoder(keys: _Keys, to: str) -> State:
    """Uni3D's and ULIP-2's mini-PointNet."""
    return {
        **dict(keys.layer("encoder.first_conv.0", f"{to}.conv1")),
        **dict(keys.norm("encoder.first_conv.1", f"{to}.norm1", statistics=True)),
        **dict(keys.layer("encoder.first_conv.3", f"{to}.conv2")),
        **dict(keys.layer("encoder.second_conv.0", f"{to}.conv3")),
        **dict(keys.norm("encoder.second_conv.1", f"{to}.norm3", statistics=True)),
        **dict(keys.layer("encoder.second_conv.3", f"{to}.conv4")),
    }


# --- Uni3D and EVA ---------------------------------------------------------------------------------------------------


def uni3d_weights(path: Path, state: State) -> tuple[State, Shape]:
    """A Uni3D checkpoint under our names (`points`, `project`, `transformer`), and the transformer's shape."""
    inside = {key.removeprefix("point_encoder."): value for key, value in state.items() if key != "logit_scale"}
    keys = _Keys(path, inside, UNI3D_DEAD, "point_encoder.")
    blocks, shape = _eva_blocks(keys, "visual.")
    weights = {
        **_point_encoder(keys, "points"),
        **dict(keys.layer("encoder2trans", "project")),
        **dict(keys.layer("pos_embed.0", "transformer.position.0")),
        **dict(keys.layer("pos_embed.2", "transformer.position.2")),
        **dict(keys.layer("trans2embed", "transformer.embed")),
        "transformer.class_token": (keys.take("cls_token").float() + keys.take("cls_pos").float()).flatten(),
        **blocks,
    }
    keys.end()
    return weights, shape


def _eva_blocks(keys: _Keys, prefix: str) -> tuple[State, Shape]:
    """EVA's blocks and last norm, of any of timm's layouts: projections and gates apart, or in one matrix."""
    weights: State = {}
    depth = keys.depth(f"{prefix}blocks.")
    if depth == 0:
        raise ClipgsError(f"{keys.path} has no {keys.prefix}{prefix}blocks")
    gated = hidden_norm = False
    hidden = width = 0
    for block in range(depth):
        key, to = f"{prefix}blocks.{block}", f"transformer.blocks.{block}"
        weights |= dict(keys.norm(f"{key}.norm1", f"{to}.norm1"))
        weights |= dict(keys.norm(f"{key}.norm2", f"{to}.norm2"))
        if f"{key}.attn.q_proj.weight" in keys:
            parts = [keys.take(f"{key}.attn.{name}_proj.weight") for name in "qkv"]
            weights[f"{to}.attn.qkv.weight"] = torch.cat(parts)
            weights[f"{to}.attn.q_bias"] = keys.take(f"{key}.attn.q_proj.bias")
            weights[f"{to}.attn.v_bias"] = keys.take(f"{key}.attn.v_proj.bias")
        else:
            for name in ("qkv.weight", "q_bias", "v_bias"):
                weights[f"{to}.attn.{name}"] = keys.take(f"{key}.attn.{name}")
        weights |= dict(keys.layer(f"{key}.attn.proj", f"{to}.attn.proj"))
        if f"{key}.mlp.fc1_g.weight" in keys:
            for name in ("weight", "bias"):
                parts = [keys.take(f"{key}.mlp.fc1_{half}.{name}") for half in "gx"]
                weights[f"{to}.mlp.fc1.{name}"] = torch.cat(parts)
        else:
            weights |= dict(keys.layer(f"{key}.mlp.fc1", f"{to}.mlp.fc1"))
        hidden_norm = f"{key}.mlp.norm.weight" in keys
        if hidden_norm:
            weights |= dict(keys.norm(f"{key}.mlp.norm", f"{to}.mlp.norm"))
        weights |= dict(keys.layer(f"{key}.mlp.fc2", f"{to}.mlp.fc2"))
        width, hidden = weights[f"{to}.mlp.fc2.weight"].shape
        gated = len(weights[f"{to}.mlp.fc1.weight"]) == 2 * hidden
    weights |= dict(keys.norm(f"{prefix}fc_norm", "transformer.norm"))
    heads = next((shape.heads for shape in SIZES.values() if shape.width == width), width // 64)
    return weights, Shape(width, depth, heads, hidden, gated, hidden_norm)


def uni3d_start(settings: Encoder) -> tuple[State, Shape]:
    """First weights of CLIP-GS from a Uni3D checkpoint."""
    if settings.weights is None:
        raise UsageError("encoder.weights must name a checkpoint of Uni3D, such as model.pt of uni3d-b-no-lvis")
    path = Path(settings.weights).expanduser()
    weights, shape = uni3d_weights(path, read_state(path))
    if len(weights["points.conv4.bias"]) != POINT_FEATURES:
        raise ClipgsError(f"{path}: a point encoder of {len(weights['points.conv4.bias'])} features, not 512")
    return {_in_clipgs(key): value for key, value in weights.items()}, _checked(settings, shape, path)


def eva02_start(settings: Encoder) -> tuple[State, Shape]:
    """First weights of the transformer's blocks from timm's image model of the same size; the rest is new."""
    if settings.weights is None:
        import timm

        name = TIMM_NAMES[settings.size]
        try:
            state = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
        except Exception as error:  # whatever the hub's client raises without a network
            raise ClipgsError(f"timm cannot fetch {name} ({error}); name a file of it in encoder.weights") from None
        path = Path(name)
    else:
        path = Path(settings.weights).expanduser()
        state = read_state(path)
    keys = _Keys(path, state, EVA02_DEAD)
    weights, shape = _eva_blocks(keys, "")
    keys.end()
    return weights, _checked(settings, shape, path)


def points_start(settings: Encoder) -> tuple[State, Shape]:
    """First weights from a run of ours: of a point encoder (`encoder.refinement: false`) trained first."""
    if settings.weights is None:
        raise UsageError("encoder.weights must name the run of the point encoder, such as runs/points")
    path = Path(settings.weights).expanduser()
    file = path / "model.safetensors" if path.is_dir() else path
    state = read_state(file)
    depth = len({key.split(".")[2] for key in state if key.startswith("transformer.blocks.")})
    try:
        width, hidden = state["transformer.blocks.0.mlp.fc2.weight"].shape
    except KeyError:
        raise ClipgsError(f"{file} is not a model of clipgs") from None
    shape = SIZES[settings.size]
    return state, _checked(settings, shape._replace(width=width, hidden=hidden, depth=depth), file)


def _in_clipgs(key: str) -> str:
    return key if key.startswith("transformer.") else f"tokenizer.{key}"


def _checked(settings: Encoder, shape: Shape, path: Path) -> Shape:
    """The shape, if it is the one that was asked for, or one that has no name."""
    name = next((name for name, known in SIZES.items() if known == shape), None)
    if name not in (None, settings.size):
        raise UsageError(f"{path} is of size {name}: set encoder.size: {name}, or take another file")
    return shape


def start_from(model: nn.Module, state: State) -> list[str]:
    """Copies the weights that fit; gives the names of the parameters that stay new.

    A first layer that reads more channels than the weights know gets zeros for them. Only the projection to another D
    may differ in shape.

    Raises:
        ClipgsError: other weights differ in shape.
    """
    own = model.state_dict()
    fitting = {}
    for key, value in state.items():
        if key not in own:
            continue
        if key == "tokenizer.points.conv1.weight" and value.shape[1] < own[key].shape[1] == CHANNELS:
            value = nn.functional.pad(value, (0, CHANNELS - value.shape[1]))
        if value.shape == own[key].shape:
            fitting[key] = value
        elif not key.startswith("transformer.embed."):
            raise ClipgsError(f"first weights: {key} is {list(value.shape)}, and the model has {list(own[key].shape)}")
    model.load_state_dict(fitting, strict=False)
    return sorted({key.rsplit(".", 1)[0] for key, _ in model.named_parameters() if key not in fitting})


# --- the two PointBERTs ----------------------------------------------------------------------------------------------


def _ulip2(path: Path, state: State, groups: int | None, group_size: int | None) -> nn.Module:
    inside = {key.removeprefix("point_encoder."): value for key, value in state.items() if key != "logit_scale"}
    inside = {key: value for key, value in inside.items() if not key.startswith("open_clip_model.")}  # the teacher
    keys = _Keys(path, inside, ULIP2_DEAD)
    width, features = keys.take("reduce_dim.weight").shape
    keys = _Keys(path, inside, ULIP2_DEAD)
    depth = keys.depth("blocks.blocks.")
    weights = {
        **_point_encoder(keys, "encoder"),
        **dict(keys.layer("reduce_dim", "reduce_dim")),
        **dict(keys.layer("pos_embed.0", "pos_embed.0")),
        **dict(keys.layer("pos_embed.2", "pos_embed.2")),
        **dict(keys.norm("norm", "norm")),
        **{name: keys.take(name) for name in ("cls_token", "cls_pos", "pc_projection")},
    }
    for block in range(depth):
        key, to = f"blocks.blocks.{block}", f"blocks.{block}"
        weights |= dict(keys.norm(f"{key}.norm1", f"{to}.norm1")) | dict(keys.norm(f"{key}.norm2", f"{to}.norm2"))
        weights[f"{to}.attn.qkv.weight"] = keys.take(f"{key}.attn.qkv.weight")
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            weights |= dict(keys.layer(f"{key}.{layer}", f"{to}.{layer}"))
    keys.end()
    heads = width // 64 if width % 64 == 0 else width // 32
    dim = weights["pc_projection"].shape[1]
    default = ULIP2_PATCHES if (width, depth) == ULIP2_SIZE else SMALL_PATCHES
    model = Ulip2(width, depth, heads, features, dim, groups or default[0], group_size or default[1])
    return _filled(model, weights, path)


def _openshape(path: Path, state: State, groups: int | None, group_size: int | None) -> nn.Module:
    keys = _Keys(path, state, OPENSHAPE_DEAD)
    depth = keys.depth("ppat.transformer.layers.")
    weights = {
        "cls_token": keys.take("ppat.cls_token"),
        **dict(keys.layer("ppat.lift.0", "lift.0")),
        **dict(keys.norm("ppat.lift.2", "lift.1")),
        **dict(keys.layer("proj", "proj")),
    }
    for layer in range(3):
        weights |= dict(keys.layer(f"ppat.sa.mlp_convs.{layer}", f"sa.mlp_convs.{layer}"))
        weights |= dict(keys.norm(f"ppat.sa.mlp_bns.{layer}", f"sa.mlp_bns.{layer}", statistics=True))
    for layer in range(depth):
        key, to = f"ppat.transformer.layers.{layer}", f"layers.{layer}"
        weights |= dict(keys.norm(f"{key}.0.norm", f"{to}.attend_norm"))
        weights |= dict(keys.norm(f"{key}.1.norm", f"{to}.mlp_norm"))
        weights[f"{to}.qkv.weight"] = keys.take(f"{key}.0.fn.to_qkv.weight")
        weights |= dict(keys.layer(f"{key}.0.fn.to_out.0", f"{to}.out"))
        weights |= dict(keys.layer(f"{key}.1.fn.net.0", f"{to}.fc1"))
        weights |= dict(keys.layer(f"{key}.1.fn.net.3", f"{to}.fc2"))
    keys.end()
    width, hidden = len(weights["cls_token"]), len(weights["layers.0.fc1.bias"])
    features, channels = len(weights["sa.mlp_convs.2.bias"]), weights["sa.mlp_convs.0.weight"].shape[1]
    size = OPENSHAPE_SIZES.get((width, depth, hidden, features))
    if size is None:
        raise ClipgsError(f"{path}: OpenShape has no scaling of width {width}, depth {depth}, hidden width {hidden}")
    size = OpenShapeSize(groups or size.groups, size.radius, group_size or size.group_size)
    heads = len(weights["layers.0.qkv.weight"]) // (3 * OPENSHAPE_HEAD)
    model = OpenShape(width, depth, heads, hidden, features, channels, len(weights["proj.bias"]), size)
    return _filled(model, weights, path)
