"""The dataset card: what the triplets are, how good they are, who made the meshes, and what failed."""

import csv
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import yaml

from clipgs.catalog.excluded import EXCLUDED
from clipgs.config import Pack
from clipgs.core.bundles import read_table
from clipgs.core.files import check, write_bytes
from clipgs.core.lists import counted
from clipgs.core.runner import Row
from clipgs.splats.pictures import from_image
from clipgs.triplets.contact_sheet import Sample, contact_sheet
from clipgs.triplets.dataset import TripletDataset, best_render
from clipgs.triplets.licenses import hub_license
from clipgs.triplets.pack import read_rows, schema

SHOWN_NAMES = 60  # of categories and caption sources
SHOWN_FAILURES = 30
FAILURE_COLUMNS = ("stage", "reason", "the first file", "objects")
SHOWN_CREDITS = 500  # the page would be slow to open with more; CREDITS.csv has all
_ENGLISH_WRITERS = ("Cap3D", "CoCa", "CoCa, chosen by the teacher")  # of captions; other texts are their authors'
_ENGLISH_SOURCES = ("procedural", "modelnet40", "modelnet10")


def write_card(
    folder: Path,
    tables: Sequence[Path],
    views: Mapping[str, Path],
    settings: Pack,
    curation: Mapping[str, Any] = MappingProxyType({}),
    cut: str = "",
) -> None:
    """Writes README.md, CREDITS.csv, quality.png and contact_sheet.png beside the index and the shards' tars.

    Args:
        folder: `triplets/` of the output, with the merged index.
        tables: `triplets/S.parquet` of every shard.
        views: `views/S.parquet` of every shard, with a picture of each mesh.
        curation: `catalog/curation.json`: which rules chose the objects, and how many each left out.
        cut: what is to be said of captions that are longer than the teacher reads.

    Raises:
        ClipgsError: a tar is missing or damaged.
    """
    rows = read_rows(tables)
    packed = [row for row in rows if row["status"] == "ok"]
    write_bytes(folder / "CREDITS.csv", _credits(packed))
    write_bytes(folder / "quality.png", _histogram([row["psnr"] for row in packed if row["psnr"] is not None]))
    sheet = io.BytesIO()
    contact_sheet(list(_samples(folder, packed, views, settings.samples)), settings.title).save(sheet, "PNG")
    write_bytes(folder / "contact_sheet.png", sheet.getvalue())
    dataset = TripletDataset(folder)
    members = dataset.members(len(dataset) - 1) if len(dataset) else {}  # of the newest shard
    write_bytes(folder / "README.md", readme(rows, settings.title, curation, members, cut).encode())


def readme(
    rows: Sequence[Row],
    title: str,
    curation: Mapping[str, Any] = MappingProxyType({}),
    members: Mapping[str, bytes] = MappingProxyType({}),
    cut: str = "",
) -> str:
    """The card's text, for the rows of all shards' tables and the files of one object."""
    packed = [row for row in rows if row["status"] == "ok"]
    english = (row.get("caption_source") in _ENGLISH_WRITERS or row.get("source") in _ENGLISH_SOURCES for row in packed)
    front = {
        "pretty_name": title,
        "license": sorted({hub_license(row["license"]) for row in packed}) or ["unknown"],
        **({"language": ["en"]} if packed and all(english) else {}),
        "task_categories": ["text-to-3d", "image-to-3d"],
        "tags": ["3d", "gaussian-splatting", "webdataset", "clipgs"],
        "size_categories": [_size_category(len(packed))],
        # What `datasets` loads: the tars alone, of which it would take the types from the first five objects.
        "configs": [{"config_name": "default", "data_files": "[0-9]*.tar"}],
        **({"dataset_info": {"config_name": "default", "features": _features(members)}} if members else {}),
    }
    sections = [
        "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=None) + "---",
        f"# {escape(title)}",
        "Triplets of a 3D Gaussian splat, pictures of it from all around and a caption, made from 3D meshes.",
        _table(["", ""], _facts(rows, packed)),
        "## Samples\n\n![Of each object the mesh beside its splat](contact_sheet.png)",
        "## Quality\n\n" + _quality_section(packed),
        *_selection(curation),
        "## Captions\n\n" + _captions(packed) + (f"\n\n{escape(cut)}" if cut else ""),
        "## Categories\n\n" + _counts("category", (row["category"] or "none" for row in packed), SHOWN_NAMES),
        "## Failures\n\n" + _failures(row for row in rows if row["status"] != "ok"),
        "## Licences\n\n"
        "The splats and pictures are derived from the meshes and stand under the licence of each mesh.\n\n"
        + _counts("licence", (row["license"] or "not stated" for row in packed)),
        "## Credit\n\n" + _credit_list(packed),
        HOW_TO_READ,
    ]
    return "\n\n".join(sections) + "\n"


def _features(members: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The columns of `datasets` and their types, as the files of one object tell them.

    Named here, because its own guess fails on values that are null in the first objects, and takes `ply` for a mesh.
    """
    types = {"webp": "image", "ply": "binary", "txt": "string"}
    features = []
    for name, data in members.items():
        column = name.partition(".")[2]
        kind = {"dtype": types[column[-4:].lstrip(".")]} if column != "json" else _kind(column, json.loads(data))
        features.append({"name": column, **kind})
    return [*features, *({"name": name, "dtype": "string"} for name in ("__key__", "__url__"))]


def _kind(name: str, value: Any) -> dict[str, Any]:
    """The type of a value of `uid.json`: that of the index's column of this name, since the value may be null."""
    if isinstance(value, dict):
        return {"struct": [{"name": key, **_kind(key, inner)} for key, inner in value.items()]}
    if isinstance(value, list):
        inner = _kind(name, value[0])
        return {"list": inner.get("dtype", inner)}
    columns = schema()
    if name in columns.names:
        return {"dtype": str(columns.field(name).type).replace("double", "float64")}
    return {"dtype": {int: "int64", float: "float64"}.get(type(value), "string")}


HOW_TO_READ = """## How to read it

`index.parquet` has a row for every object. A glob over `*.parquet` counts objects twice, because the tables of the
shards lie beside it. Each shard is a WebDataset tar with, for every object, `uid.ply`
(the splat, as viewers read it; rows in farthest-point order), `uid.00.webp` and so on (pictures from the
canonical cameras), `uid.txt` (the caption) and `uid.json` (file, licence, credit, quality, cameras and how the
mesh was normalised).

```python
from clipgs.triplets import TripletDataset

triplet = TripletDataset("triplets", split="train")[0]
triplet["gaussians"].means  # [N, 3]
triplet["images"]  # [V, H, W, 3] uint8
triplet["text"]
```

```python
import datasets
from clipgs import Gaussians

triplet = datasets.load_dataset("triplets", split="train")[0]  # all objects: their splits stand in `json`
triplet["00.webp"], triplet["txt"], triplet["json"]["split"]
Gaussians.from_ply(triplet["ply"])  # the bytes of a PLY
```

Load the folder by its name, as here: then the head of this file tells the types. With
`load_dataset("webdataset", data_files=...)`, `datasets` guesses them and decodes `ply` as a bare point cloud.
`.cast_column("ply", datasets.Mesh(decode=False))`, or `.decode(False)` of a streamed dataset, leaves the splat's bytes.

```python
import webdataset

for sample in webdataset.WebDataset("triplets/00000.tar", shardshuffle=False):
    sample["__key__"], sample["ply"], sample["00.webp"], sample["txt"], sample["json"]
```"""


def escape(text: str) -> str:
    """Text from the data as Markdown that shows it as it is: no markup, no HTML, no line break."""
    plain = html.escape(" ".join(text.split()), quote=False)
    plain = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", plain)
    # An address without its colon or dot is no link: the data cannot make one.
    return re.sub(r"(?i)\b(https?|ftp|www)([:.])", lambda found: f"{found[1]}&#{ord(found[2])};", plain)


def _table(head: Sequence[str], lines: Iterable[Sequence[str | int]]) -> str:
    def shown(cell: str | int) -> str:
        return f"{cell:,}" if isinstance(cell, int) else escape(cell)

    return "\n".join(f"| {' | '.join(map(shown, cells))} |" for cells in (head, ["---"] * len(head), *lines))


def _counts(what: str, names: Iterable[str], shown: int | None = None) -> str:
    ordered = by_count(names)
    text, rest = _table([what, "objects"], ordered[:shown]), ordered[shown or len(ordered) :]
    return text + (f"\n\nand {len(rest):,} more with {counted(sum(n for _, n in rest), 'object')}." if rest else "")


def by_count(names: Iterable[str]) -> list[tuple[str, int]]:
    """Each name and how often it occurs: the commonest first, equally common ones by name."""
    return sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))


class Failure(NamedTuple):
    """Objects that failed at one stage for one reason."""

    stage: str
    reason: str
    first: str  # the source file of one of them; empty where it may not be named, or is not known
    objects: int


def failures(rows: Iterable[Row]) -> list[Failure]:
    """Failed objects by stage and reason, the commonest first; reasons that differ only in numbers are one.

    What was excluded is not named: its author may have asked for it.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        row = row | {"error": row["error"] or "no reason given"}
        key = (row["stage"], re.sub(r"\b[0-9a-f]{16}\b|\d+(?:\.\d+)?", "\N{HORIZONTAL ELLIPSIS}", row["error"]))
        groups.setdefault(key, []).append(row)
    found = []
    for (stage, pattern), group in groups.items():
        reason = group[0]["error"] if len({row["error"] for row in group}) == 1 else pattern
        first = "" if reason.startswith(EXCLUDED) else min(row.get("file") or "" for row in group)
        found.append(Failure(stage, reason, first, len(group)))
    return sorted(found, key=lambda failure: (-failure.objects, failure.stage, failure.reason))


def _facts(rows: Sequence[Row], packed: Sequence[Row]) -> Iterator[tuple[str, str | int]]:
    splits = Counter(row["split"] or "none" for row in packed)
    yield "objects in the catalog", len(rows)
    yield "triplets", len(packed)
    yield "failed", len(rows) - len(packed)
    yield "splits", ", ".join(f"{name} {count:,}" for name, count in sorted(splits.items()))
    yield "shards", len({row["shard"] for row in packed})
    if ready := sum(row["psnr"] is None for row in packed):
        yield "ready splats, not fitted here", ready
    if packed:
        counts = [row["gaussians"] for row in packed]
        yield "Gaussians an object", f"{np.mean(counts):,.0f} ({min(counts):,} to {max(counts):,})"
        yield "size", f"{sum(row['bytes'] for row in packed) / 1e6:,.1f} MB"


def _selection(curation: Mapping[str, Any]) -> list[str]:
    """The section that says which rules chose the objects, if any did."""
    if not curation.get("rules"):
        return []
    rules = {name: json.dumps(value) for name, value in curation["rules"].items() if value not in (None, [], {})}
    refused = curation["refused"]
    lvis = f" ({curation['lvis']:,} of them LVIS shapes)" if "lvis" in curation else ""
    taken = f"{curation['taken']:,} objects taken{lvis}, {sum(refused.values()):,} left out."
    tables = _table(["left out by", "objects"], refused.items()), _table(["rule", "value"], rules.items())
    return [f"## Selection\n\nOf {escape(curation['source'])}: {taken}", *tables]


def _quality_section(packed: Sequence[Row]) -> str:
    head, lines = quality(packed)
    if packed and not lines:
        return "Not known: all are ready splats, which came without views to hold them against."
    text = "On views that no splat was fitted to, over a white ground.\n\n![Histogram of the PSNR](quality.png)\n\n"
    text += _table(head, lines)
    if marked := sum(row.get("view_note") is not None for row in packed):
        text += (
            f"\n\nThe meshes of {counted(marked, 'object')} may have been read wrongly: a material file is missing, or "
            "their pictures and the points on their surface differ. The column `view_note` of `index.parquet` says it."
        )
    return text


def quality(packed: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table: mean, percentiles and median of each quality measure that is known."""
    columns = {
        "PSNR, dB": ("psnr", ".2f"),
        "PSNR of the foreground, dB": ("psnr_foreground", ".2f"),
        "SSIM": ("ssim", ".4f"),
        "overlap of the silhouettes (IoU)": ("alpha_iou", ".4f"),
    }
    lines = []
    for label, (name, form) in columns.items():
        values = [row[name] for row in packed if row[name] is not None]
        if values:
            numbers = (np.mean(values), *np.percentile(values, (5, 50, 95)))
            lines.append([label, *(format(number, form) for number in numbers)])
    return ["", "mean", "5th percentile", "median", "95th percentile"], lines


def _captions(packed: Sequence[Row]) -> str:
    text = _counts("source", (row.get("caption_source") or "not stated" for row in packed), SHOWN_NAMES)
    scores = [row["caption_score"] for row in packed if row.get("caption_score") is not None]
    if not scores:
        return text
    marked = sum(row.get("caption_note") is not None for row in packed)
    low, median = np.percentile(scores, (5, 50))
    return (
        f"{text}\n\nA caption's score is its mean cosine with its own pictures in the teacher's space: "
        f"median {median:.3f}, 5th percentile {low:.3f}. {marked:,} of {len(scores):,} are marked as too unlike their "
        "object, in the column `caption_note` of `index.parquet`."
    )


def _failures(failed: Iterable[Row]) -> str:
    found = failures(failed)
    if not found:
        return "None."
    text, rest = _table(FAILURE_COLUMNS, found[:SHOWN_FAILURES]), found[SHOWN_FAILURES:]
    count = sum(failure.objects for failure in rest)
    return text + (f"\n\nand {counted(count, 'object')} for {counted(len(rest), 'rarer reason')}." if rest else "")


def _credit_list(packed: Sequence[Row]) -> str:
    credits = Counter((row["license"] or "not stated", row["credit"]) for row in packed if row["credit"])
    text = "`CREDITS.csv` has file, licence, credit and page of every object."
    if not credits:
        return text + " No object states whom to credit."
    if len(credits) > SHOWN_CREDITS:
        return text + f" Its {len(credits):,} different credits are too many for this page."
    lines = [(credit, license, count) for (license, credit), count in credits.items()]
    lines.sort(key=lambda line: (line[1], line[0].casefold(), line[0]))
    return text + "\n\n" + _table(["credit", "licence", "objects"], lines)


def _size_category(count: int) -> str:
    if count < 1000:
        return "n<1K"
    steps = ["1K", "10K", "100K", "1M", "10M", "100M"]
    step = min(int(np.log10(count)) - 3, len(steps) - 2)
    return f"{steps[step]}<n<{steps[step + 1]}"


def _credits(packed: Sequence[Row]) -> bytes:
    text = io.StringIO()
    columns = ("uid", "file", "category", "license", "credit", "page")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(packed)
    return text.getvalue().encode()


def _histogram(psnr: Sequence[float]) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(), io.BytesIO() as buffer:
        matplotlib.rcdefaults()  # a user's style would change the bytes
        figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        if psnr:
            low, high = np.floor(min(psnr)), max(np.ceil(max(psnr)), np.floor(min(psnr)) + 1)
            axes.hist(psnr, bins=np.arange(low, high + 0.5).tolist(), color="#4c78a8", edgecolor="white", linewidth=0.6)
            mean = float(np.mean(psnr))
            axes.axvline(mean, color="#333333", linewidth=1, linestyle="--")
            axes.set_title(f"{len(psnr):,} objects, mean {mean:.1f} dB", loc="left", fontsize=10)
            axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.set_xlabel("PSNR on held-out views, dB")
        axes.set_ylabel("objects")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly over the categories."""
    ordered = sorted(rows, key=lambda row: (row["category"] or "", row["uid"]))
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)]


def _samples(folder: Path, packed: Sequence[Row], views: Mapping[str, Path], limit: int) -> Iterable[Sample]:
    chosen = spread(packed, limit)
    wanted = {row["uid"] for row in chosen}
    dataset = TripletDataset(folder)
    place_of = {uid: i for i, uid in enumerate(dataset.uids)}
    meshes: dict[str, bytes] = {}
    for shard in sorted({row["shard"] for row in chosen}):
        check(views[shard])
        thumbnails = read_table(views[shard], ["uid", "thumbnail"])
        meshes |= {row["uid"]: row["thumbnail"] for row in thumbnails if row["uid"] in wanted}
    for row in chosen:
        uid = row["uid"]
        members = dataset.members(place_of[uid])
        splat = from_image(best_render(uid, members))
        # The mesh's place stays white for a ready splat, which has no mesh.
        mesh = from_image(meshes[uid]) if meshes.get(uid) else np.full_like(splat, 255)
        yield Sample(mesh, splat, members[f"{uid}.txt"].decode(), row["psnr"])
