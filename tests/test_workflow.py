"""What the Snakefile gets from `clipgs.workflow`."""

import json
import os

import pytest

from clipgs import config as configuration
from clipgs.core.errors import ClipgsError
from clipgs.operate.lock import OutputLock
from clipgs.stages import from_settings
from clipgs.workflow import Run, fatal, model_files, notes, share


@pytest.mark.parametrize(
    ("cores", "shards", "gpus", "on_cluster", "expected"),
    [
        (16, 10, 0, False, (16, 16, 16, 16, 0, 0, 0)),  # no GPU: one job after the other
        (16, 1, 1, False, (16, 16, 16, 16, 1, 0, 1)),  # one shard: nothing runs beside it
        (16, 10, 1, False, (16, 10, 3, 16, 1, 0, 1)),
        (64, 10, 4, False, (64, 40, 3, 16, 1, 0, 4)),
        (2, 10, 4, False, (2, 1, 1, 1, 1, 0, 4)),  # never none
        (8, 10, 0, True, (8, 8, 8, 8, 1, 1, 1)),  # the scheduler chooses the GPU, and each job asks for one
    ],
)
def test_cores_and_gpus_are_shared_out(cores, shards, gpus, on_cluster, expected):
    assert tuple(share(cores, shards, gpus, on_cluster)) == expected


def test_the_files_of_a_model_are_inputs_and_a_tag_is_none(tmp_path):
    read = ("open_clip_config.json", "open_clip_model.safetensors", "vocab.txt", "vocabulary.txt.gz")
    for name in (*read, "notes.txt"):
        (tmp_path / name).touch()
    weights = tmp_path / "open_clip_model.safetensors"
    assert model_files(f"local-dir:{tmp_path}", None) == [str(tmp_path / name) for name in read]
    assert model_files("ViT-B-32", str(weights)) == [str(weights)]
    assert model_files("ViT-B-32", "laion2b_s34b_b79k") == model_files("ViT-B-32", None) == []


def test_a_changed_file_of_a_model_counts_also_where_it_is_older(tmp_path):
    """Snakemake itself sees only newer files, and a file that is moved to its place keeps its time."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).touch()
    stages = ("embed-images", "embed-texts", "caption")
    judged = {"captioner": "http", "http": {"model": "m"}}

    def settings(**more):
        run = Run(of(tmp_path, teacher={"name": f"local-dir:{folder}"}, caption=judged, **more))
        return {stage: run.of(stage) for stage in stages}

    before = settings()
    assert settings() == before
    (tmp_path / "older").write_text("{}")
    os.utime(tmp_path / "older", (0, 0))
    (tmp_path / "older").rename(folder / "tokenizer.json")
    texts = settings()
    assert {stage for stage in stages if texts[stage] != before[stage]} == {"embed-texts", "caption"}
    os.utime(folder / "open_clip_model.safetensors", (0, 0))
    after = settings()
    assert all(after[stage] != texts[stage] for stage in stages)
    assert from_settings(after["embed-texts"]).teacher.name == f"local-dir:{folder}"
    plain = Run(of(tmp_path, teacher={"name": "train"}))
    assert all("files" not in json.loads(plain.of(stage)) for stage in stages)


def of(tmp_path, **more):
    settings = {"output": str(tmp_path / "results"), "catalog": {"shard_objects": 2, "procedural": {"objects": 4}}}
    return configuration.check(configuration.merge(settings, more))


class Wildcards:
    def __init__(self, **names):
        self.__dict__ |= names


def test_what_decides_on_a_shard_stands_in_its_settings_only(tmp_path):
    run = Run(of(tmp_path))
    assert run.shards == ("00000", "00001")
    catalog = tmp_path / "results" / "catalog"
    catalog.mkdir(parents=True)
    (catalog / "retries.json").write_text('{"fit":{"00001":2}}')
    retried = Run(of(tmp_path)).of_shard("fit")
    assert retried(Wildcards(shard="00000")) == run.of("fit") == run.of_shard("fit")(Wildcards(shard="00001"))
    assert json.loads(retried(Wildcards(shard="00001"))) == json.loads(run.of("fit")) | {"retry": "2"}
    assert "labels" in json.loads(run.of_shard("label")(Wildcards(shard="00000")))
    assert "curation" in json.loads(run.of("objects"))


def test_paths_follow_the_configuration(tmp_path):
    run = Run(
        of(tmp_path, teacher={"name": "train", "images": "meshes"}, training={"run": "mine"}, temporary=["points"])
    )
    output = str(tmp_path / "results")
    assert run.of_run("model.safetensors") == f"{output}/runs/mine/model.safetensors"
    assert run.teacher == run.small_teacher
    assert run.pictures == [f"{output}/views/{{shard}}.tar", f"{output}/views/{{shard}}.parquet"]
    # asked with pictures of the splats too, which the teacher has not seen
    assert run.asked_pictures == [f"{output}/renders/{shard}.tar" for shard in run.shards]
    assert len(run.all_features(run.shards)) == 4


def test_rows_of_an_ablation_start_from_the_point_encoder_of_their_seed(tmp_path):
    run = Run(of(tmp_path, ablations={"rows": ["uni3d", "position-color"], "seeds": [0, 3]}))
    assert run.ablation_rows == [
        "ablation-uni3d-s0",
        "ablation-uni3d-s3",
        "ablation-position-color-s0",
        "ablation-position-color-s3",
    ]
    start = [f"{tmp_path}/results/ablations/points/runs/points-s3/model.safetensors"]
    assert run.start_of(Wildcards(seed="3")) == run.trained_row(Wildcards(row="uni3d", seed="3")) == start
    assert run.trained_row(Wildcards(row="position-color", seed="3")) == [
        f"{tmp_path}/results/runs/ablation-position-color-s3/model.safetensors"
    ]
    settings = json.loads(run.of_row("ablation-train")(Wildcards(row="position-color", seed="3")))
    assert (settings["training"]["seed"], settings["encoder"]["refinement"]) == (3, False)
    started = Run(of(tmp_path, encoder={"initialisation": "uni3d", "weights": "uni3d.pt"}))
    assert started.start_of(Wildcards(seed="0")) == []


def test_the_demos_recipe_and_a_run_at_work_are_noted(tmp_path):
    assert notes(of(tmp_path, recipe="demo")) == []
    (line,) = notes(of(tmp_path, recipe="demo", catalog={"source": "folder"}))
    assert 'recipe: "paper"' in line
    with OutputLock(tmp_path / "results"):
        (line,) = notes(of(tmp_path))
        assert "a run works on" in line


def test_an_error_of_ours_is_one_line_and_an_exit_code(capsys):
    with pytest.raises(SystemExit) as end, fatal(2):
        raise ClipgsError("it is wrong")
    assert end.value.code == 2
    assert capsys.readouterr().err == "clipgs: it is wrong\n"
