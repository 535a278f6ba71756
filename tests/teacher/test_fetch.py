"""`clipgs fetch-teacher` against a hub on loopback that misbehaves."""

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import load_file

from clipgs import cli
from clipgs import config as configuration
from clipgs.catalog import downloads, parts
from clipgs.config import Downloads
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import sha256_of
from clipgs.teacher import fetch as module
from clipgs.teacher import model as teacher
from clipgs.teacher import names
from clipgs.teacher.names import Known
from tests.catalog.server import Fault, Server
from tests.packed_world import TINY, picture, save_model

WEIGHTS = "open_clip_model.safetensors"
CLIP, WORDS, TOWER = "acme/clip", "words-base", "acme/tower"
COMMIT = 40 * "a"
SETTINGS = Downloads(per_second=5000.0, timeout_seconds=5.0, retries=4)
ENTRY = {
    "url": "",
    "hf_hub": f"{CLIP}/",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
READS_WORDS = {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": WORDS}}
SECRET = "hf_secret"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("HF_") or name == "TRANSFORMERS_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # is set by the check, and taken back at the end of the test
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)


def offer(root: Path, repository: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
    """Puts a repository on the hub; a file of weights is in its store of large files."""
    place = root / repository / "resolve" / commit
    place.mkdir(parents=True)
    siblings = [{"rfilename": "onnx/model.onnx", "size": 3, "blobId": "x"}]
    for name, data in files.items():
        (place / name).write_bytes(data)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = name.endswith((".safetensors", ".bin"))
        lfs = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}} if large else {}
        siblings.append({"rfilename": name, "size": len(data), "blobId": git, **lfs})
    described = root / "api" / "models" / repository
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(json.dumps({"id": repository, "sha": commit, "siblings": siblings}))


def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer that knows six words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "red", "mug", "chair"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return {
        "tokenizer.json": made.to_str().encode(),
        "tokenizer_config.json": json.dumps(about).encode(),
        "vocab.txt": "\n".join(words).encode(),
        "config.json": b'{"model_type": "bert"}',
        "README.md": b"about it",
        "model.safetensors": b"of no use here",
    }


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> bytes:
    return (save_model(tmp_path_factory.mktemp("fetched") / "clip", READS_WORDS) / WEIGHTS).read_bytes()


@pytest.fixture
def root(tmp_path, weights) -> Path:
    root = tmp_path / "hub"
    own = {"model_cfg": READS_WORDS, "preprocess_cfg": {"size": 32, "mean": [0.4, 0.4, 0.4]}}
    files = {WEIGHTS: weights, "open_clip_pytorch_model.bin": b"x", "open_clip_config.json": json.dumps(own).encode()}
    offer(root, CLIP, files)
    offer(root, WORDS, tokenizer_files())
    return root


@pytest.fixture
def hub(root, monkeypatch):
    with Server(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def table(monkeypatch):
    """Makes `tiny` a name of open_clip with the weights `webli`, and gives their entry, to be changed."""
    entry = dict(ENTRY)
    monkeypatch.setattr(module, "installed", lambda name: Known(["tiny"], {"webli": entry}, READS_WORDS))
    return entry


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models" / "mine"


def fetched(folder, name=f"hf-hub:{CLIP}", tag=None):
    return module.fetch(name, tag, folder, SETTINGS)


def listed(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


def place(file: str, repository: str = CLIP, commit: str = COMMIT) -> str:
    return f"/{repository}/resolve/{commit}/{file}"


WHOLE = {WEIGHTS, "open_clip_config.json", "teacher.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
         "config.json"}  # fmt: skip


# --- what is brought -----------------------------------------------------------------------------------------------


def test_a_tag_becomes_a_folder_that_opens_as_open_clip_opens_it(hub, table, folder, capsys, weights):
    assert cli.main(["fetch-teacher", "tiny", "webli", "--to", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "it opens without a network: vectors of 24 numbers, pictures of 32 pixels" in said
    assert f'teacher:\n  name: "local-dir:{folder}"' in said
    assert listed(folder) == WHOLE
    described = json.loads((folder / "open_clip_config.json").read_text())
    assert described["model_cfg"] == READS_WORDS
    assert described["preprocess_cfg"] == {
        "size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear",
        "resize_mode": "squash",
    }  # fmt: skip
    record = json.loads((folder / "teacher.json").read_text())
    assert (record["name"], record["tag"]) == ("tiny", "webli")
    for name, file in record["files"].items():
        assert file["sha256"] == sha256_of(folder / name)
        assert file["bytes"] == (folder / name).stat().st_size
        assert (file["repository"], file["revision"]) == (CLIP if name == WEIGHTS else WORDS, COMMIT)
    frozen = teacher.load(configuration.check({"device": "cpu", "teacher": {"name": f"local-dir:{folder}"}}))
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=True)
    assert frozen.tokenizer(["a red chair"])[0, :4].tolist() == [2, 3, 5, 0]
    from PIL import Image

    with torch.no_grad():
        own = theirs.eval().encode_image(preprocess(Image.fromarray(picture(0)))[None])
    assert torch.nn.functional.cosine_similarity(own, frozen.encode_images(np.stack([picture(0)]))).item() > 0.999
    assert torch.equal(frozen.model.text_projection, load_file(folder / WEIGHTS)["text_projection"])


def test_a_repository_has_its_own_preprocessing(hub, folder):
    record = fetched(folder)
    assert listed(folder) == WHOLE
    assert record.config["preprocess_cfg"] == {"size": 32, "mean": [0.4, 0.4, 0.4]}


def test_a_folder_that_is_whole_needs_no_network_again(hub, table, folder, monkeypatch):
    fetched(folder, "tiny", "webli")
    before = sum(hub.requests.values())
    fetched(folder, "tiny", "WEBLI")
    assert sum(hub.requests.values()) == before
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetched(folder, "tiny", "webli")


def test_the_towers_configuration_is_that_of_the_tower(hub, root, table, folder, monkeypatch):
    offer(root, TOWER, {"config.json": b'{"model_type": "roberta"}', "pytorch_model.bin": b"base weights"})
    text = {"hf_model_name": TOWER, "hf_tokenizer_name": WORDS}
    known = Known(["tiny"], {"webli": table}, {**TINY, "text_cfg": text})
    monkeypatch.setattr(module, "installed", lambda name: known)
    record = fetched(folder, "tiny", "webli")
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "roberta"}
    assert record.files["config.json"].repository == TOWER
    assert listed(folder) == WHOLE


@pytest.mark.parametrize(
    ("offered", "entry", "taken", "kept"),
    [
        (["open_clip_pytorch_model.bin"], "", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.bin"),
        (["pytorch_model.bin"], "pytorch_model.bin", "pytorch_model.bin", "open_clip_pytorch_model.bin"),
        (["pytorch_model.bin", "pytorch_model.safetensors"], "pytorch_model.bin", "pytorch_model.safetensors", WEIGHTS),
        (["clip.pt", WEIGHTS], "clip.pt", "clip.pt", "open_clip_pytorch_model.bin"),
    ],
)
def test_weights_get_a_name_that_open_clip_finds_in_a_folder(hub, root, table, folder, offered, entry, taken, kept):
    offer(root, "acme/other", {name: name.encode() for name in offered})
    table["hf_hub"] = f"acme/other/{entry}"
    record = fetched(folder, "tiny", "webli")
    assert (record.files[kept].file, (folder / kept).read_bytes()) == (taken, taken.encode())
    assert open_clip.factory._find_checkpoint_in_dir(folder) == str(folder / kept)


class Everything:
    """A hub on which each repository has each file that is asked for."""

    class Files(dict):
        def __contains__(self, name):
            return name != "open_clip_model.safetensors" or self["all"]

        def __missing__(self, name):
            return module.File("any/where", COMMIT, name)

        def items(self):
            return [(name, self[name]) for name in ("tokenizer.json", "config.json", "model.safetensors")]

    def __init__(self, safe):
        self._safe = safe

    def files(self, repository):
        return self.Files(all=self._safe)


@pytest.mark.parametrize("safe", [True, False])
def test_every_tag_of_open_clip_has_a_plan_with_open_clips_own_preprocessing(safe):
    planned = 0
    for name, tags in names._weights().items():
        for tag, entry in tags.items():
            if bool(entry.get("quick_gelu")) != bool(names.installed(name).architecture.get("quick_gelu")):
                continue  # another name has them
            record = module._planned(Everything(safe), name, tag)
            planned += 1
            wanted = merge_preprocess_dict(PreprocessCfg(), dict(entry))
            ours = merge_preprocess_dict(PreprocessCfg(), record.config["preprocess_cfg"])
            for each in (wanted, ours):
                each.pop("size")
            assert ours == json.loads(json.dumps(wanted))
            text = record.config["model_cfg"]["text_cfg"]
            assert ("tokenizer.json" in record.files) == bool(text.get("hf_tokenizer_name"))
            assert ("config.json" in record.files) == bool(text.get("hf_tokenizer_name"))
    assert planned > 160


def test_a_renamed_repository_and_a_mirror_that_lists_names_alone(hub, root, folder, monkeypatch, weights):
    described = root / "api" / "models" / CLIP
    answer = json.loads(described.read_text())
    answer["siblings"] = [{"rfilename": one["rfilename"]} for one in answer["siblings"]]
    described.write_text(json.dumps(answer))
    hub.always["/api/models/old-name"] = Fault.redirect(f"/api/models/{CLIP}")
    announced = ("X-Linked-ETag", f'"{hashlib.sha256(weights).hexdigest()}"')
    for file in (WEIGHTS, "open_clip_config.json"):
        hub.always[place(file, "old-name")] = Fault.redirect(place(file), *([announced] if file == WEIGHTS else []))
    hub.faults[place(WEIGHTS)] = [Fault(body=weights[:-1] + b"!")]
    record = fetched(folder, "hf-hub:old-name")
    assert record.files[WEIGHTS].sha256 == sha256_of(folder / WEIGHTS) == hashlib.sha256(weights).hexdigest()
    assert record.files[WEIGHTS].bytes == len(weights)
    assert listed(folder) == WHOLE
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetched(folder, "hf-hub:old-name")


# --- a bad day -----------------------------------------------------------------------------------------------------


def test_a_cut_is_gone_on_with_and_what_passes_is_tried_again(hub, table, folder, weights):
    half = len(weights) // 2
    hub.faults[place(WEIGHTS)] = [Fault(status=503), Fault(cut_after=half), Fault(status=503)]
    hub.faults[f"/api/models/{CLIP}"] = [Fault(status=503), Fault(status=429)]
    hub.faults[place("tokenizer.json", WORDS)] = [Fault(cut_after=10), Fault.limit("0")]
    fetched(folder, "tiny", "webli")
    assert listed(folder) == WHOLE
    assert hub.sent[place(WEIGHTS)] == len(weights)
    assert (folder / WEIGHTS).read_bytes() == weights


def test_a_killed_one_goes_on_where_it_ended(hub, folder, weights):
    rate = len(weights) / 4
    hub.always[place(WEIGHTS)] = Fault(bytes_per_second=rate)
    command = [sys.executable, "-m", "clipgs", "fetch-teacher", f"hf-hub:{CLIP}", "--to", str(folder)]
    process = subprocess.Popen(command)
    part = folder / f".{WEIGHTS}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > len(weights) / 4):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert "open_clip_config.json" not in listed(folder)
    had = part.stat().st_size
    hub.always.clear()
    time.sleep(0.3)  # until the server has seen that its client is gone
    before = hub.sent[place(WEIGHTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "it opens without a network: vectors of 24" in done.stdout
    assert (folder / WEIGHTS).read_bytes() == weights
    assert hub.sent[place(WEIGHTS)] - before == len(weights) - had
    assert hub.requests[f"/api/models/{CLIP}"] == 1  # the commit of the first call
    known = {f"{kind}{name}" for kind in ("/", "/api/models/") for name in (CLIP, WORDS)}
    assert all(path.split("/resolve/")[0] in known for path in hub.requests)  # nothing of the opening asks the hub
    assert listed(folder) == WHOLE


def test_the_versions_are_those_of_the_first_call(hub, root, folder, weights):
    hub.always[place(WEIGHTS)] = Fault(status=404)
    with pytest.raises(ClipgsError, match="was not found"):
        fetched(folder)
    del hub.always[place(WEIGHTS)]
    offer(root, CLIP, {WEIGHTS: b"newer", "open_clip_config.json": b"{}"}, commit=40 * "b")
    record = fetched(folder)
    assert record.files[WEIGHTS].revision == COMMIT
    assert (folder / WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize("name", [WEIGHTS, "vocab.txt"])  # a large file, and one of git
def test_wrong_bytes_are_never_kept(hub, folder, name):
    address = place(name, CLIP if name == WEIGHTS else WORDS)
    right = (hub.folder / address.lstrip("/")).read_bytes()
    hub.always[address] = Fault(body=right[:-1] + b"!")
    with pytest.raises(ClipgsError, match="has other bytes than") as error:
        fetched(folder)
    assert "run the same command again" in str(error.value)
    assert {name, "open_clip_config.json"}.isdisjoint(listed(folder))
    hub.always.clear()
    fetched(folder)
    assert listed(folder) == WHOLE


@pytest.mark.parametrize("name", [WEIGHTS, "vocab.txt", "open_clip_config.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_what_was_damaged_since_is_brought_again_and_nothing_else(hub, folder, name, damage):
    fetched(folder)
    right = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(right[:-3] if damage == "cut" else right[:-1] + b"!")
    before = sum(hub.requests.values())
    fetched(folder)
    assert (folder / name).read_bytes() == right
    assert sum(hub.requests.values()) - before == (name != "open_clip_config.json")
    assert listed(folder) == WHOLE


def test_a_server_that_falls_silent_is_left(hub, folder):
    hub.faults[place(WEIGHTS)] = [Fault(stall_seconds=3)]
    module.fetch(f"hf-hub:{CLIP}", None, folder, SETTINGS.model_copy(update={"timeout_seconds": 0.5}))
    assert hub.requests[place(WEIGHTS)] == 2


# --- what cannot be had --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", [f"/api/models/{CLIP}", place(WEIGHTS)])
def test_a_gated_repository(hub, folder, monkeypatch, status, where):
    hub.always[where] = Fault(status=status)
    with pytest.raises(ClipgsError, match="acme/clip is not public, or there is none of this name") as error:
        fetched(folder)
    assert f"accept the terms at {hub.url}/acme/clip, and set HF_TOKEN to your token" in str(error.value)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(ClipgsError, match="the token in HF_TOKEN has no access") as error:
        fetched(folder)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_token_goes_to_the_hub_alone(hub, root, folder, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with Server(root) as store:
        hub.faults[place(WEIGHTS)] = [Fault.redirect(store.url + place(WEIGHTS))]
        fetched(folder)
        (headers,) = store.seen[place(WEIGHTS)]
        assert "authorization" not in headers
    for path in (f"/api/models/{CLIP}", place(WEIGHTS)):
        assert {headers["authorization"] for headers in hub.seen[path]} == {f"Bearer {SECRET}"}
    assert SECRET not in caplog.text + (folder / "teacher.json").read_text()


def test_a_missing_repository_and_missing_files_are_one_line(hub, root, table, folder):
    def refused(words, name="tiny", tag="webli"):
        with pytest.raises(ClipgsError, match=words) as error:
            fetched(folder, name, tag)
        assert "\n" not in str(error.value)
        assert not folder.exists()

    refused(r"api/models/acme/none was not found \(HTTP 404\); look at http", "hf-hub:acme/none", None)
    offer(root, "acme/plain", {"model.safetensors": b"x"})
    refused("acme/plain has no open_clip_config.json, so it is not a model", "hf-hub:acme/plain", None)
    offer(root, "acme/empty", {"open_clip_config.json": b'{"a": 1}'})
    refused("acme/empty: open_clip_config.json has no model_cfg", "hf-hub:acme/empty", None)
    offer(root, "acme/broken", {"open_clip_config.json": b"{"})
    refused("is not JSON", "hf-hub:acme/broken", None)
    table["hf_hub"] = "acme/plain/"
    refused("acme/plain has no weights that open_clip reads from a folder")
    table["hf_hub"] = "acme/numpy/weights.npz"
    offer(root, "acme/numpy", {"weights.npz": b"x"})
    refused("acme/numpy has no weights that open_clip reads")
    table["hf_hub"] = f"{CLIP}/"
    shutil.rmtree(root / WORDS)
    offer(root, WORDS, {"config.json": b"{}"})
    refused("words-base has no tokenizer")


def test_what_is_no_name_of_a_model_is_one_line(hub, table, folder):
    def refused(words, name, tag=None):
        with pytest.raises(UsageError, match=words) as error:
            fetched(folder, name, tag)
        assert "\n" not in str(error.value)

    refused(r"^open_clip has no model tinny; did you mean tiny\?", "tinny", "webli")
    refused(r"name the weights too \(tags: webli\)", "tiny")
    refused(r"web is no tag of tiny; did you mean webli\? \(tags: webli\)", "tiny", "web")
    refused("has weights of its own; leave out the tag webli", f"hf-hub:{CLIP}", "webli")
    refused("is not a repository", "hf-hub:../../etc")
    refused("comes from no hub", "train")
    refused("comes from no hub", "local-dir:models/mine")
    refused("^open_clip has no model xyz; name one of its models", "xyz", "webli")
    table.update(hf_hub="", url="https://example.org/clip.pt")
    refused("is not on the hub; download https://example.org/clip.pt and name the file", "tiny", "webli")
    assert not hub.requests
    assert not folder.exists()


def test_weights_of_the_other_activation_are_told_by_the_command_that_brings_them(folder):
    with pytest.raises(UsageError) as error:
        fetched(folder, "RN50", "openai")
    assert str(error.value) == (
        "openai are weights of RN50-quickgelu; run: clipgs fetch-teacher RN50-quickgelu openai --to FOLDER"
    )


def test_no_network_is_one_line(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ClipgsError, match=r"\(its host accepts no connection\); check the network and HF_ENDPOINT"):
        fetched(folder)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(ClipgsError, match=r"cannot be reached \(no byte was received for 2\.5 s\)"):
            fetched(folder)
        assert time.monotonic() - begun < 5
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub")
    with pytest.raises(UsageError, match=r"^HF_ENDPOINT: ftp://hub is not an address"):
        fetched(folder)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    with pytest.raises(UsageError, match="acme/clip is to be fetched, and HF_HUB_OFFLINE is set"):
        fetched(folder)
    assert not hub.requests
    assert not folder.exists()


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"sha": "a", "siblings": [1]}'])
def test_an_address_that_is_no_hub_is_one_line(hub, folder, answer):
    hub.always[f"/api/models/{CLIP}"] = Fault(body=answer)
    with pytest.raises(ClipgsError, match=r"is HF_ENDPOINT right\?"):
        fetched(folder)


def test_a_mirror_below_a_path(hub, root, folder, monkeypatch):
    (root / "mirror").mkdir()
    for name in ("api", "acme", WORDS):
        (root / name).rename(root / "mirror" / name)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/mirror/")
    fetched(folder)
    assert listed(folder) == WHOLE


def test_a_disk_that_is_too_small_or_runs_full(hub, folder, monkeypatch):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: usage(1000))
        with pytest.raises(ClipgsError, match=r"are to come and 0.00 GB are free; free some space or choose another"):
            fetched(folder)

    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as small:
        small.setattr(parts.os, "pwrite", full)
        with pytest.raises(ClipgsError, match="No space left on device; free some space or choose another `--to`"):
            fetched(folder)
    assert listed(folder) == {"teacher.json"}
    fetched(folder)
    assert listed(folder) == WHOLE


def test_a_folder_that_may_not_be_written_is_one_line(hub):
    with pytest.raises(ClipgsError, match=r"^/proc/"):
        fetched(Path("/proc/nowhere/mine"))


def test_a_folder_of_something_else_is_refused(hub, table, folder, tmp_path):
    fetched(folder)
    with pytest.raises(UsageError, match="holds hf-hub:acme/clip; name a folder of its own for each model"):
        fetched(folder, "tiny", "webli")
    (folder / "teacher.json").write_text("{")
    with pytest.raises(UsageError, match="is not what this command writes"):
        fetched(folder)
    record = {"name": f"hf-hub:{CLIP}", "tag": None, "config": {}, "files": {"../x": vars(module.File("a", "b", "c"))}}
    (folder / "teacher.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="is not what this command writes"):
        fetched(folder)
    (folder / "teacher.json").unlink()
    with pytest.raises(UsageError, match="holds other files"):
        fetched(folder)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        fetched(folder / WEIGHTS)


# --- the check -----------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_open_is_said(hub, root, folder, caplog, tmp_path):
    torch.save({"a": 3}, tmp_path / "weights.bin")
    own = json.dumps({"model_cfg": TINY}).encode()
    files = {"open_clip_pytorch_model.bin": (tmp_path / "weights.bin").read_bytes(), "open_clip_config.json": own}
    offer(root, "acme/bad", files)
    assert cli.main(["fetch-teacher", "hf-hub:acme/bad", "--to", str(folder)]) == 1
    assert f"{folder} is whole, but this machine cannot open the model:" in caplog.text
    assert cli.main(["fetch-teacher", "hf-hub:acme/bad", "--to", str(folder), "--no-check"]) == 0


def test_a_model_that_does_not_fit_into_memory_is_not_opened(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 1000.0)
    assert cli.main(["fetch-teacher", f"hf-hub:{CLIP}", "--to", str(folder)]) == 0
    assert "it was not opened here, because that takes about" in capsys.readouterr().out
