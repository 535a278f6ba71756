"""Every model that open_clip lists, through the teacher and through open_clip's own code: are the features the same?

    python benchmarks/teachers.py                               # all names, on the CPU
    python benchmarks/teachers.py --family SigLIP --family CLIPA
    python benchmarks/teachers.py --names ViT-B-32 RN50
    python benchmarks/teachers.py --names                       # no names, only the other bars

Each model is built with few layers and random weights, in a process of its own. It is opened from a .safetensors file,
from a .pt file, as local-dir, and by each tag's name from a cache of the hub. What nobody can know must be refused
before any job: no tokenizer, no preprocessing. Without --names and --family, also: a small trained teacher finds 24
pictures again, and a teacher that cannot be opened without a network says so soon. Writes
benchmarks/results/teachers.json. Ends with 1 where features differ, an error is raw, a refusal comes late or does not
give its reason, or a bar is missed.
"""

import argparse
import json
import logging
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from record import CHECKOUT, record

sys.path.append(str(CHECKOUT))  # for the tests

TEXT, PICTURES, COSINE = 1e-6, 1e-3, 0.99  # the bars: float32, float32 as a share of the spread, bfloat16
OFFLINE_SECONDS = 5.0  # the bar: until a teacher that cannot be opened says so
PICTURES_FOUND = 24
SECONDS = 600  # for one name
COMMIT = 40 * "a"  # of what lies in the hub's cache
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", metavar="NAME", help="of open_clip's models")
    parser.add_argument("--family", action="append", metavar="NAME", help="only this family; may be repeated")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/teachers.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        return _run(arguments, Path(temporary))


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    # Before the first import of what reads them.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(folder / "hub"), TOKENIZERS_PARALLELISM="false")
    import open_clip

    from tests.teacher.small_models import family

    names = [
        name for name in (open_clip.list_models() if arguments.names is None else arguments.names)
        if not arguments.family or family(name) in arguments.family
    ]  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.teacher.small_models", "clipgs.teacher.model", "transformers"])
    found = {}
    for name in names:
        start = time.monotonic()
        found[name] = {"family": family(name), **_in_process(context, name, folder / "name")}
        found[name]["seconds"] = round(time.monotonic() - start, 1)
        shutil.rmtree(folder / "name", ignore_errors=True)
        shutil.rmtree(folder / "hub", ignore_errors=True)
        wrong = found[name]["wrong"]
        _log.info("%-32s %5.1f s  %s", name, found[name]["seconds"], "; ".join(wrong)[:400] or "equal")
    families = _by_family(found)
    bars = {
        "text": TEXT,
        "pictures_of_spread": PICTURES,
        "bfloat16_cosine": COSINE,
        "found": PICTURES_FOUND,
        "offline_seconds": OFFLINE_SECONDS,
    }
    for called, counts in families.items():
        _log.info("%-12s %s", called, ", ".join(f"{count} {what}" for what, count in counts.items()))
    bars = {
        "text": TEXT,
        "pictures_of_spread": PICTURES,
        "bfloat16_cosine": COSINE,
        "found": PICTURES_FOUND,
        "offline_seconds": OFFLINE_SECONDS,
    }
    results: dict[str, Any] = {"worst": _worst(found), "families": families, "names": found}
    wrong = any(one["wrong"] for one in found.values())
    if not (arguments.names or arguments.family):
        results["small_teacher"] = _in_process(context, None, folder / "small")
        results["offline"] = offline(folder / "offline")
        for called in ("small_teacher", "offline"):
            _log.info("%s: %s", called, json.dumps(results[called]))
            wrong = wrong or bool(results[called]["wrong"])
    settings = {"names": arguments.names, "families": arguments.family, "bars": bars}
    record("teachers", settings, results, arguments.output)
    return 1 if wrong else 0


def _by_family(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Family to counts: names, ways they were opened, ways that gave open_clip's features, refusals, what is wrong."""
    families: dict[str, Counter[str]] = {}
    for one in found.values():
        counts = families.setdefault(one["family"], Counter(names=0, ways=0, equal=0, refused=0, wrong=0))
        outcomes = [way["outcome"] for way in one.get("ways", {}).values()]
        counts.update(names=1, ways=len(outcomes), equal=outcomes.count("equal"), wrong=bool(one["wrong"]))
        counts["refused"] += outcomes.count("refused") + len(one.get("refusals", {}))
    return {name: dict(counts) for name, counts in sorted(families.items())}


def _worst(found: dict[str, Any]) -> dict[str, float]:
    ways = [
        (name.rpartition(" ")[2], way)
        for one in found.values()
        for name, way in one.get("ways", {}).items()
        if "text" in way
    ]
    worst = {}
    for precision in sorted({name for name, _ in ways}):
        of = [way for name, way in ways if name == precision]
        worst[f"{precision}_text"] = max(way["text"] for way in of)
        worst[f"{precision}_pictures_of_spread"] = max(max(way["pictures"].values()) for way in of)
        worst[f"{precision}_cosine"] = min(way["cosine"] for way in of)
    return worst


def _in_process(context: Any, name: str | None, folder: Path) -> dict[str, Any]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, folder, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(SECONDS) else {"wrong": [f"no answer within {SECONDS} s"]}
    except EOFError:
        found = {"wrong": ["the process ended without an answer"]}
    process.join(5)
    if process.exitcode is None:
        process.kill()
    elif process.exitcode:
        found["wrong"].append(f"the process ended with {process.exitcode}")
    return found


def _child(name: str | None, folder: Path, answer: Any) -> None:
    import warnings

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        answer.send(examine(name, folder) if name else small_teacher(folder))
    except Exception:  # of this benchmark or of open_clip: no figure of this name can be trusted
        answer.send({"wrong": ["the benchmark itself failed: " + traceback.format_exc()[-1500:]]})


# --- one name --------------------------------------------------------------------------------------------------------


def examine(name: str, folder: Path) -> dict[str, Any]:
    """Opens a small model of a name in every way, and asks for what must be refused."""
    from tests.teacher.small_models import STATED, architecture, make, preprocessings, registered

    with registered(name, architecture(name)):
        small = make(name, folder)
        tagged = preprocessings(name)
        distinct = {json.dumps(value): tag for tag, value in reversed(tagged.items())}  # to its first tag
        tokenizer = {"tokenizer": str(small.folder)} if small.folder else {}
        # What the user has to state of the preprocessing, and what it must then be.
        if len(distinct) == 1:
            stated: list[tuple[str, dict[str, Any], dict[str, Any]]] = [("", {}, next(iter(tagged.values())))]
        elif distinct:
            stated = [(f" as {tag}", {"preprocess": tag}, tagged[tag]) for tag in distinct.values()]
        else:
            stated = [("", {"preprocess": STATED}, STATED)]
        ways = {
            key: _compared(small, preprocessing, key.endswith("bfloat16"), settings)
            for key, settings, preprocessing in _ways(small, folder, stated, tokenizer)
        }
        refusals = _refusals(small, folder, stated, tokenizer)
        ways |= _by_tag(small, tagged, list(distinct.values()))  # after it nothing is missing in the hub's cache
    wrong = [
        f"{key}: {one['outcome']}{': ' + one['reason'] if 'reason' in one else ''}"
        for key, one in (*ways.items(), *refusals.items())
        if one["outcome"] not in ("equal", "refused")
    ]
    size = sum(parameter.numel() for parameter in small.model.parameters())
    return {"parameters": size, "tags": len(tagged), "ways": ways, "refusals": refusals, "wrong": wrong}


def _refusals(small: Any, folder: Path, stated: Any, tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What nobody can know, or what contradicts itself."""
    from tests.teacher.small_models import STATED, save_folder

    file = {"name": small.name, "pretrained": str(small.file)}
    about = r"teacher\.preprocess"
    asked = [("a tag of nobody", {**file, **tokenizer, "preprocess": "nobody"}, about)]
    if tokenizer:
        asked.append(("no tokenizer", {**file, **stated[0][1]}, r"teacher\.tokenizer"))
    if stated[0][1]:
        asked.append(("no preprocessing", {**file, **tokenizer}, about))
    silent = save_folder(small, folder / "silent", {})
    local = {"name": f"local-dir:{silent}"}
    asked.append(("local-dir without preprocessing", local, about))
    other = {"name": f"local-dir:{folder / 'local'}", "preprocess": {**STATED, "mean": [0.1, 0.2, 0.3]}}
    asked.append(("local-dir with another preprocessing", other, about))
    pickled = save_folder(small, folder / "pickled", stated[0][2])
    (pickled / "open_clip_model.safetensors").unlink()
    (pickled / "weights.pt").symlink_to(folder / "weights.pt")
    asked.append(("local-dir of .pt", {"name": f"local-dir:{pickled}"}, r"rename it to"))
    return {key: _refusal(settings, words) for key, settings, words in asked}


def _ways(small: Any, folder: Path, stated: Any, tokenizer: dict[str, Any]) -> Any:
    """The ways to name a model on the disk: what it is called, the settings, and the preprocessing."""
    import torch

    from tests.teacher.small_models import save_folder

    pickled = folder / "weights.pt"
    torch.save(small.model.state_dict(), pickled)
    for called, settings, preprocessing in stated:
        named = {"name": small.name, **tokenizer, **settings}
        yield (f".safetensors{called} float32", {**named, "pretrained": str(small.file)}, preprocessing)
        yield (f".pt{called} bfloat16", {**named, "pretrained": str(pickled)}, preprocessing)
    place = save_folder(small, folder / "local", stated[0][2])
    yield "local-dir float32", {"name": f"local-dir:{place}"}, stated[0][2]
    yield "local-dir bfloat16", {"name": f"local-dir:{place}"}, stated[0][2]


def _compared(small: Any, preprocessing: dict[str, Any], half: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether a teacher gives open_clip's features; what would refuse it before any job, if something does."""
    from clipgs.teacher import model as teacher
    from tests.teacher.small_models import differences

    if words := _of_the_other_name(small, settings):
        return _refusal(settings, words)

    def compare() -> dict[str, Any]:
        config = _config({**settings, "precision": "bfloat16" if half else "float32"})
        if errors := _early(config):
            return {"outcome": "refused though it could run", "reason": errors[0]}
        found = differences(small, teacher.load(config), preprocessing)
        if half:
            equal = found["cosine"] >= COSINE and found["found"] == 1.0
        else:
            equal = found["text"] <= TEXT and max(found["pictures"].values()) <= PICTURES
        if equal:
            return {"outcome": "equal", **found}
        shown = {
            key: float(f"{value:.1e}") for key, value in {**found, **found["pictures"]}.items() if key != "pictures"
        }
        return {"outcome": "differs", "reason": str(shown), **found}

    return _guarded(compare)


def _by_tag(small: Any, tagged: dict[str, Any], chosen: list[str]) -> dict[str, Any]:
    """A tag's weights, tokenizer and tower in the hub's cache, offline: nothing is stated besides name and tag."""
    from open_clip.pretrained import get_pretrained_cfg

    ways = {}
    for tag in chosen:
        entry = get_pretrained_cfg(small.name, tag)
        if not entry.get("hf_hub"):  # a hash stands in the address: other weights are no weights of it
            continue
        _put_into_cache(small, entry["hf_hub"])
        settings = {"name": small.name, "pretrained": tag}
        ways[f"tag {tag} float32"] = _compared(small, tagged[tag], half=False, settings=settings)
    return ways


def _of_the_other_name(small: Any, settings: dict[str, Any]) -> str | None:
    """How a tag is refused whose weights have the activation of another name, where there is that name."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    from clipgs.teacher import names

    tag = next((settings.get(key) for key in ("preprocess", "pretrained") if isinstance(settings.get(key), str)), None)
    other = names.other_gelu(small.name)
    entry = get_pretrained_cfg(small.name, tag) if tag else None
    if not entry or other not in open_clip.list_models():
        return None
    if bool(entry.get("quick_gelu")) == bool(small.architecture.get("quick_gelu")):
        return None
    return re.escape(f"{tag} are weights of {other}; set teacher.name to it")


def _put_into_cache(small: Any, place: str) -> None:
    import torch

    repository, file = os.path.split(place)
    files = {} if not small.folder else {one.name: one for one in small.folder.iterdir()}
    texts = small.architecture["text_cfg"]
    for needed in {texts.get("hf_tokenizer_name"), texts.get("hf_model_name")} - {None}:
        _snapshot(needed, files)
    weights = small.file
    if file and not file.endswith(".safetensors"):
        weights = small.file.with_name(file)
        torch.save(small.model.state_dict(), weights)
    _snapshot(repository, {file or "open_clip_model.safetensors": weights})


def _snapshot(repository: str, files: dict[str, Path]) -> None:
    folder = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        if not (snapshot / name).exists():
            (snapshot / name).symlink_to(file.resolve())


def _refusal(settings: dict[str, Any], words: str) -> dict[str, Any]:
    """Whether a configuration is refused before any job, in one line with the true reason."""
    from clipgs.teacher import model as teacher

    def ask() -> dict[str, Any]:
        start = time.monotonic()
        try:
            config = _config({**settings, "precision": "float32"})
            errors = _early(config)
        except Exception as error:  # the settings themselves are refused; a raw error is told apart below
            _only_ours(error)
            errors = [str(error)]
        took = round(time.monotonic() - start, 2)
        if errors:
            known = re.search(words, errors[0]) and "\n" not in errors[0]
            outcome = "refused" if known else "refused for another reason"
            return {"outcome": outcome, "reason": errors[0], "seconds": took}
        try:
            teacher.load(config)
        except Exception as error:
            _only_ours(error)
            return {"outcome": "refused only by the job", "reason": str(error)}
        return {"outcome": "not refused"}

    return _guarded(ask)


def _guarded(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    from clipgs.core.errors import ClipgsError

    try:
        return act()
    except ClipgsError as error:
        return {"outcome": "refused only by the job", "reason": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({Path(where.filename).name}:{where.lineno})"
        )
        return {"outcome": "raw error", "reason": reason}


def _only_ours(error: Exception) -> None:
    from clipgs.core.errors import ClipgsError

    if not isinstance(error, ClipgsError):
        raise error


def _config(settings: dict[str, Any]) -> Any:
    from clipgs import config as configuration

    teacher = {"pretrained": None, **settings}
    return configuration.check({"output": tempfile.gettempdir(), "device": "cpu", "teacher": teacher})


def _early(config: Any) -> list[str]:
    """What would stop the teacher's jobs and is known before the first."""
    from clipgs.catalog.shards import Plan
    from clipgs.operate import checks

    jobs = checks.Jobs({"embed-images": ["00000"]}, Plan((), ("00000",), {}, "", (), 24))
    return [*checks.of_names(config).errors, *checks.of_jobs(config, jobs).errors]


# --- the other bars --------------------------------------------------------------------------------------------------


def small_teacher(folder: Path) -> dict[str, Any]:
    """Trains the small teacher on 24 pictures, and counts those that it finds again, prepared one way or another.

    The gallery is open_clip's own, prepared as in training. The queries are pictures that are a little darker, and
    captions, through clipgs.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from clipgs.config import SmallTeacher
    from clipgs.teacher import model as teacher
    from clipgs.teacher.names import ARCHITECTURE, VOCABULARY
    from clipgs.teacher.tokenizers import small_tokenizer, small_vocabulary
    from clipgs.training.small_teacher import train
    from tests.teacher.small_models import Small, nearest_to_itself, own_images, picture, preprocessing_of

    colours, things = ("red", "green", "blue", "white", "black", "yellow"), ("chair", "mug", "boat", "tree")
    captions = [f"a {colour} {thing}" for colour in colours for thing in things]
    shades = np.array([1.0, 0.9, 0.8, 0.85])  # the last is not trained on
    large = np.stack([picture(seed, (96, 96)) for seed in range(len(captions))])
    views = (picture(seed, (64, 64)) for seed in range(len(captions)))
    images = np.stack([(view * shades[:, None, None, None]).astype(np.uint8) for view in views])  # [24, 4, 64, 64, 3]
    settings = SmallTeacher(steps=150, batch=len(captions), category_steps=0.0)
    model, _ = train(torch.from_numpy(images[:, :3]), captions, [None] * len(captions), settings, 0, "cpu")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    own = preprocessing_of({})
    architecture = json.loads(ARCHITECTURE.read_text())

    def saved(name: str, preprocessing: dict[str, Any]) -> str:
        (folder / name).mkdir(parents=True)
        about = {"model_cfg": architecture, "preprocess_cfg": preprocessing}
        (folder / name / "open_clip_config.json").write_text(json.dumps(about))
        save_file(weights, folder / name / "open_clip_model.safetensors")
        (folder / name / VOCABULARY).write_bytes(small_vocabulary(architecture["text_cfg"]["vocab_size"]))
        return f"local-dir:{folder / name}"

    told, silent = {"name": saved("told", own)}, {"name": saved("silent", {})}
    small = Small("small", folder, None, architecture, model.eval(), small_tokenizer())
    gallery = own_images(small, large, own)

    def found(settings: dict[str, Any]) -> dict[str, int]:
        frozen = teacher.load(_config({**settings, "precision": "float32"}))
        darker = (large * 0.85).astype(np.uint8)
        asked = {"pictures": frozen.encode_images(darker), "captions": frozen.encode_texts(captions)}
        return {name: int(nearest_to_itself(vectors, gallery).sum()) for name, vectors in asked.items()}

    half = {"preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    none = {"preprocess": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}}
    results = {
        "told by the folder": found(told),
        "stated": found({**silent, "preprocess": own}),
        "wrong: mean and std 0.5": found({**silent, **half}),
        "wrong: mean 0, std 1": found({**silent, **none}),
        "told, and another stated": _refusal({**told, **half}, r"teacher\.preprocess"),
        "neither told nor stated": _refusal(silent, r"teacher\.preprocess"),
    }
    missed = [name for name in ("told by the folder", "stated") if set(results[name].values()) != {PICTURES_FOUND}]
    late = [name for name, one in results.items() if one.get("outcome", "refused") != "refused"]
    return {**results, "wrong": missed + late}


_TIMED = """
import json, socket, sys, time
start, (settings, way, fault) = time.monotonic(), json.loads(sys.argv[1])
own = socket.getaddrinfo
def slow(*_, **__):
    time.sleep(10)
    raise socket.gaierror("no answer")
socket.getaddrinfo = {"addresses": lambda *a, **k: own(*a, **k) * 4, "names": slow}.get(fault, own)
from clipgs import config
made = config.check(settings)
if way == "checks":
    from clipgs.catalog.shards import Plan
    from clipgs.operate import checks
    jobs = checks.Jobs({"embed-images": ["00000"]}, Plan((), ("00000",), {}, "", (), 24))
    (reason,) = checks.of_jobs(made, jobs).errors
else:
    from clipgs.core.errors import ClipgsError
    from clipgs.teacher import model
    start = time.monotonic()  # the imports of torch and open_clip are those of any start
    try:
        model.load(made)
        reason = "opened"
    except ClipgsError as error:
        reason = str(error)
print(json.dumps({"seconds": round(time.monotonic() - start, 2), "reason": reason}))
"""


def offline(folder: Path) -> dict[str, Any]:
    """Seconds until the checks before the first job, and until the stage itself, say that files must be downloaded.

    No variable tells that there is no network: the hub's name is not known, or its addresses do not answer, or the
    server of names does not.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({"logit_scale": torch.ones(())}, folder / "weights.safetensors")
    file = {"pretrained": str(folder / "weights.safetensors")}
    cases = {
        "SigLIP without its tokenizer": {"name": "ViT-B-16-SigLIP", **file},
        "RoBERTa without its tower's settings": {"name": "roberta-ViT-B-32", **file},
        "a tag that is not here": {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
    }
    results: dict[str, Any] = {}
    with _silent() as silent:
        hosts = {
            "no such host": ("https://hub.invalid", None),
            "four silent addresses": (silent, "addresses"),
            "a silent server of names": ("https://hub.invalid", "names"),
        }
        for (case, settings), (host, (address, fault)), way in product(
            cases.items(), hosts.items(), ("checks", "stage")
        ):
            asked = {"output": str(folder), "device": "cpu", "teacher": settings}
            environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
            done = subprocess.run(
                [sys.executable, "-c", _TIMED, json.dumps([asked, way, fault])],
                env={**environment, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(folder / "hub")},
                capture_output=True,
                text=True,
            )
            lines = done.stdout.splitlines() or [json.dumps({"seconds": -1, "reason": done.stderr[-500:]})]
            results[f"{case}, {host}, {way}"] = json.loads(lines[-1])
    wrong = [
        name
        for name, one in results.items()
        if not 0 <= one["seconds"] < OFFLINE_SECONDS or "cannot be reached" not in one["reason"]
    ]
    return {**results, "wrong": wrong}


@contextmanager
def _silent() -> Iterator[str]:
    """The address of a port that drops all who knock, as a firewall does: its queue is full."""
    with socket.socket() as server, ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
