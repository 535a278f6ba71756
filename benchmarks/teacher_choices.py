"""How the settings of the shipped small teacher were chosen: many of them, trained side by side on one GPU.

    python benchmarks/teacher_choices.py --work runs --jobs 6      # after small_models.py has made the triplets
    python benchmarks/teacher_choices.py --work runs --choices "as it is" "steps 1500"

A fifth of the groups of the training split is left out and judged on: the test split has no part in the choice. Each
choice is judged by retrieval of an object's mean embedding of its renders, from its caption and from one render, over
the real meshes and over the built-in objects apart. Writes benchmarks/results/teacher_choices.json, best first: by the
mean of both, over the real meshes.
"""

import argparse
import hashlib
import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from record import record
from torch.nn import functional as F

from clipgs.config import SmallTeacher, merge
from clipgs.core.bundles import read_table
from clipgs.core.processes import usable_cores
from clipgs.core.seeds import seed_of
from clipgs.evaluation.retrieval import retrieval
from clipgs.teacher import tokenizers
from clipgs.teacher.names import ARCHITECTURE
from clipgs.training import small_teacher
from clipgs.triplets.captions import same_text
from clipgs.triplets.dataset import TripletDataset

SETTINGS = {"steps": 4000, "batch": 256, "view_weight": 1.0}
LEFT_OUT = 0.2  # of the groups
# Name to what differs in the settings, and in the architecture.
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "another seed": ({}, {}),
    "views 0": ({"view_weight": 0.0}, {}),
    "views 0.3": ({"view_weight": 0.3}, {}),
    "views 3": ({"view_weight": 3.0}, {}),
    "steps 1500": ({"steps": 1500}, {}),
    "steps 8000": ({"steps": 8000}, {}),
    "batch 128": ({"batch": 128}, {}),
    "batch 512": ({"batch": 512}, {}),
    "lr 5e-4": ({"learning_rate": 5e-4}, {}),
    "lr 2e-3": ({"learning_rate": 2e-3}, {}),
    "decay 0.5": ({"weight_decay": 0.5}, {}),
    "categories 0.2": ({"category_steps": 0.2}, {}),
    "categories 0.7": ({"category_steps": 0.7}, {}),
    "two text layers": ({}, {"text_cfg": {"layers": 2}}),
    "wider pictures": ({}, {"vision_cfg": {"width": 32, "layers": [1, 1, 1, 1]}}),
    "transformer": ({}, {"vision_cfg": {"layers": 6, "width": 192, "patch_size": 8, "head_width": 32}}),
}
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder of small_models.py")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="choices that train at the same time")
    parser.add_argument("--steps", type=int, help="for each, whether it runs at all")
    parser.add_argument("--seconds", type=float, help="no choice starts later than this")
    parser.add_argument("--output", type=Path, help="of the JSON (default: in benchmarks/results)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset = TripletDataset(arguments.work / "results" / "triplets", "train")
    rows = {row["uid"]: row for row in read_table(arguments.work / "results" / "triplets" / "index.parquet")}
    architecture = json.loads(ARCHITECTURE.read_text())
    read = small_teacher.read_pictures(
        dataset, range(len(dataset)), architecture["vision_cfg"]["image_size"], usable_cores()
    )
    groups = [rows[uid]["group"] or uid for uid in dataset.uids]
    real = np.array([not str(rows[uid]["file"]).startswith("built-in/") for uid in dataset.uids])
    end = time.monotonic() + (arguments.seconds or 1e9)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data.pt"
        torch.save((*read, groups, real), data)
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
            jobs = {pool.submit(tried, name, data, arguments.steps, end): name for name in arguments.choices}
            for job in as_completed(jobs):
                if result := job.result():
                    found[jobs[job]] = result
                    _log.info("%-16s %s", jobs[job], {part: round(value, 3) for part, value in result.items()})
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]["real"]))
    settings = {"small": SETTINGS, "left_out": LEFT_OUT, "choices": CHOICES}
    record("teacher_choices", settings, ordered, arguments.output)
    return 0


def tried(name: str, data: Path, steps: int | None, end: float) -> dict[str, float]:
    """One choice, trained and judged: R@1 from the text, from one picture, and their mean, by part."""
    if time.monotonic() > end:  # the same clock in every process of a machine
        return {}
    start = time.monotonic()
    changes, shape = CHOICES[name]
    torch.set_num_threads(1)
    images, texts, categories, groups, real = torch.load(data, weights_only=False, mmap=True)
    kept = np.array([seed_of(0, "left out", group) % 1000 >= 1000 * LEFT_OUT for group in groups])
    architecture = merge(json.loads(ARCHITECTURE.read_text()), shape)
    own = data.with_name(f"{hashlib.sha256(name.encode()).hexdigest()[:8]}.json")
    own.write_text(json.dumps(architecture))
    small_teacher.ARCHITECTURE = tokenizers.ARCHITECTURE = own  # type: ignore[attr-defined]
    settings = SmallTeacher(**{**SETTINGS, **changes, **({"steps": steps} if steps else {})})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inside = np.flatnonzero(kept)
    model, _ = small_teacher.train(
        images[torch.from_numpy(inside)],
        [texts[i] for i in inside],
        [categories[i] for i in inside],
        settings,
        int(name == "another seed"),
        device,
    )
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in small_teacher.NORMALISED)
    tokenizer = tokenizers.small_tokenizer()
    found: dict[str, float] = {}
    with torch.no_grad():
        for part, of_part in (("real", real), ("built-in", ~real)):
            places = np.flatnonzero(~kept & of_part)
            if len(places) < 2:
                continue
            rows = []
            for i in places:
                pictures = images[int(i)].to(device).permute(0, 3, 1, 2).float()
                rows.append(model.encode_image((pictures - mean) / std, normalize=True))
            seen = torch.stack(rows).cpu()  # [n, V, D]
            said = model.encode_text(tokenizer([texts[i] for i in places]).to(device), normalize=True).cpu()
            same: dict[str, list[int]] = {}
            for row, i in enumerate(places):
                same.setdefault(same_text(texts[i]), []).append(row)
            right, itself = [same[same_text(texts[i])] for i in places], [[row] for row in range(len(places))]
            others = F.normalize(seen[:, 1:].mean(dim=1), dim=-1)
            by_text = retrieval(said, others, right, resamples=2)["R@1"]
            by_view = retrieval(seen[:, 0], others, itself, resamples=2)["R@1"]
            found |= {part: (by_text + by_view) / 2, f"{part}, text": by_text, f"{part}, view": by_view}
    return {**found, "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.monotonic() - start}


if __name__ == "__main__":
    raise SystemExit(main())
