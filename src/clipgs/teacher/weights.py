"""Models of open_clip with weights from a tag or a file, loaded so that the file cannot run code."""

import difflib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

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
    name: str  # of the model; of a folder only the last part
    pretrained: str  # the tag or the file's name
    sha256: str  # of the file of weights
    dtype: torch.dtype  # of its computations and input images


def open_model(name: str, pretrained: str | None, *, precision: str, device: str, key: str) -> Opened:
    """A frozen model with its weights, in evaluation mode.

    Args:
        name: of a model of open_clip, `local-dir:FOLDER` or `hf-hub:NAME`.
        pretrained: tag or file; ignored with a folder or the hub, which have their own weights.
        precision: float32 or bfloat16.
        key: the section of the configuration that names model and weights, for errors.

    Raises:
        UsageError: there is no such model, tag or file.
        ClipgsError: the weights cannot be downloaded or read, belong to another model, or are not only tensors.
    """
    called, dtype = PRECISIONS[precision]
    file, label = _find(name, pretrained, key)
    _check_tensors(file, key)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, file)  # while the model is built
        try:
            # On its final device: random initialisation of five billion numbers takes minutes on a CPU.
            with torch.device(device):
                tag = None if ":" in name else pretrained
                model = open_clip.create_model(name, pretrained=tag, precision=called, device=device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClipgsError(_mismatch(file, name, key, str(error))) from None
        frozen = model.eval().requires_grad_(False)
        return Opened(frozen, open_clip.get_tokenizer(name), *label, digest.result(), dtype)


def _find(name: str, pretrained: str | None, key: str) -> tuple[Path, tuple[str, str]]:
    """The file of weights, and the names of model and weights."""
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
            + " (list the names: python -c 'import open_clip; print(open_clip.list_models())')"
        )
    if not pretrained:
        raise UsageError(f"config: {key}.pretrained is not set; set it to a tag of {name} or a file of weights")
    if tag := get_pretrained_cfg(name, pretrained):
        if bool(tag.get("quick_gelu")) != bool(open_clip.get_model_config(name).get("quick_gelu")):
            other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
            raise UsageError(f"config: {key}.name = {name}: {pretrained} are weights of {other}; set {key}.name to it")
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
    except Exception as error:  # the hub's client, urllib and ssl have many types for one problem
        reason = " ".join(str(error).split())[:160]
        raise ClipgsError(
            f"{key} {what}: the weights could not be downloaded ({reason}); on a machine without network set "
            f"{key}.pretrained to a copied .safetensors or .pt file"
            + (", or teacher.name to train" if key == "teacher" else "")
        ) from None


def _check_tensors(file: Path, key: str) -> None:
    """Raises an error if the file holds anything besides tensors."""
    remedy = "if you trust the file, save its state_dict as .safetensors and name that file"
    if file.suffix not in SUFFIXES:
        raise UsageError(f"config: {key}.pretrained = {file}: the file name must end in {', '.join(SUFFIXES)}")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                found: Any = dict.fromkeys(tensors.keys(), torch.empty(0))
        else:
            mmap = is_zipfile(file)  # not so in the format before torch 1.6
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise ClipgsError(
            f"{key}: {file} holds more than tensors and is not opened, because it could run code; {remedy}"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ClipgsError(f"{key}: {file} cannot be read ({reason}); copy or download it again") from None
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not (isinstance(found, dict) and found and all(isinstance(value, torch.Tensor) for value in found.values())):
        raise ClipgsError(f"{key}: {file} is no checkpoint: it holds no tensors by name; {remedy}")


def _mismatch(file: Path, name: str, key: str, error: str) -> str:
    if any(words in error for words in ("Missing key", "Unexpected key", "size mismatch")):
        reason = next((line.strip()[:160] for line in error.splitlines()[1:] if line.strip()), "other keys")
        return f"{key}: {file} is not a checkpoint of {name} ({reason}); set {key}.name to the model of these weights"
    return f"{key}: {name} cannot load {file}: {' '.join(error.split())[:200]}"
