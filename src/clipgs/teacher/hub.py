"""What the hub of Hugging Face has for a teacher, and what of it lies on this machine already. Imports no torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from urllib3 import ProxyManager
from urllib3.exceptions import HTTPError, SSLError

from clipgs.core.errors import UsageError
from clipgs.core.web import Pools, TransientError, connection_error

SECONDS = 3.0  # that a host is given to answer
_OF_PROXIES = (407, 502, 503, 504)  # what a proxy answers that does not reach the host
# As open_clip names weights that its table does not name.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.txt", "vocab.json")  # a tokenizer has one of these
# All that a tokenizer may consist of. config.json names its class where tokenizer_config.json does not.
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "*token*.json", "config.json")
TOWER_FILES = ("config.json",)


class Download(NamedTuple):
    """Weights that come over the network."""

    what: str  # the names, for messages
    entry: Mapping[str, Any]  # of open_clip's table of weights: `hf_hub` or `url`

    @property
    def cached(self) -> Path | None:
        """The file of an earlier download on this machine."""
        if hub := self.entry.get("hf_hub"):
            repository, file = os.path.split(hub)
            names = (file.rsplit(".", 1)[0] + ".safetensors", file)
            if file in ("", _HUB_FILES[-1]):
                names = _HUB_FILES
            files = [folder / name for folder in snapshots(repository) for name in names]
        else:
            files = [Path("~/.cache/clip").expanduser() / os.path.basename(self.entry["url"])]
        return next((file for file in files if file.is_file()), None)

    @property
    def address(self) -> str:
        """Of the host that has them."""
        return endpoint() if self.entry.get("hf_hub") else str(self.entry["url"])


class TextFiles(NamedTuple):
    """Files besides the weights that a model needs to read texts."""

    what: str
    repository: str  # on the hub
    patterns: Sequence[str]  # of the files' names
    folder: Path | None  # where they lie on this machine


def text_files(architecture: Mapping[str, Any], own: Path | None) -> Iterator[TextFiles]:
    """The tokenizer, and the configuration of the text tower, of models that have these from Hugging Face.

    Args:
        architecture: open_clip's settings of the model.
        own: a folder that is looked into before the hub's cache.
    """
    text = architecture.get("text_cfg", {})
    for what, key, needed, patterns in (
        ("the tokenizer", "hf_tokenizer_name", VOCABULARIES, TOKENIZER_FILES),
        ("the configuration of the text tower", "hf_model_name", TOWER_FILES, TOWER_FILES),
    ):
        if repository := text.get(key):
            folders = [*([own] if own else []), *snapshots(repository)]
            whole = (folder for folder in folders if any(any(folder.glob(name)) for name in needed))
            yield TextFiles(what, repository, patterns, next(whole, None))


def text_remedy(key: str) -> str:
    """What to do about files of `text_files` on a machine without a network."""
    bring = "bring them where there is one: clipgs fetch-teacher NAME TAG --to FOLDER"
    return f"set {key}.tokenizer to a folder with them, or {bring}" if key == "teacher" else bring


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name is one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def no_transformers(key: str, name: str) -> str:
    """Why a model that needs the package transformers cannot be opened; empty where the package is installed."""
    if find_spec("transformers"):
        return ""
    return (
        f"config: {key}.name = {name}: its texts need the package transformers; install it with: "
        "pip install 'clipgs[hf]' (or -e '.[hf]' in a checkout)"
    )


def unknown_to_timm(architecture: Mapping[str, Any], key: str, name: str) -> str:
    """Why the installed timm cannot build the picture tower; empty where it can, or where the model has none of it."""
    tower = architecture.get("vision_cfg", {}).get("timm_model_name") or ""
    spec = find_spec("timm") if tower and ":" not in tower else None
    if spec is None or not spec.origin:
        return ""
    builds = f"def {tower.partition('.')[0]}("
    if any(builds in file.read_text() for file in sorted((Path(spec.origin).parent / "models").glob("*.py"))):
        return ""
    return f"config: {key}.name = {name}: timm {version('timm')} does not know {tower}; install a newer timm"


def require(address: str, missing: str, remedy: str, *, ask: bool = True) -> None:
    """Raises an error if what is missing cannot come over the network.

    Args:
        address: of the host that has it.
        missing: "the weights of MODEL are"; a message begins with it.
        ask: whether the host is asked.

    Raises:
        UsageError: the hub's client is told not to use the network, or the host cannot be reached.
    """
    host = urlsplit(address).hostname or address
    if variable := offline():
        raise UsageError(f"{missing} not on this machine, and {variable} is set; {remedy}")
    if ask and (reason := silence(address)):
        raise UsageError(f"{missing} not on this machine, and {host} cannot be reached ({reason}); {remedy}")


def offline() -> str:
    """The variable that tells the hub's client not to use the network; empty if none does."""
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in variables if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), "")


def silence(address: str) -> TransientError | None:
    """Why the host does not answer a request, be it through the environment's proxy; None where it does.

    Takes at most about `SECONDS`: the limits of a connection count for each address of the host, and not for the server
    of names.
    """
    found: list[TransientError | None] = [TransientError(f"no answer within {SECONDS:g} s", unreachable=True)]
    asking = Thread(target=lambda: found.append(_asked(address)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return found[-1]


def _asked(address: str) -> TransientError | None:
    seconds = SECONDS - 0.5  # before the thread is given up, which knows no reason
    try:
        pool = Pools(1).of(address)
        answer = pool.request("HEAD", address, redirect=False, retries=False, timeout=seconds)
    except (UsageError, SSLError):  # another client may know the way through the proxy, or trust the certificate
        return None
    except HTTPError as error:
        return connection_error(error, seconds)
    if isinstance(pool, ProxyManager) and answer.status in _OF_PROXIES:
        return TransientError(f"the proxy answers HTTP {answer.status}", unreachable=True)
    return None


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def snapshots(repository: str) -> list[Path]:
    """The folder of the version of a repository that the hub's client reads without a network; else of any."""
    kept = _cache() / f"models--{repository.replace('/', '--')}"
    with suppress(OSError):
        folder = kept / "snapshots" / (kept / "refs" / "main").read_text().strip()
        return [folder] if folder.is_dir() else []
    folders = (kept / "snapshots").glob("*")
    return sorted((folder for folder in folders if folder.is_dir()), key=lambda folder: -folder.stat().st_mtime)


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HOME") or home) / "hub"
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or hub).expanduser()
