"""What each section of the report shows, as plain data.

A section is a function of the `Sources`. It returns what its template needs; the page leaves out an empty section.
Only the plots are markup (SVG): the templates escape all other text.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipgs.config import SMALL_TEACHER, Config
from clipgs.core.lists import counted
from clipgs.core.runner import Row
from clipgs.report import plots
from clipgs.report.results import Pictures, Results, Triplets
from clipgs.splats.export import SPLAT_ROW, to_splat
from clipgs.splats.gaussians import Gaussians
from clipgs.teacher.features import cut_captions
from clipgs.triplets import card

MAX_GAUSSIANS = 30_000  # of a splat on the page (1 MB): the largest and most opaque ones
MAX_TILES = 8
SHOWN_CATEGORIES = 15
SHOWN_CLASSES = 18  # in the confusion of classes
SHOWN_POINTS = 2000  # in the projection
LONG_TEXT = 60  # characters; a cell with more is wider
BASELINE_METRICS = {
    "text_to_3d": "text to 3D R@1, %",
    "text_from_3d": "3D to text R@1, %",
    "image_to_3d": "image to 3D R@1, %",
    "image_from_3d": "3D to image R@1, %",
    "zero_shot": "zero-shot top-1, %",
    "few_shot": "few-shot, %",
}
NO_VALUE = "\N{EN DASH}"
RECALLS = ("R@1", "R@5", "R@10")
# The curves of a run in the order in which a person looks for them, each with its title.
CURVES = {
    "loss": "loss",
    "validation_text_r1": "validation, text to 3D, R@1",
    "validation_image_r1": "validation, image to 3D, R@1",
    "validation_text_mrr": "validation, text to 3D, MRR",
    "validation_image_mrr": "validation, image to 3D, MRR",
    "loss_text": "loss of texts",
    "loss_image": "loss of images",
    "lr": "learning rate",
    "logit_scale": "learned scale of cosines",
    "grad_norm": "norm of the gradient",
    "samples_per_second": "objects a second",
    "data_wait_fraction": "share of the time spent waiting for data",
}

Content = dict[str, Any]  # of a template


class Sources(NamedTuple):
    """What the sections show data of."""

    config: Config
    triplets: Triplets
    pictures: Pictures
    results: Results


class Cell(NamedTuple):
    """A cell of a table, with notes in small print below."""

    text: str
    notes: Sequence[str] = ()
    link: str = ""

    @property
    def wide(self) -> bool:
        return len(self.text) + sum(map(len, self.notes)) > LONG_TEXT


class Table(NamedTuple):
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    first_number: int  # this column and those after it are aligned to the right
    ours: Sequence[int]  # rows in bold


Line = Sequence[str | int | Cell]


def _table(columns: Sequence[str], rows: Sequence[Line], numbers: int = 0, ours: Sequence[int] = ()) -> Table:
    """A table whose last `numbers` columns are numbers."""
    texts = [[f"{value:,}" if isinstance(value, int) else value for value in row] for row in rows]
    cells = [[value if isinstance(value, Cell) else Cell(value) for value in row] for row in texts]
    names = [name.replace(", %", ",\N{NO-BREAK SPACE}%") for name in columns]
    return Table(names, cells, len(columns) - numbers, ours)


def _points(value: float) -> str:
    """A fraction in percentage points."""
    return f"{100 * value:.1f}"


def _deviation(value: Mapping[str, float]) -> str:
    return f"\N{PLUS-MINUS SIGN} {_points(value['std'])}"


def _chance(value: float) -> str:
    return f"chance {_points(value)}" if value >= 0.01 else f"chance {100 * value:.2g}"


def _percent(value: float | None, interval: Sequence[float] | None = None, chance: float | None = None) -> Cell:
    if value is None:
        return Cell(NO_VALUE)
    notes = []
    if interval:
        notes.append(f"{_points(interval[0])} to {_points(interval[1])}")
    if chance is not None:
        notes.append(_chance(chance))
    return Cell(_points(value), notes)


# --- triplets --------------------------------------------------------------------------------------------------------


def _percents(row: Mapping[str, Any], names: Sequence[str]) -> list[Cell]:
    """Some numbers of a row of results, each with its interval and its chance."""
    return [_percent(row[name], row["interval"][name], row["chance"][name]) for name in names]


def tiles(sources: Sources) -> list[tuple[str, str]]:
    """The numbers at the top of the page, each with its label."""
    packed, failed = sources.triplets
    psnr = [row["psnr"] for row in packed if row["psnr"] is not None]
    numbers = [
        (f"{len(packed):,}", "triplets"),
        (f"{len(failed):,}", f"of {len(packed) + len(failed):,} objects failed"),
        (f"{len({row['category'] for row in packed if row['category']}):,}", "categories"),
    ]
    if psnr:
        numbers.append((f"{np.mean(psnr):.1f} dB", "mean PSNR on held-out views"))
    if packed:
        numbers.append((f"{np.mean([row['gaussians'] for row in packed]):,.0f}", "Gaussians per object"))
    for run, result in sources.results.of_runs("retrieval").items():
        of_texts = [row for row in result["rows"] if row["task"] == "text to 3D"]
        if best := max(of_texts, key=lambda row: row["R@1"], default=None):
            chance = f"{_chance(best['chance']['R@1'])}\N{NO-BREAK SPACE}%"
            numbers.append((f"{100 * best['R@1']:.1f} %", f"text to 3D, R@1 of {run}; {chance}"))
    return numbers[:MAX_TILES]


def small_teacher_runs(sources: Sources) -> list[str]:
    """The runs with the small teacher: their figures do not measure the method."""
    retrieval = sources.results.of_runs("retrieval")
    return [run for run, result in retrieval.items() if result["teacher"].startswith(SMALL_TEACHER)]


def splats(sources: Sources) -> Content:
    choices = []
    for row in card.spread(sources.triplets.packed, sources.config.report.splats):
        uid, caption = row["uid"], row["caption"]
        gaussians = Gaussians.from_ply(sources.pictures.members(uid)[f"{uid}.ply"], uid)
        data = to_splat(gaussians)[: MAX_GAUSSIANS * SPLAT_ROW.itemsize]
        left_out = row["gaussians"] - len(data) // SPLAT_ROW.itemsize
        note = f" ({left_out:,} of its smallest Gaussians are left out here)" if left_out else ""
        picture = sources.pictures.splat(uid)
        encoded = base64.b64encode(data).decode()
        choices.append({"data": encoded, "picture": picture, "caption": caption, "note": caption + note})
    return {"choices": choices, "pixels": sources.config.views.pixels} if choices else {}


def objects(sources: Sources) -> Content:
    packed = sources.triplets.packed
    splits = sorted(Counter(row["split"] or "none" for row in packed).items())
    origins = Counter(row["caption_source"] or "none" for row in packed).most_common()
    categories = card.by_count(row["category"] or "none" for row in packed)
    shown, rest = categories[:SHOWN_CATEGORIES], categories[SHOWN_CATEGORIES:]
    if rest:
        shown.append((f"{len(rest):,} more", sum(count for _, count in rest)))
    return {
        "packed": len(packed),
        "categories": _table(["category", "objects"], shown, 1),
        "splits": _table(["split", "objects"], splits, 1),
        "origins": _table(["captions from", "objects"], origins, 1),
        "captions": f"{len({row['caption'] for row in packed}):,}",
        "cut": cut_captions(sources.config, sorted({row["shard"] for row in packed})),
    }


def failures(sources: Sources) -> Content:
    found = card.failures(sources.triplets.failed)
    rest = [failure.objects for failure in found[card.SHOWN_FAILURES :]]
    return {
        "table": _table(card.FAILURE_COLUMNS, found[: card.SHOWN_FAILURES], 1),
        "rest": f"{counted(sum(rest), 'object')} for {counted(len(rest), 'rarer reason')}" if rest else "",
    }


def quality(sources: Sources) -> Content:
    judged = [row for row in sources.triplets.packed if row["psnr"] is not None]
    judged.sort(key=lambda row: (row["psnr"], row["uid"]))
    columns, lines = card.quality(judged)
    count = min(sources.config.report.samples, len(judged) // 2)
    samples = {"Best": judged[::-1][:count], "Worst": judged[:count]} if count else {}
    return {
        "held_out": sources.config.views.held_out,
        "histogram": plots.histogram([row["psnr"] for row in judged], "PSNR, dB") if judged else "",
        "table": _table(columns, lines, 4),
        "samples": {name: [_pair(row, sources.pictures) for row in rows] for name, rows in samples.items()},
    }


def _pair(row: Row, pictures: Pictures) -> Content:
    images = {"Mesh": pictures.mesh(row["uid"]), "Splat": pictures.splat(row["uid"])}
    return {"images": images, "caption": row["caption"], "psnr": f"{row['psnr']:.1f}"}


def credit(sources: Sources) -> Content:
    rows = [sources.pictures.rows[uid] for uid in sources.pictures.used]
    lines = []
    for row in sorted(rows, key=lambda row: (row["caption"], row["uid"])):
        link = row["page"] or ""
        page = Cell("page", link=link) if link.startswith(("https://", "http://")) else ""
        lines.append([row["caption"], row["license"] or "not stated", row["credit"] or "not stated", page])
    return {"table": _table(["object", "licence", "credit", ""], lines)} if lines else {}


# --- runs ------------------------------------------------------------------------------------------------------------


def training(sources: Sources) -> list[Content]:
    runs = sources.results.metrics()
    found = {name for rows in runs.values() for row in rows for name in row} - {"step", "epoch"}
    names = [name for name in CURVES if name in found] + sorted(found - CURVES.keys())
    figures = []
    for name in names:
        lines = {
            run: [(row["step"], row[name]) for row in rows if "step" in row and name in row]
            for run, rows in runs.items()
        }
        lines = {run: points for run, points in lines.items() if len(points) > 1}
        title = CURVES.get(name, name.replace("_", " "))
        if drawn := plots.curves(lines, "step", title):
            figures.append({"name": title, "curves": drawn})
    return figures


def _run(name: str, result: Mapping[str, Any], table: Table) -> Content:
    """A table of results with the name of its run, and the gallery and the seed of the measurement."""
    gallery = result.get("gallery", {})
    parts = [f"gallery {gallery['sha256'][:12]}"] if gallery.get("sha256") else []
    parts += [f"{gallery['objects']:,} objects of {gallery['split']}"] if gallery.get("objects") else []
    parts += [f"{gallery['captions']:,} distinct captions"] if gallery.get("captions") else []
    parts += [f"LVIS shapes {result['lvis_shapes']}"] if "lvis_shapes" in result else []
    parts += [f"seed {result['seed']}"] if "seed" in result else []
    return {"name": name, "protocol": f"{', '.join(parts)}. {result.get('protocol', '')}", "table": table}


def retrieval(sources: Sources) -> list[Content]:
    columns = ["task", "queries", "gallery", "R@1, %", "R@5, %", "R@10, %", "median rank"]
    runs = []
    for run, result in sources.results.of_runs("retrieval").items():
        lines: list[Line] = [
            [
                Cell(row["task"], [row["from"]]),
                row["queries"],
                row["gallery"],
                *_percents(row, RECALLS),
                Cell(f"{row['median_rank']:,.1f}", [f"chance {row['chance']['median_rank']:,.0f}"]),
            ]
            for row in result["rows"]
        ]
        tasks: dict[str, list[Content]] = {}
        for example in result.get("examples", []):
            task = example["task"][0].upper() + example["task"][1:]
            tasks.setdefault(task, []).append(_example(example, sources.pictures))
        by_split: list[Line] = [
            [
                Cell(row["split"], [row["from"]]),
                row["queries"],
                *_percents(row, RECALLS),
            ]
            for row in result.get("splits", [])
        ]
        splits = _table(["split", "captions", "R@1, %", "R@5, %", "R@10, %"], by_split, 4) if by_split else None
        worth: list[Line] = [
            [
                Cell(row["zeroed"], [f"{row['task']}, {row['from']}"]),
                _points(row["R@1"]),
                _difference(row["difference"] | {"against": ""}, ""),
            ]
            for row in result.get("zeroed", [])
        ]
        zeroed = _table(["set to zero", "R@1, %", "difference"], worth, 2) if worth else None
        runs.append(
            {**_run(run, result, _table(columns, lines, 6)), "tasks": tasks, "splits": splits, "zeroed": zeroed}
        )
    return runs


def _example(example: Mapping[str, Any], pictures: Pictures) -> Content:
    """A query, and the objects nearest to it."""
    picture = pictures.splat(example["uid"], example.get("view")) if "uid" in example else ""
    nearest = [{**near, "picture": pictures.splat(near["uid"])} for near in example["nearest"]]
    return {"query": example["query"], "picture": picture, "nearest": nearest}


def zero_shot(sources: Sources) -> list[Content]:
    columns = ["what", "objects", "classes", "top-1, %", "top-3, %", "top-5, %", "by class, %"]
    tops = ("top1", "top3", "top5")
    runs = []
    for run, result in sources.results.of_runs("zeroshot").items():
        lines = [
            [
                row["from"],
                row["objects"],
                row["classes"],
                *_percents(row, tops),
                " / ".join(_percent(row["by_class"][k]).text for k in tops),
            ]
            for row in result["rows"]
        ]
        if lines:
            table = _table(columns, lines, 6)
            runs.append({**_run(run, result, table), "confusion": _confusion(result["rows"][0])})
    return runs


def _confusion(row: Mapping[str, Any]) -> Content | None:
    """The most confused classes, each with the classes that its objects are taken for."""
    per_class, pairs = row["per_class"], row["confusions"]
    weight: Counter[str] = Counter()
    for pair in pairs:
        weight[pair["class"]] += pair["objects"]
        weight[pair["taken_for"]] += pair["objects"]
    names = sorted(weight, key=lambda name: (-weight[name], name))[:SHOWN_CLASSES]
    if not names:
        return None
    matrix = np.diag([float(per_class.get(name, {}).get("top1", 0)) for name in names])
    for pair in pairs:
        if pair["class"] in names and pair["taken_for"] in names:
            size = per_class[pair["class"]]["objects"]
            matrix[names.index(pair["class"]), names.index(pair["taken_for"])] = pair["objects"] / size
    return {"classes": len(names), "heatmap": plots.heatmap(matrix, names, "Confusion of classes")}


def few_shot(sources: Sources) -> list[Content]:
    columns = ["cell", "classifier", "top-1, %", "folds", "eligible classes", "queries per class"]
    runs = []
    for run, result in sources.results.of_runs("fewshot").items():
        lines: list[Line] = [
            [
                f"{row['ways']}-way {row['shots']}-shot",
                row["classifier"],
                Cell(f"{_points(row['mean'])} {_deviation(row)}", [f"chance {100 * row['chance']:.3g}"]),
                f"{row['folds']}",
                row["eligible_classes"],
                " to ".join(str(n) for n in dict.fromkeys(row["queries_a_class"])),
            ]
            for row in result["rows"]
        ]
        lines += [
            [f"{row['ways']}-way {row['shots']}-shot", row["reason"], *[NO_VALUE] * 4]
            for row in result.get("missing", [])
        ]
        runs.append(_run(run, result, _table(columns, lines, 4)))
    return runs


def baselines(sources: Sources) -> list[Content]:
    result = sources.results.of_all("baselines")
    if not result:
        return []
    lines = [
        [row["model"], row["input"], row["source"], *(_percent(row.get(name)) for name in BASELINE_METRICS)]
        for row in result["rows"]
    ]
    ours = [i for i, row in enumerate(result["rows"]) if row.get("ours")]
    columns = ["model", "input", "source", *BASELINE_METRICS.values()]
    return [_run("", result, _table(columns, lines, len(BASELINE_METRICS), ours))]


def ablations(sources: Sources) -> list[Content]:
    result = sources.results.of_all("ablations")
    if not result:
        return []
    compared = {row["difference"]["metric"] for row in result["rows"] if row.get("difference")}
    columns = ["row", "seeds", *result["metrics"], ", ".join(["difference to the row above", *sorted(compared)])]
    lines: list[Line] = []
    above = ""
    for row in result["rows"]:
        cells: list[str | int | Cell] = [Cell(row["name"], [row["note"]] if row.get("note") else []), len(row["seeds"])]
        for metric in result["metrics"]:
            value = row["metrics"].get(metric)
            cells.append(Cell(_points(value["mean"]), [_deviation(value)]) if value else NO_VALUE)
        lines.append([*cells, _difference(row.get("difference"), above)])
        above = row["name"]
    return [_run("", result, _table(columns, lines, len(columns) - 1))]


def _difference(change: Mapping[str, Any] | None, above: str) -> Cell:
    """Percentage points with their interval, the difference of each seed, and the row that they are compared with."""
    if not change:
        return Cell(NO_VALUE)

    def signed(value: float) -> str:
        return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")  # no -0.0

    notes = []
    if change["interval"]:
        notes.append(" to ".join(signed(bound) for bound in change["interval"]))
    if len(seeds := change.get("by_seed", [])) > 1:
        notes.append("by seed " + ", ".join(signed(value) for value in seeds))
    if change["against"] != above:
        notes.append(f"to: {change['against']}")
    return Cell(signed(change["mean"]), notes)


def embedding(sources: Sources) -> list[Content]:
    rows = sources.pictures.rows
    runs = []
    for run, embeddings in sources.results.embeddings().items():
        uids, count = embeddings.uids, len(embeddings.uids)
        spread = np.unique(np.linspace(0, count - 1, min(SHOWN_POINTS, count)).round().astype(int))
        kept = [i for i in spread.tolist() if uids[i] in rows]
        if len(kept) < 3:
            continue
        points, share = principal_plane(embeddings.shapes[kept])
        categories = [rows[uids[i]]["category"] or "none" for i in kept]
        captions = [rows[uids[i]]["caption"] for i in kept]
        drawn = plots.scatter(points, categories, captions, f"Objects of {run}")
        runs.append({"name": run, "objects": f"{len(kept):,}", "variance": f"{share:.0%}", "scatter": drawn})
    return runs


def principal_plane(
    embeddings: np.ndarray,  # [n, D]
) -> tuple[np.ndarray, float]:
    """The rows on their first two principal axes [n, 2], and these axes' share of the variance.

    The largest weight of each axis is positive, so that equal rows give equal points.
    """
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)])
    return centred @ axes[:2].T * signs, float((deviations[:2] ** 2).sum() / max((deviations**2).sum(), 1e-12))
