"""The report: one HTML page of what was made and how good it is, with pictures, plots and splats that can be turned.

The page is one file that opens from disk and asks no network for anything: styles, script, pictures and splats are in
it. A content security policy allows just that script and that style sheet, by their hashes, and there are no handlers
in the markup; every text that comes from data is escaped, and links lead only to http and https.
"""

import base64
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from clipgs import __version__
from clipgs.catalog.shards import frozen_shards
from clipgs.config import SMALL_TEACHER, Config
from clipgs.core.bundles import read_metadata, read_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check, write_bytes
from clipgs.core.runner import path
from clipgs.evaluation.ablations import ABLATION
from clipgs.meshes.cameras import showing
from clipgs.report import plots
from clipgs.triplets.card import failures, quality
from clipgs.triplets.pack import all_rows

log = logging.getLogger(__name__)

Row = dict[str, Any]

MAX_GAUSSIANS = 30_000  # of a splat on the page, the largest and most opaque: 1 MB
SHOWN_FAILURES = 30
SHOWN_CATEGORIES = 15
SHOWN_CLASSES = 18  # in the confusion of classes
SHOWN_POINTS = 2000  # of the projection
NEAREST = 5
LONG_TEXT = 60  # characters of a cell that gets room
NARROW_COLUMNS = 3  # of a table that a phone shows as one
BASELINE_NUMBERS = {
    "text_to_3d": "text to 3D R@1, %",
    "text_from_3d": "3D to text R@1, %",
    "image_to_3d": "image to 3D R@1, %",
    "image_from_3d": "3D to image R@1, %",
    "zero_shot": "zero-shot top-1, %",
    "few_shot": "few-shot, %",
}
PALE = "\N{EN DASH}"


def report(config: Config) -> None:
    """Writes `report/index.html` of all that the output holds: triplets, and the runs and evaluations there are.

    Raises:
        ClipgsError: there are no packed triplets, or a file is damaged.
    """
    folder = config.output_path / "triplets"
    shards = frozen_shards(config)
    tables = [path(config, "triplets", shard, ".parquet") for shard in shards]
    if not tables:
        raise ClipgsError(f"{folder} holds no triplets; make them with: snakemake triplets")
    for file in tables:
        check(file)
    table = all_rows(tables).sort_by([("shard", "ascending"), ("uid", "ascending")])
    rows = table.drop_columns(["source", "group", "offset", "sha256"]).to_pylist()
    packed = [row for row in rows if row["status"] == "ok"]
    pictures = Pictures(config, {row["uid"]: row for row in packed})
    results = Results(config.output_path)
    sections = [
        ("splats", "Turn a splat", _viewer(config, packed, pictures)),
        ("objects", "Objects", _objects(packed)),
        ("failures", "Failures", _failures([row for row in rows if row["status"] != "ok"])),
        ("quality", "Quality", _quality(config, packed, pictures)),
        ("training", "Training", _training(config.output_path)),
        ("retrieval", "Retrieval", _retrieval(results, pictures)),
        ("zero-shot", "Zero-shot classification", _zero_shot(results)),
        ("few-shot", "Few-shot classification", _few_shot(results)),
        ("baselines", "Baselines", _baselines(results)),
        ("ablations", "Ablations", _ablations(results)),
        ("embedding", "The embedding", _embedding(config, results, pictures)),
    ]
    sections.append(("credit", "Credit", _credit(pictures)))
    head = _tiles(rows, packed, results) + _of_small_teacher(results)
    html = page(config.pack.title, head, [part for part in sections if part[2]])
    write_bytes(config.output_path / "report" / "index.html", html.encode())
    log.info("report: %s (%.1f MB)", config.output_path / "report" / "index.html", len(html) / 1e6)


def page(title: str, head: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page.

    Args:
        title: text.
        head: HTML under the title.
        sections: id, heading (text) and HTML of each.
    """
    style, script = (asset.read_text(encoding="utf-8") for asset in (_asset("page.css"), _asset("viewer.js")))
    allowed = (
        f"default-src 'none'; img-src data:; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections)
    body = "\n".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>\n{html}</section>' for name, heading, html in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{head}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>Made by clipgs {escape(__version__)}. How every number is defined: docs/protocols.md.</footer>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> Any:
    return files("clipgs.report") / "assets" / name


def _source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Pictures:
    """Pictures of objects as data addresses, and which objects were shown."""

    def __init__(self, config: Config, rows: Mapping[str, Row]) -> None:
        from clipgs.triplets.dataset import TripletDataset

        self.rows = rows
        self.shown: dict[str, None] = {}
        self._config = config
        self._dataset = TripletDataset(config.output_path / "triplets") if rows else None
        self._place = {uid: i for i, uid in enumerate(self._dataset.uids)} if self._dataset else {}
        self._members: dict[str, dict[str, bytes]] = {}
        self._meshes: dict[str, dict[str, bytes]] = {}

    def members(self, uid: str) -> dict[str, bytes]:
        """The object's files without its uid in their names."""
        self.shown[uid] = None
        if uid not in self._members:
            assert self._dataset is not None
            found = self._dataset.members(self._place[uid])
            self._members[uid] = {name[len(uid) + 1 :]: data for name, data in found.items()}
        return self._members[uid]

    def splat(self, uid: str, view: int | None = None) -> str:
        """The splat from the camera that shows it best, or from camera `view`."""
        members = self.members(uid)
        if view is None:
            view = showing(np.array(json.loads(members["json"])["cameras"]["viewmats"]))
        return _data(members[f"{view:02d}.webp"])

    def mesh(self, uid: str) -> str | None:
        """The mesh from the same side; None of a ready splat."""
        shard = self.rows[uid]["shard"]
        if shard not in self._meshes:
            file = path(self._config, "views", shard, ".parquet")
            rows = read_table(file, ["uid", "thumbnail"]) if file.exists() else []
            self._meshes[shard] = {row["uid"]: row["thumbnail"] for row in rows if row["thumbnail"]}
        thumbnail = self._meshes[shard].get(uid)
        return _data(thumbnail) if thumbnail else None


def _data(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


class Results:
    """The JSON files of the evaluation, by run."""

    def __init__(self, output: Path) -> None:
        self.folder = output / "evaluation"
        # Those of an ablation stand in its table.
        names = (folder.name for folder in self.folder.glob("*") if folder.is_dir())
        self.runs = sorted(name for name in names if not name.startswith(ABLATION))

    def read(self, name: str) -> dict[str, Any]:
        """Run to what its file NAME.json holds, of the runs that have one."""
        found = {}
        for run in self.runs:
            file = self.folder / run / f"{name}.json"
            if file.exists():
                check(file)
                found[run] = json.loads(file.read_text())
        return found

    def read_one(self, name: str) -> Any:
        """What `evaluation/NAME.json` holds, or None."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        check(file)
        return json.loads(file.read_text())


# --- words -----------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0, ours: Sequence[int] = ()) -> str:
    """Cells are HTML; the last `numbers` columns stand to the right. A table of many columns is, on a narrow page, a
    list in which each cell says its column."""
    first, many = len(head) - numbers, len(head) > NARROW_COLUMNS
    head = [escape(name).replace(", %", ",\N{NO-BREAK SPACE}%") for name in head]

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [
            " class=n" if i >= first else " class=wide" if tag == "td" and len(cell) > LONG_TEXT else ""
            for i, cell in enumerate(row)
        ]
        if many and tag == "td":
            kinds = [f'{kind} data-column="{name}"' for kind, name in zip(kinds, head, strict=True)]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr{' class=ours' if i in ours else ''}>{cells('td', row)}</tr>\n" for i, row in enumerate(rows))
    return (
        f'<div class="scroll"><table{" class=many" if many else ""}><thead><tr>{cells("th", head)}'
        f"</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _percent(value: float | None, interval: Sequence[float] | None = None, chance: float | None = None) -> str:
    if value is None:
        return PALE
    notes = []
    if interval:
        notes.append(f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}")
    if chance is not None:
        notes.append(f"chance {100 * chance:.1f}" if chance >= 0.01 else f"chance {100 * chance:.2g}")
    return f"{100 * value:.1f}" + (f"<small>{'<br>'.join(notes)}</small>" if notes else "")


def _figure(source: str, alt: str, caption: str, *, right: bool = False) -> str:
    return (
        f'<figure{" class=right" if right else ""}><img loading="lazy" src="{source}" alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _tiles(rows: Sequence[Row], packed: Sequence[Row], results: Results) -> str:
    psnr = [row["psnr"] for row in packed if row["psnr"] is not None]
    tiles = [
        (f"{len(packed):,}", "triplets"),
        (f"{len(rows) - len(packed):,}", f"of {len(rows):,} objects failed"),
        (f"{len({row['category'] for row in packed if row['category']}):,}", "categories"),
    ]
    if psnr:
        tiles.append((f"{np.mean(psnr):.1f} dB", "mean PSNR on held-out views"))
    if packed:
        tiles.append((f"{np.mean([row['gaussians'] for row in packed]):,.0f}", "Gaussians an object"))
    for run, found in results.read("retrieval").items():
        best = max((row["R@1"] for row in found["rows"] if row["task"] == "text to 3D"), default=None)
        if best is not None:
            tiles.append((f"{100 * best:.1f} %", f"text to 3D, R@1 of {run}"))
    items = "".join(f"<li><b>{escape(value)}</b> <span>{escape(label)}</span></li>" for value, label in tiles[:8])
    return f'<ul class="tiles">{items}</ul>'


def _of_small_teacher(results: Results) -> str:
    runs = [run for run, found in results.read("retrieval").items() if found["teacher"].startswith(SMALL_TEACHER)]
    if not runs:
        return ""
    return (
        f'<p class="note">The teacher of {escape(", ".join(runs))} is a small CLIP that was trained on these very '
        "objects, their captions and categories: zero-shot is a choice among names that it was taught. Figures under "
        "it are not those of EVA-CLIP, and say nothing about the paper's.</p>"
    )


# --- triplets --------------------------------------------------------------------------------------------------------


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly over the categories."""
    ordered = sorted(rows, key=lambda row: (row["category"] or "", row["uid"]))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[i] for i in dict.fromkeys(places.tolist())]


def _viewer(config: Config, packed: Sequence[Row], pictures: Pictures) -> str:
    from clipgs.splats import ply
    from clipgs.splats.export import SPLAT_ROW, to_splat

    chosen = _spread(packed, config.report.splats)
    if not chosen:
        return ""
    choices, splats = [], []
    for i, row in enumerate(chosen):
        uid = row["uid"]
        data = to_splat(ply.from_bytes(pictures.members(uid)["ply"], uid))[: MAX_GAUSSIANS * SPLAT_ROW.itemsize]
        splats.append(f'<script type="text/plain" id="splat-{i}">{base64.b64encode(data).decode()}</script>')
        left_out = row["gaussians"] - len(data) // SPLAT_ROW.itemsize
        note = row["caption"] + (f" ({left_out:,} of its smallest Gaussians are left out here)" if left_out else "")
        choices.append(
            f'<li><button type="button" aria-pressed="{"false" if i else "true"}" data-splat="splat-{i}" '
            f'data-caption="{escape(note)}"><img src="{pictures.splat(uid)}" alt="{escape(row["caption"])}">'
            "</button></li>"
        )
    first = chosen[0]
    return f"""<div id="viewer" data-pixels="{config.views.pixels}">
<div class="stage">
<canvas tabindex="0" role="img" aria-label="A splat. Arrow keys turn it, plus and minus zoom."></canvas>
<img class="poster" src="{pictures.splat(first["uid"])}" alt=""></div>
<div class="bar"><p class="note" role="status">{escape(first["caption"])}</p>
<span class="hint">Drag to turn</span>
<span class="zoom"><button type="button" class="nearer" aria-label="Nearer">+</button>
<button type="button" class="farther" aria-label="Farther">&minus;</button></span></div>
<ul class="choices" aria-label="Splats to choose from">{"".join(choices)}</ul>
</div>
{"".join(splats)}
"""


def _objects(packed: Sequence[Row]) -> str:
    if not packed:
        return "<p>No object is packed.</p>"
    splits = Counter(row["split"] or "none" for row in packed)
    categories = Counter(row["category"] or "none" for row in packed)
    sources = Counter(row["caption_source"] or "none" for row in packed)
    shown = sorted(categories.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in shown[SHOWN_CATEGORIES:])
    lines = [[escape(name), f"{count:,}"] for name, count in shown[:SHOWN_CATEGORIES]]
    if rest:
        lines.append([f"{len(shown) - SHOWN_CATEGORIES:,} more", f"{rest:,}"])
    counts = _table(["split", "objects"], [[escape(name), f"{n:,}"] for name, n in sorted(splits.items())], 1)
    counts += _table(["captions from", "objects"], [[escape(name), f"{n:,}"] for name, n in sources.most_common()], 1)
    texts = len({row["caption"] for row in packed})
    counts += f"<p>{texts:,} different captions.</p>"
    return f'<div class="plots"><div>{_table(["category", "objects"], lines, 1)}</div><div>{counts}</div></div>'


def _failures(failed: Sequence[Row]) -> str:
    found = failures(failed)
    if not found:
        return "<p>None.</p>"
    lines = [[escape(stage), escape(reason), f"{count:,}"] for stage, reason, count in found[:SHOWN_FAILURES]]
    rest = sum(count for _, _, count in found[SHOWN_FAILURES:])
    more = f"<p>and {rest:,} objects for {len(found) - SHOWN_FAILURES:,} rarer reasons.</p>" if rest else ""
    return _table(["stage", "reason", "objects"], lines, 1) + more


def _quality(config: Config, packed: Sequence[Row], pictures: Pictures) -> str:
    judged = sorted((row for row in packed if row["psnr"] is not None), key=lambda row: (row["psnr"], row["uid"]))
    if not judged:
        return "<p>Not known: all are ready splats, which came without views to hold them against.</p>"
    head, lines = quality(judged)
    text = (
        f"<p>On {config.views.held_out} views an object that no splat was fitted to, over a white ground.</p>"
        f'<div class="plots"><figure>{plots.histogram([row["psnr"] for row in judged], "PSNR, dB")}</figure>'
        f"<div>{_table(head, [list(map(escape, line)) for line in lines], 4)}</div></div>"
    )
    count = min(config.report.samples, len(judged) // 2)
    if count:
        text += f"<h3>Best</h3>{_pairs(judged[::-1][:count], pictures)}"
        text += f"<h3>Worst</h3>{_pairs(judged[:count], pictures)}"
    return text


def _pairs(rows: Sequence[Row], pictures: Pictures) -> str:
    parts = []
    for row in rows:
        mesh, splat = pictures.mesh(row["uid"]), pictures.splat(row["uid"])
        caption = escape(row["caption"])
        images = "".join(
            f'<img loading="lazy" src="{source}" alt="{what} of: {caption}">'
            for what, source in (("Mesh", mesh), ("Splat", splat))
            if source
        )
        parts.append(
            f'<li><figure class="pair"><div>{images}</div>'
            f"<figcaption>{row['psnr']:.1f} dB. {caption}</figcaption></figure></li>"
        )
    return f'<p class="faint">Left the mesh, right its splat.</p><ul class="pictures">{"".join(parts)}</ul>'


# --- runs ------------------------------------------------------------------------------------------------------------


def _training(output: Path) -> str:
    files = sorted((output / "runs").glob("*/metrics.jsonl"))
    runs = {file.parent.name: _metrics(file) for file in files if not file.parent.name.startswith(ABLATION)}
    names = sorted({name for rows in runs.values() for row in rows for name in row} - {"step", "epoch"})
    figures = []
    for name in names:
        lines = {}
        for run, rows in runs.items():
            points = [(row["step"], row[name]) for row in rows if "step" in row and name in row]
            if len(points) > 1:
                lines[run] = tuple(zip(*points, strict=True))
        drawn = plots.curves(lines, "step", name.replace("_", " ")) if lines else ""
        if drawn:
            figures.append(f"<figure><figcaption>{escape(name)}</figcaption>{drawn}</figure>")
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _metrics(file: Path) -> list[dict[str, float]]:
    rows = []
    for line in file.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that still writes
            continue
        rows.append({name: float(value) for name, value in row.items() if isinstance(value, int | float)})
    return rows


def _protocol(found: Mapping[str, Any]) -> str:
    """What every table says: gallery and seeds."""
    gallery = found.get("gallery", {})
    parts = [f"gallery {gallery['sha256'][:12]}"] if gallery.get("sha256") else []
    parts += [f"{gallery['objects']:,} objects of {escape(str(gallery['split']))}"] if gallery.get("objects") else []
    parts += [f"{gallery['captions']:,} distinct captions"] if gallery.get("captions") else []
    if "lvis_shapes" in found:
        parts.append(f"LVIS shapes {escape(found['lvis_shapes'])}")
    if "seed" in found:
        parts.append(f"seed {found['seed']}")
    return f'<p class="faint">{", ".join(parts)}. {escape(found.get("protocol", ""))}</p>'


def _retrieval(results: Results, pictures: Pictures) -> str:
    text = ""
    for run, found in results.read("retrieval").items():
        lines = [
            [
                escape(row["task"]) + f"<small>{escape(row['from'])}</small>",
                f"{row['queries']:,}",
                f"{row['gallery']:,}",
                *(_percent(row[k], row["interval"][k], row["chance"][k]) for k in ("R@1", "R@5", "R@10")),
                f"{row['median_rank']:,.1f}<small>chance {row['chance']['median_rank']:,.0f}</small>",
            ]
            for row in found["rows"]
        ]
        head = ["task", "queries", "gallery", "R@1, %", "R@5, %", "R@10, %", "median rank"]
        text += f"<h3>{escape(run)}</h3>{_protocol(found)}{_table(head, lines, 6)}"
        by_task: dict[str, list[str]] = {}
        for example in found.get("examples", []):
            by_task.setdefault(example["task"], []).append(_example(example, pictures))
        for task, parts in by_task.items():
            text += (
                f"<h3>{escape(task[0].upper() + task[1:])}: the query and its {NEAREST} nearest</h3>"
                f'<p class="faint">A green frame is the right answer.</p>{"".join(parts)}'
            )
    return text


def _example(example: Mapping[str, Any], pictures: Pictures) -> str:
    if example.get("uid") is not None and example["uid"] in pictures.rows:
        source = pictures.splat(example["uid"], example.get("view"))
        query = f'<div class="pictures">{_figure(source, "Query", escape(example["query"]))}</div>'
    else:
        query = f"<blockquote>&ldquo;{escape(example['query'])}&rdquo;</blockquote>"
    parts = []
    for near in example["nearest"]:
        caption = f"{near['score']:.3f}. {escape(near['text'])}"
        if near["uid"] in pictures.rows:
            figure = _figure(pictures.splat(near["uid"]), near["text"], caption, right=near["right"])
        else:
            figure = f"<figure><figcaption>{caption}</figcaption></figure>"
        parts.append(f"<li>{figure}</li>")
    return f'<div class="row">{query}<ul class="pictures">{"".join(parts)}</ul></div>'


def _zero_shot(results: Results) -> str:
    text = ""
    for run, found in results.read("zeroshot").items():
        lines = []
        for row in found["rows"]:
            by_class = row["by_class"]
            lines.append(
                [
                    escape(row["from"]),
                    f"{row['objects']:,}",
                    f"{row['classes']:,}",
                    *(_percent(row[k], row["interval"][k], row["chance"][k]) for k in ("top1", "top3", "top5")),
                    " / ".join(_percent(by_class[k]) for k in ("top1", "top3", "top5")),
                ]
            )
        head = ["what", "objects", "classes", "top-1, %", "top-3, %", "top-5, %", "by class, %"]
        text += f"<h3>{escape(run)}</h3>{_protocol(found)}{_table(head, lines, 6)}" if lines else ""
        text += _confusion(found["rows"][0]) if lines else ""
    return text


def _confusion(row: Mapping[str, Any]) -> str:
    """The classes that are confused most, each with what its objects are taken for."""
    per_class, pairs = row["per_class"], row["confusions"]
    weight: Counter[str] = Counter()
    for pair in pairs:
        weight[pair["class"]] += pair["objects"]
        weight[pair["taken_for"]] += pair["objects"]
    names = [name for name, _ in sorted(weight.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_CLASSES]]
    if not names:
        return ""
    matrix = np.zeros((len(names), len(names)))
    for i, name in enumerate(names):
        matrix[i, i] = per_class.get(name, {}).get("top1", 0)
    for pair in pairs:
        if pair["class"] in names and pair["taken_for"] in names:
            size = per_class[pair["class"]]["objects"]
            matrix[names.index(pair["class"]), names.index(pair["taken_for"])] = pair["objects"] / size
    drawn = plots.heatmap(matrix, names, names, "Confusion of classes")
    return (
        f'<h3>What is taken for what</h3><p class="faint">The {len(names)} classes confused most. A line is a class, a '
        f"column what its objects are taken for; the diagonal is what is right.</p>{drawn}"
    )


def _few_shot(results: Results) -> str:
    text = ""
    for run, found in results.read("fewshot").items():
        lines = [
            [
                f"{row['ways']}-way {row['shots']}-shot",
                escape(row["classifier"]),
                f"{100 * row['mean']:.1f} \N{PLUS-MINUS SIGN} {100 * row['std']:.1f}"
                f"<small>chance {100 * row['chance']:.3g}</small>",
                f"{row['folds']}",
                f"{row['eligible_classes']:,}",
                " to ".join(str(n) for n in dict.fromkeys(row["queries_a_class"])),
            ]
            for row in found["rows"]
        ]
        lines += [
            [f"{row['ways']}-way {row['shots']}-shot", escape(row["reason"]), PALE, PALE, PALE, PALE]
            for row in found.get("missing", [])
        ]
        head = ["cell", "classifier", "top-1, %", "folds", "eligible classes", "asked a class"]
        text += f"<h3>{escape(run)}</h3>{_protocol(found)}{_table(head, lines, 4)}"
    return text


def _baselines(results: Results) -> str:
    found = results.read_one("baselines")
    if not found:
        return ""
    lines, ours = [], []
    for i, row in enumerate(found["rows"]):
        ours += [i] if row.get("ours") else []
        words = [escape(row[name]) for name in ("model", "input", "source")]
        lines.append(words + [_percent(row.get(name)) for name in BASELINE_NUMBERS])
    head = ["model", "input", "source", *BASELINE_NUMBERS.values()]
    return _protocol(found) + _table(head, lines, len(BASELINE_NUMBERS), ours)


def _ablations(results: Results) -> str:
    found = results.read_one("ablations")
    if not found:
        return ""
    compared = {row["difference"]["metric"] for row in found["rows"] if row.get("difference")}
    head = ["row", "seeds", *found["metrics"], ", ".join(["difference to the row above", *sorted(compared)])]
    lines, above = [], ""
    for row in found["rows"]:
        cells = []
        for metric in found["metrics"]:
            value = row["metrics"].get(metric)
            deviation = f"<small>\N{PLUS-MINUS SIGN} {100 * value['std']:.1f}</small>" if value else ""
            cells.append(f"{100 * value['mean']:.1f}{deviation}" if value else PALE)
        cells.append(_difference(row.get("difference"), above))
        above = row["name"]
        note = f"<small>{escape(row['note'])}</small>" if row.get("note") else ""
        lines.append([escape(row["name"]) + note, str(len(row["seeds"])), *cells])
    return _protocol(found) + _table(head, lines, len(head) - 1)


def _difference(change: Mapping[str, Any] | None, above: str) -> str:
    """Points with their interval; names the row it is held against where that is not the one above."""
    if not change:
        return PALE
    numbers = (round(100 * value, 1) + 0.0 for value in (change["mean"], *change["interval"]))  # no -0.0
    mean, low, high = (f"{number:+.1f}".replace("-", "\N{MINUS SIGN}") for number in numbers)
    other = "" if change["against"] == above else f", to: {escape(change['against'])}"
    return f"{mean}<small>{low} to {high}{other}</small>"


def _embedding(config: Config, results: Results, pictures: Pictures) -> str:
    from safetensors.numpy import load_file

    text = ""
    for run in results.runs:
        file = results.folder / run / "embeddings.safetensors"
        if not file.exists():
            continue
        check(file)
        shapes, uids = load_file(file)["shapes"], read_metadata(file)["uids"]
        rows = np.unique(np.linspace(0, len(uids) - 1, min(SHOWN_POINTS, len(uids))).round().astype(int))
        kept = [i for i in rows.tolist() if uids[i] in pictures.rows]
        if len(kept) < 3:
            continue
        points, share = principal_plane(shapes[kept])
        about = [pictures.rows[uids[i]] for i in kept]
        drawn = plots.scatter(
            points, [row["category"] or "none" for row in about], [row["caption"] for row in about], f"Objects of {run}"
        )
        text += (
            f'<h3>{escape(run)}</h3><p class="faint">{len(kept):,} objects on the two principal axes of their '
            f"embeddings, which hold {share:.0%} of the variance.</p><figure>{drawn}</figure>"
        )
    return text


def principal_plane(
    embeddings: np.ndarray,  # [n, D]
) -> tuple[np.ndarray, float]:
    """The rows on their first two principal axes [n, 2], and the share of the variance that these hold.

    The sign of an axis is that in which its largest weight is positive: equal rows give equal points.
    """
    centred = np.asarray(embeddings, np.float64) - np.mean(embeddings, axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return centred @ axes, float(values[-2:].sum() / max(values.sum(), 1e-12))


def _credit(pictures: Pictures) -> str:
    if not pictures.shown:
        return ""
    lines = []
    for uid in sorted(pictures.shown, key=lambda uid: (pictures.rows[uid]["caption"], uid)):
        row = pictures.rows[uid]
        link = row["page"] or ""
        where = (
            f'<a href="{escape(link)}" rel="noreferrer">page</a>' if link.startswith(("https://", "http://")) else ""
        )
        lines.append(
            [
                escape(row["caption"]),
                escape(row["license"] or "not stated"),
                escape(row["credit"] or "not stated"),
                where,
            ]
        )
    return (
        "<p>Pictures and splats on this page stand under the licences of the meshes they were made from.</p>"
        f"<details><summary>{len(lines)} objects are shown</summary>"
        f"{_table(['object', 'licence', 'credit', ''], lines)}</details>"
    )
