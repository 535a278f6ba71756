"""What runs again after a change, and what does not."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from clipgs import config as configuration
from clipgs.catalog.sources import procedural
from clipgs.core.bundles import read_table
from clipgs.stages import STAGES
from tests.catalog.objaverse_tree import write_objaverse

from .conftest import SETTINGS, Workspace

# The stages whose result an object of another key would differ in first. Written by hand, beside the code's own table.
FIRST_STAGES = {
    "seed": {"fetch", "sample", "view", "fit"},
    "meshes": {"sample", "view"},
    "meshes.max_file_mb": {"fetch"},
    "points": {"sample"},
    "views": {"view", "fit"},
    "fit": {"fit"},
    "render": {"render"},
    "caption": {"caption"},
    "caption.http": set(),  # another captioner writes
    "pack": {"index"},
    "evaluation": set(),
    "ablations": set(),
    "recipe": {"fit"},  # gives lr_factor, which the settings of these tests leave open
    "report": set(),
    "catalog.folder.up_axis": {"sample", "view"},
    "catalog.splats.max_gaussians": {"fetch"},
    "catalog.splats.up_axis": {"fit"},
    "catalog.splats.box_fraction": {"fit"},
    "encoder": set(),  # what trains is not planned with the triplets
    "training": set(),
    # A place, a device, a limit, or what only objects to come are frozen with.
    "output": set(),
    "cache": set(),
    "device": set(),
    "temporary": set(),
    "workers": set(),
    "catalog": set(),
    # What the triplets do not depend on.
    "teacher": set(),
    # But for the card, which counts the captions that the teacher cuts.
    "teacher.name": {"index"},
    "teacher.pretrained": {"index"},
    "teacher.preprocess": {"index"},
    "teacher.tokenizer": {"index"},
}
FEEDS = {
    "fetch": {"sample", "view", "caption", "pack"},
    "sample": {"fit", "pack"},
    "view": {"fit", "pack", "index"},
    "fit": {"render", "pack"},
    "render": {"pack"},
    "caption": {"pack"},
    "pack": {"index"},
    "report": set(),
    "index": set(),
    "label": {"caption", "pack"},
}
# Another value of each kind; where none of these is valid for a key, its own.
OTHER = {
    "recipe": "fast",
    "evaluation.pictures": ["meshes"],
    "evaluation.split": "all",
    "evaluation.per": "group",
    "evaluation.class_names": "raw",
    "evaluation.few_shot": ["2-way 1-shot"],
    "evaluation.few_shot_support": "same",
    "ablations.rows": ["uni3d"],
    "ablations.seeds": [7],
    "training.score_norm": "softmax",
    "evaluation.zeroed": ["color"],
    "ablations.point_colors": "unlit",
    "training.image_loss": "multi_positive",
    "encoder.attribute_encoding": "standardised",
    "encoder.patch_pooling": "weighted",
    "encoder.refinement_along": "gaussians",
    "encoder.choice": "weight",
    "training.over_views": "sum",
    "training.logit_scale": 30.0,
    "teacher.small.view_weight": 1.0,
    "training.duplicate_captions": "paper",
    "training.precision": "fp32",
    "training.augmentation.rotation": "none",
    "catalog.objaverse.subset": "lvis",
    "catalog.objaverse.uids": "uids.txt",
    "catalog.objaverse.lvis": "train",
    "catalog.objaverse.categories": ["mug"],
    "catalog.objaverse.hashes": "h.parquet",
    "catalog.objaverse.root": "elsewhere",
    "catalog.objaverse_xl.tables": ["t.csv"],
    "catalog.curation.licenses": ["by"],
    "catalog.curation.max_faces": 1000,
    "catalog.curation.animated": "no",
    "catalog.curation.max_file_mb": 9.5,
    "catalog.curation.textured": "only",
    "catalog.curation.table": "t.csv",
    "catalog.curation.key": "sha256",
    "catalog.curation.where": ["score > 1"],
    "catalog.curation.max_objects": 9,
    "caption.cap3d": "captions.csv",
    "caption.fallback": "fail",
    "temporary": ["points"],
    "output": None,
    "caption.captioner": "cap3d",
    "caption.min_score": 0.1,
    "fit.schedule": "constant",
    "catalog.folder.up_axis": "z",
    "device": "auto",
    "catalog.source": None,
    "catalog.folder.path": "./meshes/",
    "cache": "elsewhere",
    "catalog.folder.manifest": "./meshes/manifest.csv",
    "catalog.folder.columns": {"page": "category"},
    "meshes.neutral_color": [0.5, 0.5, 0.5],
    "meshes.missing_material": "fail",
    "fit.relocate_below": 0.01,
    "pack.title": "another",
    "teacher.name": "ViT-B-32",
    "teacher.images": "meshes",
    # The teacher of these tests has its own, which may be repeated and not changed.
    "teacher.preprocess.tag": "laion2b_s9b_b144k",
    "teacher.preprocess.mean": [0.48145466, 0.4578275, 0.40821073],
    "teacher.preprocess.std": [0.26862954, 0.26130258, 0.27577711],
    "teacher.preprocess.interpolation": "bicubic",
    "teacher.preprocess.resize_mode": "shortest",
    "teacher.tokenizer": None,
    "caption.http.extra": {"seed": 1},
    "teacher.precision": "float32",
    "catalog.modelnet.path": "ModelNet40.zip",
    "catalog.splats.path": "ready",
    "catalog.splats.up_axis": "-y",
    "catalog.splats.manifest": "ready.csv",
    "catalog.splats.columns": {"text": "title"},
    "encoder.size": "tiny",
    "encoder.attributes": ["position"],
    "encoder.point_attributes": "all",
    "encoder.orders": ["z"],
    "encoder.order_fusion": "sample",
    "encoder.batch_norm": "local",
    "encoder.initialisation": "uni3d",
}


def downstream(stages):
    reached = set(stages)
    while more := {fed for stage in reached for fed in FEEDS[stage]} - reached:
        reached |= more
    return reached


def changed(key):
    """The settings with another value at `key`."""
    settings = yaml.safe_load(yaml.safe_dump(SETTINGS))
    value = configuration.check(settings)
    *parents, last = key.split(".")
    for part in key.split("."):
        value = getattr(value, part)
    if key in OTHER:
        value = OTHER[key]
    elif isinstance(value, bool):
        value = not value
    elif isinstance(value, int):
        value += 1
    elif isinstance(value, float):
        value = value * 0.9
    elif value is None or isinstance(value, str):
        value = f"{value or ''}x"
    target = settings
    for part in parents:
        target = target.setdefault(part, {})
    target[last] = value
    return settings


def uid_of(workspace):
    return read_table(workspace.output / "catalog" / "objects.parquet")[0]["uid"]


def expected(key):
    names = [name for name in FIRST_STAGES if key == name or key.startswith(name + ".")]
    return downstream(FIRST_STAGES[max(names, key=len)])


@pytest.mark.parametrize("key", configuration.setting_names())
def test_a_changed_key_runs_again_what_depends_on_it_and_no_more(made, tmp_path, key):
    if key in OTHER and OTHER[key] is None:
        pytest.skip(f"another {key} is another run; tests of its own cover it")
    settings = changed(key)
    if key == "caption.captioner":
        (tmp_path / "captions.csv").write_text(f"{uid_of(made)},a caption\n")
        settings["caption"]["cap3d"] = str(tmp_path / "captions.csv")
    if key == "teacher.name":
        settings["teacher"]["pretrained"] = "laion2b_s34b_b79k"  # which there is of that name
    if key == "teacher.pretrained":
        settings["teacher"]["pretrained"] = str(tmp_path / "weights.safetensors")
        (tmp_path / "weights.safetensors").touch()
    assert configuration.check(settings) != configuration.check(SETTINGS)
    overlay = tmp_path / "changed.yaml"
    overlay.write_text(yaml.safe_dump(settings))
    planned = made.planned("--configfile", str(overlay))
    stages = expected(key)
    if key == "catalog.folder.columns":  # gives every object a page
        stages = downstream({"label"})
    if key == "views.count":  # the pictures of the splat are from the same cameras
        stages = downstream({"view", "fit", "render"})
    if key == "caption.min_score":  # the teacher judges, by the features of the pictures
        stages |= {"embed_images"}
    assert set(planned) == stages
    assert all(planned[stage] == (1 if stage == "index" else 2) for stage in stages)


def test_triplets_again_does_nothing(made):
    assert made.planned() == {}


def test_a_raised_version_runs_the_stage_again(made, monkeypatch):
    render = STAGES["render"]
    monkeypatch.setitem(STAGES, "render", replace(render, version=render.version + 1))
    assert made.planned() == {"render": 2, "pack": 2, "index": 1}


def test_one_object_more_is_one_new_shards_jobs(made, tmp_path):
    workspace = made.copy(tmp_path / "more")
    workspace.add_objects(3)
    stages = ("freeze", "label", "fetch", "sample", "view", "fit", "render", "caption", "pack")
    assert workspace.planned() == {**dict.fromkeys(stages, 1), "objects": 1, "index": 1}


def test_a_mended_caption_fits_and_renders_nothing(made, tmp_path):
    workspace = made.copy(tmp_path / "mended")
    workspace.add_objects(2, text1="a caption that somebody mended")
    assert workspace.planned() == {"label": 1, "caption": 1, "pack": 1, "index": 1}
    workspace.make()
    assert workspace.planned() == {}
    (text,) = workspace.output.glob("captions/00001.parquet")
    assert read_table(text)[0]["caption"] == "a caption that somebody mended"


def test_a_mended_file_of_captions_captions_again(made, tmp_path):
    workspace = made.copy(tmp_path / "captions")
    file, overlay = workspace.folder / "captions.csv", workspace.folder / "overlay.yaml"
    file.write_text(f"{uid_of(made)},a mug\n")
    overlay.write_text(yaml.safe_dump({"caption": {"captioner": "cap3d", "cap3d": str(file)}}))
    workspace.make("--configfile", str(overlay))
    assert workspace.planned("--configfile", str(overlay)) == {}
    file.write_text(f"{uid_of(made)},a cup\n")
    assert workspace.planned("--configfile", str(overlay)) == {"caption": 2, "pack": 2, "index": 1}


def test_a_changed_rule_that_adds_no_object_tells_the_card_and_makes_nothing_else(tmp_path, checkout):
    workspace = Workspace(tmp_path / "rules", checkout)
    root = workspace.folder / "package" / "hf-objaverse-v1"
    uids = write_objaverse(root, 2, body=None, lvis={"mug": [1]})
    for index, uid in enumerate(uids):
        (root / "glbs" / "000-000").mkdir(parents=True, exist_ok=True)
        (root / "glbs" / "000-000" / f"{uid}.glb").write_bytes(procedural.build(procedural.locator(index, 0)))
    catalog = {"source": "objaverse", "objaverse": {"root": "package"}, "curation": {"max_faces": 150}}
    settings = {**SETTINGS, "catalog": catalog}
    workspace.write_config(settings)
    workspace.make()
    assert workspace.planned() == {}
    catalog["curation"] = {"max_faces": 150, "licenses": ["by"]}  # object 0 passes it too
    workspace.write_config(settings)
    assert workspace.planned() == {"objects": 1, "index": 1}
    workspace.make()
    assert workspace.planned() == {}
    counts = json.loads((workspace.output / "catalog" / "curation.json").read_text())
    assert counts["rules"]["licenses"] == ["by"]
    assert counts["refused"] == {"licenses": 1}
    assert "by" in (workspace.output / "triplets" / "README.md").read_text().split("## Selection")[1]


def test_what_every_job_imports_to_plan_is_light(checkout):
    """Snakemake reads the workflow in every job: no torch, nor what takes as long."""
    text = (checkout / "workflow" / "rules" / "common.smk").read_text()
    assert len(text.splitlines()) <= 40
    imports = [line for line in text.splitlines() if re.match(r"(from|import) clipgs", line)]
    assert imports
    heavy = "{'torch', 'numba', 'scipy', 'matplotlib', 'pandas', 'open_clip', 'sklearn'}"
    code = "; ".join([*imports, "import sys", f"sys.exit(str(sorted({heavy} & set(sys.modules))))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_looking_changes_nothing(made, tmp_path):
    workspace = made.copy(tmp_path / "look")
    workspace.add_objects(3)

    def state():
        return {path: path.stat().st_mtime_ns for path in workspace.output.rglob("*")}

    before = state()
    assert workspace.run("-n", "triplets").returncode == 0
    assert workspace.run("--lint").returncode == 0
    assert state() == before


def test_an_output_can_be_moved(made, tmp_path):
    assert made.copy(tmp_path / "elsewhere" / "deeper").planned() == {}


def test_the_profile_beside_the_snakefile_needs_no_flag(made, checkout):
    profile = yaml.safe_load((checkout / "profiles" / "default" / "config.yaml").read_text())
    assert profile["cores"] == "all"
    assert set(profile["rerun-triggers"]) == {"mtime", "params", "input", "code"}
    done = made.run("triplets")  # without --cores, Snakemake refuses to run
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"fit": {"step": 3}}, "fit.step is not a key; did you mean fit.steps?"),
        ({"fit": {"steps": "many"}}, "fit.steps"),
        ({"caption": {"captioner": "catalogue"}}, "did you mean catalog?"),
        ({"caption": {"captioner": "cap3d"}}, "name the CSV of captions in caption.cap3d"),
        ({"caption": {"captioner": "cap3d", "cap3d": "nowhere.csv"}}, "No such file"),
        ({"output": "new", "catalog": {"folder": {"path": "empty", "manifest": None}}}, "holds no mesh file"),
        ({"output": "new", "catalog": {"folder": {"path": "nowhere", "manifest": None}}}, "is not a folder"),
        ({"catalog": {"folder": {"path": None}}}, "catalog.folder.path is not set"),
    ],
)
def test_a_wrong_configuration_is_one_line_before_any_job(made, tmp_path, overlay, words):
    workspace = made.copy(tmp_path / "wrong")
    (workspace.folder / "empty").mkdir()
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    done = workspace.run("triplets", "--configfile", str(tmp_path / "overlay.yaml"))
    assert done.returncode == 2
    ours = [line for line in done.stderr.splitlines() if not line.startswith(("Using workflow", "Config file"))]
    assert len(ours) == 1
    assert words in ours[0]
