"""Models of open_clip with weights from a tag or a file, loaded so that the file cannot run code."""

import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, is_zipfile

import open_clip
import timm
import torch
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from safetensors import SafetensorError, safe_open

from clipgs.config import Coca, Teacher
from clipgs.core.errors import ClipgsError, UsageError, describe_error
from clipgs.core.files import sha256_of
from clipgs.teacher.hub import Download, TextFiles, endpoint, no_transformers, require, text_files, text_remedy
from clipgs.teacher.names import (
    CONFIG,
    HUB,
    LOCAL_DIR,
    SUFFIXES,
    Found,
    Known,
    called,
    elsewhere,
    find,
)
from clipgs.teacher.tokenizers import identity, own_tokenizer, restore, small_tokenizer

Shapes = Mapping[str, tuple[int, ...]]


class Opened(NamedTuple):
    """A model of open_clip with its weights."""

    model: Any  # open_clip.CLIP, CustomTextCLIP or CoCa
    tokenizer: Any
    name: str  # of the model; of a folder only the last part
    pretrained: str  # the tag or the file's name
    sha256: str  # of the file of weights
    dtype: torch.dtype  # of its input images
    autocast: torch.dtype | None  # of its computations, where its weights have another type
    tokens: str  # what tells the tokenizer from others


def open_model(settings: Teacher | Coca, *, precision: str, device: str, key: str) -> Opened:
    """A frozen model with its weights, in evaluation mode.

    Its preprocessing is that of the weights (`names.find`). It computes in bfloat16 by open_clip's own conversion of
    the weights; CoCa and text towers of Hugging Face, which that does not reach as a whole, by autocast.

    Args:
        settings: name and weights.
        precision: float32 or bfloat16.
        key: the section of the configuration that these are, for errors.

    Raises:
        UsageError: there is no such model, tag or file; or what it needs is not here and cannot be downloaded.
        ClipgsError: the weights cannot be downloaded or read, belong to another model, or are not only tensors.
    """
    found, file, label = _located(settings, key)
    name, architecture = settings.name, found.architecture
    tokenizer, tower, tokens = _texts(name, found, key)
    shapes = _tensors(file, key)
    low = precision == "bfloat16"
    # open_clip's conversion leaves out the scales of blocks.
    scaled = any("ls_init_value" in architecture.get(part, {}) for part in ("vision_cfg", "text_cfg"))
    cast = torch.bfloat16 if low and ("multimodal_cfg" in architecture or tower or scaled) else None
    more: dict[str, Any] = {}
    if tower:  # its configuration from the disk, not from the hub
        more["text_cfg"] = {**architecture["text_cfg"], "hf_model_name": str(tower), "hf_model_pretrained": False}
    if "logit_bias" in shapes:  # no cosine depends on it, but open_clip reads it only into a model that has one
        more.setdefault("init_logit_bias", architecture.get("init_logit_bias", 0.0))
    place = isinstance(found.weights, Path) and found.weights.is_dir()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, file)  # while the model is built
        try:
            # On its final device: random initialisation of five billion numbers takes minutes on a CPU.
            with torch.device(device):
                model = open_clip.create_model(
                    f"{LOCAL_DIR}{found.weights}" if place else name,
                    pretrained=None if place else str(file),
                    precision="bf16" if low and cast is None else "fp32",
                    device=device,
                    force_preprocess_cfg=dict(found.preprocess or {}),
                    **more,
                )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError) as error:
            raise ClipgsError(_mismatch(file, name, key, error)) from None
        _check_positions(model, shapes, file, name, key)
        frozen = model.eval().requires_grad_(False)
        dtype = torch.bfloat16 if low and cast is None else torch.float32
        return Opened(frozen, tokenizer, *label, digest.result(), dtype, cast, tokens)


def open_tokenizer(settings: Teacher) -> Any:
    """The tokenizer of a teacher, without its weights, from files of this machine alone.

    Raises:
        UsageError: there is no such model, tag or file.
        ClipgsError: its files are not here, or cannot be read.
    """
    if settings.name == "train":
        return small_tokenizer()
    found = find(settings, "teacher", _registry)
    lacking = [files.what for files in text_files(found.architecture, found.folder) if files.folder is None]
    if lacking or not found.architecture:
        raise ClipgsError(f"{(lacking or ['the configuration'])[0]} of {settings.name} is not on this machine")
    return _texts(settings.name, found, "teacher")[0]


def _located(settings: Teacher | Coca, key: str) -> tuple[Found, Path, tuple[str, str]]:
    """What is named, the file of weights, and the names of model and weights. Downloads what is not here yet."""
    name, found = settings.name, find(settings, key, _registry)
    if isinstance(found.weights, Download):
        file = _from_hub(found.weights, key)
        if not name.startswith(HUB):
            return found, file, (name, str(settings.pretrained))
        repository = name.removeprefix(HUB)
        if not (file.parent / CONFIG).is_file():
            config = _downloaded(lambda: download_pretrained_from_hf(repository, CONFIG), f"{name}: {CONFIG}", key)
            if config.parent != file.parent:  # there is a newer version, and the configuration is of that
                file = _from_hub(found.weights, key, newest=True)
            found = find(settings, key, _registry)
        return found._replace(weights=file.parent), file, (name, "hub")
    if found.weights.is_dir():
        file = Path(str(_find_checkpoint_in_dir(found.weights)))
        return found, file, (called(name), file.name)
    return found, found.weights, (name, found.weights.name)


def _from_hub(missing: Download, key: str, newest: bool = False) -> Path:
    """The file of weights. One that an earlier run downloaded is taken as it is, unless the `newest` is wanted."""
    if (file := missing.cached) and missing.entry.get("hf_hub") and not newest:
        return file
    if not file:
        require(missing.address, f"config: {key}: the weights of {missing.what} are", elsewhere(key))
    # open_clip compares the hash of one that did not come from the hub.
    return _downloaded(lambda: download_pretrained(dict(missing.entry)), f"{missing.what}: the weights", key)


def _registry(name: str) -> Known:
    """What open_clip has for a name, with the models that were added while it runs."""
    tags = {tag: get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    return Known(open_clip.list_models(), tags, open_clip.get_model_config(name) or {})


def _downloaded(download: Any, what: str, key: str, remedy: str = "") -> Path:
    try:
        return Path(download())
    except Exception as error:  # the hub's client, urllib and ssl have many types for one problem
        reason = " ".join(str(error).split())[:160]
        raise ClipgsError(f"{key} {what} could not be downloaded ({reason}); {remedy or elsewhere(key)}") from None


def _texts(name: str, found: Found, key: str) -> tuple[Any, Path | None, str]:
    """The tokenizer, the folder with the configuration of the text tower, if that is one of Hugging Face, and what
    tells the tokenizer from others."""
    folders: dict[str, Path] = {}
    for files in text_files(found.architecture, found.folder):
        if problem := no_transformers(key, name):
            raise UsageError(problem)
        folders[files.what] = files.folder or _fetched(files, name, key)
    text = found.architecture.get("text_cfg", {})
    length = text.get("context_length") or DEFAULT_CONTEXT_LENGTH
    tokens, tower = folders.get("the tokenizer"), folders.get("the configuration of the text tower")
    options = text.get("tokenizer_kwargs") or {}
    if tokens is None:
        own, options = own_tokenizer(found.folder, length, options)
        return own, tower, identity(own, None, options)
    mode = text.get("tokenizer_mode")
    try:
        made = HFTokenizer(str(tokens), context_length=length, tokenizer_mode=mode, **options)
        restore(made, tokens)
        return made, tower, identity(made, tokens, {"mode": mode, **options})
    except ClipgsError:
        raise
    except Exception as error:  # transformers raises any type for files that it cannot read
        raise ClipgsError(f"{key}: the tokenizer in {tokens} cannot be read: {describe_error(error)[:300]}") from None


def _fetched(files: TextFiles, name: str, key: str) -> Path:
    """The folder into which the hub's client brings the files."""
    from huggingface_hub import snapshot_download

    what = f"{files.what} of {name} ({files.repository})"
    require(endpoint(), f"config: {key}: {what} is", text_remedy(key))
    remedy = text_remedy(key)
    return _downloaded(lambda: snapshot_download(files.repository, allow_patterns=[*files.patterns]), what, key, remedy)


def _tensors(file: Path, key: str) -> Shapes:
    """Name to shape of the tensors in a file of weights, without what trainings put before the names.

    Raises:
        UsageError: the file's name has another ending.
        ClipgsError: it cannot be read, or holds anything besides tensors.
    """
    remedy = "if you trust the file, save its state_dict as .safetensors and name that file"
    if file.suffix not in SUFFIXES:
        raise UsageError(f"config: {key}.pretrained = {file}: the file name must end in {', '.join(SUFFIXES)}")
    if is_zipfile(file) and any(name.endswith("/constants.pkl") for name in ZipFile(file).namelist()):
        raise ClipgsError(
            f"{key}: {file} is a TorchScript archive, as OpenAI published its weights; bring the same weights as "
            "tensors with: clipgs fetch-teacher NAME openai --to FOLDER"
        )
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                return {_bare(name): tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        mmap = is_zipfile(file)  # not so in the format before torch 1.6
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        with open(file, "rb") as opened:
            if opened.read(1) not in (b"\x80", b"P"):  # neither a pickle nor a zip: a page or a pointer to a file
                raise ClipgsError(f"{key}: {file} is no file of weights; copy or download it again") from None
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
    return {_bare(name): tuple(tensor.shape) for name, tensor in found.items()}


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _check_positions(model: Any, shapes: Shapes, file: Path, name: str, key: str) -> None:
    """Raises an error if open_clip has interpolated the table of positions: other pictures, or other texts, are meant.

    Towers of timm and Hugging Face refuse another table by themselves.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for what, names in (
        ("places in a picture", ("visual.positional_embedding",)),
        ("tokens of a text", ("positional_embedding", "text.positional_embedding")),
    ):
        mine, theirs = ([shapes_of[n] for n in names if n in shapes_of] for shapes_of in (own, shapes))
        if mine and theirs and mine != theirs:
            raise ClipgsError(
                f"{key}: {file} was trained with {theirs[0][0]} {what}, and {name} has {mine[0][0]}; "
                f"set {key}.name to the model of these weights"
            )


def _mismatch(file: Path, name: str, key: str, error: Exception) -> str:
    text = str(error)
    if any(words in text for words in ("Missing key", "Unexpected key", "size mismatch")):
        reason = next((line.strip()[:160] for line in text.splitlines()[1:] if line.strip()), "other keys")
        return f"{key}: {file} is not a checkpoint of {name} ({reason}); set {key}.name to the model of these weights"
    if "Unknown model" in text:
        return f"{key}: {name}: timm {timm.__version__} does not know its picture tower; install a newer timm"
    if isinstance(error, AssertionError):  # of open_clip, about the width of the positions of a text
        return (
            f"{key}: {file} is not a checkpoint of {name} (another width); set {key}.name to the model of these weights"
        )
    return f"{key}: {name} cannot load {file}: {describe_error(error)[:200]}"
