"""The section `catalog`."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from clipgs.config.fields import Section, section, setting

WHERE_PATTERN = r"^\s*(\S.*?)\s*(<=|>=|!=|=|<|>|\sin\s)\s*(.+?)\s*$"  # a rule of catalog.curation.where


class Procedural(Section):
    """Built-in objects, which clipgs generates itself."""

    objects: int = setting(
        24,
        "objects",
        "This many objects are generated. The number can be raised later.",
        runtime=True,
        ge=1,
        le=10_000_000,
    )


class Folder(Section):
    """A folder of mesh files (.glb .gltf .obj .ply .stl .off)."""

    path: str | None = setting(
        None,
        "path",
        "The meshes are read from this folder, or from a glob such as meshes/**/*.glb. `source: folder` needs it.",
        runtime=True,
    )
    manifest: str | None = setting(
        None,
        "path",
        "This CSV lists the files to take. It has any of the columns file, uid, category, text, license, "
        "credit, page, group, split. null means all files, with labels from folder and file names.",
        runtime=True,
    )
    columns: dict[str, str] = setting(
        {},
        "names",
        "This maps our column names to those of the manifest, for example {text: caption}.",
        runtime=True,
    )
    up_axis: Literal["y", "z"] = setting(
        "y", "axis", "This axis points up in .obj, .ply, .stl and .off files. In glTF files it is always y."
    )


class ModelNet(Section):
    """ModelNet40 or ModelNet10, with the published test split."""

    path: str | None = setting(
        None,
        "path or URL",
        "ModelNet is read from this folder of CLASS/train/NAME.off, or from this archive (ModelNet40.zip). "
        "null means that the published archive is downloaded.",
        runtime=True,
    )


class SplatFolder(Section):
    """A folder of ready splats (3DGS PLY files of any program), which are rendered and packed, but not fitted."""

    path: str | None = setting(
        None,
        "path",
        "The splats are read from this folder, or from a glob such as splats/**/*.ply. `source: splats` needs it.",
        runtime=True,
    )
    manifest: str | None = setting(
        None, "path", "This CSV lists the files to take, as `folder.manifest` does.", runtime=True
    )
    columns: dict[str, str] = setting(
        {},
        "names",
        "This maps our column names to those of the manifest, as `folder.columns` does.",
        runtime=True,
    )
    up_axis: Literal["y", "-y", "z"] = setting(
        "y", "axis", "This axis points up in the files. It is -y in most splats of photographs."
    )
    max_gaussians: int = setting(
        200_000, "Gaussians", "A splat with more Gaussians is recorded as failed.", ge=1, le=1_000_000
    )
    box_fraction: float = setting(
        0.99,
        "fraction",
        "The core of a splat holds this share of its visible Gaussians along each axis. Gaussians far "
        "outside the core do not count for the size of the splat.",
        assumed=True,
        gt=0.5,
        le=1,
    )


class Downloads(Section):
    """Where files are downloaded from, and how fast."""

    endpoint: str | None = setting(
        None,
        "URL",
        "Files are downloaded from this mirror, which may be a file:// folder. null means the source's own host.",
        runtime=True,
    )
    token_variable: str = setting(
        "HF_TOKEN", "name", "This environment variable holds the access token, if the source needs one.", runtime=True
    )
    parallel: int = setting(
        8, "downloads", "A job downloads this many files at the same time.", runtime=True, ge=1, le=256
    )
    per_second: float = setting(
        20.0, "requests per second", "A job sends at most this many requests per second.", runtime=True, gt=0
    )
    retries: int = setting(
        6,
        "times",
        "A download is tried again this many times after a temporary error, with growing pauses.",
        runtime=True,
        ge=0,
        le=50,
    )
    timeout_seconds: float = setting(
        60.0, "seconds", "A download is tried again if no byte arrives for this long.", runtime=True, gt=0
    )


class Objaverse(Section):
    """Objaverse 1.0, 798,759 GLB files with annotations."""

    subset: Literal["all", "lvis", "list"] = setting(
        "all",
        "name",
        "`all` takes every object, `lvis` those with an LVIS category, and `list` those in the file `uids`.",
        runtime=True,
    )
    uids: str | None = setting(
        None, "path", "This text or CSV file lists one uid per line. `subset: list` needs it.", runtime=True
    )
    categories: list[str] = setting(
        [], "names", "`subset: lvis` takes these LVIS categories. An empty list means all.", runtime=True
    )
    lvis: Literal["test", "train"] = setting(
        "test",
        "name",
        "`test` keeps LVIS objects for the test split, which has no others. `train` splits them like any object.",
        runtime=True,
    )
    hashes: str | None = setting(
        None,
        "path or URL",
        "This table (Objaverse-XL's sketchfab.parquet) has the SHA-256 of each file, by which re-uploads are "
        "found before the download. null means that they are not found.",
        runtime=True,
    )
    root: str = setting(
        "~/.objaverse",
        "path",
        "This is the cache of the objaverse package. Its files are used, and never changed.",
        runtime=True,
    )


class ObjaverseXL(Section):
    """Objaverse-XL, listed by its annotation tables; `objaverse.lvis` and `objaverse.root` apply too."""

    tables: list[str] = setting(
        [
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/sketchfab/sketchfab.parquet",
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/github/github.parquet",
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/smithsonian/smithsonian.parquet",
        ],
        "paths or URLs",
        "These parquet or CSV files list the objects, with the columns fileIdentifier, source, license, "
        "fileType, sha256 and metadata.",
        runtime=True,
    )


class Curation(Section):
    """Rules that choose objects of Objaverse and Objaverse-XL; only `licenses` refuses unknown values."""

    licenses: list[str] = setting(
        [],
        "names",
        "Only objects with these licences are taken, in the source's spelling: by, by-sa, by-nc, by-nc-sa, "
        "cc0. An empty list means all.",
        runtime=True,
    )
    min_faces: int = setting(0, "faces", "An object with fewer faces is left out.", runtime=True, ge=0)
    max_faces: int | None = setting(
        None, "faces", "An object with more faces is left out. null means no limit.", runtime=True, ge=1
    )
    max_file_mb: float | None = setting(
        None, "MB", "An object with a larger file is left out. null means no limit.", runtime=True, gt=0
    )
    animated: Literal["any", "no", "only"] = setting(
        "any",
        "name",
        "`any` takes all objects, `no` leaves out objects with animations, and `only` takes no others.",
        runtime=True,
    )
    textured: Literal["any", "no", "only"] = setting(
        "any",
        "name",
        "`any` takes all objects, `no` leaves out objects with textures, and `only` takes no others.",
        runtime=True,
    )
    table: str | None = setting(
        None,
        "path",
        "Only objects in this CSV are taken. It has the column `key`, and others for `where`. null means no table.",
        runtime=True,
    )
    key: Literal["uid", "sha256", "file_identifier"] = setting(
        "uid", "column", "The table names its objects in this column.", runtime=True
    )
    where: list[Annotated[str, StringConstraints(pattern=WHERE_PATTERN)]] = setting(
        [],
        "rules",
        "Each rule COLUMN OP VALUE must hold for an object's row of the table, such as aesthetic_score >= "
        "5.5 or style in a|b. OP is =, !=, <, <=, >, >= or in.",
        runtime=True,
    )
    max_objects: int | None = setting(
        None,
        "objects",
        "At most this many objects are taken, by a hash of the uid. LVIS test objects do not count. null "
        "means no limit.",
        runtime=True,
        ge=1,
    )


class Catalog(Section):
    """The objects of the dataset and their splits; a shard that is frozen keeps its objects."""

    source: Literal["procedural", "folder", "objaverse", "objaverse_xl", "modelnet40", "modelnet10", "splats"] = (
        setting("procedural", "name", "The objects come from this source.", runtime=True)
    )
    shard_objects: int = setting(
        1024, "objects", "A new shard holds up to this many objects.", runtime=True, ge=1, le=100_000
    )
    validation_fraction: float = setting(
        0.1,
        "fraction",
        "This share of the groups (objects of the same shape) is the validation split, on which checkpoints "
        "are chosen.",
        assumed=True,
        runtime=True,
        ge=0,
        lt=0.5,
    )
    test_fraction: float = setting(
        0.2,
        "fraction",
        "This share of the groups is the test split, never trained on. Sources with their own test split ignore it.",
        assumed=True,
        runtime=True,
        ge=0,
        lt=0.5,
    )
    procedural: Procedural = section(Procedural)
    folder: Folder = section(Folder)
    objaverse: Objaverse = section(Objaverse)
    objaverse_xl: ObjaverseXL = section(ObjaverseXL)
    curation: Curation = section(Curation)
    modelnet: ModelNet = section(ModelNet)
    splats: SplatFolder = section(SplatFolder)
    downloads: Downloads = section(Downloads)
