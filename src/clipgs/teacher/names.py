"""The names of open_clip's models and weights, known without open_clip, whose import takes seconds.

So a wrong name is an error when the workflow is read. The stages look names up here too, in open_clip's own registry.
"""

import ast
import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from clipgs.core.errors import UsageError
from clipgs.core.lists import did_you_mean

LOCAL_DIR, HUB = "local-dir:", "hf-hub:"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_IN_FOLDERS = (".safetensors", ".bin", ".pth")  # where open_clip looks for weights in a folder
# As open_clip names files that its table does not name.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class Known(NamedTuple):
    """What open_clip has: its models, and of one of them the weights by tag and the settings of its architecture."""

    models: Sequence[str]
    tags: Mapping[str, Mapping[str, Any]]
    architecture: Mapping[str, Any]


class Download(NamedTuple):
    """Weights that come over the network."""

    what: str  # the names, for messages
    entry: Mapping[str, Any]  # of open_clip's table of weights: `hf_hub` or `url`

    @property
    def cached(self) -> bool:
        """Whether an earlier download lies on this machine."""
        if hub := self.entry.get("hf_hub"):
            repository, file = os.path.split(hub)
            names = {file, file.rsplit(".", 1)[0] + ".safetensors"} if file else _HUB_FILES
            folder = _hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
            return any(path.name in names for path in folder.glob("*/*"))
        return (Path("~/.cache/clip").expanduser() / os.path.basename(self.entry["url"])).exists()

    @property
    def address(self) -> str:
        """Of the host that has them."""
        if self.entry.get("hf_hub"):
            return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return str(self.entry["url"])


def elsewhere(key: str) -> str:
    """What to set on a machine without a network; `key` is the section of the configuration."""
    text = f"on a machine without network set {key}.pretrained to a copied .safetensors or .pt file"
    return text + (", or teacher.name to train" if key == "teacher" else "")


def _hub_cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HOME") or home) / "hub"
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or hub).expanduser()


def find(name: str, pretrained: str | None, key: str, known: Callable[[str], Known]) -> Path | Download:
    """The weights that a configuration names: a file, a folder (of local-dir), or what is to be downloaded.

    Args:
        name: of a model of open_clip, `local-dir:FOLDER` or `hf-hub:NAME`.
        pretrained: tag or file; ignored with a folder or the hub, which have their own weights.
        key: the section of the configuration that names model and weights, for errors.
        known: what open_clip has, for a name.

    Raises:
        UsageError: there is no such model, tag, file or folder.
    """
    if name.startswith(LOCAL_DIR):
        return _checked_folder(Path(name.removeprefix(LOCAL_DIR)), key)
    if name.startswith(HUB):
        return Download(name, {"hf_hub": name.removeprefix(HUB) + "/"})
    of_name = known(name)
    if name not in of_name.models:
        near = did_you_mean(name, of_name.models, cutoff=0.3)
        listing = "list the names: python -c 'import open_clip; print(open_clip.list_models())'"
        raise UsageError(f"config: {key}.name = {name}: open_clip has no such model{near} ({listing})")
    if not pretrained:
        raise UsageError(f"config: {key}.pretrained is not set; set it to a tag of {name} or a file of weights")
    if entry := of_name.tags.get(pretrained.lower().replace("-", "_")):  # as open_clip looks it up
        if bool(entry.get("quick_gelu")) != bool(of_name.architecture.get("quick_gelu")):
            other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
            raise UsageError(f"config: {key}.name = {name}: {pretrained} are weights of {other}; set {key}.name to it")
        return Download(f"{name} {pretrained}", entry)
    file = Path(pretrained).expanduser()
    if not file.is_file():
        near = did_you_mean(pretrained, of_name.tags)
        tags = ", ".join(of_name.tags) or "none"
        raise UsageError(
            f"config: {key}.pretrained = {pretrained}: neither a tag of {name} nor a file{near} (tags: {tags})"
        )
    if file.suffix not in SUFFIXES:
        raise UsageError(f"config: {key}.pretrained = {file}: the file name must end in {', '.join(SUFFIXES)}")
    return file


def _checked_folder(folder: Path, key: str) -> Path:
    config = folder / "open_clip_config.json"
    try:
        wrong = None if "model_cfg" in json.loads(config.read_text()) else "it has no model_cfg"
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or f"it is not JSON ({error})"
    if wrong:
        raise UsageError(f"config: {key}.name = {LOCAL_DIR}{folder}: {config.name}: {wrong}")
    if not any(file.suffix in _IN_FOLDERS for file in folder.iterdir()):
        listed = ", ".join(_IN_FOLDERS)
        raise UsageError(f"config: {key}.name = {LOCAL_DIR}{folder}: the folder holds no weights ({listed})")
    return folder


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
