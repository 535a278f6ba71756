"""The names of open_clip's models and weights, known without open_clip, whose import takes seconds.

So a wrong name is an error when the workflow is read. The stages look names up here too, in open_clip's own registry.
"""

import ast
import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from clipgs.config.caption import Coca
from clipgs.config.teacher import SMALL_TEACHER, Preprocess, Teacher, as_tag
from clipgs.core.errors import UsageError
from clipgs.core.lists import did_you_mean
from clipgs.teacher.hub import Download, snapshots

LOCAL_DIR, HUB = "local-dir:", "hf-hub:"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
CONFIG = "open_clip_config.json"
ARCHITECTURE = Path(__file__).with_name(f"{SMALL_TEACHER}.json")  # of the small teacher
VOCABULARY = "vocabulary.txt.gz"  # beside the weights of a model that knows fewer words than open_clip's tokenizer
SMALL_FILES = (CONFIG, "open_clip_model.safetensors", VOCABULARY)  # of the small teacher
_CONTEXT = 77  # tokens of a text, where the architecture does not say it; as in open_clip
_IN_FOLDERS = (".safetensors", ".bin", ".pth")  # where open_clip looks for weights in a folder
# The names that it prefers there.
_IN_FOLDER_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


class Known(NamedTuple):
    """What open_clip has: its models, and of one of them the weights by tag and the settings of its architecture."""

    models: Sequence[str]
    tags: Mapping[str, Mapping[str, Any]]
    architecture: Mapping[str, Any]


def elsewhere(key: str) -> str:
    """What to set on a machine without a network; `key` is the section of the configuration."""
    text = f"on a machine without network set {key}.pretrained to a copied .safetensors or .pt file"
    if key != "teacher":
        return text
    return f"{text}, or teacher.name to a folder that clipgs fetch-teacher brought where there is one, or to train"


class Found(NamedTuple):
    """What a configuration names."""

    weights: Path | Download  # a file, a folder (of local-dir), or what comes over the network
    architecture: Mapping[str, Any]  # open_clip's settings of the model; empty for the hub's that are not here yet
    preprocess: Mapping[str, Any] | None  # by PREPROCESS's names; None where only the hub's configuration tells
    folder: Path | None  # where files of the tokenizer and of the text tower are looked for first


def find(settings: Teacher | Coca, key: str, known: Callable[[str], Known]) -> Found:
    """The weights that a configuration names, and how their authors prepare pictures.

    Args:
        settings: `name` is a model of open_clip, `local-dir:FOLDER` or `hf-hub:NAME`; `pretrained` is a tag or file,
            ignored with a folder or the hub, which have their own weights.
        key: the section of the configuration that these are, for errors.
        known: what open_clip has, for a name.

    Raises:
        UsageError: there is no such model, tag, file or folder; or nothing tells how pictures are prepared.
    """
    name, pretrained = settings.name, settings.pretrained
    stated, tokens = (settings.preprocess, settings.tokenizer) if isinstance(settings, Teacher) else (None, None)
    folder = _tokenizer_folder(tokens, key) if tokens else None
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        weights = Download(name, {"hf_hub": repository + "/"})
        place = next((place for place in snapshots(repository) if (place / CONFIG).is_file()), None)
        if place is None:  # it comes with the weights
            return Found(weights, {}, None, folder)
        about = _configuration(place, key, name)
        return Found(weights, about["model_cfg"], _of_configuration(about, stated, key, name), folder or place)
    if name.startswith(LOCAL_DIR):
        place = at_home(name.removeprefix(LOCAL_DIR))
        about = _checked_folder(place, key)
        return Found(place, about["model_cfg"], _of_configuration(about, stated, key, name), folder or place)
    of_name = known(name)
    if name not in of_name.models:
        near = did_you_mean(name, of_name.models, cutoff=0.3)
        listing = "list the names: python -c 'import open_clip; print(open_clip.list_models())'"
        raise UsageError(f"config: {key}.name = {name}: open_clip has no such model{near} ({listing})")
    if not pretrained:
        raise UsageError(f"config: {key}.pretrained is not set; set it to a tag of {name} or a file of weights")
    if tokens and not of_name.architecture.get("text_cfg", {}).get("hf_tokenizer_name"):
        raise UsageError(f"config: {key}.tokenizer: {name} has open_clip's own tokenizer; leave {key}.tokenizer out")
    like = pretrained if as_tag(pretrained) in of_name.tags else stated.tag if stated is not None else None
    if like and (entry := of_name.tags.get(as_tag(like))) and not same_gelu(name, entry, of_name):
        other = other_gelu(name)
        raise UsageError(f"config: {key}.name = {name}: {like} are weights of {other}; set {key}.name to it")
    if entry := of_name.tags.get(as_tag(pretrained)):
        own = _own(entry, stated, of_name.tags, key, f"{name} {pretrained}")
        return Found(Download(f"{name} {pretrained}", entry), of_name.architecture, own, folder)
    file = at_home(pretrained)
    if not file.is_file():
        if re.search(r"[/\\~]", pretrained) or pretrained.endswith(SUFFIXES):
            what = "it is a folder" if file.is_dir() else "there is no such file"
            raise UsageError(f"config: {key}.pretrained = {pretrained}: {what}")
        near = did_you_mean(pretrained, of_name.tags)
        tags = ", ".join(of_name.tags) or "none"
        raise UsageError(
            f"config: {key}.pretrained = {pretrained}: neither a tag of {name} nor a file{near} (tags: {tags})"
        )
    if file.suffix not in SUFFIXES:
        raise UsageError(f"config: {key}.pretrained = {file}: the file name must end in {', '.join(SUFFIXES)}")
    return Found(file, of_name.architecture, _stated(stated, of_name.tags, key, f"{key}.pretrained = {file}"), folder)


def same_gelu(name: str, entry: Mapping[str, Any], known: Known) -> bool:
    """Whether a tag's weights have the activation of the name, or there is no name with the other one."""
    own = bool(known.architecture.get("quick_gelu"))
    return other_gelu(name) not in known.models or bool(entry.get("quick_gelu")) == own


def at_home(text: str) -> Path:
    """The path with `~` replaced by the home folder, where there is one."""
    with suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


def place_of(settings: Teacher | Coca) -> Path | None:
    """The file of weights or the folder of the user's that is named; None for a tag and for the hub's."""
    if settings.name.startswith(LOCAL_DIR):
        return at_home(settings.name.removeprefix(LOCAL_DIR))
    named = settings.pretrained or ""
    own = settings.name.startswith(HUB) or settings.name == "train"
    return at_home(named) if named.endswith(SUFFIXES) and not own else None


def called(name: str) -> str:
    """A model's name as files tell it: without the place of its folder on this machine."""
    if name == "train":
        return SMALL_TEACHER
    folder = at_home(name.removeprefix(LOCAL_DIR))
    return LOCAL_DIR + folder.resolve().name if name.startswith(LOCAL_DIR) else name


def shortened(tokenizer: str) -> str:
    """What `Teacher.about` says of a tokenizer, for a message: a hash has twelve digits."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", tokenizer)


def context_length(settings: Teacher) -> int:
    """How many tokens of a text the teacher reads, with start and end.

    Raises:
        UsageError: as `find`.
    """
    small = settings.name == "train"
    architecture = json.loads(ARCHITECTURE.read_text()) if small else find(settings, "teacher", installed).architecture
    return architecture.get("text_cfg", {}).get("context_length") or _CONTEXT


def other_gelu(name: str) -> str:
    """The name under which open_clip has the same shapes with the other activation, if it has it."""
    return name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"


# --- preprocessing ---------------------------------------------------------------------------------------------------

# What open_clip takes, and trains with, unless it is told otherwise.
PREPROCESS: Mapping[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def as_preprocess(values: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing in open_clip's settings of a tag or folder, whole."""
    given = {name: values[name] for name in PREPROCESS if values.get(name) is not None}
    for name in given.keys() & {"mean", "std"}:
        value = given[name]
        given[name] = [float(part) for part in (value if isinstance(value, Sequence) else [value] * 3)]
    return {**PREPROCESS, **given}


def in_words(preprocess: Mapping[str, Any]) -> str:
    """As YAML on one line, to be copied into a configuration."""
    return "{" + ", ".join(f"{name}: {json.dumps(value).strip(chr(34))}" for name, value in preprocess.items()) + "}"


def _own(
    entry: Mapping[str, Any],
    stated: Preprocess | None,
    tags: Mapping[str, Mapping[str, Any]],
    key: str,
    what: str,
) -> dict[str, Any]:
    """The preprocessing of weights that come with theirs, which the user may repeat but not change."""
    own = as_preprocess(entry)
    if stated is None:
        return own
    other = {**(_of_tag(stated.tag, tags, key) if stated.tag else own), **stated.stated()}
    if other != own:
        raise UsageError(
            f"config: {key}.preprocess = {in_words(other)}, but {what} comes with {in_words(own)}; "
            f"leave {key}.preprocess out, or name the weights as a file"
        )
    return own


def _of_configuration(about: Mapping[str, Any], stated: Preprocess | None, key: str, name: str) -> dict[str, Any]:
    """The preprocessing of an open_clip_config.json, or what the user states in its place."""
    if own := about.get("preprocess_cfg"):
        return _own(own, stated, {}, key, name)
    return _stated(stated, {}, key, f"{key}.name = {name}")  # open_clip takes its defaults, which is a guess


def _of_tag(tag: str, tags: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    entry = tags.get(as_tag(tag))
    if entry is None:
        near, listed = did_you_mean(tag, tags), ", ".join(tags) or "none"
        raise UsageError(f"config: {key}.preprocess = {tag}: no tag of the model{near} (tags: {listed})")
    return as_preprocess(entry)


def _stated(stated: Preprocess | None, tags: Mapping[str, Mapping[str, Any]], key: str, what: str) -> dict[str, Any]:
    """The preprocessing of weights that come without: what the user states, or else what all tags agree on."""
    of_tags: dict[str, list[str]] = {}  # preprocessing in words, to tags
    for tag, entry in tags.items():
        of_tags.setdefault(in_words(as_preprocess(entry)), []).append(tag)
    values = stated.stated() if stated is not None else {}
    if stated is not None and stated.tag:
        return {**_of_tag(stated.tag, tags, key), **values}
    if len(of_tags) == 1:
        return {**as_preprocess(next(iter(tags.values()))), **values}
    if {"mean", "std"} <= values.keys():  # the others are the same for nearly all weights
        return {**PREPROCESS, **values}
    begin = f"config: {what}: " + ("teacher.preprocess lacks mean or std, and " if values else "")
    if of_tags:
        choices = " or ".join(f"{' | '.join(names)}: {words}" for words, names in of_tags.items())
        raise UsageError(
            f"{begin}the tags of this model prepare pictures in different ways; say which one these weights are of, or "
            f"were trained like: {key}.preprocess: TAG ({choices})"
        )
    where = named = f"{key}.preprocess"
    if not key.startswith("teacher"):  # the section has no such key
        where = f"preprocess_cfg of {CONFIG} in a folder with the weights, and name it local-dir:FOLDER"
        named = "preprocess_cfg"
    raise UsageError(
        f"{begin}nothing tells how pictures are prepared for these weights; state it in {where}. What open_clip trains "
        f"with unless told otherwise is {named}: {in_words(PREPROCESS)}"
    )


# --- folders ---------------------------------------------------------------------------------------------------------


def _tokenizer_folder(text: str, key: str) -> Path:
    folder = at_home(text)
    if not folder.is_dir():
        raise UsageError(f"config: {key}.tokenizer = {text}: there is no such folder")
    return folder


def _malformed(about: Any) -> str:
    """What is wrong with an open_clip_config.json; empty if nothing is."""
    model = about.get("model_cfg") if isinstance(about, dict) else None
    if not isinstance(model, dict):
        return "it has no model_cfg"
    if lacking := [part for part in ("vision_cfg", "text_cfg") if not isinstance(model.get(part), dict)]:
        return f"its model_cfg has no {lacking[0]}"
    prepared = about.get("preprocess_cfg") or {}
    if not isinstance(prepared, dict):
        return "its preprocess_cfg is no mapping"
    try:
        whole = as_preprocess(prepared)
        Preprocess(**whole)
    except (ValueError, TypeError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        return f"its preprocess_cfg: {'.'.join(map(str, detail['loc']))} {detail['msg']}"
    return ""


def _configuration(folder: Path, key: str, name: str) -> dict[str, Any]:
    """open_clip's configuration in the folder."""
    try:
        about: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        wrong = _malformed(about)
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or f"it is not JSON ({error})"
    if wrong:
        raise UsageError(f"config: {key}.name = {name}: {CONFIG}: {wrong}")
    return about


def _checked_folder(folder: Path, key: str) -> dict[str, Any]:
    """open_clip's configuration in the folder, which has weights that open_clip finds."""
    begin = f"config: {key}.name = {LOCAL_DIR}{folder}:"
    about = _configuration(folder, key, f"{LOCAL_DIR}{folder}")
    files = sorted(file.name for file in folder.iterdir())
    weights = [file for file in files if file.endswith(_IN_FOLDERS)]
    listed = ", ".join(_IN_FOLDERS)
    if not weights:
        if others := [file for file in files if file.endswith(".pt")]:
            raise UsageError(
                f"{begin} open_clip does not look for {others[0]} in a folder; rename it to open_clip_pytorch_model.bin"
            )
        raise UsageError(f"{begin} the folder holds no weights ({listed})")
    if len(weights) > 1 and not set(weights) & set(_IN_FOLDER_NAMES):
        raise UsageError(
            f"{begin} it holds several files of weights ({', '.join(weights[:4])}); keep the one that is meant"
        )
    return about


def misfit(found: Found, name: str) -> str:
    """Why a .safetensors file holds no weights of its model, by the shapes in its header; empty where they fit.

    Looks at the first layers of open_clip's own towers. Other files are read when they are loaded.
    """
    from safetensors import SafetensorError, safe_open

    file = found.weights
    if isinstance(file, Path) and file.is_dir():
        file = next((file / one for one in _IN_FOLDER_NAMES if (file / one).is_file()), file)
    if not isinstance(file, Path) or file.suffix != ".safetensors" or not file.is_file():
        return ""
    try:
        with safe_open(file, "np") as tensors:
            shapes = {key.removeprefix("module."): tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return f"{file} cannot be read ({' '.join(str(error).split())[:80]}); copy or download it again"
    for key, expected in _first_layers(found.architecture).items():
        own = next((shapes[one] for one in (key, f"text.{key}") if one in shapes), None)
        if own is None or any(number not in (None, of_file) for number, of_file in zip(expected, own, strict=False)):
            wanted = " x ".join("n" if number is None else str(number) for number in expected)
            there = f"has {key} of {' x '.join(map(str, own))}" if own else f"has no {key}"
            return f"{file} {there}, and {name} has {wanted}: it is of another model"
    return ""


def _first_layers(architecture: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Name to shape of a layer of each tower that is open_clip's own; None is any number."""
    pictures, texts = architecture.get("vision_cfg", {}), architecture.get("text_cfg", {})
    found: dict[str, list[int | None]] = {}
    if not pictures.get("timm_model_name") and isinstance(pictures.get("layers", 0), int) and "patch_size" in pictures:
        found["visual.conv1.weight"] = [pictures.get("width", 768), 3, pictures["patch_size"], pictures["patch_size"]]
    if texts and not texts.get("hf_model_name"):
        found["token_embedding.weight"] = [texts.get("vocab_size", 49408), texts.get("width", 512)]
    return found


def installed(name: str) -> Known:
    """What the installed open_clip has for a name, read from its files."""
    files = {file.stem: file for file in (_folder() / "model_configs").glob("*.json")}
    architecture = json.loads(files[name].read_text()) if name in files else {}
    return Known(sorted(files), _weights().get(name, {}), architecture)


def _folder() -> Path:
    spec = find_spec("open_clip")
    return Path(spec.origin).parent if spec and spec.origin else Path("open_clip")


@cache
def _weights() -> dict[str, dict[str, dict[str, Any]]]:
    """open_clip's table of weights: model to tag to where they are.

    Of the module that holds the table, only the statements that make it run: its imports would import torch.
    """
    values: dict[str, Any] = {"copy": copy}
    exec((_folder() / "constants.py").read_text(), values)
    module = ast.parse((_folder() / "pretrained.py").read_text())
    module.body = [statement for statement in module.body if _makes_the_table(statement)]
    exec(compile(module, "open_clip.pretrained", "exec"), values)
    return values["_PRETRAINED"]


def _makes_the_table(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef):
        return statement.name.startswith("_") and statement.name.endswith("cfg")
    return isinstance(statement, ast.Assign | ast.For) or (
        isinstance(statement, ast.Expr) and ast.unparse(statement).startswith("_PRETRAINED")
    )
