"""What open_clip has, known without importing it."""

import subprocess
import sys

import pytest

from clipgs.config import Teacher
from clipgs.teacher import names
from clipgs.teacher.hub import Download
from clipgs.teacher.names import find, installed


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
