"""The section `catalog`."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from clipgs.config.fields import Section, section, setting

WHERE_PATTERN = r"^\s*(\S.*?)\s*(<=|>=|!=|=|<|>|\sin\s)\s*(.+?)\s*$"  # a rule of catalog.curation.where


class Procedural(Section):
    """Built-in objects, made from a seed."""

    objects: int = setting(24, "objects", "how many; more can be added later", runtime=True, ge=1, le=10_000_000)


class Folder(Section):
    """A folder of mesh files: .glb .gltf .obj .ply .stl .off."""

    path: str | None = setting(None, "path", "the folder, or a glob such as meshes/**/*.glb", runtime=True)
    manifest: str | None = setting(
        None,
        "path",
        "CSV with any of file, uid, category, text, license, credit, page, group, split",
        runtime=True,
    )
    columns: dict[str, str] = setting(
        {}, "names", "our name: the manifest's name, for instance text: caption", runtime=True
    )
    up_axis: Literal["y", "z"] = setting(
        "y", "axis", "which axis of .obj .ply .stl .off files points up; glTF is always y"
    )


class ModelNet(Section):
    """ModelNet40 or ModelNet10, with its own split."""

    path: str | None = setting(
        None,
        "path or URL",
        "the folder of CLASS/train/NAME.off, or the published archive (ModelNet40.zip); default: download it",
        runtime=True,
    )


class SplatFolder(Section):
    """A folder of ready splats: 3DGS PLY files of any program. They are pictured and packed, never fitted."""

    path: str | None = setting(None, "path", "the folder, or a glob such as splats/**/*.ply", runtime=True)
    manifest: str | None = setting(None, "path", "CSV, as that of `folder`", runtime=True)
    columns: dict[str, str] = setting({}, "names", "our name: the manifest's name", runtime=True)
    up_axis: Literal["y", "-y", "z"] = setting(
        "y", "axis", "which axis of the files points up; -y in most splats of photographs"
    )
    max_gaussians: int = setting(200_000, "Gaussians", "splats with more are failed rows", ge=1, le=1_000_000)
    box_fraction: float = setting(
        0.99,
        "fraction",
        "of the visible Gaussians along each axis in the core; what lies far outside it does not set the size",
        assumed=True,
        gt=0.5,
        le=1,
    )


class Downloads(Section):
    """How files are fetched from the network."""

    endpoint: str | None = setting(
        None, "URL", "a mirror or proxy in the place of the source's own address; file:// works", runtime=True
    )
    token_variable: str = setting(
        "HF_TOKEN", "name", "environment variable that holds the token, where one is needed", runtime=True
    )
    parallel: int = setting(8, "downloads", "at once, in one job", runtime=True, ge=1, le=256)
    per_second: float = setting(20.0, "requests", "most a second, in one job", runtime=True, gt=0)
    retries: int = setting(6, "times", "after a failure that may pass, with growing pauses", runtime=True, ge=0, le=50)
    timeout_seconds: float = setting(60.0, "s", "without a byte", runtime=True, gt=0)


class Objaverse(Section):
    """Objaverse 1.0: 798,759 GLB files with annotations."""

    subset: Literal["all", "lvis", "list"] = setting(
        "all", "name", "lvis: the objects that have an LVIS category; list: those named in `uids`", runtime=True
    )
    uids: str | None = setting(None, "path", "text or CSV file with one uid a line, for `subset: list`", runtime=True)
    categories: list[str] = setting(
        [], "names", "LVIS categories to take, for `subset: lvis`; empty: all", runtime=True
    )
    lvis: Literal["test", "train"] = setting(
        "test", "name", "test: LVIS objects are never trained on, and no others are tested on", runtime=True
    )
    hashes: str | None = setting(
        None,
        "path or URL",
        "Objaverse-XL's sketchfab.parquet: SHA-256 of each file, which finds re-uploads before the download",
        runtime=True,
    )
    root: str = setting("~/.objaverse", "path", "cache of the objaverse package: read, never written", runtime=True)


class ObjaverseXL(Section):
    """Objaverse-XL, from its annotation tables with their SHA-256. `objaverse.lvis` and `objaverse.root` hold too."""

    tables: list[str] = setting(
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

    licenses: list[str] = setting(
        [], "names", "allowed, as the source writes them: by, by-sa, by-nc, by-nc-sa, cc0; empty: all", runtime=True
    )
    min_faces: int = setting(0, "faces", "at least", runtime=True, ge=0)
    max_faces: int | None = setting(None, "faces", "at most", runtime=True, ge=1)
    max_file_mb: float | None = setting(None, "MB", "at most, as the annotation says", runtime=True, gt=0)
    animated: Literal["any", "no", "only"] = setting("any", "name", "objects with animations", runtime=True)
    textured: Literal["any", "no", "only"] = setting("any", "name", "objects with textures", runtime=True)
    table: str | None = setting(None, "path", "CSV with a column `key` and columns of your own", runtime=True)
    key: Literal["uid", "sha256", "file_identifier"] = setting(
        "uid", "column", "by which the table names an object; an object it does not name is refused", runtime=True
    )
    where: list[Annotated[str, StringConstraints(pattern=WHERE_PATTERN)]] = setting(
        [],
        "rules",
        "COLUMN OP VALUE over the table's columns, such as aesthetic_score >= 5.5 or style in a|b",
        runtime=True,
    )
    max_objects: int | None = setting(
        None,
        "objects",
        "at most so many, chosen by a hash of the uid; LVIS test objects come on top",
        runtime=True,
        ge=1,
    )


class Catalog(Section):
    """Which objects there are. Frozen shards keep what they were frozen with."""

    source: Literal["procedural", "folder", "objaverse", "objaverse_xl", "modelnet40", "modelnet10", "splats"] = (
        setting("procedural", "name", "where objects come from", runtime=True)
    )
    shard_objects: int = setting(1024, "objects", "objects in a new shard", runtime=True, ge=1, le=100_000)
    validation_fraction: float = setting(
        0.1, "fraction", "share of groups for choosing checkpoints", assumed=True, runtime=True, ge=0, lt=0.5
    )
    test_fraction: float = setting(
        0.2, "fraction", "share of groups never trained on", assumed=True, runtime=True, ge=0, lt=0.5
    )
    procedural: Procedural = section(Procedural)
    folder: Folder = section(Folder)
    objaverse: Objaverse = section(Objaverse)
    objaverse_xl: ObjaverseXL = section(ObjaverseXL)
    curation: Curation = section(Curation)
    modelnet: ModelNet = section(ModelNet)
    splats: SplatFolder = section(SplatFolder)
    downloads: Downloads = section(Downloads)
