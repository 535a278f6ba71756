"""The section `catalog`."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from clipgs.config.fields import Section, section, setting

WHERE_PATTERN = r"^\s*(\S.*?)\s*(<=|>=|!=|=|<|>|\sin\s)\s*(.+?)\s*$"  # a rule of catalog.curation.where


class Procedural(Section):
    """Built-in objects, which clipgs generates itself."""

    objects: int = setting(24, "objects", runtime=True, ge=1, le=10_000_000)
    """This many objects are generated. The number can be raised later."""


class Folder(Section):
    """A folder of mesh files: .glb .gltf .obj .ply .stl .off .dae .3mf, .fbx .blend .abc (converter), .usd* (extra)."""

    path: str | None = setting(None, "path", runtime=True)
    """The meshes are read from this folder, or from a glob such as meshes/**/*.glb. `source: folder` needs it."""
    manifest: str | None = setting(None, "path", runtime=True)
    """This CSV lists the files to take. It has any of the columns file, uid, category, text, license, credit, page,
    group, split. Without `file`, a row is of the file that its uid names. null means all files, with labels from
    folder and file names."""
    columns: dict[str, str] = setting({}, "names", runtime=True)
    """This maps our column names to those of the manifest, for example {text: caption}."""
    text_from_name: bool = setting(True, "true or false", runtime=True)
    """A file in a subfolder gets its text from its own name where that says more than the category. false means that it
    gets none. A file outside any subfolder always gets its name."""
    up_axis: Literal["auto", "y", "z"] = setting("auto", "axis")
    """This axis points up in .obj, .ply, .stl and .off files. auto means z in the .ply and .stl files that say that
    Blender wrote them, and y in all others. The other formats say it."""


class ModelNet(Section):
    """ModelNet40 or ModelNet10, with the published test split."""

    path: str | None = setting(None, "path or URL", runtime=True)
    """ModelNet is read from this folder of CLASS/train/NAME.off, or from this archive (ModelNet40.zip). null means that
    the published archive is downloaded."""


class SplatFolder(Section):
    """A folder of ready splats of any program, which are rendered and packed, but not fitted."""

    path: str | None = setting(None, "path", runtime=True)
    """The splats are read from this folder, a glob such as splats/**/*.ply, or this file. They are .ply, .spz, .sog,
    .splat, .ksplat, .glb, .gltf or torch files, or pictures beside a meta.json, also in .zip and .tar files. `source:
    splats` needs it."""
    manifest: str | None = setting(None, "path", runtime=True)
    """This CSV or parquet file lists the files to take, as `folder.manifest` does."""
    columns: dict[str, str] = setting({}, "names", runtime=True)
    """This maps our column names to those of the manifest, as `folder.columns` does."""
    up_axis: Literal["y", "-y", "z"] = setting("y", "axis")
    """This axis points up in the files, except in .glb and .gltf. It is -y in most splats of photographs."""
    max_gaussians: int = setting(200_000, "Gaussians", ge=1, le=1_000_000)
    """A splat with more Gaussians is recorded as failed."""
    box_fraction: float = setting(0.99, "fraction", assumed=True, gt=0.5, le=1)
    """The core of a splat holds this share of its visible Gaussians along each axis. Gaussians far outside the core do
    not count for the size of the splat."""


class Downloads(Section):
    """Where files are downloaded from, and how fast."""

    endpoint: str | None = setting(None, "URL", runtime=True)
    """Files are downloaded from this mirror, which may be a file:// folder. null means the source's own host."""
    token_variable: str = setting("HF_TOKEN", "name", runtime=True)
    """This environment variable holds the access token, if the source needs one."""
    parallel: int = setting(8, "downloads", runtime=True, ge=1, le=256)
    """A job downloads this many files at the same time."""
    per_second: float = setting(20.0, "requests per second", runtime=True, gt=0)
    """A job sends at most this many requests per second."""
    retries: int = setting(6, "times", runtime=True, ge=0, le=50)
    """A download is tried again this many times after a temporary error, with growing pauses."""
    timeout_seconds: float = setting(60.0, "seconds", runtime=True, gt=0)
    """A download is tried again if no byte arrives for this long."""


class Objaverse(Section):
    """Objaverse 1.0, 798,759 GLB files with annotations."""

    subset: Literal["all", "lvis", "list"] = setting("all", "name", runtime=True)
    """`all` takes every object, `lvis` those with an LVIS category, and `list` those in the file `uids`."""
    uids: str | None = setting(None, "path", runtime=True)
    """This text or CSV file lists one uid per line. `subset: list` needs it."""
    categories: list[str] = setting([], "names", runtime=True)
    """`subset: lvis` takes these LVIS categories. An empty list means all."""
    lvis: Literal["test", "train"] = setting("test", "name", runtime=True)
    """`test` keeps LVIS objects for the test split, which has no others. `train` splits them like any object."""
    hashes: str | None = setting(None, "path or URL", runtime=True)
    """This table (Objaverse-XL's sketchfab.parquet) has the SHA-256 of each file, by which re-uploads are found before
    the download. null means that they are not found."""
    root: str = setting("~/.objaverse", "path", runtime=True)
    """This is the cache of the objaverse package. Its files are used, and never changed."""


class ObjaverseXL(Section):
    """Objaverse-XL, listed by its annotation tables; `objaverse.lvis` and `objaverse.root` apply too."""

    tables: list[str] = setting(
        [
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/sketchfab/sketchfab.parquet",
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/github/github.parquet",
            "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main/smithsonian/smithsonian.parquet",
        ],
        "paths or URLs",
        runtime=True,
    )
    """These parquet or CSV files list the objects, with the columns fileIdentifier, source, license, fileType, sha256
    and metadata."""


class Curation(Section):
    """Rules that choose objects of Objaverse and Objaverse-XL; only `licenses` refuses unknown values."""

    licenses: list[str] = setting([], "names", runtime=True)
    """Only objects with these licences are taken, in the source's spelling: by, by-sa, by-nc, by-nc-sa, cc0. An empty
    list means all."""
    min_faces: int = setting(0, "faces", runtime=True, ge=0)
    """An object with fewer faces is left out."""
    max_faces: int | None = setting(None, "faces", runtime=True, ge=1)
    """An object with more faces is left out. null means no limit."""
    max_file_mb: float | None = setting(None, "MB", runtime=True, gt=0)
    """An object with a larger file is left out. null means no limit."""
    animated: Literal["any", "no", "only"] = setting("any", "name", runtime=True)
    """`any` takes all objects, `no` leaves out objects with animations, and `only` takes no others."""
    textured: Literal["any", "no", "only"] = setting("any", "name", runtime=True)
    """`any` takes all objects, `no` leaves out objects with textures, and `only` takes no others."""
    table: str | None = setting(None, "path", runtime=True)
    """Only objects in this CSV are taken. It has the column `key`, and others for `where`. null means no table."""
    key: Literal["uid", "sha256", "file_identifier"] = setting("uid", "column", runtime=True)
    """The table names its objects in this column."""
    where: list[Annotated[str, StringConstraints(pattern=WHERE_PATTERN)]] = setting([], "rules", runtime=True)
    """Each rule COLUMN OP VALUE must hold for an object's row of the table, such as aesthetic_score >= 5.5 or style in
    a|b. OP is =, !=, <, <=, >, >= or in."""
    max_objects: int | None = setting(None, "objects", runtime=True, ge=1)
    """At most this many objects are taken, by a hash of the uid. LVIS test objects do not count. null means no
    limit."""


class Catalog(Section):
    """The objects of the dataset and their splits; a shard that is frozen keeps its objects."""

    source: Literal["procedural", "folder", "objaverse", "objaverse_xl", "modelnet40", "modelnet10", "splats"] = (
        setting("procedural", "name", runtime=True)
    )
    """The objects come from this source."""
    shard_objects: int = setting(1024, "objects", runtime=True, ge=1, le=100_000)
    """A new shard holds up to this many objects."""
    validation_fraction: float = setting(0.1, "fraction", assumed=True, runtime=True, ge=0, lt=0.5)
    """This share of the groups (objects of the same shape) is the validation split, on which checkpoints are chosen."""
    test_fraction: float = setting(0.2, "fraction", assumed=True, runtime=True, ge=0, lt=0.5)
    """This share of the groups is the test split, never trained on. Sources with their own test split ignore it."""
    allow_missing: bool = setting(False, "true or false", runtime=True)
    """The run goes on with what was made if more than half of the known objects have gone from the source. false means
    that it stops then, because the source may not be mounted."""
    procedural: Procedural = section(Procedural)
    folder: Folder = section(Folder)
    objaverse: Objaverse = section(Objaverse)
    objaverse_xl: ObjaverseXL = section(ObjaverseXL)
    curation: Curation = section(Curation)
    modelnet: ModelNet = section(ModelNet)
    splats: SplatFolder = section(SplatFolder)
    downloads: Downloads = section(Downloads)
