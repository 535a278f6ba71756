"""Models of open_clip with weights from a tag or a file, loaded so that the file cannot run code."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from safetensors import SafetensorError, safe_open

from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import sha256_of
from clipgs.teacher.names import HUB, LOCAL_DIR, SUFFIXES, Download, Known, elsewhere, find

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
    found = find(name, pretrained, key, _registry)
    if isinstance(found, Download):
        label = "hub" if name.startswith(HUB) else str(pretrained)
        return _downloaded(lambda: download_pretrained(dict(found.entry)), found.what, key), (name, label)
    if name.startswith(LOCAL_DIR):
        file = Path(str(_find_checkpoint_in_dir(found)))
        return file, (LOCAL_DIR + found.resolve().name, file.name)
    return found, (name, found.name)


def _registry(name: str) -> Known:
    """What open_clip has for a name, with the models that were added while it runs."""
    tags = {tag: get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    return Known(open_clip.list_models(), tags, open_clip.get_model_config(name) or {})


def _downloaded(download: Any, what: str, key: str) -> Path:
    try:
        return Path(download())
    except Exception as error:  # the hub's client, urllib and ssl have many types for one problem
        reason = " ".join(str(error).split())[:160]
        raise ClipgsError(f"{key} {what}: the weights could not be downloaded ({reason}); {elsewhere(key)}") from None


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
