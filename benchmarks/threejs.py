"""Agreement of the views of real glTF files with those that three.js draws in headless Chromium.

    python benchmarks/threejs.py                # all objects of core, every 8th of labelled
    python benchmarks/threejs.py --sheets OUT   # and pictures of the objects that are outside the bars

Both draw four views without light, with the same cameras and 16 samples a pixel. three.js draws with the materials that
its GLTFLoader gives. What glows is drawn without its glow on both sides. three.js does not read
KHR_materials_pbrSpecularGlossiness; it is given the diffuse colour where the core material has no colour.

An object that is outside the bars is drawn again with backs: of single-sided faces the back is seen where no front lies
on the ray, as here on purpose. Culling costs many real objects a part of their outline.

"finer" is three.js with 64 samples a pixel and textures twice as fine: how much 16 samples leave out.

Writes benchmarks/results/threejs.json.
"""

import argparse
import contextlib
import json
import logging
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from record import CHECKOUT, SHARED, record

from clipgs.meshes.cameras import canonical
from clipgs.meshes.load import Mesh, load
from clipgs.meshes.views import render

sys.path.append(str(CHECKOUT))  # for the tests
from tests import browser

THREE = "0.187.0"
BAR_DIFFERENCE = 2.0  # of 255, the mean over the pixels that both cover
BAR_IOU = 0.995
BACKS = "backs of single-sided faces are seen where no front lies on the ray"
GLASS = "transmission is seen through, which a material without light does not show in three.js"
UNSEEN = "its core material has an opacity of 0, and three.js does not read the specular-glossiness one, which has 1"
REASONS = {  # of those that are left, by looking at them
    "a-cordless-drill_ed9a07": UNSEEN,
    "a-pair-of-sunglasses_014b4d": GLASS,
    "a-wall-mounted-metal-barn-lamp_d82926": GLASS,
    "long-ladder_96d758": "rungs and rails are one to three pixels wide, and the two place their samples otherwise",
}
NEUTRAL = (0.7, 0.7, 0.7)
_PAGE = Path(__file__).with_suffix(".html")
_PIXELS = 256
_OVER, _FINER = 2, 4  # pixels drawn along a side of a pixel, with four samples each
_DEGREES = 40.0
_PATIENCE = 120.0  # seconds an object
_FLAGS = [*browser.FLAGS, "--disable-background-timer-throttling"]
_log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """Over all views of an object."""

    difference: float  # of 255, mean over the channels of the pixels that both cover
    iou: float  # of the pixels that are covered by more than a half
    soft_iou: float  # of coverage; unlike the other it does not jump at a half

    @property
    def inside(self) -> bool:
        return self.difference < BAR_DIFFERENCE and self.iou > BAR_IOU

    def rounded(self) -> dict[str, float]:
        return {key: round(value, 4) for key, value in self._asdict().items()}


class Browser:
    """Chromium with the page open, which draws one file after another."""

    def __init__(self, three: Path, chromium: str) -> None:
        self.jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.answers: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.three, self.chromium, self.mesh = three, chromium, Path()
        self.renderer = "unknown"

    @contextlib.contextmanager
    def opened(self) -> Iterator["Browser"]:
        """While it runs."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            command = [self.chromium, *_FLAGS, f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                kind, said = self.answers.get(timeout=_PATIENCE)
                self.renderer = said.decode() if kind == "renderer" else "unknown"
                yield self
            finally:
                self.jobs.put(None)
                process.terminate()
                process.wait(30)
                server.shutdown()

    def start(self, path: Path, mesh: Mesh, viewmats: np.ndarray, *, backs: bool) -> None:
        """Begins to draw a file, as `mesh` lies in the canonical frame."""
        self.mesh = path
        self.jobs.put({
            "mesh": f"/mesh.glb?{time.monotonic_ns()}",
            "viewmats": viewmats[:, :3].tolist(),
            "degrees": _DEGREES,
            "pixels": _PIXELS,
            "over": [_OVER, _FINER],
            "centre": mesh.centre.tolist(),
            "scale": mesh.scale,
            "neutral": NEUTRAL,
            "backs": backs,
        })  # fmt: skip

    def pictures(self) -> np.ndarray:
        """What was drawn, coarser and finer: float [2, V, H, W, 4] in 0..255, colour times coverage.

        Raises:
            RuntimeError: three.js could not read or draw the file.
        """
        kind, said = self.answers.get(timeout=_PATIENCE)
        if kind != "pictures":
            raise RuntimeError(said.decode())
        sums = np.frombuffer(said, "<u2").reshape(2, -1, _PIXELS, _PIXELS, 4)
        return sums / np.array([_OVER, _FINER]).reshape(2, 1, 1, 1, 1) ** 2

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        browser = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.partition("?")[0]
                if name == "/job":
                    self.give(json.dumps(browser.jobs.get()).encode(), "application/json")
                elif name == "/":
                    self.give(_PAGE.read_bytes(), "text/html")
                elif name == "/mesh.glb":
                    self.give(browser.mesh.read_bytes(), "model/gltf-binary")
                elif name.startswith("/three/") and ".." not in name and name.endswith(".js"):
                    self.give((browser.three / name.removeprefix("/three/")).read_bytes(), "text/javascript")
                else:
                    self.send_error(404)

            def do_POST(self) -> None:
                said = self.rfile.read(int(self.headers["Content-Length"]))
                browser.answers.put((self.path[1:], said))
                self.give(b"", "text/plain")

            def give(self, data: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--three", type=Path, help="folder of the npm package (default: it is installed)")
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--labelled", type=int, default=200, help="so many objects of labelled, spread evenly")
    parser.add_argument("--only", default="", help="objects whose path contains this; no figures are written")
    parser.add_argument("--sheets", type=Path, help="folder for pictures of the objects that are outside")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        three = arguments.three or installed(Path(temporary))
        with Browser(three, arguments.chromium).opened() as browser:
            return _run(arguments, browser)


def installed(folder: Path) -> Path:
    """Installs the pinned three.js into a folder: the folder of the package."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
    subprocess.run([*command, f"three@{THREE}"], check=True, stdout=subprocess.DEVNULL)
    return folder / "node_modules" / "three"


def chosen(labelled: int) -> dict[str, list[Path]]:
    """The files of each set."""
    data = SHARED / "data"
    files = sorted(data.glob("labelled/*/*.glb"))
    step = max(len(files) // max(labelled, 1), 1)
    return {"core": sorted(data.glob("core/*.glb")), "labelled": files[::step][:labelled]}


def _run(arguments: argparse.Namespace, browser: Browser) -> int:
    start = time.perf_counter()
    viewmats, Ks = canonical(arguments.views, fov_degrees=_DEGREES, pixels=_PIXELS)
    sets: dict[str, dict[str, Any]] = {}
    for name, paths in chosen(arguments.labelled).items():
        rows = {}
        for path in paths:
            key = str(path.relative_to(SHARED / "data" / name))
            if arguments.only not in f"{name}/{key}":
                continue
            rows[key] = _compared(path, browser, viewmats, Ks, arguments.sheets)
            _log.info("%s/%s %s", name, key, rows[key])
        sets[name] = rows
    results: dict[str, Any] = {
        "bars": {"difference_of_255": BAR_DIFFERENCE, "iou": BAR_IOU},
        **{name: {**_summary(rows), "objects": rows} for name, rows in sets.items()},
        "seconds": time.perf_counter() - start,
        "load_average": os.getloadavg(),
        "renderer": browser.renderer,
    }
    for name in sets:
        _log.info("%s: %s", name, {key: value for key, value in results[name].items() if key != "objects"})
    if not arguments.only:
        settings = {"views": arguments.views, "pixels": _PIXELS, "over": _OVER, "three": THREE}
        record("threejs", settings, results)
    return 0 if all(row["inside"] or row["reason"] for rows in sets.values() for row in rows.values()) else 1


def _compared(
    path: Path, browser: Browser, viewmats: np.ndarray, Ks: np.ndarray, sheets: Path | None
) -> dict[str, Any]:
    mesh = load(path, max_faces=2_000_000, max_texture_pixels=8192**2, neutral_color=NEUTRAL)
    browser.start(path, mesh, viewmats, backs=False)
    dark = [replace(part, material=replace(part.material, emissive_factor=(0.0, 0.0, 0.0))) for part in mesh.parts]
    darkened = replace(mesh, parts=tuple(dark))
    ours = render(darkened, viewmats, Ks, _PIXELS, supersample=_OVER, ambient=1.0, lights=())
    try:
        measured, finer = (measure(ours, theirs) for theirs in browser.pictures())
        row: dict[str, Any] = {"inside": measured.inside, **measured.rounded(), "finer": finer.rounded()}
        if measured.inside and finer.inside:
            return row
        browser.start(path, mesh, viewmats, backs=True)
        theirs = browser.pictures()
    except RuntimeError as error:
        return {"inside": False, "reason": str(error)}
    measured, finer = (measure(ours, one) for one in theirs)
    row["with_backs"] = {**measured.rounded(), "finer": finer.rounded()}
    if not row["inside"]:
        row["reason"] = BACKS if measured.inside else REASONS.get(path.stem, "")
        if sheets is not None:
            _sheet(ours, theirs[0], sheets / f"{path.stem}{'' if measured.inside else '_out'}.png")
    return row


def measure(
    ours: np.ndarray,  # [V, H, W, 4] uint8, straight alpha
    theirs: np.ndarray,  # [V, H, W, 4] in 0..255, colour times coverage
) -> Measured:
    """How far the pictures of an object are apart."""
    # Of 16 samples often exactly a half are covered; both sides must round them the same way.
    covered, expected = ours[..., 3] >= 128, np.rint(theirs[..., 3]) >= 128
    both = covered & expected
    apart = np.abs(ours[both][:, :3] - _straight(theirs)[both])
    alpha = np.stack([ours[..., 3], theirs[..., 3]])
    return Measured(
        float(apart.mean()) if both.any() else 255.0,
        float(both.sum() / max((covered | expected).sum(), 1)),
        float(alpha.min(axis=0).sum() / max(alpha.max(axis=0).sum(), 1)),
    )


def _straight(premultiplied: np.ndarray) -> np.ndarray:
    return (premultiplied[..., :3] * 255 / np.maximum(premultiplied[..., 3:], 1e-3)).clip(0, 255)


def _summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    measured = [row for row in rows.values() if "difference" in row]
    if not measured:
        return {"count": len(rows)}
    outside: dict[str, list[str]] = {}
    for key, row in rows.items():
        if not row["inside"]:
            outside.setdefault(row["reason"], []).append(key)
    best = [row.get("with_backs", row) for row in measured]
    return {
        "count": len(rows),
        "share_inside": statistics.fmean(row["inside"] for row in rows.values()),
        "share_inside_with_backs": sum(map(_inside, best)) / len(rows),
        **_spread(measured),
        "with_backs": _spread(best),
        "finer": {
            "share_inside_with_backs": sum(_inside(row["finer"]) for row in best) / len(rows),
            **_spread([row["finer"] for row in best]),
        },
        "outside": outside,
    }


def _inside(row: dict[str, Any]) -> bool:
    return row["difference"] < BAR_DIFFERENCE and row["iou"] > BAR_IOU


def _spread(rows: list[dict[str, Any]]) -> dict[str, float]:
    differences, ious = ([row[key] for row in rows] for key in ("difference", "iou"))
    return {
        "median_difference": statistics.median(differences),
        "worst_difference": max(differences),
        "median_iou": statistics.median(ious),
        "worst_iou": min(ious),
    }


def _sheet(ours: np.ndarray, theirs: np.ndarray, file: Path) -> None:
    """Rows: ours, theirs, and how far they are apart (8 times); over grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ours = ours.astype(np.float64)
    over = [ours[..., :3] * ours[..., 3:] / 255 + 128 * (1 - ours[..., 3:] / 255)]
    over.append(theirs[..., :3] + 128 * (1 - theirs[..., 3:] / 255))
    over.append((8 * np.abs(over[0] - over[1])).clip(0, 255))
    rows = [np.concatenate(list(row), axis=1) for row in over]
    Image.fromarray(np.concatenate(rows).clip(0, 255).astype(np.uint8)).save(file)


if __name__ == "__main__":
    sys.exit(main())
