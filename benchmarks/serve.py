"""`clipgs serve` over 24 and over 240,000 objects: seconds to the first result, and memory.

    python benchmarks/serve.py                        # 2 cores, 1,024 dimensions

The objects are synthetic: captions of random words, embeddings at random, and renders for the first shard alone. The
teachers have the size of the shipped one and of ViT-B-32, and weights at random: their time is real, their answers are
not. Each query is another one, asked over HTTP as the page asks. Memory is the most that the server's process had at
any time, with its mapped pages. The bar for memory is that of the shipped teacher: weights are memory of their own.

Writes benchmarks/results/serve.json.
"""

import argparse
import http.client
import io
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image
from record import record

from clipgs import config as configuration
from clipgs.config import SMALL_TEACHER
from clipgs.core.bundles import TarWriter, read_table, write_table, write_tensors
from clipgs.core.files import sha256_of, write_bytes
from clipgs.encoder import MODEL
from clipgs.meshes.cameras import canonical
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import to_webp
from clipgs.triplets.pack import TAR_BLOCK, schema

BAR_SECONDS, BAR_GB = 1.0, 2.0
SHARD, VIEWS, CATEGORIES, FAILED = 1024, 36, 1156, 20  # objects of a shard, renders, categories, failures a shard
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "orange", "purple", "gray")
_THINGS = (
    "chair",
    "table",
    "sofa",
    "lamp",
    "car",
    "boat",
    "house",
    "tree",
    "mug",
    "bottle",
    "robot",
    "guitar",
    "rocket",
)
_PLACES = ("with metal legs", "with wooden handles", "on a round base", "like in a cartoon", "with four wheels")
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[24, 240_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--teachers", nargs="+", default=[SMALL_TEACHER, "ViT-B-32"], help="architectures")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--queries", type=int, default=20)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    os.environ["OMP_NUM_THREADS"] = str(arguments.cores)
    results: dict[str, Any] = {"bar": {"seconds": BAR_SECONDS, "peak_gb": BAR_GB}}
    held = True
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.objects:
            output = Path(folder) / str(count)
            _write_output(output, count)
            for name in arguments.teachers:
                _write_run(output, Path(folder) / name, name, arguments.dim)
                found = _measure(output, arguments.queries)
                results[f"{count} objects, {name}"] = found
                slowest = max(value["largest"] for value in found["warm_seconds"].values())
                held &= slowest < BAR_SECONDS and (found["peak_gb"] < BAR_GB or name != SMALL_TEACHER)
                _log.info(
                    "%d objects, %s: page after %.1f s, first words after %.1f s, first text after %.1f s; "
                    "then a text takes %.2f s, the slowest query %.2f s; %.2f GB at the most",
                    *(count, name, found["seconds_to_page"], found["seconds_to_words"], found["seconds_to_first_text"]),
                    *(found["warm_seconds"]["text"]["median"], slowest, found["peak_gb"]),
                )
    record("serve", vars(arguments), results)
    return 0 if held else 1


def _write_run(output: Path, teacher: Path, name: str, dim: int) -> None:
    """A run of a teacher with weights at random, and embeddings at random."""
    import open_clip
    import torch

    from clipgs.teacher import model as teachers
    from clipgs.teacher.names import ARCHITECTURE, PREPROCESS, VOCABULARY
    from clipgs.teacher.tokenizers import small_vocabulary

    if not teacher.exists():
        open_clip.add_model_config(ARCHITECTURE)
        torch.manual_seed(0)
        architecture = {**open_clip.get_model_config(name), "embed_dim": dim}
        weights = {key: value.numpy() for key, value in open_clip.CLIP(**architecture).state_dict().items()}
        write_tensors(teacher / "open_clip_model.safetensors", weights)
        described = {"model_cfg": architecture, "preprocess_cfg": {**PREPROCESS}}
        write_bytes(teacher / "open_clip_config.json", json.dumps(described).encode())
        if name == SMALL_TEACHER:
            write_bytes(teacher / VOCABULARY, small_vocabulary(architecture["text_cfg"]["vocab_size"]))
    about = teachers.load(configuration.check(_settings(teacher))).about
    run = output / "runs" / "base"
    write_tensors(run / MODEL, {"any": np.zeros(1, np.float32)}, {"dim": dim, "teacher": about})
    write_bytes(run / "config.yaml", yaml.safe_dump(_settings(teacher)).encode())
    uids = read_table(output / "triplets" / "index.parquet", ["uid"])
    shapes = np.random.default_rng(0).standard_normal((len(uids), dim), dtype=np.float32)
    for start in range(0, len(shapes), 8192):
        part = shapes[start : start + 8192]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    metadata = {"model_sha256": sha256_of(run / MODEL), "uids": [row["uid"] for row in uids]}
    write_tensors(output / "evaluation" / "base" / "embeddings.safetensors", {"shapes": shapes}, metadata)


def _settings(teacher: Path) -> dict[str, Any]:
    return {"device": "cpu", "teacher": {"name": f"local-dir:{teacher}"}}


def _write_output(output: Path, count: int) -> None:
    """An output with an index and the files of the first shard."""
    generator = np.random.default_rng(0)
    uids = [f"{value:016x}" for value in generator.choice(2**62, count, replace=False)]
    rows: list[dict[str, Any]] = []
    for i, uid in enumerate(sorted(uids)):
        words = (
            _COLOURS[generator.integers(len(_COLOURS))],
            _THINGS[generator.integers(len(_THINGS))],
            _PLACES[generator.integers(len(_PLACES))],
        )
        rows.append({
            "uid": uid, "shard": f"{i // SHARD:05d}", "status": "ok", "source": "objaverse", "group": uid,
            "file": f"glbs/000-{i % 160:03d}/{uid}.glb", "split": ("train", "validation", "test")[i % 10 // 8],
            "category": f"category {generator.integers(CATEGORIES)}", "caption": "a {} {} {}".format(*words),
            "caption_source": "Cap3D", "license": ("CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0")[i % 3],
            "credit": f"author {i % 5000}", "page": f"https://example.org/{uid}",
            "psnr": float(generator.normal(38, 4)),
            "psnr_foreground": 30.0, "ssim": 0.99, "alpha_iou": 0.99, "gaussians": 16_000, "offset": 0, "bytes": 0,
            "sha256": 4 * uid,
        })  # fmt: skip
    _write_shard(output / "triplets" / "00000.tar", rows[:SHARD])
    failed = {
        "status": "failed",
        "stage": "fit",
        "error": "ObjectError: held-out PSNR is 12.3 dB, fit.min_psnr is 20 dB",
    }
    for start in range(0, count, SHARD):
        some = rows[start : start + SHARD]
        more = [
            {"uid": f"failed-{start + i}", "shard": some[0]["shard"], "file": "a.glb", **failed} for i in range(FAILED)
        ]
        write_table(output / "triplets" / f"{some[0]['shard']}.parquet", some + more, schema())
    kept = [name for name in schema().names if name not in ("status", "stage", "error")]
    index = pa.schema([schema().field(name) for name in kept])
    write_table(output / "triplets" / "index.parquet", [{name: row.get(name) for name in kept} for row in rows], index)
    config = configuration.check({"output": str(output)})
    (output / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def _write_shard(tar: Path, rows: list[dict[str, Any]]) -> None:
    """Objects of 2,000 Gaussians and renders of noise; sets their places in the rows."""
    import torch

    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2000, width, generator=draw) for width in (3, 4, 3)]
    ply = Gaussians(*tensors, torch.ones(2000), torch.rand(2000, 3, generator=draw)).to_ply()
    picture = to_webp(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), 80)
    cameras = {"viewmats": canonical(VIEWS)[0].tolist()}
    offset = 0
    with TarWriter(tar) as writer:
        for row in rows:
            meta = json.dumps({"uid": row["uid"], "cameras": cameras}).encode()
            files = [(f"{view:02d}.webp", picture) for view in range(VIEWS)]
            files += [("json", meta), ("ply", ply), ("txt", row["caption"].encode())]
            for name, data in files:
                writer.add(f"{row['uid']}.{name}", data)
            size = sum(TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK for _, data in files)
            row |= {"offset": offset, "bytes": size}
            offset += size


def _measure(output: Path, queries: int) -> dict[str, Any]:
    start = time.perf_counter()
    words = [sys.executable, "-m", "clipgs", "serve", "--output", str(output), "--port", "0"]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://[^:]+:(\d+)/", line)))
        _ask(port, "")
        to_page = time.perf_counter() - start
        _ask(port, "api/search?by=words&q=red+chair")
        to_words = time.perf_counter() - start
        first, listed = _ask(port, "api/search?q=a+red+chair")
        to_text = time.perf_counter() - start
        uids = [row["uid"] for row in json.loads(listed)["objects"]]
        of_shard = [row["uid"] for row in read_table(output / "triplets" / "00000.parquet") if row["status"] == "ok"]
        asked = {
            "text": lambda i: (
                "api/search?q=" + quote(f"a {_COLOURS[i % len(_COLOURS)]} {_THINGS[i % len(_THINGS)]} number {i}"),
                None,
            ),
            "text, filtered": lambda i: (f"api/search?license=CC0-1.0&split=train&psnr_min=35&q=thing+{i}", None),
            "picture": lambda i: ("api/search", _picture(i)),
            "another object": lambda i: (f"api/search?like={uids[i % len(uids)]}&psnr_max={60 + i}", None),
            "words": lambda i: (
                f"api/search?by=words&q={_COLOURS[i % len(_COLOURS)]}+{_THINGS[i % len(_THINGS)]}&psnr_max={60 + i}",
                None,
            ),
            "listing": lambda i: (f"api/search?offset={48 * i}&sort=psnr", None),
            "next page": lambda i: (f"api/search?q=a+red+chair&offset={48 * (i + 1)}", None),
            "picture of an object": lambda i: (f"render/{of_shard[i % len(of_shard)]}", None),
            "splat": lambda i: (f"splat/{of_shard[i % len(of_shard)]}", None),
        }
        times = {name: [_ask(port, *ask(i))[0] for i in range(queries)] for name, ask in asked.items()}
        failures, _ = _ask(port, "api/failures")
        kilobytes = dict(re.findall(r"(VmHWM|VmRSS):\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text()))
    finally:
        server.terminate()
        server.wait(30)
    return {
        "seconds_to_page": to_page,
        "seconds_to_words": to_words,
        "seconds_to_first_text": to_text,
        "seconds_of_first_failures": failures,
        "warm_seconds": {name: {"median": statistics.median(one), "largest": max(one)} for name, one in times.items()},
        "peak_gb": int(kilobytes["VmHWM"]) * 1024 / 1e9,
        "gb_at_the_end": int(kilobytes["VmRSS"]) * 1024 / 1e9,
        "seconds_waited_for_first_text": first,
    }


def _picture(i: int) -> bytes:
    """Another photograph-like picture for each number."""
    data = io.BytesIO()
    small = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC).save(data, "JPEG")
    return data.getvalue()


def _ask(port: int, address: str, body: bytes | None = None) -> tuple[float, bytes]:
    """Seconds until the whole answer is there, and the answer."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("GET" if body is None else "POST", f"/{address}", body)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{address}: {answer.status} {data[:200]!r}")
        return time.perf_counter() - start, data
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
