"""Every setting, typed and checked: one frozen section a stage.

`config.yaml` and the overlays in `configs/` are read here; a wrong key or value is one line that names the key, what is
allowed and the nearest right name. A key marked `runtime` (device, workers, limits, places) cannot change a result, so
it is in no stage's settings and changing it reruns nothing.
"""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

from clipgs.core.errors import UsageError
from clipgs.core.seeds import canonical_json

WHERE_PATTERN = r"^\s*(\S.*?)\s*(<=|>=|!=|=|<|>|\sin\s)\s*(.+?)\s*$"  # a rule of catalog.curation.where
PICTURES = {"splats": "renders", "meshes": "views"}  # what is pictured, as keys name it, and the pictures' folder
SMALL_TEACHER = "clipgs-small"  # what the model that `teacher.name: train` trains is called


def _key(default: Any, unit: str, meaning: str, *, assumed: bool = False, runtime: bool = False, **limits: Any) -> Any:
    """A setting: default, unit (or kind) and meaning; `assumed` where the paper leaves it open."""
    extra = {"unit": unit, "assumed": assumed, "runtime": runtime}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def _section(model: type[BaseModel]) -> Any:
    return Field(default_factory=model, description=(model.__doc__ or "").strip())


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class Procedural(Section):
    """Built-in objects, made from a seed."""

    objects: int = _key(24, "objects", "how many; more can be added later", runtime=True, ge=1, le=10_000_000)


class Folder(Section):
    """A folder of mesh files: .glb .gltf .obj .ply .stl .off."""

    path: str | None = _key(None, "path", "the folder, or a glob such as meshes/**/*.glb", runtime=True)
    manifest: str | None = _key(
        None,
        "path",
        "CSV with any of file, uid, category, text, license, credit, page, group, split",
        runtime=True,
    )
    columns: dict[str, str] = _key(
        {}, "names", "our name: the manifest's name, for instance text: caption", runtime=True
    )
    up_axis: Literal["y", "z"] = _key(
        "y", "axis", "which axis of .obj .ply .stl .off files points up; glTF is always y"
    )


class ModelNet(Section):
    """ModelNet40 or ModelNet10, with its own split."""

    path: str | None = _key(
        None,
        "path or URL",
        "the folder of CLASS/train/NAME.off, or the published archive (ModelNet40.zip); default: download it",
        runtime=True,
    )


class SplatFolder(Section):
    """A folder of ready splats: 3DGS PLY files of any program. They are pictured and packed, never fitted."""

    path: str | None = _key(None, "path", "the folder, or a glob such as splats/**/*.ply", runtime=True)
    manifest: str | None = _key(None, "path", "CSV, as that of `folder`", runtime=True)
    columns: dict[str, str] = _key({}, "names", "our name: the manifest's name", runtime=True)
    up_axis: Literal["y", "-y", "z"] = _key(
        "y", "axis", "which axis of the files points up; -y in most splats of photographs"
    )
    max_gaussians: int = _key(200_000, "Gaussians", "splats with more are failed rows", ge=1, le=1_000_000)
    box_fraction: float = _key(
        0.99,
        "fraction",
        "of the visible Gaussians along each axis in the core; what lies far outside it does not set the size",
        assumed=True,
        gt=0.5,
        le=1,
    )


class Downloads(Section):
    """How files are fetched from the network."""

    endpoint: str | None = _key(
        None, "URL", "a mirror or proxy in the place of the source's own address; file:// works", runtime=True
    )
    token_variable: str = _key(
        "HF_TOKEN", "name", "environment variable that holds the token, where one is needed", runtime=True
    )
    parallel: int = _key(8, "downloads", "at once, in one job", runtime=True, ge=1, le=256)
    per_second: float = _key(20.0, "requests", "most a second, in one job", runtime=True, gt=0)
    retries: int = _key(6, "times", "after a failure that may pass, with growing pauses", runtime=True, ge=0, le=50)
    timeout_seconds: float = _key(60.0, "s", "without a byte", runtime=True, gt=0)


class Objaverse(Section):
    """Objaverse 1.0: 798,759 GLB files with annotations."""

    subset: Literal["all", "lvis", "list"] = _key(
        "all", "name", "lvis: the objects that have an LVIS category; list: those named in `uids`", runtime=True
    )
    uids: str | None = _key(None, "path", "text or CSV file with one uid a line, for `subset: list`", runtime=True)
    categories: list[str] = _key([], "names", "LVIS categories to take, for `subset: lvis`; empty: all", runtime=True)
    lvis: Literal["test", "train"] = _key(
        "test", "name", "test: LVIS objects are never trained on, and no others are tested on", runtime=True
    )
    hashes: str | None = _key(
        None,
        "path or URL",
        "Objaverse-XL's sketchfab.parquet: SHA-256 of each file, which finds re-uploads before the download",
        runtime=True,
    )
    root: str = _key("~/.objaverse", "path", "cache of the objaverse package: read, never written", runtime=True)


class ObjaverseXL(Section):
    """Objaverse-XL, from its annotation tables with their SHA-256. `objaverse.lvis` and `objaverse.root` hold too."""

    tables: list[str] = _key(
        [
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/sketchfab/sketchfab.parquet",
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/github/github.parquet",
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/smithsonian/smithsonian.parquet",
        ],
        "paths or URLs",
        "parquet or CSV: fileIdentifier, source, license, fileType, sha256, metadata",
        runtime=True,
    )


class Curation(Section):
    """Which objects of an annotated source are taken. What an annotation does not say refuses nothing but a licence."""

    licenses: list[str] = _key(
        [], "names", "allowed, as the source writes them: by, by-sa, by-nc, by-nc-sa, cc0; empty: all", runtime=True
    )
    min_faces: int = _key(0, "faces", "at least", runtime=True, ge=0)
    max_faces: int | None = _key(None, "faces", "at most", runtime=True, ge=1)
    max_file_mb: float | None = _key(None, "MB", "at most, as the annotation says", runtime=True, gt=0)
    animated: Literal["any", "no", "only"] = _key("any", "name", "objects with animations", runtime=True)
    textured: Literal["any", "no", "only"] = _key("any", "name", "objects with textures", runtime=True)
    table: str | None = _key(None, "path", "CSV with a column `key` and columns of your own", runtime=True)
    key: Literal["uid", "sha256", "file_identifier"] = _key(
        "uid", "column", "by which the table names an object; an object it does not name is refused", runtime=True
    )
    where: list[Annotated[str, StringConstraints(pattern=WHERE_PATTERN)]] = _key(
        [],
        "rules",
        "COLUMN OP VALUE over the table's columns, such as aesthetic_score >= 5.5 or style in a|b",
        runtime=True,
    )
    max_objects: int | None = _key(
        None,
        "objects",
        "at most so many, chosen by a hash of the uid; LVIS test objects come on top",
        runtime=True,
        ge=1,
    )


class Catalog(Section):
    """Which objects there are. Frozen shards keep what they were frozen with."""

    source: Literal["procedural", "folder", "objaverse", "objaverse_xl", "modelnet40", "modelnet10", "splats"] = _key(
        "procedural", "name", "where objects come from", runtime=True
    )
    shard_objects: int = _key(1024, "objects", "objects in a new shard", runtime=True, ge=1, le=100_000)
    validation_fraction: float = _key(
        0.1, "fraction", "share of groups for choosing checkpoints", assumed=True, runtime=True, ge=0, lt=0.5
    )
    test_fraction: float = _key(
        0.2, "fraction", "share of groups never trained on", assumed=True, runtime=True, ge=0, lt=0.5
    )
    procedural: Procedural = _section(Procedural)
    folder: Folder = _section(Folder)
    objaverse: Objaverse = _section(Objaverse)
    objaverse_xl: ObjaverseXL = _section(ObjaverseXL)
    curation: Curation = _section(Curation)
    modelnet: ModelNet = _section(ModelNet)
    splats: SplatFolder = _section(SplatFolder)
    downloads: Downloads = _section(Downloads)


class Meshes(Section):
    """What is read from a mesh file, and what is refused."""

    max_file_mb: int = _key(512, "MB", "larger files are failed rows", ge=1)
    max_faces: int = _key(2_000_000, "triangles", "meshes with more are failed rows", ge=1)
    max_texture_pixels: int = _key(67_108_864, "pixels", "larger textures (8192 x 8192) are failed rows", ge=1)
    neutral_color: tuple[float, float, float] = _key(
        (0.7, 0.7, 0.7), "sRGB in [0, 1]", "colour of a mesh that has none", assumed=True, strict=False
    )


class PointCloud(Section):
    """Points on the surface, which a fit starts from."""

    count: int = _key(20_000, "points", "points an object", assumed=True, ge=100, le=1_000_000)


class Views(Section):
    """Posed pictures of the mesh, which a fit learns from."""

    pixels: int = _key(256, "pixels", "width and height of a picture", assumed=True, ge=16, le=2048)
    supersample: int = _key(
        2, "factor", "drawn so much wider and higher, and averaged: edges without steps", assumed=True, ge=1, le=4
    )
    count: int = _key(36, "views", "pictures to fit", ge=4, le=360)
    held_out: int = _key(4, "views", "pictures between them, to measure quality", ge=1, le=100)
    fov_degrees: float = _key(40.0, "degrees", "field of view", assumed=True, gt=5, lt=120)
    distance: float = _key(
        2.54, "longest sides", "camera to centre; nothing is cut off from 2.54 on", assumed=True, gt=1, lt=20
    )


# How long a fit takes, and the learning rates that suit it: the paper's steps; the quality of the usual way of fitting
# in as few steps as it takes; what a laptop's CPU does in a minute.
FIT_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"steps": 5_000, "lr_factor": 2.0},
    "fast": {"steps": 1_500, "lr_factor": 4.0},
    "demo": {"steps": 1_500, "lr_factor": 3.0},
}


def _or_null(kind: str) -> WithJsonSchema:
    """In a file the value may be null: it is then the preset's."""
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "null"}]})


class Fit(Section):
    """One splat an object, by gradient descent on its views."""

    gaussians: int = _key(10_000, "Gaussians", "a fixed number an object", ge=16, le=200_000)
    # Left out of a stage's settings: what it stands for is there.
    preset: Literal["paper", "fast", "demo"] = _key(
        "paper", "name", "what `steps` and `lr_factor` are where they are null", exclude=True
    )
    steps: Annotated[int, _or_null("integer")] = _key(
        None, "steps", "steps of Adam, one view each; null: the preset's", ge=1, le=100_000
    )
    ssim_weight: float = _key(0.2, "weight", "loss (1 - w) L1 + w (1 - SSIM)", assumed=True, ge=0, le=1)
    alpha_weight: float = _key(0.2, "weight", "of the L1 between the alphas", assumed=True, ge=0)
    random_ground: bool = _key(True, "switch", "a random ground colour each step, against floaters", assumed=True)
    schedule: Literal["cosine", "constant"] = _key(
        "cosine", "name", "of the learning rates; cosine ends at 5 %", assumed=True
    )
    lr_factor: Annotated[float, _or_null("number")] = _key(
        None, "factor", "on all learning rates; null: the preset's", assumed=True, gt=0
    )
    lr_means: float = _key(8e-5, "a step", "learning rate of the positions", assumed=True, gt=0)
    lr_scales: float = _key(1e-2, "a step", "learning rate of the log-scales", assumed=True, gt=0)
    lr_quats: float = _key(3e-3, "a step", "learning rate of the quaternions", assumed=True, gt=0)
    lr_opacities: float = _key(2.5e-2, "a step", "learning rate of the opacity logits", assumed=True, gt=0)
    lr_colors: float = _key(2e-2, "a step", "learning rate of the colour logits", assumed=True, gt=0)
    disc_spacing: float = _key(0.8, "spacings", "first radius of a Gaussian", assumed=True, gt=0)
    disc_thickness: float = _key(0.1, "of the radius", "first thickness along the normal", assumed=True, gt=0, le=1)
    disc_opacity: float = _key(0.6, "alpha", "first opacity", assumed=True, gt=0, lt=1)
    relocate_below: float = _key(
        0.005, "alpha", "more transparent Gaussians are moved to where they help", assumed=True, ge=0, lt=1
    )
    prune_below: float = _key(
        0.004,
        "alpha",
        "more transparent Gaussians are not written; under 1/255 none is drawn",
        assumed=True,
        ge=0,
        lt=1,
    )
    min_psnr: float = _key(20.0, "dB", "held-out quality below this is a failed row", assumed=True, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = FIT_PRESETS.get(str(values.get("preset", "paper")), {})
        return {**values, **{name: value for name, value in preset.items() if values.get(name) is None}}


class Render(Section):
    """The 36 pictures of the splat."""

    pixels: int = _key(256, "pixels", "width and height", assumed=True, ge=16, le=2048)
    webp_quality: int = _key(90, "0 to 100", "of the WebP", assumed=True, ge=0, le=100)


class Coca(Section):
    """The model that writes captions of pictures, for `coca` and `consensus`."""

    name: str = _key("coca_ViT-L-14", "name", "of a CoCa of open_clip, or local-dir:FOLDER", assumed=True, min_length=1)
    pretrained: str = _key(
        "mscoco_finetuned_laion2b_s13b_b90k",
        "tag or path",
        "open_clip's tag, or a .safetensors or .pt file; local-dir brings its own",
        assumed=True,
        min_length=1,
    )
    views: int = _key(8, "pictures", "of an object that it sees, spread over all that show it", assumed=True, ge=1)
    candidates: int = _key(5, "captions", "it writes of each of them", assumed=True, ge=1, le=100)
    top_p: float = _key(
        0.9, "probability", "the next word is drawn from the likeliest that sum up to it", assumed=True, gt=0, le=1
    )

    @property
    def files(self) -> list[str]:
        """As `Teacher.files`."""
        return _model_files(self.name, self.pretrained)


class Caption(Section):
    """Where the text of a triplet comes from."""

    captioner: Literal["catalog", "cap3d", "coca", "consensus"] = _key(
        "catalog",
        "name",
        "catalog: the source's own text; cap3d: a CSV of captions; coca: a model writes some of the pictures and keeps "
        "what it likes best; consensus: what the teacher likes best",
    )
    cap3d: str | None = _key(
        None, "path or URL", "CSV of uid and caption, as Cap3D publishes it; with or without a header"
    )
    fallback: Literal["catalog", "fail", "coca", "consensus"] = _key(
        "catalog", "name", "what an object gets that the CSV does not list: another captioner's text, or a failed row"
    )
    max_characters: int = _key(300, "characters", "longer captions are cut at a word", assumed=True, ge=16)
    min_score: float | None = _key(
        None,
        "cosine",
        "a caption is marked where the teacher finds it less like the object's pictures, in the mean; null: not judged",
        assumed=True,
        ge=-1,
        le=1,
    )
    coca: Coca = _section(Coca)

    @property
    def writer(self) -> str | None:
        """Which of `coca` and `consensus` writes captions of pictures, if any."""
        name = self.fallback if self.captioner == "cap3d" else self.captioner
        return name if name in ("coca", "consensus") else None

    @property
    def uses_teacher(self) -> bool:
        """The teacher scores captions, against the features of the pictures."""
        return self.writer == "consensus" or self.min_score is not None


def _model_files(name: str, pretrained: str | None) -> list[str]:
    """Files of the user's that hold a model of open_clip: another file there is another model."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        suffixes = (".json", ".safetensors", ".pt", ".pth", ".bin")
        return [str(path) for path in sorted(folder.glob("*")) if path.suffix in suffixes]
    path = Path(pretrained or "").expanduser()
    return [str(path)] if path.is_file() else []


class SmallTeacher(Section):
    """The small model of `name: train`: about 64 px and 12 M parameters, trained on the training split's renders."""

    steps: int = _key(2_000, "steps", "of AdamW", assumed=True, ge=1, le=1_000_000)
    batch: int = _key(256, "objects", "a step, no two of one text", assumed=True, ge=2, le=65_536)
    category_steps: float = _key(
        0.5,
        "fraction",
        "of the steps that show objects with their category instead of the caption",
        assumed=True,
        ge=0,
        le=1,
    )
    learning_rate: float = _key(1e-3, "a step", "the highest; it rises, then falls along a cosine", assumed=True, gt=0)
    weight_decay: float = _key(0.1, "a step", "of weights, not of biases and norms", assumed=True, ge=0)
    max_objects: int = _key(
        10_000, "objects", "at most so many are learnt from, chosen by a hash of the uid", assumed=True, ge=2
    )


class Teacher(Section):
    """The frozen CLIP in whose space the splats shall lie: any model of open_clip, run once over all triplets."""

    name: str = _key(
        "EVA02-E-14-plus",
        "name",
        "of an open_clip model, or local-dir:FOLDER; train: a small one is trained on these objects",
        assumed=True,
        min_length=1,
    )
    pretrained: str | None = _key(
        "laion2b_s9b_b144k",
        "tag or path",
        "open_clip's tag, or a .safetensors or .pt file; train and local-dir bring their own",
        assumed=True,
        min_length=1,
    )
    images: Literal["splats", "meshes"] = _key(
        "splats", "name", "which pictures it sees: renders of the splats, or the views that these were fitted to"
    )
    precision: Literal["auto", "float32", "bfloat16"] = _key(
        "auto", "name", "auto: bfloat16 on CUDA, float32 on a CPU", assumed=True
    )
    batch: int = _key(256, "pictures", "at once on a GPU; fewer where memory runs out", runtime=True, ge=1, le=65_536)
    small: SmallTeacher = _section(SmallTeacher)

    @property
    def slug(self) -> str:
        """Folder of its features under `features/`: the name and the tag, or the file's name."""
        if self.name == "train":
            return SMALL_TEACHER
        scheme, _, place = self.name.rpartition(":")
        name = Path(place).resolve().name if scheme == "local-dir" else place
        tag = "" if scheme or not self.pretrained else f"-{Path(self.pretrained).name}"
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name + tag).strip("-.") or "teacher"

    @property
    def files(self) -> list[str]:
        """Files of the user's that hold it; the small teacher is none of them."""
        return [] if self.name == "train" else _model_files(self.name, self.pretrained)


class Pack(Section):
    """The dataset: tars, index, card."""

    title: str = _key("clipgs triplets", "text", "heading of the dataset card")
    samples: int = _key(24, "objects", "in the contact sheet", ge=0, le=400)


class Encoder(Section):
    """CLIP-GS: a splat to an embedding in the teacher's space."""

    size: Literal["tiny", "small", "base", "large", "giant"] = _key(
        "base", "name", "of the transformer, as Uni3D's: 6, 23, 88, 307 or 1,017 M parameters"
    )
    gaussians: int = _key(
        10_000, "Gaussians", "most that are read of an object; of more, those farthest apart", assumed=True, ge=16
    )
    groups: int = _key(512, "patches", "of an object", assumed=True, ge=1, le=4096)
    group_size: int = _key(64, "Gaussians", "in a patch", assumed=True, ge=1, le=1024)
    min_opacity: float = _key(0.05, "alpha", "more transparent Gaussians are left out", assumed=True, ge=0, lt=1)
    radius_fraction: float = _key(
        0.99, "fraction", "of the Gaussians lie within radius 1; 1 as in Uni3D", assumed=True, gt=0.5, le=1
    )
    outlier_radii: float = _key(2.0, "radii", "Gaussians farther from the median are left out", assumed=True, ge=1)
    attributes: list[Literal["position", "color", "opacity", "scale", "rotation"]] = _key(
        ["position", "color", "opacity", "scale", "rotation"],
        "names",
        "what is read of a Gaussian besides the patch's centre; what is left out is zero",
    )
    point_attributes: Literal["position_color", "all"] = _key(
        "position_color", "name", "what branch one reads; all: those of branch two, with weights that start at zero"
    )
    refinement: bool = _key(True, "switch", "branch two, the GS Refinement Block")
    refinement_width: int = _key(256, "channels", "of its convolutions", assumed=True, ge=8, le=4096)
    orders: list[Literal["xyz", "z", "z-trans", "hilbert", "hilbert-trans"]] = _key(
        ["xyz", "hilbert", "z"], "names", "along which its convolutions run", assumed=True, min_length=1
    )
    order_fusion: Literal["average", "concatenate", "sample"] = _key(
        "average", "name", "what becomes of the orders; sample: one an object and step, all when encoding", assumed=True
    )
    order_depth: int = _key(10, "bits", "of a cell's coordinates", assumed=True, ge=1, le=16)
    batch_norm: Literal["sync", "local", "frozen"] = _key(
        "sync", "name", "statistics of all processes' batches, of each one's own, or the start's", assumed=True
    )
    drop_path: float = _key(
        0.2, "fraction", "of the last block's branches left out in training, less before", assumed=True, ge=0, lt=1
    )
    patch_dropout: float = _key(0.5, "fraction", "of the patches left out in training", assumed=True, ge=0, lt=1)
    initialisation: Literal["uni3d", "eva02", "points", "none"] = _key(
        "none", "name", "first weights: Uni3D's, timm's image model, our own point encoder's (a run), or random ones"
    )
    weights: str | None = _key(
        None, "path", "their file, or for points the run's folder; eva02 without one: timm's own download"
    )


class Baselines(Section):
    """Files of other people's models, to be measured on the same objects; null: the row stays empty."""

    uni3d: str | None = _key(None, "path", "checkpoint of Uni3D")
    openshape: str | None = _key(None, "path", "checkpoint of OpenShape's PointBERT")
    ulip2: str | None = _key(None, "path", "checkpoint of ULIP-2's coloured PointBERT")
    eva02_e_14_plus: str | None = _key(None, "path", "weights of Uni3D's teacher EVA02-E-14-plus; download: fetch them")
    vit_bigg_14: str | None = _key(
        None, "path", "weights of OpenShape's and ULIP-2's teacher ViT-bigG-14; download: fetch them"
    )


class Evaluation(Section):
    """How well a run does: retrieval, zero-shot and few-shot classification. Protocols: docs/protocols.md."""

    split: Literal["test", "validation", "train", "all"] = _key(
        "test", "name", "whose objects are the gallery, and are asked about"
    )
    pictures: list[Literal["splats", "meshes"]] = _key(
        ["splats", "meshes"],
        "names",
        "whose pictures are asked with; those that the teacher has not seen go through it now, if they are kept",
        min_length=1,
    )
    per: Literal["object", "group"] = _key(
        "object", "name", "gallery: every object, or one of each group of one shape", assumed=True
    )
    seed: int = _key(0, "seed", "of pictures that stand for objects, episodes and intervals", ge=0)
    resamples: int = _key(1000, "samples", "of the bootstrap, for intervals", ge=2, le=100_000)
    templates: str | None = _key(
        None, "path", "prompts for the names of classes: lines with {}; default: our own", assumed=True
    )
    classes: str | None = _key(
        None,
        "path",
        "names of the classes, one a line; default: those of LVIS for Objaverse, else all categories there are",
    )
    class_names: Literal["spoken", "raw"] = _key(
        "spoken", "name", "spoken: teddy bear for teddy_bear; raw: as the names are", assumed=True
    )
    few_shot: list[Annotated[str, StringConstraints(pattern=r"^[1-9]\d*-way [1-9]\d*-shot$")]] = _key(
        ["5-way 5-shot", "10-way 5-shot", "20-way 5-shot", "50-way 5-shot", "10-way 10-shot"],
        "cells",
        "episodes of so many classes with so many objects of each to learn from",
    )
    few_shot_support: Literal["train", "same"] = _key(
        "train", "name", "which split is learnt from; same: the one that is asked about, other groups", assumed=True
    )
    few_shot_queries: int = _key(20, "objects", "asked about of each class, or what there is", ge=1, le=10_000)
    few_shot_strict: bool = _key(False, "switch", "leave out classes with fewer")
    few_shot_epochs: int = _key(
        30,
        "epochs",
        "of fine-tuning the encoder on an episode's objects; 0: only a classifier on its frozen embeddings",
        assumed=True,
        ge=0,
        le=10_000,
    )
    few_shot_lr: float = _key(1e-4, "a step", "largest learning rate of fine-tuning", assumed=True, gt=0)
    baselines: Baselines = _section(Baselines)
    examples: int = _key(8, "queries", "of each kind shown with their nearest objects", ge=0, le=100)


class Ablations(Section):
    """Runs that differ in one thing, trained and evaluated alike: one table."""

    rows: list[str] = _key(
        ["uni3d", "position-color", "all-attributes", "tokenizer", "voting"],
        "names",
        "the paper's five by default; docs/protocols.md lists all: orders, K, first weights, Gaussians, captions",
        min_length=1,
    )
    seeds: list[int] = _key([0, 1, 2], "seeds", "each row is trained with each of them", min_length=1)


class Report(Section):
    """The page of what was made: pictures, tables, curves, and splats to turn."""

    run: bool = _key(True, "switch", "with the configured run, trained and evaluated for it; false: of what there is")
    splats: int = _key(6, "splats", "that can be turned on the page", ge=0, le=50)
    samples: int = _key(6, "objects", "shown as the best, and as many as the worst", ge=0, le=100)


class Augmentation(Section):
    """What an object is turned into, anew each time it is seen."""

    rotation: Literal["none", "y", "full"] = _key(
        "y", "name", "y: by any angle about the vertical; full: any rotation", assumed=True
    )
    tilt_sigma: float = _key(
        0.06, "radians", "a small rotation about each axis on top, standard deviation", assumed=True, ge=0
    )
    tilt_clip: float = _key(0.18, "radians", "and its largest", assumed=True, ge=0, le=3.2)
    scale_min: float = _key(0.8, "factor", "smallest size, the same along all axes", assumed=True, gt=0)
    scale_max: float = _key(1.25, "factor", "largest size", assumed=True, gt=0)
    shift: float = _key(0.1, "radii", "largest shift along each axis", assumed=True, ge=0)
    color_dropout: float = _key(0.5, "probability", "of an object that loses its colours", assumed=True, ge=0, le=1)


class Training(Section):
    """CLIP-GS, trained on the triplets and their features: one run."""

    run: str = _key(
        "base", "name", "the run's folder under runs/", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$"
    )
    seed: int = _key(0, "seed", "of the weights, the order, the views and the augmentation", ge=0)
    epochs: int = _key(50, "epochs", "how often each object is seen", assumed=True, ge=1, le=100_000)
    batch: int = _key(
        1024,
        "objects",
        "in a step, over all GPUs: each is contrasted with all others",
        assumed=True,
        ge=1,
        le=1_000_000,
    )
    micro_batch: int = _key(
        256, "objects", "on a GPU at once; a larger share is computed in parts, and contrasted whole", ge=1
    )
    views: int = _key(5, "views", "pictures of each object in a step: K", ge=1, le=360)
    image_weight: float = _key(1.0, "weight", "loss L_text + w L_img", ge=0)
    score_norm: Literal["none", "mean_one", "softmax"] = _key(
        "none",
        "name",
        "weight S of a view: its cosine with the text; over the mean of the object's views; or their softmax",
        assumed=True,
    )
    duplicate_captions: Literal["mask", "paper"] = _key(
        "mask", "name", "mask: objects of the same caption are no negatives of each other's text", assumed=True
    )
    lr: float = _key(5e-4, "a step", "largest learning rate of AdamW", assumed=True, gt=0)
    layer_decay: float = _key(
        0.95, "factor", "on the learning rate of each earlier block of the transformer", assumed=True, gt=0, le=1
    )
    weight_decay: float = _key(0.1, "a step", "of AdamW, on matrices", assumed=True, ge=0)
    warmup_epochs: float = _key(
        2.0, "epochs", "of a growing learning rate, before it falls along a cosine", assumed=True, ge=0
    )
    clip_norm: float = _key(5.0, "norm", "largest gradient of a step", assumed=True, gt=0)
    precision: Literal["bf16", "fp32"] = _key("bf16", "name", "of the arithmetic on CUDA; a CPU computes in fp32")
    logit_scale: float = _key(14.2857, "factor", "on the cosines at the start; it is learnt", assumed=True, gt=0)
    validate_epochs: int = _key(1, "epochs", "between two looks at the validation split", ge=1)
    augmentation: Augmentation = _section(Augmentation)


class Workers(Section):
    """Processes and limits. Nothing here changes a result."""

    threads: int = _key(0, "processes", "most a job uses; 0: all cores of the run", runtime=True, ge=0, le=1024)
    load_timeout_seconds: int = _key(300, "s", "for loading, sampling or rendering one mesh", runtime=True, ge=1)
    load_memory_mb: int = _key(1500, "MB", "one mesh may take", runtime=True, ge=400)
    fit_timeout_seconds: int = _key(7200, "s", "for fitting one object on a CPU", runtime=True, ge=1)
    fit_memory_mb: int = _key(1000, "MB", "one fit on a CPU may take", runtime=True, ge=500)
    checkpoint_steps: int = _key(500, "steps", "between two states that training can go on from", runtime=True, ge=1)
    loaders: int = _key(4, "threads", "that read ahead of training", runtime=True, ge=1, le=256)
    gpus: int = _key(0, "GPUs", "of this machine that training uses; 0: all", runtime=True, ge=0)
    compile: bool = _key(True, "switch", "torch.compile the encoder on CUDA", runtime=True)
    ablations: int = _key(
        0, "runs", "of an ablation at once, which share the GPUs; 0: one a GPU", runtime=True, ge=0, le=64
    )
    max_failed_fraction: float = _key(
        0.9, "fraction", "a shard of 100 objects or more fails as a whole above it", runtime=True, gt=0, le=1
    )


class Config(Section):
    """All settings."""

    output: str = _key("results", "path", "everything that is made goes here", runtime=True, min_length=1)
    cache: str | None = _key(
        None, "path", "downloads and generated meshes, shared by all runs; default: ~/.cache/clipgs", runtime=True
    )
    seed: int = _key(0, "seed", "of every random choice, together with stage and uid", ge=0)
    device: Literal["auto", "cpu", "cuda"] = _key("auto", "name", "auto: cuda where there is one", runtime=True)
    temporary: list[Literal["points", "views"]] = _key(
        [], "stages", "files that are dropped when the splats are fitted: a later fit makes them again", runtime=True
    )
    catalog: Catalog = _section(Catalog)
    meshes: Meshes = _section(Meshes)
    points: PointCloud = _section(PointCloud)
    views: Views = _section(Views)
    fit: Fit = _section(Fit)
    render: Render = _section(Render)
    caption: Caption = _section(Caption)
    pack: Pack = _section(Pack)
    teacher: Teacher = _section(Teacher)
    encoder: Encoder = _section(Encoder)
    training: Training = _section(Training)
    evaluation: Evaluation = _section(Evaluation)
    ablations: Ablations = _section(Ablations)
    report: Report = _section(Report)
    workers: Workers = _section(Workers)

    @property
    def output_path(self) -> Path:
        return Path(self.output)

    @property
    def cache_path(self) -> Path:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(self.cache).expanduser() if self.cache else Path(home) / "clipgs"


# What each stage's result depends on: a version, raised when the code of the stage changes what it makes, and keys.
# Objects, views and captions of earlier stages reach a stage through its input files.
STAGES: dict[str, tuple[int, tuple[str, ...]]] = {
    "label": (1, ()),
    "objects": (1, ()),
    "fetch": (1, ("seed", "meshes.max_file_mb", "catalog.splats.max_gaussians")),
    "sample": (1, ("seed", "catalog.folder.up_axis", "meshes", "points")),
    "view": (1, ("seed", "catalog.folder.up_axis", "meshes", "views")),
    "fit": (1, ("seed", "catalog.splats.up_axis", "catalog.splats.box_fraction", "views", "fit")),
    "render": (1, ("render", "views.count", "views.fov_degrees", "views.distance")),
    "caption": (2, ("caption",)),  # with what its pictures and their judge depend on, see `_caption_keys`
    "pack": (
        2,
        (
            "catalog.folder.up_axis",
            "catalog.splats.up_axis",
            "views.count",
            "views.fov_degrees",
            "views.distance",
            "render.pixels",
        ),
    ),
    "index": (1, ("pack",)),
    "teacher": (1, ("seed", "teacher.small")),
    "embed-images": (1, ("views.count", *(f"teacher.{key}" for key in ("name", "pretrained", "images", "precision")))),
    "embed-texts": (1, tuple(f"teacher.{key}" for key in ("name", "pretrained", "images", "precision"))),
    "train": (
        1,
        ("encoder", "training", *(f"teacher.{key}" for key in ("name", "pretrained", "images", "precision"))),
    ),
    "embed-shapes": (1, ("training.run",)),
    "evaluate": (
        1,
        (
            "evaluation",
            "training.run",
            "views.count",
            *(f"teacher.{key}" for key in ("name", "pretrained", "images", "precision")),
        ),
    ),
    "baselines": (1, ("evaluation", "training.run", "views.count", "teacher")),
    "ablations": (1, ("evaluation", "ablations", "encoder", "training", "views.count", "teacher")),
    "report": (1, ("report", "pack.title", "views.pixels", "views.held_out")),
}


def stage_settings(config: Config, stage: str, **more: str) -> str:
    """The part of the configuration that a stage's result depends on, as canonical JSON with the stage's version.

    It is the only param of the stage's rule, and `from_settings` reads it back.
    """
    version, keys = STAGES[stage]
    if stage == "caption":
        keys += _caption_keys(config)
    picked: dict[str, Any] = {}
    values = config.model_dump(mode="json")
    for key in keys:
        *parents, last = key.split(".")
        target, source = picked, values
        for parent in parents:
            target, source = target.setdefault(parent, {}), source[parent]
        target[last] = source[last]
    return canonical_json({"stage": stage, "version": version, **more, **picked})


def _caption_keys(config: Config) -> tuple[str, ...]:
    """What captions depend on besides their own section: pictures and teacher count only where they are looked at."""
    keys: tuple[str, ...] = ()
    if config.caption.writer:
        keys += ("seed", "views.count", "teacher.images")
    if config.caption.uses_teacher:
        keys += tuple(f"teacher.{key}" for key in ("name", "pretrained", "images", "precision"))
    return tuple(dict.fromkeys(keys))


def runtime_settings(config: Config) -> str:
    """The keys that change no result, as canonical JSON: what a command needs besides its stage's settings."""

    def pick(section: Section) -> dict[str, Any]:
        picked = {}
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, Section):
                picked[name] = pick(value)
            elif field.json_schema_extra["runtime"]:  # type: ignore[index]
                picked[name] = value
        return {name: value for name, value in picked.items() if value != {} or name == "columns"}

    return canonical_json(pick(config))


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; later layers win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def check(values: dict[str, Any], where: str = "config") -> Config:
    """Makes a `Config` of nested mappings.

    Raises:
        UsageError: one line with the key, what is allowed and the nearest right name.
    """
    try:
        config = Config.model_validate(_typed(Config, values))
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error.errors()[0])}") from None
    if config.caption.uses_teacher and config.teacher.name == "train":
        key = "min_score" if config.caption.writer != "consensus" else "captioner"
        raise UsageError(
            f"{where}: caption.{key} needs a teacher, and teacher.name = train is trained on the captions themselves; "
            "name a model of open_clip in teacher.name"
        )
    return config


def _typed(model: type[BaseModel], values: Any) -> Any:
    """The values with numbers, switches and nulls that came as text: Snakemake's `--config` nests only strings."""
    if not isinstance(values, dict):
        return values
    typed = dict(values)
    for name, field in model.model_fields.items():
        value = typed.get(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if name in typed:
                typed[name] = _typed(field.annotation, value)
        elif isinstance(value, str) and (value in ("null", "None") or str not in _scalar_types(field.annotation)):
            typed[name] = _scalar(value)
        elif isinstance(value, list) and float in _scalar_types(field.annotation):
            typed[name] = [_scalar(item) if isinstance(item, str) else item for item in value]
    return typed


def _scalar(text: str) -> Any:
    for read in (int, float, yaml.safe_load):  # YAML takes 1e-3 for text
        try:
            return read(text)
        except (ValueError, yaml.YAMLError):
            continue
    return text


def _scalar_types(annotation: Any) -> set[Any]:
    arguments = get_args(annotation)
    if not arguments:
        return {annotation}
    return {type(argument) if isinstance(argument, str) else argument for argument in arguments}


# What a stage's settings hold besides the keys: what else its result, or its running again, depends on.
_BESIDES = frozenset({"stage", "version", "labels", "curation", "captions", "excluded", "retry"})


def from_settings(*layers: str) -> Config:
    """Reads what `stage_settings` and `runtime_settings` wrote."""
    values = merge(*(json.loads(layer) for layer in layers))
    return check({key: value for key, value in values.items() if key not in _BESIDES})


def read(*paths: str | Path) -> Config:
    """Reads YAML files over the defaults, later ones winning.

    Raises:
        UsageError: a file is missing, is not YAML, or has a wrong key or value.
    """
    layers = []
    for path in paths:
        try:
            layer = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(layer, dict):
            raise UsageError(f"{path} must hold keys and values, not a {type(layer).__name__}")
        layers.append(layer)
    return check(merge(*layers), where=" + ".join(str(path) for path in paths) or "config")


def _field(path: tuple[str, ...]) -> FieldInfo | None:
    model: Any = Config
    field = None
    for name in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            break
        field = model.model_fields[name]
        model = field.annotation
    return field


def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _explain(error: Any) -> str:
    path = tuple(str(part) for part in error["loc"])
    dotted = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = setting_names()
        sections = {name.rsplit(".", i)[0] for name in known for i in range(name.count(".") + 1)}
        near = difflib.get_close_matches(dotted, sorted(sections | set(known)), n=1, cutoff=0.3)
        same = [name for name in known if name.rsplit(".", 1)[-1] == path[-1]]  # right key, wrong section
        nearest = same[:1] or near
        siblings = sorted(
            {
                name[len(dotted) - len(path[-1]) :].split(".")[0]
                for name in known
                if name.startswith(dotted[: len(dotted) - len(path[-1])])
            }
        )
        return (
            f"{dotted} is not a key"
            + (f"; did you mean {nearest[0]}?" if nearest else "")
            + f" (allowed here: {', '.join(siblings)})"
        )
    message = error["msg"][0].lower() + error["msg"][1:]
    field = _field(path)
    extra = (field.json_schema_extra if field else None) or {}
    text = f"{dotted} = {json.dumps(error['input'], default=str)}: {message}"
    if field is not None and field.description and extra:
        text += f" ({extra['unit']}: {field.description})"
    allowed = get_args(field.annotation) if field is not None else ()
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = difflib.get_close_matches(error["input"], [str(value) for value in allowed], n=1)
        text += f"; did you mean {near[0]}?" if near else ""
    return text


def schema() -> str:
    """The JSON schema of the configuration, for editors that check YAML against one."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def to_yaml(overrides: dict[str, Any] | None = None) -> str:
    """The whole configuration as commented YAML: every key with its value, unit and meaning.

    A value in `overrides` (nested) stands instead of the default, with the default in its comment.
    """
    lines = []

    def write(model: type[BaseModel], depth: int, override: dict[str, Any]) -> None:
        for name, field in model.model_fields.items():
            indent = "  " * depth
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                lines.append(
                    f"{indent}{name}:  # {field.description}" if depth else f"\n{name}:  # {field.description}"
                )
                write(field.annotation, depth + 1, override.get(name, {}))
                continue
            default = field.get_default(call_default_factory=True)
            default = list(default) if isinstance(default, tuple) else default
            extra: Any = field.json_schema_extra
            comment = f"{extra['unit']}: {field.description}"
            choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
            comment += f" ({' | '.join(choices)})" if choices else ""
            if name in override:
                comment += f"; default {json.dumps(default)}"
            comment += "  # assumed" if extra["assumed"] else ""
            lines.append(f"{indent}{name}: {json.dumps(override.get(name, default))}  # {comment}")

    write(Config, 0, overrides or {})
    return "\n".join(lines).lstrip() + "\n"
