"""How long an object's views take: 36 pictures at 256 px of a textured mesh of 40,000 triangles.

    python benchmarks/views.py

Writes benchmarks/results/views.json. The bar is 3 s an object on the CPU (Mesa's llvmpipe, one thread).
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from clipgs.meshes.cameras import canonical
from clipgs.meshes.headless import import_pyrender
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import Material, Part, Texture
from clipgs.meshes.views import check, render
from clipgs.storage import describe_error

BAR_SECONDS = 3.0
_log = logging.getLogger(__name__)


def textured_sphere(faces: int, texture_pixels: int = 1024) -> Mesh:
    """A lumpy sphere of about `faces` triangles, with smooth normals and a texture of noise."""
    rows = round((faces / 4) ** 0.5)
    columns = 2 * rows
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    polar, azimuth = np.pi * v, 2 * np.pi * u
    directions = np.stack([np.sin(polar) * np.cos(azimuth), np.cos(polar), np.sin(polar) * np.sin(azimuth)], axis=-1)
    radius = 0.44 + 0.05 * np.sin(7 * azimuth) * np.sin(polar) ** 2 * np.sin(5 * polar)
    vertices = (directions * radius[..., None]).reshape(-1, 3).astype(np.float32)
    corner = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    below = corner + columns + 1
    triangles = np.concatenate([np.stack([corner, corner + 1, below], 1), np.stack([corner + 1, below + 1, below], 1)])
    noise = np.random.default_rng(0).integers(0, 256, (texture_pixels, texture_pixels, 3), dtype=np.uint8)
    part = Part(
        vertices,
        triangles.astype(np.int32),
        directions.reshape(-1, 3).astype(np.float32),
        np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32),
        material=Material(base_color_texture=Texture(noise)),
    )
    return Mesh((part,), np.zeros(3), 1.0)


def renderer_name() -> str:
    from OpenGL.GL import GL_RENDERER, glGetString

    renderer = import_pyrender().OffscreenRenderer(8, 8)
    try:
        return glGetString(GL_RENDERER).decode()
    finally:
        renderer.delete()


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=36)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--faces", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "views.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # as in a worker

    mesh = textured_sphere(arguments.faces)
    cameras = canonical(arguments.views, pixels=arguments.pixels)
    seconds, cpu_seconds = [], []
    for _ in range(arguments.runs + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        rgba = render(mesh, *cameras, arguments.pixels)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)  # what it takes where nobody else computes
        check(rgba)
    median = statistics.median(seconds[1:])  # the first run loads pyrender, as the first object of a worker does
    result = {
        "command": " ".join(["python", "benchmarks/views.py", *sys.argv[1:]]),
        "settings": {
            "views": arguments.views,
            "pixels": arguments.pixels,
            "faces": mesh.face_count,
            "threads": int(os.environ["LP_NUM_THREADS"]),
        },
        "first_seconds": round(seconds[0], 3),
        "seconds": [round(value, 3) for value in seconds[1:]],
        "cpu_seconds": [round(value, 3) for value in cpu_seconds[1:]],
        "median_seconds_an_object": round(median, 3),
        "bar_seconds_an_object": BAR_SECONDS,
        "passed": median <= BAR_SECONDS,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "commit": commit(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "renderer": renderer_name()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pyrender", "PyOpenGL", "trimesh")},
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    _log.info("%.2f s an object (bar %.1f s), written to %s", median, BAR_SECONDS, arguments.output)
    return 0 if result["passed"] else 1


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError as error:
        _log.debug("no processor name: %s", describe_error(error))
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
