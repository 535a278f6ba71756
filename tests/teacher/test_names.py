"""What open_clip has, known without importing it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from clipgs import config as configuration
from clipgs.config import Teacher
from clipgs.core.errors import UsageError
from clipgs.teacher import hub, names
from clipgs.teacher.hub import Download
from clipgs.teacher.names import PREPROCESS, find, installed


def test_it_is_what_open_clip_itself_says():
    import open_clip
    from open_clip.pretrained import _PRETRAINED

    assert names._weights() == _PRETRAINED
    assert set(installed("").models) == set(open_clip.list_models())
    for name in ("ViT-B-32", "ViT-B-32-quickgelu", "EVA02-E-14-plus", "coca_ViT-L-14"):
        assert installed(name).architecture == open_clip.get_model_config(name)
        assert list(installed(name).tags) == open_clip.list_pretrained_tags_by_model(name)


def test_looking_up_names_and_checking_them_imports_no_torch():
    code = "import sys; from clipgs.operate import checks; from clipgs.teacher.names import installed;"
    code += "assert installed('ViT-B-32').tags; assert not {'torch', 'open_clip'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "pretrained", "file"),
    [
        ("EVA02-E-14-plus", "laion2b_s9b_b144k", "open_clip_model.safetensors"),  # of a repository without a name
        ("ViTamin-S", "datacomp1b", "pytorch_model.bin"),
        ("ViTamin-S", "datacomp1b", "pytorch_model.safetensors"),  # tried before the other
        ("hf-hub:somebody/some-model", None, "open_clip_pytorch_model.bin"),
    ],
)
def test_weights_of_an_earlier_download_are_found_where_the_hubs_client_keeps_them(
    tmp_path, monkeypatch, name, pretrained, file
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = find(Teacher(name=name, pretrained=pretrained), "teacher", installed).weights
    assert isinstance(found, Download)
    assert not found.cached
    repository = found.entry["hf_hub"].rsplit("/", 1)[0]
    folder = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "README.md").touch()
    assert not found.cached
    (folder / file).touch()
    assert found.cached


def test_the_hubs_client_looks_there_too(tmp_path, monkeypatch):
    from huggingface_hub import try_to_load_from_cache

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "snapshots" / "0123" / "open_clip_model.safetensors").touch()
    assert try_to_load_from_cache("a/b", "open_clip_model.safetensors", cache_dir=tmp_path) is not None
    assert Download("a/b", {"hf_hub": "a/b/"}).cached


# --- preprocessing ---------------------------------------------------------------------------------------------------


def found(name, pretrained=None, preprocess=None, tokenizer=None):
    settings = {"name": name, "pretrained": pretrained and str(pretrained), "tokenizer": tokenizer and str(tokenizer)}
    config = configuration.check({"teacher": {**settings, **({"preprocess": preprocess} if preprocess else {})}})
    return find(config.teacher, "teacher", installed)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.touch()
    return path


EMPTY = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-32", {}),
        ("ViT-B-16-SigLIP", {**HALF, "resize_mode": "squash"}),
        ("PE-Core-B-16", {**HALF, "interpolation": "bilinear", "resize_mode": "squash"}),
        ("MobileCLIP-S1", {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}),
        ("ViT-L-14-CLIPA", {"resize_mode": "squash", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}),
    ],
)
def test_a_file_takes_what_all_tags_of_its_name_agree_on(file, name, expected):
    pixels = found(name, file).preprocess
    assert {key: pixels[key] for key in expected} == expected
    assert pixels == {**PREPROCESS, **{key: pixels[key] for key in pixels}}


def test_every_name_with_a_file_has_its_tags_preprocessing_or_asks_for_it(file):
    """open_clip's own merge of each tag, for every name that it lists."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    asked = []
    for name in installed("").models:
        tags = installed(name).tags
        own = [merge_preprocess_dict(PreprocessCfg(), entry) for entry in tags.values()]
        own = [{key: list(one[key]) if isinstance(one[key], tuple) else one[key] for key in PREPROCESS} for one in own]
        if own and all(one == own[0] for one in own):
            assert found(name, file).preprocess == own[0]
        else:
            asked.append(name)
            with pytest.raises(UsageError, match=r"teacher\.preprocess"):
                found(name, file)
        for (tag, entry), one in zip(tags.items(), own, strict=True):
            if names.same_gelu(name, entry, installed(name)):
                assert found(name, file, tag).preprocess == one
    assert {"ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu", "ViT-S-32"} <= set(asked)
    assert len(asked) == 3 + sum(not installed(name).tags for name in installed("").models)


@pytest.mark.parametrize(
    ("name", "preprocess", "words"),
    [
        ("ViT-L-14", None, "the tags of this model prepare pictures in different ways; say which one these weights"),
        ("ViT-L-14", None, "laion2b_s32b_b82k: {mean: [0.5, 0.5, 0.5]"),
        ("ViT-S-32", None, "nothing tells how pictures are prepared for these weights; state it in teacher.preprocess"),
        ("ViT-S-32", None, "teacher.preprocess: {mean: [0.48145466, 0.4578275, 0.40821073], std"),
        ("ViT-L-14", "laion2b_s32b", "no tag of the model; did you mean laion2b_s32b_b82k?"),
        ("ViT-S-32", "openai", "no tag of the model (tags: none)"),
    ],
)  # fmt: skip
def test_what_the_user_must_state_is_one_line(file, name, preprocess, words):
    with pytest.raises(UsageError) as error:
        found(name, file, preprocess)
    assert words in str(error.value)
    assert str(file) in str(error.value) or preprocess
    assert "\n" not in str(error.value)


def test_what_the_message_proposes_is_taken(file):
    with pytest.raises(UsageError) as error:
        found("ViT-S-32", file)
    proposed = yaml.safe_load("teacher." + str(error.value).rsplit("teacher.", 1)[1])
    assert found("ViT-S-32", file, proposed["teacher.preprocess"]).preprocess == PREPROCESS


def test_what_the_user_states_counts_for_a_file(file):
    stated = found("ViT-B-16-SigLIP", file, {"mean": [0.1, 0.2, 0.3]}).preprocess
    assert (stated["mean"], stated["std"], stated["resize_mode"]) == ([0.1, 0.2, 0.3], [0.5] * 3, "squash")
    assert found("ViT-S-32", file, HALF).preprocess == {**PREPROCESS, **HALF}
    for name, part in (("ViT-S-32", {"interpolation": "bilinear"}), ("ViT-L-14", {"mean": [0.5] * 3})):
        with pytest.raises(UsageError, match=r"teacher\.preprocess lacks mean or std, and "):
            found(name, file, part)
    both = found("ViT-L-14", file, {"tag": "laion2b-s32b-b82k", "interpolation": "bilinear"}).preprocess
    assert both == {**PREPROCESS, **HALF, "interpolation": "bilinear"}


def test_weights_with_a_preprocessing_of_their_own_keep_it(tmp_path):
    with pytest.raises(UsageError, match=r"teacher.preprocess = .*comes with .*leave teacher.preprocess out"):
        found("ViT-B-16-SigLIP", "webli", {"mean": [0.1, 0.2, 0.3]})
    assert found("ViT-B-16-SigLIP", "webli", {"mean": [0.5, 0.5, 0.5]}).preprocess["std"] == [0.5] * 3
    (tmp_path / "model.safetensors").touch()
    config = {"model_cfg": EMPTY, "preprocess_cfg": {"mean": [0.5] * 3, "std": 0.5}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert found(f"local-dir:{tmp_path}").preprocess == {**PREPROCESS, **HALF}
    with pytest.raises(UsageError, match=r"teacher.preprocess = .*comes with"):
        found(f"local-dir:{tmp_path}", preprocess={"interpolation": "bilinear"})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": EMPTY}))
    with pytest.raises(UsageError, match=r"nothing tells how pictures are prepared"):
        found(f"local-dir:{tmp_path}")
    assert found(f"local-dir:{tmp_path}", preprocess=HALF).preprocess == {**PREPROCESS, **HALF}


@pytest.mark.parametrize(
    ("about", "preprocess", "words"),
    [
        (
            {"model_cfg": EMPTY},
            None,
            "nothing tells how pictures are prepared for these weights; state it in teacher.pr",
        ),
        ({"model_cfg": EMPTY, "preprocess_cfg": HALF}, {"mean": [0.1] * 3}, "but hf-hub:a/b comes with {mean: [0.5"),
        ({"model_cfg": {}}, None, "open_clip_config.json: its model_cfg has no vision_cfg"),
        (None, None, "open_clip_config.json: it is not JSON"),
    ],
)
def test_a_model_of_the_hub_that_is_here_is_looked_at_before_any_job(tmp_path, monkeypatch, about, preprocess, words):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    assert found("hf-hub:a/b", preprocess=preprocess).preprocess is None  # only the job can know
    (folder / "open_clip_config.json").write_text("<html>" if about is None else json.dumps(about))
    with pytest.raises(UsageError) as error:
        found("hf-hub:a/b", preprocess=preprocess)
    assert words in str(error.value)
    assert "hf-hub:a/b" in str(error.value)
    assert str(tmp_path) not in str(error.value)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": EMPTY, "preprocess_cfg": HALF}))
    assert found("hf-hub:a/b", preprocess=HALF).preprocess == {**PREPROCESS, **HALF}


# --- files and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ([], "it has no model_cfg"),
        ({"model_cfg": None}, "it has no model_cfg"),
        ({"model_cfg": {"vision_cfg": {}}}, "its model_cfg has no text_cfg"),
        ({"model_cfg": EMPTY, "preprocess_cfg": [1]}, "its preprocess_cfg is no mapping"),
        (
            {"model_cfg": EMPTY, "preprocess_cfg": {"mean": [0.5]}},
            "its preprocess_cfg: mean List should have at",
        ),
        ({"model_cfg": EMPTY, "preprocess_cfg": {"mean": "abc"}}, "its preprocess_cfg:"),
        (
            {"model_cfg": EMPTY, "preprocess_cfg": {"std": [0, 0, 0]}},
            "its preprocess_cfg: std.0 Input should",
        ),
    ],
)
def test_a_folder_whose_configuration_is_malformed(tmp_path, about, words):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError) as error:
        found(f"local-dir:{tmp_path}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stated_tag_must_fit_the_weights(tmp_path, file):
    for name, pretrained, tag, words in (
        ("ViT-B-32", file, "openai", "openai are weights of ViT-B-32-quickgelu; set teacher.name to it"),
        ("ViT-L-14", "laion2b_s32b_b82k", "nonsense", "no tag of the model"),
        ("ViT-L-14", "laion2b_s32b_b82k", "datacomp_xl_s13b_b90k", "comes with {mean: [0.5"),
    ):
        with pytest.raises(UsageError) as error:
            found(name, pretrained, tag)
        assert words in str(error.value)
    assert found("ViT-L-14", "laion2b_s32b_b82k", "laion2b-s32b-b82k").preprocess["mean"] == [0.5] * 3
    with pytest.raises(UsageError, match="the small teacher of `train` has its own; leave it out"):
        configuration.check({"teacher": {"name": "train", "preprocess": "openai"}})


def test_values_that_are_no_colours_are_refused():
    for mean in ([123.7, 116.3, 103.5], [float("nan")] * 3):
        with pytest.raises(UsageError, match=r"teacher\.preprocess\.mean\.0"):
            configuration.check({"teacher": {"preprocess": {"mean": mean}}})


def test_a_path_is_not_taken_for_a_tag(file, tmp_path):
    with pytest.raises(UsageError, match=r"pretrained = .*: it is a folder"):
        found("ViT-B-32", str(tmp_path))
    with pytest.raises(UsageError, match="neither a tag of ViT-B-32 nor a file; did you mean laion2b_s34b_b79k"):
        found("ViT-B-32", "laion2b_s34b_b79")


def test_the_home_folder_of_nobody_is_no_file(file):
    with pytest.raises(UsageError, match="there is no such file"):
        found("ViT-B-32", "~nobody-at-all/w.pt")
    with pytest.raises(UsageError, match=r"open_clip_config\.json: No such file"):
        found("local-dir:~nobody-at-all/x")


def test_a_tokenizer_that_would_not_be_read_is_refused(tmp_path, file):
    with pytest.raises(UsageError, match=r"ViT-B-32 has open_clip's own tokenizer; leave teacher\.tokenizer out"):
        found("ViT-B-32", file, tokenizer=tmp_path)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.pt").touch()
    assert found("ViT-B-32", "~/w.pt").weights == tmp_path / "w.pt"
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": EMPTY, "preprocess_cfg": HALF}))
    assert found("local-dir:~").weights == tmp_path


def test_a_tag_whose_activation_no_other_name_has_is_taken():
    assert found("roberta-ViT-B-32", "laion2b_s12b_b32k").weights.what == "roberta-ViT-B-32 laion2b_s12b_b32k"
    with pytest.raises(UsageError, match=r"openai are weights of ViT-B-32-quickgelu; set teacher.name to it"):
        found("ViT-B-32", "openai")


def test_a_folder_whose_weights_open_clip_does_not_find_or_must_guess(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": EMPTY, "preprocess_cfg": HALF}))
    (tmp_path / "epoch_3.pt").touch()
    with pytest.raises(UsageError, match=r"does not look for epoch_3.pt in a folder; rename it to open_clip_pytorch"):
        found(f"local-dir:{tmp_path}")
    (tmp_path / "a.safetensors").touch()
    assert found(f"local-dir:{tmp_path}").weights == tmp_path
    (tmp_path / "b.bin").touch()
    with pytest.raises(UsageError, match=r"several files of weights \(a.safetensors, b.bin\); keep the one"):
        found(f"local-dir:{tmp_path}")
    (tmp_path / "model.safetensors").touch()
    assert found(f"local-dir:{tmp_path}").weights == tmp_path


def test_a_tokenizers_folder_that_is_not_there(file):
    with pytest.raises(UsageError, match=r"teacher.tokenizer = nowhere: there is no such folder"):
        found("ViT-B-16-SigLIP", file, tokenizer="nowhere")


def test_towers_that_the_installed_timm_does_not_know(tmp_path, monkeypatch):
    import open_clip
    import timm

    for name in open_clip.list_models():
        architecture = installed(name).architecture
        tower = architecture["vision_cfg"].get("timm_model_name")
        known = tower is None or timm.is_model(tower)
        assert (hub.unknown_to_timm(architecture, "teacher", name) == "") == known
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(hub, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    problem = hub.unknown_to_timm(installed("PE-Core-T-16-384").architecture, "teacher", "PE-Core-T-16-384")
    assert problem.startswith("config: teacher.name = PE-Core-T-16-384: timm ")
    assert problem.endswith("does not know vit_pe_core_tiny_patch16_384; install a newer timm")


def test_a_captioner_with_an_unknown_preprocessing_is_told_what_it_can_set(file):
    with pytest.raises(UsageError, match=r"in preprocess_cfg of open_clip_config\.json in a folder with the weights"):
        find(configuration.Coca(name="coca_base", pretrained=str(file)), "caption.coca", installed)
