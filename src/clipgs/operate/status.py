"""How far an output is: stages by shards, objects and failures, disk, what can be removed, and what is left to do.

What is done, stale and to do comes from Snakemake itself.
"""

import json
import logging
import socket
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from clipgs.catalog.shards import back, frozen_shards, lost, plan, shard_path, shard_sizes
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.core.lists import counted
from clipgs.evaluation.rows import ABLATION
from clipgs.operate.estimate import rates, size_text, time_text
from clipgs.operate.lock import describe, holder
from clipgs.operate.planned import planned
from clipgs.operate.reasons import TARGETS
from clipgs.stages import OF_RULE, STAGES, job, path, retriable

log = logging.getLogger(__name__)

STATES = ("done", "stale", "failed", "running", "to do")
_SHOWN_FAILURES = 10
_SHOWN_LOST = 3
_BEFORE_FIT = ("sample", "view")  # whose bundles are needed no more once the splats are fitted


# Of each target what is there once it has been begun: status speaks of no others.
_BEGUN = ("", "features", "runs/{run}", "evaluation/{run}", "evaluation/baselines.json", f"runs/{ABLATION}*")
_TARGETS = dict(zip(TARGETS, (*_BEGUN, "report/index.html"), strict=True))


@dataclass
class State:
    """State to the jobs of a rule that are in it, each named by its shard or run; a job over everything is `all`."""

    shards: dict[str, list[str]] = field(default_factory=lambda: {state: [] for state in STATES})
    errors: dict[str, str] = field(default_factory=dict)  # shard to why its job failed
    # Shard to why it is stale: its own reason; empty if what it was made of will be made again.
    reasons: dict[str, str] = field(default_factory=dict)


def begun(config: Config) -> list[str]:
    """The targets of which something is there, and the triplets."""
    patterns = {target: pattern.format(run=config.training.run) for target, pattern in _TARGETS.items()}
    return [target for target, pattern in patterns.items() if not pattern or any(config.output_path.glob(pattern))]


def stages(config: Config, targets: Sequence[str] = (), snakefile: Path | None = None) -> dict[str, State]:
    """Each stage with its shards by state, in the order of the workflow.

    A shard is stale where something it was made of changed: an input, a setting, a version.

    Args:
        targets: what would be made; default: all that has been begun.

    Raises:
        ClipgsError: Snakemake cannot read the workflow.
    """
    values = config.model_dump(mode="json")
    active = holder(config.output_path) is not None
    found: dict[str, State] = {}
    for one in planned(values, snakefile or find_snakefile(), targets or begun(config)):
        stage, shard = found.setdefault(one.rule, State()), "-s".join(one.wildcards.values()) or "all"
        state = "done" if not one.runs else "stale" if one.there else "to do"
        if state != "done" and (mark := _mark(config, one.rule, shard)):
            if mark["state"] == "failed":
                state, stage.errors[shard] = "failed", mark.get("error") or "no reason given"
            elif active and _lives(mark):
                state = "running"
            else:
                state, stage.errors[shard] = "failed", "its job ended without an error: killed, out of memory or time"
        stage.shards[state].append(shard)
        if state == "stale":
            stage.reasons[shard] = one.why
    for stage in found.values():
        for names in stage.shards.values():
            names.sort()
    return {rule: found[rule] for rule in [*OF_RULE, *found] if rule in found}


def stale(found: dict[str, State]) -> list[str]:
    """Lines on why stages are stale."""
    lines, following = [], []
    for rule, stage in found.items():
        own = Counter(reason for reason in stage.reasons.values() if reason)
        lines += [f"{rule} ({count}): {reason}" for reason, count in own.most_common(3)]
        if len(own) > 3:
            lines.append(f"{rule} ({sum(own.values())}): {len(own) - 3} more reasons")
        if stage.reasons and not own:
            following.append(rule)
    if following:
        lines.append(f"{', '.join(following)}: because of these")
    return [("stale: " if not i else "       ") + line for i, line in enumerate(lines)]


def find_snakefile() -> Path:
    """The workflow of this folder, else of the checkout that this package was installed from.

    Raises:
        ClipgsError: there is none.
    """
    for file in (Path("Snakefile"), Path("workflow/Snakefile"), Path(__file__).resolve().parents[3] / "Snakefile"):
        if file.is_file():
            return file.absolute()
    raise ClipgsError("there is no Snakefile here; change into the folder in which you run Snakemake")


def _mark(config: Config, rule: str, shard: str) -> dict[str, Any]:
    try:
        found = json.loads(job(config, OF_RULE[rule].name, shard).mark.read_text())
        return found if found.get("state") in ("running", "failed") else {}
    except (OSError, ValueError, AttributeError, KeyError):
        return {}


def _lives(mark: dict[str, Any]) -> bool:
    """Whether the process still runs; of another host's it is not known."""
    return mark.get("host") != socket.gethostname() or psutil.pid_exists(mark["process"])


def failures(config: Config) -> list[dict[str, Any]]:
    """A row with uid, stage, error and file for each object that failed, at the first stage where it did."""
    rows: list[dict[str, Any]] = []
    columns = ["uid", "status", "error"]
    for shard in frozen_shards(config):
        packed = path(config, "triplets", shard, ".parquet")
        if packed.exists():
            rows += [row for row in _rows(packed, [*columns, "stage", "file"]) if row["status"] != "ok"]
            continue
        file_of = {row["uid"]: row["locator"] for row in _rows(shard_path(config, shard), ["uid", "locator"])}
        seen: set[str] = set()
        for stage in (*retriable(), "caption"):
            table, *_ = STAGES[stage].files(config.output_path, shard)
            for row in _rows(table, columns):
                if row["status"] != "ok" and row["uid"] not in seen:
                    seen.add(row["uid"])
                    rows.append({**row, "stage": stage, "file": file_of.get(row["uid"])})
    return rows


def _rows(table: Path, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of a table; none where it is missing, or damaged: what is left to do must be told all the same."""
    import pyarrow as pa

    if not table.exists():
        return []
    try:
        return read_table(table, columns)
    except (OSError, pa.ArrowInvalid):
        log.warning("%s cannot be read; set it aside with: clipgs verify --set-aside", table)
        return []


def disk(config: Config) -> dict[str, int]:
    """Folder of the output to its bytes, the largest first."""
    sizes = {folder.name: _bytes(folder.rglob("*")) for folder in config.output_path.glob("*/")}
    return dict(Counter(sizes).most_common())


def could_go(config: Config, found: dict[str, State]) -> dict[str, int]:
    """What to remove to its bytes: files of earlier stages that no later one waits for, and leftovers."""
    fitted = set(found["fit"].shards["done"]) if "fit" in found else set()
    sizes = {}
    for stage in map(STAGES.__getitem__, _BEFORE_FIT):
        files = [stage.files(config.output_path, shard)[1] for shard in fitted]
        sizes[f"{stage.folder}/*{stage.bundle}"] = _bytes(files)
    sizes["*.damaged"] = _bytes(config.output_path.rglob("*.damaged"))
    if holder(config.output_path) is None:
        sizes["work/"] = _bytes((config.output_path / "work").rglob("*"))
        sizes[".*.part"] = _bytes(config.output_path.rglob(".*.part"))
    return {name: size for name, size in sizes.items() if size}


def _bytes(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        with suppress(OSError):  # a run may remove it
            total += file.stat().st_size if file.is_file() else 0
    return total


def left(config: Config, found: dict[str, State]) -> dict[str, tuple[int, float, float]]:
    """Stage to objects that it has still to make, core-hours and GPU-hours, at the rates of `estimate`."""
    sizes, hours = shard_sizes(config, plan(config)), {}
    for stage, (_, core_seconds, gpu_seconds) in rates(config).items():
        shards = found[stage].shards if stage in found else {}
        objects = sum(sizes.get(shard, 0) for state in STATES[1:] for shard in shards.get(state, ()))
        if objects:
            hours[stage] = (objects, objects * core_seconds / 3600, objects * gpu_seconds / 3600)
    return hours


def status(config: Config, target: str | None = None, snakefile: Path | None = None) -> str:
    """The text of `clipgs status`."""
    targets = [target] if target else begun(config)
    found = stages(config, targets, snakefile)
    busy = holder(config.output_path)
    lines = [f"{config.output}: " + (f"in use by {describe(busy)}" if busy else "no run works on it"), ""]
    rows = [["shards", *STATES]]
    for name, stage in found.items():
        rows.append([name, *(f"{len(shards):,}" if shards else "." for shards in stage.shards.values())])
    lines += _table(rows)
    for name, stage in found.items():
        for error, count in Counter(stage.errors.values()).most_common(3):
            where = next(shard for shard, text in stage.errors.items() if text == error)
            lines.append(f"{name} {where}" + (f" and {count - 1} more" if count > 1 else "") + f": {error}")
    lines += stale(found)
    if not target and (others := [name for name in _TARGETS if name not in targets]):
        lines.append(f"not begun: {', '.join(others)}")
    lines += ["", *packed(config), *lost_objects(config)]
    if used := disk(config):
        lines += ["", "disk: " + ", ".join(f"{name} {size_text(size)}" for name, size in used.items() if size)]
    if spare := could_go(config, found):
        lines.append("could go: " + ", ".join(f"{name} {size_text(size)}" for name, size in spare.items()))
        if any(name.split("/")[0] in ("points", "views") for name in spare):
            command = snakemake("--delete-temp-output", "triplets")
            lines.append(f"          points and views: set `temporary` and run {command};")
            lines.append("          a later change of a `fit` key makes them again")
    if hours := left(config, found):
        rows = [["left", "objects", "of one core", "of one H200"]]
        for name, (count, core, gpu) in hours.items():
            rows.append([name, f"{count:,}", time_text(core), time_text(gpu) if gpu else ""])
        lines += ["", *_table(rows)]
    lines += [f"run {name}: trained on {text}" for name, text in _runs(config)]
    lines += ["", *_places(config)]
    return "\n".join(lines).rstrip() + "\n"


def summary(config: Config) -> list[str]:
    """Lines on what there is: objects, failures by reason, quality, places, and what to do next."""
    index, page = (config.output_path / name for name in ("triplets/index.parquet", "report/index.html"))
    if not index.exists():
        return _places(config)
    lines = [*packed(config), *_places(config)]
    if page.exists():
        lines.append(f"next: open {page}" + ', or clipgs search "a red chair"' * bool(_runs(config)))
    elif not lines[0].startswith("objects: 0 "):
        lines.append(f"next: {snakemake('report')} trains an encoder on them, measures it and shows it on a page")
    return lines


def packed(config: Config) -> list[str]:
    """Lines on the packed and the failed objects."""
    from clipgs.triplets.card import failures as grouped

    tables = [path(config, "triplets", shard, ".parquet") for shard in frozen_shards(config)]
    rows = [row for table in tables for row in _rows(table, ["status", "psnr"])]
    psnr = [row["psnr"] for row in rows if row["status"] == "ok"]
    failed = failures(config)
    lines = [f"objects: {len(psnr):,} packed, {len(failed):,} failed{_quality(config, psnr)}"]
    reasons = grouped(failed)
    for stage, reason, file, count in reasons[:_SHOWN_FAILURES]:
        shown = f" ({'the first: ' * (count > 1)}{file})" if file and file not in reason else ""
        lines.append(f"  {count:>6,} {stage}: {reason}{shown}")
    if rest := reasons[_SHOWN_FAILURES:]:
        count = sum(failure.objects for failure in rest)
        lines.append(f"  {count:>6,} for {counted(len(rest), 'rarer reason')}")
    if any(failure.stage in retriable() for failure in reasons):
        lines.append("  (clipgs retry STAGE tries the failed ones again, and no others)")
    return lines


def lost_objects(config: Config) -> list[str]:
    """Lines on the objects whose file was replaced or has gone, or is no longer listed: how many, and the first.

    And on those that were excluded for it, and are there again.
    """
    titles = {"replaced": "replaced", "gone": "source gone", "unlisted": "no longer listed"}
    end = {name: f"clipgs exclude --{name} takes them out" for name in titles}
    lines = [_listed(titles[name], found, end[name]) for name, found in lost(config).items() if found]
    end = {name: f"clipgs exclude --undo --{name} takes them in again" for name in titles}
    return lines + [_listed("excluded, there again", found, end[name]) for name, found in back(config).items() if found]


def _listed(title: str, found: list[tuple[str, str]], end: str) -> str:
    shown = ", ".join(f"{uid} ({file})" for uid, file in found[:_SHOWN_LOST])
    more = f" and {len(found) - _SHOWN_LOST:,} more" if len(found) > _SHOWN_LOST else ""
    return f"{title}: {len(found):,}: {shown}{more}; {end}"


def _quality(config: Config, psnr: list[float]) -> str:
    values = sorted(value for value in psnr if value is not None)  # ready splats have none
    if not values:
        return ""
    psnr_text = f"PSNR {statistics.fmean(values):.1f} dB in the mean, {values[0]:.1f} to {values[-1]:.1f}"
    fit = f"{config.fit.gaussians:,} Gaussians, {config.fit.steps:,} steps, {config.views.pixels} px"
    return f", {psnr_text} (held-out views, {fit})"


def _places(config: Config) -> list[str]:
    """The paths of the results."""
    places = {
        "triplets": "triplets/index.parquet",
        "card": "triplets/README.md",
        "pictures": "triplets/contact_sheet.png",
        "model": f"runs/{config.training.run}/model.safetensors",
        "report": "report/index.html",
    }
    found = {name: config.output_path / place for name, place in places.items()}
    return [f"{name:<8}  {path}" for name, path in found.items() if path.exists()]


def _runs(config: Config) -> list[tuple[str, str]]:
    """Trained runs, each with how many of the shards that there are it was made from."""
    now = set(frozen_shards(config))
    found = []
    for file in sorted((config.output_path / "runs").glob("*/inputs.json")):
        try:
            names = set(json.loads(file.read_text())["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((file.parent.name, f"{len(names & now)} of {len(now)} shards"))
    return found


def _table(rows: list[list[str]]) -> list[str]:
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows]
