"""Brings a teacher from the hub into a folder that `local-dir:FOLDER` names, also where there is no network.

`teacher.json` is written first. It lists the files and the commits that they are of, so that the next call goes on with
the same versions and asks the hub for nothing else. `open_clip_config.json` comes last: without it nothing takes the
folder for a model.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from clipgs.catalog.downloads import Downloader
from clipgs.config import Config, Downloads
from clipgs.config.teacher import as_tag
from clipgs.core.errors import ClipgsError, ObjectError, UsageError, advice, describe_error
from clipgs.core.files import hidden, remove_sidecar, sha256_of, whole
from clipgs.core.lists import did_you_mean
from clipgs.core.processes import free_memory_bytes
from clipgs.core.runner import Progress
from clipgs.teacher.hub import TOKENIZER_FILES, VOCABULARIES, matches, offline, silence
from clipgs.teacher.names import CONFIG as MODEL
from clipgs.teacher.names import HUB, LOCAL_DIR, as_preprocess, installed, other_gelu, same_gelu

log = logging.getLogger(__name__)

RECORD = "teacher.json"
_HUGGING_FACE = "https://huggingface.co"
# As open_clip names them on the hub, and finds them in a folder.
_SAFE, _UNSAFE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
_READABLE = (".safetensors", ".bin", ".pth", ".pt")
_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MOST_DESCRIBING = 50_000_000  # bytes of an answer of the hub
_SPARE = 1.02  # a file system needs a little more than the bytes
_WATCH_SECONDS = 0.5
_MEGABYTE = 1_000_000
_AGAIN = "check the network and HF_ENDPOINT, then run the same command again: it goes on where it ended"


@dataclass(frozen=True)
class File:
    """One file of a repository of the hub."""

    repository: str
    revision: str  # a commit
    file: str
    bytes: int | None = None
    sha256: str | None = None  # the hub knows it of large files
    git: str | None = None  # hash of the blob, of the others


@dataclass(frozen=True)
class Record:
    """What `teacher.json` holds."""

    name: str
    tag: str | None
    config: dict[str, Any]  # what open_clip_config.json holds
    files: dict[str, File]  # name in the folder to the file on the hub

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / RECORD, asdict(self))


def fetch(name: str, tag: str | None, folder: Path, settings: Downloads) -> Record:
    """Brings weights, tokenizer and configuration. What is there and whole is not fetched again.

    `HF_ENDPOINT` names another hub, and `HF_HUB_OFFLINE` forbids any. The token of `settings.token_variable` goes to
    the hub's own host alone.

    Args:
        name: of a model of open_clip, or `hf-hub:ORG/REPO`.
        tag: of its weights; None for a repository.

    Raises:
        UsageError: there is no such model or tag, or the folder holds something else.
        ClipgsError: the hub has no such files, gives them to nobody without permission, or cannot be reached; or the
            disk is full.
    """
    try:
        hub = _Hub(settings)
        record = _recorded(folder, name, tag)
        if record is None:
            record = _planned(hub, name, tag)
            record.write(folder)
        missing = {local: file for local, file in record.files.items() if not _is_whole(folder / local, file)}
        if missing:
            (folder / MODEL).unlink(missing_ok=True)
            _bring(hub, folder, missing)
        whole_files = {local: _measured(folder / local, file) for local, file in record.files.items()}
        if whole_files != record.files:
            record = replace(record, files=whole_files)
            record.write(folder)
        if _read_json(folder / MODEL) != record.config:
            _write_json(folder / MODEL, record.config)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}{advice(error, '--to')}"
        raise ClipgsError(reason) from None
    return record


def check(config: Config, folder: Path) -> str:
    """Opens the model as a job without a network does, and encodes a text and a picture. Returns a line about it.

    Raises:
        ClipgsError: it does not open.
    """
    weights = next(file for file in (folder / _SAFE, folder / _UNSAFE) if file.exists()).stat().st_size
    if 2 * weights > free_memory_bytes():  # the model, and the numbers that are read into it
        return f"it was not opened here, because that takes about {2 * weights / 1e9:.1f} GB of memory"
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers and the hub's client are imported
    from clipgs.teacher.model import load

    named = config.teacher.model_copy(update={"name": LOCAL_DIR + str(folder), "pretrained": None})
    try:
        teacher = load(config.model_copy(update={"teacher": named}))  # which encodes a text and a picture
    except Exception as error:  # open_clip, transformers and torch have many types for one problem
        reason = str(error) if isinstance(error, ClipgsError) else describe_error(error)
        raise ClipgsError(f"{folder} is whole, but this machine cannot open the model: {reason}") from None
    return f"it opens without a network: vectors of {teacher.dim} numbers, pictures of {teacher.pixels} pixels"


def advised(folder: Path) -> str:
    """The lines of config.yaml that name the folder."""
    return f"teacher:\n  name: {json.dumps(LOCAL_DIR + str(folder), ensure_ascii=False)}\n"


# --- what is to come -------------------------------------------------------------------------------------------------


def _recorded(folder: Path, name: str, tag: str | None) -> Record | None:
    """What an earlier call for the same model was about to bring; None if there was none."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UsageError(f"--to {folder} is a file; name a folder")
    if not (folder / RECORD).exists():
        if others := sorted(one.name for one in folder.iterdir() if not one.name.startswith(".")):
            raise UsageError(f"--to {folder} holds other files ({others[0]}); name a new folder")
        return None
    try:
        kept = json.loads((folder / RECORD).read_text())
        record = Record(**{**kept, "files": {local: File(**file) for local, file in kept["files"].items()}})
        inside = all(Path(local).name == local for local in record.files)
    except (ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise UsageError(f"{folder / RECORD} is not what this command writes; remove the folder or name another")
    if (record.name, as_tag(record.tag or "")) != (name, as_tag(tag or "")):
        held = " ".join(filter(None, [record.name, record.tag]))
        raise UsageError(f"--to {folder} holds {held}; name a folder of its own for each model")
    return record


def _planned(hub: "_Hub", name: str, tag: str | None) -> Record:
    """Asks the hub for the files of a model."""
    if name.startswith(HUB):
        if tag:
            raise UsageError(f"{name} has weights of its own; leave out the tag {tag}")
        repository, file = name.removeprefix(HUB), ""
        if not _REPOSITORY.fullmatch(repository):
            raise UsageError(f"{name} is not a repository: hf-hub:ORG/REPO")
        listed = hub.files(repository)
        if MODEL not in listed:
            raise ClipgsError(f"{repository} has no {MODEL}, so it is not a model of open_clip; look for another")
        own = hub.json(listed[MODEL])
        if not isinstance(own, dict) or not isinstance(own.get("model_cfg"), dict):
            raise ClipgsError(f"{repository}: {MODEL} has no model_cfg, so it is not a model of open_clip")
        config = {"model_cfg": own["model_cfg"], "preprocess_cfg": own.get("preprocess_cfg", {})}
    else:
        architecture, entry = _of_table(name, tag)
        repository, file = os.path.split(entry["hf_hub"])
        listed = hub.files(repository)
        size = architecture.get("vision_cfg", {}).get("image_size", 224)
        config = {"model_cfg": dict(architecture), "preprocess_cfg": {"size": size, **as_preprocess(entry)}}
    files = _of_text(hub, config["model_cfg"].get("text_cfg", {}))
    candidates = [f"{file.rsplit('.', 1)[0]}.safetensors", file] if file else [_SAFE, _UNSAFE]
    weights = next((listed[one] for one in candidates if one in listed), None)
    if weights is None or not weights.file.endswith(_READABLE):
        raise ClipgsError(f"{repository} has no weights that open_clip reads from a folder ({', '.join(candidates)})")
    files[_SAFE if weights.file.endswith(".safetensors") else _UNSAFE] = weights
    return Record(name, tag, json.loads(json.dumps(config)), files)


def _of_table(name: str, tag: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The architecture of a model of open_clip, and what it has of a tag: where the weights are, and mean and std."""
    if name == "train" or name.startswith(LOCAL_DIR):
        raise UsageError(f"{name} comes from no hub; name a model of open_clip and a tag, or hf-hub:ORG/REPO")
    known = installed(name)
    listed = f"tags: {', '.join(known.tags) or 'none'}"
    if name not in known.models:
        near = did_you_mean(name, known.models, cutoff=0.3)
        raise UsageError(f"open_clip has no model {name}{near or '; name one of its models, or hf-hub:ORG/REPO'}")
    if not tag:
        raise UsageError(f"{name}: name the weights too ({listed})")
    entry = known.tags.get(as_tag(tag))
    if entry is None:
        raise UsageError(f"{tag} is no tag of {name}{did_you_mean(tag, known.tags)} ({listed})")
    if not same_gelu(name, entry, known):
        other = other_gelu(name)
        raise UsageError(f"{tag} are weights of {other}; run: clipgs fetch-teacher {other} {tag} --to FOLDER")
    if not entry.get("hf_hub"):
        address = entry.get("url")
        raise UsageError(f"{name} {tag} is not on the hub; download {address} and name the file in teacher.pretrained")
    return known.architecture, entry


def _of_text(hub: "_Hub", text: Mapping[str, Any]) -> dict[str, File]:
    """The files of a tokenizer and of the tower that reads its tokens, of models that need them."""
    files: dict[str, File] = {}
    if tokenizer := text.get("hf_tokenizer_name"):
        files = {file: found for file, found in hub.files(tokenizer).items() if matches(file, TOKENIZER_FILES)}
        if not any(matches(file, VOCABULARIES) for file in files):
            raise ClipgsError(
                f"{tokenizer} has no tokenizer (tokenizer.json, vocab.* or *.model), which the model needs"
            )
    if tower := text.get("hf_model_name"):
        if "config.json" not in (listed := hub.files(tower)):
            raise ClipgsError(f"{tower} has no config.json, which the model's text tower needs")
        files["config.json"] = listed["config.json"]
    return files


# --- the hub ---------------------------------------------------------------------------------------------------------


class _Hub:
    """Files of the Hugging Face hub, or of the mirror that HF_ENDPOINT names."""

    def __init__(self, settings: Downloads) -> None:
        self._address = (os.environ.get("HF_ENDPOINT") or _HUGGING_FACE).rstrip("/")
        self._variable = settings.token_variable
        self._answers = False
        try:
            self._downloader = Downloader(settings.model_copy(update={"endpoint": self._address}), place="--to")
        except UsageError as error:
            raise UsageError(str(error).replace("config: catalog.downloads.endpoint", "HF_ENDPOINT")) from None
        self.files: Callable[[str], dict[str, File]] = cache(self._files)

    def _files(self, repository: str) -> dict[str, File]:
        """Name to file, of those in the repository's own folder at its newest commit."""
        if not _REPOSITORY.fullmatch(str(repository)):
            raise ClipgsError(f"{repository!r} is not a repository of the hub")
        answer = self._described(f"{self._address}/api/models/{repository}?blobs=true", repository)
        try:
            return {
                one["rfilename"]: File(
                    repository,
                    str(answer["sha"]),
                    one["rfilename"],
                    one.get("size"),
                    (one.get("lfs") or {}).get("sha256"),
                    None if one.get("lfs") else one.get("blobId"),
                )
                for one in answer["siblings"]
                if re.fullmatch(r"[^/\\\0]+", one["rfilename"])
            }
        except (KeyError, TypeError, AttributeError):
            raise ClipgsError(f"{self._address} does not answer as the hub does; is HF_ENDPOINT right?") from None

    def json(self, file: File) -> Any:
        """What a small file holds."""
        return self._described(self._url(file), file.repository, file)

    def get(self, file: File, path: Path) -> None:
        """Brings a file whole.

        Raises:
            ClipgsError: it cannot be had.
        """
        self._get(self._url(file), file.repository, path, sha256=file.sha256)
        if not file.sha256 and not _is_whole(path, file):  # the downloader compares the other hash
            path.unlink(missing_ok=True)
            raise ClipgsError(f"{self._url(file)} has other bytes than the hub lists; run the same command again")

    def _url(self, file: File) -> str:
        # The downloader puts the hub's address in the place of this host.
        return self._downloader.resolve(f"{_HUGGING_FACE}/{file.repository}/resolve/{file.revision}", file.file)

    def _described(self, url: str, repository: str, file: File | None = None) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer.json"
            if file:
                self.get(file, path)
            else:
                self._get(url, repository, path, max_bytes=_MOST_DESCRIBING)
            try:
                return json.loads(path.read_text())
            except ValueError:
                raise ClipgsError(f"{url.split('?')[0]} is not JSON; is HF_ENDPOINT right?") from None

    def _get(self, url: str, repository: str, path: Path, **more: Any) -> None:
        if variable := offline():
            raise UsageError(f"{repository} is to be fetched, and {variable} is set; unset it to use the network")
        if not self._answers and (reason := silence(self._address)):  # else it is tried for minutes
            raise ClipgsError(f"{self._address} cannot be reached ({reason}); {_AGAIN}")
        self._answers = True
        try:
            self._downloader.get(url, path, token=True, **more)
        except ObjectError as error:
            raise ClipgsError(self._remedy(str(error), repository)) from None

    def _remedy(self, error: str, repository: str) -> str:
        """The error of a download, with what to do about it."""
        page = f"{self._address}/{repository}"
        status = found[1] if (found := re.search(r"\(HTTP (\d+)\)", error)) else None
        if status in ("401", "403"):  # the hub answers so for a name that does not exist, too
            if os.environ.get(self._variable):
                return (
                    f"{repository}: the token in {self._variable} has no access (HTTP {status}); ask for it at {page}"
                )
            return (
                f"{repository} is not public, or there is none of this name (HTTP {status}); check the name, accept "
                f"the terms at {page}, and set {self._variable} to your token"
            )
        if status in ("404", "410"):
            return f"{error}; look at {page}, and if the files have changed, begin with a new folder"
        return f"{error}; {_AGAIN}"


def _bring(hub: _Hub, folder: Path, files: Mapping[str, File]) -> None:
    """Downloads the files into the folder, the largest last."""
    for local in files:
        (folder / local).unlink(missing_ok=True)  # damaged
    total, before = sum(file.bytes or 0 for file in files.values()), _arrived(folder, files)
    free = shutil.disk_usage(folder).free
    if _SPARE * (total - before) > free:
        needed = f"{(total - before) / 1e9:.2f} GB are to come and {free / 1e9:.2f} GB are free"
        raise ClipgsError(f"{folder}: {needed}; free some space or choose another --to")
    with _progress(folder, files, total, before):
        for local, file in sorted(files.items(), key=lambda item: item[1].bytes or 0):
            hub.get(file, folder / local)
            remove_sidecar(folder / local)  # the record has the hash


def _arrived(folder: Path, files: Mapping[str, File]) -> int:
    """Bytes that are there of the files, whole or in part."""
    places = [place for local in files for place in (folder / local, hidden(folder / local, "part"))]
    return sum(place.stat().st_size for place in places if place.exists())


@contextmanager
def _progress(folder: Path, files: Mapping[str, File], total: int, before: int) -> Iterator[None]:
    progress = Progress("fetch-teacher", (total - before) // _MEGABYTE, "megabyte", before // _MEGABYTE)
    ended = threading.Event()

    def watch() -> None:
        done = 0
        while not ended.wait(_WATCH_SECONDS):
            now = (_arrived(folder, files) - before) // _MEGABYTE
            if now > done:  # less after a file was begun anew
                progress.step(count=now - done)
                done = now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        progress.close()


# --- files -----------------------------------------------------------------------------------------------------------


def _is_whole(path: Path, file: File) -> bool:
    if not path.is_file() or file.bytes not in (None, path.stat().st_size):
        return False
    if file.sha256:
        return sha256_of(path) == file.sha256
    if file.git:
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == file.git
    return True


def _measured(path: Path, file: File) -> File:
    return replace(file, bytes=path.stat().st_size, sha256=file.sha256 or sha256_of(path))


def _write_json(path: Path, value: Any) -> None:
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
