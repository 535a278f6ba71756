"""What is known before the first job: each check by itself."""

import json
import shutil
import socket
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from clipgs import config as configuration
from clipgs.catalog.shards import Plan
from clipgs.core.bundles import write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.web import TransientError
from clipgs.operate import checks
from clipgs.operate.checks import Jobs, of_jobs, of_names
from clipgs.teacher import hub

ALL = ("freeze", "fetch", "sample", "view", "fit", "render", "caption", "pack", "embed-images", "train", "evaluate")
PENDING = Plan((), ("00000",), {}, "", (), 24)
TEACHER = {"name": "EVA02-E-14-plus", "pretrained": "laion2b_s9b_b144k"}


@pytest.fixture
def config_of(tmp_path, monkeypatch):
    """A configuration in an empty folder, on a machine with an empty cache of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)

    def made(**settings):
        base = {"output": "results", "cache": "cache", "device": "cpu", "teacher": {"name": "train"}}
        return configuration.check(configuration.merge(base, settings))

    return made


def jobs(*stages, plan=PENDING, **more):
    return Jobs({stage: ["00000"] for stage in stages}, plan, **more)


def test_what_is_well_is_not_spoken_of(config_of):
    assert of_names(config_of()) == of_jobs(config_of(), jobs(*ALL)) == ([], [])


def test_a_run_with_the_name_of_an_ablation_is_refused(config_of):
    """Its model would pass for that of the ablation."""
    (error,) = of_names(config_of(training={"run": "ablation-position-color-s0"})).errors
    assert error.startswith("config: training.run = ablation-position-color-s0: ")


@pytest.mark.parametrize("run", [".", "..", "...", ".hidden", "a/b", ""])
def test_a_run_has_a_folder_of_its_own(config_of, run):
    with pytest.raises(ClipgsError, match=r"config: training\.run"):
        config_of(training={"run": run})


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"name": "ViT-B-33"}, "teacher.name = ViT-B-33: open_clip has no such model; did you mean ViT-B-32?"),
        ({**TEACHER, "pretrained": "laion2b_s9b_b144"}, "nor a file; did you mean laion2b_s9b_b144k?"),
        ({"name": "ViT-B-32", "pretrained": "openai"}, "set teacher.name to it"),
    ],
)
def test_a_misspelt_model_is_refused_whatever_is_made(config_of, teacher, words):
    (error,) = of_names(config_of(teacher=teacher)).errors
    assert error.startswith("config: teacher.")
    assert words in error


def test_a_misspelt_captioner_is_refused_where_it_writes(config_of):
    coca = {"coca": {"name": "coca_ViT-L-15"}}
    assert of_names(config_of(caption=coca)).errors == []
    (error,) = of_names(config_of(caption={**coca, "captioner": "coca"})).errors
    assert error.startswith(
        "config: caption.coca.name = coca_ViT-L-15: open_clip has no such model; did you mean coca_"
    )
    clip = {"coca": {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "captioner": "coca"}
    assert of_names(config_of(caption=clip)).errors == []
    (error,) = of_jobs(config_of(caption=clip), jobs("caption", dry=True)).errors
    assert "this model cannot write captions" in error


@pytest.mark.parametrize("name", ["coca_base", "coca_roberta-ViT-B-32", "local-dir:{tiny}"])
def test_a_captioner_that_cannot_write_is_refused_before_its_files_are_looked_for(config_of, tiny, tmp_path, name):
    (tmp_path / "coca.pt").touch()
    coca = {"name": name.format(tiny=tiny), "pretrained": str(tmp_path / "coca.pt")}
    config = config_of(caption={"coca": coca, "captioner": "coca"})
    error = of_jobs(config, jobs("caption", dry=True)).errors[0]
    assert error.startswith(f"config: caption.coca.name = {coca['name']}: this model cannot write captions, because it")


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"name": "ViT-B-32", "pretrained": "gone/weights.safetensors"}, "there is no such file"),
        ({"name": "ViT-B-32", "pretrained": "weights.npz"}, "the file name must end in .safetensors"),
        ({"name": "local-dir:gone"}, "open_clip_config.json: No such file"),
        ({"name": "local-dir:empty"}, "the folder holds no weights"),
    ],
)
def test_weights_that_are_not_there_stop_the_stages_that_read_them_and_no_others(config_of, tmp_path, teacher, words):
    (tmp_path / "weights.npz").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"vision_cfg": {}, "text_cfg": {}}})
    )
    config = config_of(teacher=teacher)
    assert of_jobs(config, jobs("fit", "pack", "caption", "train")) == ([], [])
    for stage in ("embed-images", "embed-texts", "evaluate"):
        (error,) = of_jobs(config, jobs(stage)).errors
        assert words in error


def test_weights_that_must_be_downloaded(config_of, monkeypatch):
    config, asked = config_of(teacher=TEACHER), []
    away = TransientError("it is away", unreachable=True)
    monkeypatch.setattr(hub, "silence", lambda address: asked.append(address) or (None if len(asked) > 1 else away))
    note = "teacher: the weights of EVA02-E-14-plus laion2b_s9b_b144k will be downloaded from huggingface.co"
    assert of_jobs(config, jobs("embed-images", dry=True)) == ([], [note])
    assert of_jobs(config, jobs("embed-images", local=False)) == ([], [note])
    assert asked == []  # a dry run and a cluster's login node ask nobody
    (error,) = of_jobs(config, jobs("embed-images")).errors
    assert "huggingface.co cannot be reached (it is away); on a machine without network set teacher.pretrained" in error
    assert of_jobs(config, jobs("embed-images")) == ([], [note])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (error,) = of_jobs(config, jobs("embed-images", dry=True)).errors
    assert "are not on this machine, and HF_HUB_OFFLINE is set" in error
    assert of_jobs(config, jobs("fit")) == ([], [])


@pytest.fixture
def answering():
    """Starts servers that answer every request in one way, each with its address."""
    with ExitStack() as stack:

        def start(status):
            class Handler(BaseHTTPRequestHandler):
                def do_HEAD(self):
                    self.send_response(status)
                    self.end_headers()

                do_CONNECT = do_HEAD

                def log_message(self, *_):
                    pass

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)


def test_a_host_is_there_whatever_it_answers(answering, no_proxies):
    for status in (200, 302, 404, 405, 501, 503):
        assert hub.silence(answering(status)) is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert str(hub.silence(address)) == "its host accepts no connection"


@pytest.mark.parametrize(
    ("host", "status", "reason"),
    [
        ("http://hub.invalid", 404, None),  # the proxy has asked it
        ("http://hub.invalid", 502, "the proxy answers HTTP 502"),
        ("http://hub.invalid", 407, "the proxy answers HTTP 407"),
        ("https://hub.invalid", 503, "the proxy accepts no connection"),
        ("http://hub.invalid", None, "the proxy accepts no connection"),
        ("https://hub.invalid", None, "the proxy accepts no connection"),
    ],
)
@pytest.mark.parametrize("variable", ["own", "all_proxy"])
def test_a_proxy_that_does_not_reach_the_host(answering, no_proxies, monkeypatch, host, status, reason, variable):
    address = answering(status) if status else "http://127.0.0.1:1"
    monkeypatch.setenv(f"{host.partition(':')[0]}_proxy" if variable == "own" else variable, address)
    found = hub.silence(host)
    assert (found and str(found)) == reason
    assert found is None or found.unreachable


EVA = {"teacher": {"name": "EVA02-E-14-plus"}}


@pytest.mark.parametrize(
    ("stage", "settings", "words"),
    [
        ("train", {"encoder": {"initialisation": "uni3d"}}, "encoder.weights: encoder.initialisation = uni3d needs a"),
        ("train", {"encoder": {"initialisation": "points", "weights": "runs/gone"}}, "runs/gone does not exist"),
        ("train", {"encoder": {"initialisation": "eva02", "weights": "gone.pt"}}, "encoder.weights = gone.pt: gone.pt"),
        ("ablation-train", {**EVA, "encoder": {"initialisation": "uni3d", "weights": "gone.pt"}}, "gone.pt does not"),
        (
            "ablation-train",
            {"teacher": {"name": "ViT-B-32"}, "encoder": {"initialisation": "uni3d", "weights": "empty.csv"}},
            "teacher.name = ViT-B-32: Uni3D's embeddings lie in the space of EVA02-E-14-plus",
        ),
        ("evaluate", {"evaluation": {"classes": "gone.txt"}}, "evaluation.classes: gone.txt: No such file"),
        ("evaluate", {"evaluation": {"templates": "gone.txt"}}, "evaluation.templates: gone.txt: No such file"),
        ("baselines", {"evaluation": {"baselines": {"uni3d": "gone.pt"}}}, "evaluation.baselines.uni3d = gone.pt: "),
        ("baselines", {"evaluation": {"baselines": {"ulip2": "download"}}}, "evaluation.baselines.ulip2 = download: "),
        ("caption", {"caption": {"captioner": "cap3d", "cap3d": "empty.csv"}}, "caption.cap3d: empty.csv is empty"),
        ("caption", {"caption": {"captioner": "cap3d", "cap3d": "wide.csv"}}, "wide.csv, line 1: 3 columns"),
    ],
)
def test_a_file_that_is_missing_or_wrong_stops_its_stage_and_no_other(config_of, tmp_path, stage, settings, words):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "wide.csv").write_text("a,b,c\n")
    config = config_of(**settings)
    (error,) = of_jobs(config, jobs(stage)).errors
    assert error.startswith("config: ")
    assert words in error
    assert of_jobs(config, jobs("fit", "pack", "index")) == ([], [])


@pytest.mark.parametrize("stage", ["baselines", "train"])
def test_what_needs_no_file_of_the_users_is_well(config_of, stage):
    settings = {"evaluation": {"baselines": {"vit_bigg_14": "download"}}, "encoder": {"initialisation": "eva02"}}
    assert of_jobs(config_of(**settings), jobs(stage)) == ([], [])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("text", "errors", "notes"),
    [
        ("\ufeffCHAIR\r\nTable\r\n", [], []),
        ("chair\nsofas\n", [], ["1 of 2 classes are no category of the dataset: sofas; did you mean sofa?"]),
        ("sofas\nottoman\n", ["names no category of the dataset: sofas (did you mean sofa?), ottoman; its"], []),
    ],
)
def test_classes_are_held_against_the_catalogs_categories(config_of, tmp_path, frozen, text, errors, notes):
    (tmp_path / "classes.txt").write_text(text, newline="")
    config = config_of(evaluation={"classes": "classes.txt"})
    if frozen:
        from clipgs.catalog.records import labels_schema
        from clipgs.catalog.shards import labels_path

        rows = [{"uid": name, "category": name} for name in ("chair", "table", "sofa")]
        write_table(labels_path(config, "00000"), rows, labels_schema())
    found = of_jobs(config, jobs("evaluate"))
    assert found.notes == notes
    assert [words in error for words, error in zip(errors, found.errors, strict=True)] == [True] * len(errors)


def test_captions_of_other_objects_are_refused_once_the_objects_are_known(config_of, tmp_path):
    from clipgs.catalog.records import frozen_schema
    from clipgs.catalog.shards import shard_path

    (tmp_path / "captions.csv").write_text("x,a mug\ny,a chair\n")
    config = config_of(caption={"captioner": "cap3d", "cap3d": "captions.csv"})
    write_table(shard_path(config, "00000"), [{"uid": "a", "source": "procedural"}], frozen_schema())
    assert of_jobs(config, jobs("caption")) == ([], [])
    known = Plan(("00000",), (), {}, "", (), 1)
    (error,) = of_jobs(config, jobs("caption", plan=known)).errors
    assert error == "config: caption.cap3d: captions.csv has a caption of no object; the objects are a"
    (tmp_path / "captions.csv").write_text("x,a mug\na.glb,a chair\n")
    assert of_jobs(config, jobs("caption", plan=known)) == ([], [])


def test_cuda_without_a_gpu_stops_what_computes_here(config_of, monkeypatch):
    config = config_of(device="cuda")
    monkeypatch.setattr(checks, "without_cuda", lambda: "this machine has no GPU")
    (error,) = of_jobs(config, jobs("fit")).errors
    assert error.startswith("config: device = cuda, but this machine has no GPU; see `clipgs doctor`")
    assert of_jobs(config, jobs("fit", local=False)) == of_jobs(config, jobs("fetch", "pack")) == ([], [])
    assert of_jobs(config_of(device="auto"), jobs("fit")) == ([], [])


@pytest.mark.parametrize(("dry", "which"), [(True, "notes"), (False, "errors")])
def test_a_folder_that_cannot_be_written(config_of, tmp_path, monkeypatch, dry, which):
    (tmp_path / "file").touch()
    found = of_jobs(config_of(output="file/results"), jobs("pack", dry=dry))
    (text,) = getattr(found, which)
    assert (
        text
        == f"config: output = file/results: {tmp_path}/file is a file; choose a folder for `output` that you may write"
    )
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    (text,) = getattr(of_jobs(config_of(), jobs("pack", dry=dry)), which)
    assert f"{tmp_path} cannot be written" in text
    folder = {"catalog": {"source": "folder", "folder": {"path": "."}}}
    assert len(of_jobs(config_of(), jobs("fetch", dry=True)).notes) == 2  # and the cache
    assert len(of_jobs(config_of(**folder), jobs("fetch", dry=True)).notes) == 1


def test_a_disk_that_is_too_small_is_noted_and_one_that_is_hopeless_refused(config_of, monkeypatch):
    config = config_of(catalog={"procedural": {"objects": 24}})

    def of(free, *stages, **more):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        return of_jobs(config_of(**more), jobs(*(stages or ("sample", "view", "fit", "render", "pack"))))

    from clipgs.operate.estimate import rates

    need = sum(24 * size for size, *_ in rates(config).values())
    assert of(need * 1.01) == ([], [])
    (note,) = of(need * 0.9).notes
    assert note.startswith("config: output = results: the run needs about ")
    assert note.endswith(" MB are free")
    (error,) = of(need / 4).errors
    assert error.endswith("free some space or choose another `output`")
    assert of(need / 4, "caption", "index") == ([], [])  # what is small is not counted
    views = 24 * rates(config)["view"][0]
    assert of(0.9 * (need - views), temporary=["views"]).notes
    assert of(1.1 * (need - views), temporary=["views"]) == ([], [])


def test_files_that_are_replaced_need_no_more_disk(config_of, monkeypatch):
    from clipgs.operate.estimate import rates

    config = config_of()
    splats = config.output_path / "splats" / "00000.tar"
    splats.parent.mkdir(parents=True)
    splats.write_bytes(bytes(int(24 * rates(config)["fit"][0])))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert of_jobs(config, jobs("fit")) == ([], [])


def test_a_captioner_on_a_server_is_looked_for_before_the_first_job(config_of, monkeypatch, tmp_path, answering):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def found(address, *stages, **more):
        http = {"model": "vlm", "address": address, "candidates": 1}
        return of_jobs(config_of(caption={"captioner": "http", "http": http}), jobs(*(stages or ["caption"]), **more))

    assert found(f"{answering(404)}/v1") == ([], [])  # a server of one's own needs no token
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        errors, notes = found(address)
        assert errors == []  # it may be busy
        assert "it cannot be reached (no byte was received for 2.5 s)" in notes[0]
    (error,) = found(address).errors
    assert error.startswith(f"config: caption.http.address = {address}: it cannot be reached (its host accepts no")
    assert found(address, "fit", "pack") == found(address, local=False) == ([], [])
    (note,) = found(address, dry=True).notes
    assert "it cannot be reached" in note
    (error,) = found("localhost/v1").errors
    assert error.startswith("config: caption.http.address = localhost/v1: this is no address")
    monkeypatch.setattr(hub, "silence", lambda address: None)
    for scheme in ("http", "https"):
        (note,) = found(f"{scheme}://api.example.org/v1").notes
        assert note == "caption.http: the environment variable OPENAI_API_KEY holds no token; many servers need none"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert found("https://api.example.org/v1") == ([], [])
    assert found("http://api.example.org/v1").notes == [
        "caption.http: the token in OPENAI_API_KEY goes to http://api.example.org/v1 unencrypted"
    ]
    monkeypatch.setenv("OPENAI_API_KEY", "sk secret")
    (error,) = found("https://api.example.org/v1").errors
    assert "is not a token" in error
    assert "secret" not in error
    (tmp_path / "cache").write_text("a file")
    (error,) = found("https://api.example.org/v1").errors
    assert error.endswith("cache is a file; answers of caption.http are kept there")
