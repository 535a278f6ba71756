"""Models of open_clip with weights from a tag or a file, read so that nothing in them can run."""

import difflib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from safetensors import SafetensorError, safe_open

from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import sha256_of

LOCAL_DIR, HUB = "local-dir:", "hf-hub:"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
PRECISIONS = {"float32": ("fp32", torch.float32), "bfloat16": ("bf16", torch.bfloat16)}  # open_clip's names


class Opened(NamedTuple):
    """A model of open_clip with its weights."""

    model: Any  # open_clip.CLIP or CoCa
    tokenizer: Any
    name: str  # of the model; a folder's last part only
    pretrained: str  # the tag or the file's name
    sha256: str  # of the file of weights
    dtype: torch.dtype  # of what it computes with, and of the pictures it takes


def open_model(name: str, pretrained: str | None, *, precision: str, device: str, key: str) -> Opened:
    """A model in evaluation mode and frozen, with its weights.

    Args:
        name: of a model of open_clip, `local-dir:FOLDER` or `hf-hub:NAME`.
        pretrained: tag or file; not used with a folder or the hub, which bring their own.
        precision: float32 or bfloat16.
        key: the section of the configuration that named them, for errors.

    Raises:
        UsageError: there is no such model, tag or file.
        ClipgsError: the weights cannot be downloaded or read, are of another model, or hold more than tensors.
    """
    called, dtype = PRECISIONS[precision]
    file, label = _find(name, pretrained, key)
    _check_tensors(file, key)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, file)  # while the model is built
        try:
            # Built where it shall run: filling five billion numbers at random takes minutes on a CPU.
            with torch.device(device):
                tag = None if ":" in name else pretrained
                model = open_clip.create_model(name, pretrained=tag, precision=called, device=device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClipgsError(_mismatch(file, name, key, str(error))) from None
        frozen = model.eval().requires_grad_(False)
        return Opened(frozen, open_clip.get_tokenizer(name), *label, digest.result(), dtype)


def _find(name: str, pretrained: str | None, key: str) -> tuple[Path, tuple[str, str]]:
    """The file of weights, and how model and weights are called."""
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        _check_folder(folder, key)
        found = _find_checkpoint_in_dir(folder)
        if found is None:
            raise UsageError(f"config: {key}.name = {name}: the folder holds no weights ({', '.join(SUFFIXES)})")
        return Path(found), (LOCAL_DIR + folder.resolve().name, Path(found).name)
    if name.startswith(HUB):
        return _downloaded(lambda: download_pretrained_from_hf(name.removeprefix(HUB)), name, key), (name, "hub")
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise UsageError(
            f"config: {key}.name = {name}: open_clip has no such model"
            + (f"; did you mean {near[0]}?" if near else "")
            + " (its names: python -c 'import open_clip; print(open_clip.list_models())')"
        )
    if not pretrained:
        raise UsageError(f"config: {key}.pretrained is not set: give a tag of {name} or a file of weights")
    tag = get_pretrained_cfg(name, pretrained)
    if tag:
        if bool(tag.get("quick_gelu")) != bool(open_clip.get_model_config(name).get("quick_gelu")):
            other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
            raise UsageError(f"config: {key}.name = {name}: the weights {pretrained} are those of {other}: name that")
        return _downloaded(lambda: download_pretrained(tag), f"{name} {pretrained}", key), (name, pretrained)
    file = Path(pretrained).expanduser()
    if not file.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        near = difflib.get_close_matches(pretrained, tags, n=1)
        raise UsageError(
            f"config: {key}.pretrained = {pretrained}: neither a tag of {name} nor a file"
            + (f"; did you mean {near[0]}?" if near else "")
            + f" (tags: {', '.join(tags) or 'none'})"
        )
    return file, (name, file.name)


def _check_folder(folder: Path, key: str) -> None:
    config = folder / "open_clip_config.json"
    try:
        wrong = None if "model_cfg" in json.loads(config.read_text()) else "it has no model_cfg"
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or f"it is not JSON ({error})"
    if wrong:
        raise UsageError(f"config: {key}.name = {LOCAL_DIR}{folder}: {config.name}: {wrong}")


def _downloaded(download: Any, what: str, key: str) -> Path:
    try:
        return Path(download())
    except Exception as error:  # of the hub's client, urllib and ssl, all saying one thing
        reason = " ".join(str(error).split())[:160]
        raise ClipgsError(
            f"{key} {what}: the weights could not be downloaded ({reason}); on a machine without network set "
            f"{key}.pretrained to a .safetensors or .pt file that you copied there"
            + (", or teacher.name to train" if key == "teacher" else "")
        ) from None


def _check_tensors(file: Path, key: str) -> None:
    """Reads a file's table of contents: tensors, and nothing that could run."""
    remedy = "save its state_dict as .safetensors where you trust it, and name that"
    if file.suffix not in SUFFIXES:
        raise UsageError(f"config: {key}.pretrained = {file}: must end in {', '.join(SUFFIXES)}")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                found: Any = dict.fromkeys(tensors.keys(), torch.empty(0))
        else:
            found = _unpickled(file)
    except pickle.UnpicklingError:
        raise ClipgsError(
            f"{key}: {file} holds more than tensors, and is not opened: it could run code; {remedy}"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ClipgsError(f"{key}: {file} cannot be read ({reason}); copy or download it again") from None
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not (isinstance(found, dict) and found and all(isinstance(value, torch.Tensor) for value in found.values())):
        raise ClipgsError(f"{key}: {file} holds no tensors by name, so it is no checkpoint; {remedy}")


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6


def _mismatch(file: Path, name: str, key: str, error: str) -> str:
    missing, unexpected, size = (error.count(word) for word in ("Missing key", "Unexpected key", "size mismatch"))
    if missing or unexpected or size:
        lines = [line.strip() for line in error.splitlines()[1:] if line.strip()]
        reason = f"{lines[0][:160]}" if lines else "other keys"
        return f"{key}: {file} is not a checkpoint of {name} ({reason}); set {key}.name to the model that it is of"
    return f"{key}: {name} cannot be made with {file}: {' '.join(error.split())[:200]}"
