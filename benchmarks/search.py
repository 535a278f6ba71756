"""Exact search: the nearest 10 of 240,000 embeddings, and the ranks of known answers, for 1,000 queries.

    python benchmarks/search.py                       # 2 threads, 1,024 dimensions

Each way runs in a process of its own, so that its memory is measured alone. Writes benchmarks/results/search.json.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import time
from typing import Any

from record import record

BAR_SECONDS, BAR_GB = 5.0, 4.0  # a 1,000 queries on 2 cores, at 240,000 x 1,024
QUERIES = 1000
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=240_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results: dict[str, Any] = {"bar": {"seconds": BAR_SECONDS, "peak_gb": BAR_GB}}
    for name in ("nearest", "ranks"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(_measure, (name, arguments.gallery, arguments.dim, arguments.threads, arguments.repeats))
        results[name] = found
        _log.info("%s: %.2f s, %.2f s of processor time, %.2f GB at the most", name, found["seconds"],
                  found["processor_seconds"], found["peak_gb"])  # fmt: skip
    settings = {"queries": QUERIES, **{key: value for key, value in vars(arguments).items()}}
    record("search", settings, results)
    held = all(results[name]["seconds"] <= BAR_SECONDS and results[name]["peak_gb"] < BAR_GB for name in results
               if name != "bar")  # fmt: skip
    return 0 if held else 1


def _measure(name: str, rows: int, dim: int, threads: int, repeats: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from clipgs.evaluation.retrieval import nearest, ranks

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((rows, dim), dtype=np.float32)
    answers = rng.choice(rows, QUERIES, replace=False)
    queries = gallery[answers] + 3 * rng.standard_normal((QUERIES, dim), dtype=np.float32)  # a rank of 1 for most
    times, processor, value = [], [], 0.0
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        if name == "nearest":
            value = float((nearest(queries, gallery, 10)[1] == answers[:, None]).any(1).mean())
        else:
            value = float(ranks(queries, gallery, answers[:, None].tolist()).hits(10).mean())
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    return {"seconds": min(times), "processor_seconds": min(processor), "peak_gb": peak, "recall_at_10": value}


if __name__ == "__main__":
    sys.exit(main())
