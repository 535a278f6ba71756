import json
from types import SimpleNamespace

import numpy as np
import pytest

from clipgs import config as configuration
from clipgs.catalog.records import frozen_schema
from clipgs.core.bundles import write_table, write_tensors
from clipgs.core.files import write_bytes
from clipgs.triplets.pack import merge_index
from tests.triplets.conftest import make_shard

NASTY = "<script>alert(1)</script> \"'&\N{SNOWMAN} </style> </title>"
UIDS = ("b-mug", "a_mug", "c" * 64, "d", "e")


@pytest.fixture
def output(tmp_path):
    """An output with one packed shard of five objects, two of them failed, whose texts try to be markup."""
    shard = make_shard(tmp_path, "00000", list(UIDS))
    for row in shard.inputs["labels"]:
        row |= {"category": f"mug {NASTY}", "credit": NASTY, "license": NASTY, "page": "javascript:alert(1)"}
    for row in shard.inputs["stages"]["caption"]:
        row["caption"] = f"{row['caption']} {NASTY}"
    shard.inputs["stages"]["fit"][-1]["error"] = f"ObjectError: {NASTY}"
    rows = shard.pack()
    write_table(tmp_path / "catalog" / "shards" / "00000.parquet", [], frozen_schema())
    merge_index([shard.table], tmp_path / "triplets" / "index.parquet")
    config = configuration.check({"output": str(tmp_path), "pack": {"title": f"My triplets {NASTY}"}})
    return SimpleNamespace(folder=tmp_path, config=config, uids=[row["uid"] for row in rows if row["status"] == "ok"])


@pytest.fixture
def evaluated(output):
    """The same with the files of a run and its evaluation, as small as they can be."""
    interval = {"R@1": [0.1, 0.5], "R@5": [0.2, 0.6], "R@10": [0.3, 0.7], "median_rank": [1, 3]}
    chance = {"R@1": 0.33, "R@5": 1.0, "R@10": 1.0, "median_rank": 2.0}
    numbers = {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "median_rank": 2.0, "interval": interval, "chance": chance}
    nearest = [{"uid": uid, "text": NASTY, "score": 0.5, "right": uid == "b-mug"} for uid in output.uids]
    about = {
        "protocol": NASTY,
        "teacher": f"clipgs-small ({NASTY})",
        "lvis_shapes": NASTY,
        "seed": 0,
        "gallery": {"sha256": 64 * "a", "objects": 3, "captions": 3, "split": "test"},
    }
    top = {"top1": 0.5, "top3": 0.75, "top5": 1.0}
    per_class = {NASTY: {"objects": 2, "top1": 0.5}, "cup": {"objects": 1, "top1": 0.5}}
    files = {
        "base/retrieval": {
            **about,
            "rows": [{"task": "text to 3D", "from": NASTY, "queries": 3, "gallery": 3, **numbers}],
            "examples": [
                {"task": "text to 3D", "query": NASTY, "nearest": nearest},
                {"task": "image to 3D", "query": NASTY, "uid": "b-mug", "view": 1, "nearest": nearest},
            ],
        },
        "base/zeroshot": {
            **about,
            "rows": [
                {"from": NASTY, "objects": 3, "classes": 2, **top, "by_class": top, "chance": top,
                 "interval": {key: [0, 1] for key in top}, "per_class": per_class,
                 "confusions": [{"class": NASTY, "taken_for": "cup", "objects": 1}]}
            ],
        },
        "base/fewshot": {
            **about,
            "rows": [{"ways": 5, "shots": 5, "classifier": NASTY, "mean": 0.5, "std": 0.1, "chance": 0.2, "folds": 10,
                      "eligible_classes": 7, "queries_a_class": [3, 20]}],
            "missing": [{"ways": 20, "shots": 5, "reason": NASTY}],
        },
        "baselines": {
            **about,
            "rows": [
                {"model": NASTY, "input": NASTY, "text_to_3d": 0.5, "zero_shot": None, "source": NASTY, "ours": True},
                {"model": "PointRWKV", "input": "points", "source": "published", "few_shot": 0.948},
            ],
        },
        "ablations": {
            **about,
            "metrics": ["R@1"],
            "rows": [
                {"name": NASTY, "seeds": [0, 1], "metrics": {"R@1": {"mean": 0.5, "std": 0.1}}, "note": NASTY},
                {"name": "next", "seeds": [0, 1], "metrics": {},
                 "difference": {"metric": "R@1", "against": NASTY, "mean": 0.1, "interval": [-0.1, 0.2]}},
                {"name": "last", "seeds": [0, 1], "metrics": {},
                 "difference": {"metric": "R@1", "against": NASTY, "mean": -0.25, "interval": [-0.3, 0.0]}},
            ],
        },
    }  # fmt: skip
    for name, value in files.items():
        write_bytes(output.folder / "evaluation" / f"{name}.json", json.dumps(value).encode())
    embeddings = output.folder / "evaluation" / "base" / "embeddings.safetensors"
    shapes = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    write_tensors(embeddings, {"shapes": shapes}, {"uids": output.uids})
    metrics = "".join(json.dumps({"step": step, "loss": 1 / (step + 1), "run": NASTY}) + "\n" for step in range(20))
    (output.folder / "runs" / "base").mkdir(parents=True)
    (output.folder / "runs" / "base" / "metrics.jsonl").write_text(metrics + '{"step": 2')
    return output
