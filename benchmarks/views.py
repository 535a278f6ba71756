"""How long an object's views take: 36 pictures at 256 px of a textured mesh of 40,000 triangles.

    python benchmarks/views.py

Writes benchmarks/results/views.json. The bar is 3 s an object on the CPU (Mesa's llvmpipe).
"""

import argparse
import logging
import os
import statistics
import sys
import time

import numpy as np
from record import record

from clipgs.config import Views as ViewSettings
from clipgs.meshes.cameras import canonical
from clipgs.meshes.headless import context
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import Material, Part, Texture
from clipgs.meshes.views import check, render

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=36)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--faces", type=int, default=40_000)
    parser.add_argument("--supersample", type=int, default=ViewSettings().supersample)
    parser.add_argument("--threads", type=int, help="of Mesa's llvmpipe (default: all cores; a worker has 1)")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.threads:
        os.environ["LP_NUM_THREADS"] = str(arguments.threads)

    mesh = textured_sphere(arguments.faces)
    cameras = canonical(arguments.views, pixels=arguments.pixels)
    rows = {}
    for supersample in sorted({1, arguments.supersample}):
        seconds = []
        for _ in range(arguments.runs + 1):
            start = time.perf_counter()
            check(render(mesh, *cameras, arguments.pixels, supersample=supersample))
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds[1:])  # the first run starts OpenGL, as the first object of a worker does
        rows[supersample] = {"seconds_an_object": median, "runs": seconds[1:], "first_run": seconds[0]}
        _log.info("supersample %d: %.2f s an object (bar %.1f s)", supersample, median, BAR_SECONDS)
    settings = {**vars(arguments), "faces": mesh.face_count}
    results = {
        "bar_seconds_an_object": BAR_SECONDS,
        "by_supersample": rows,
        "load_average": os.getloadavg(),
        "renderer": context().info["GL_RENDERER"],
    }
    record("views", settings, results)
    return 0 if rows[arguments.supersample]["seconds_an_object"] <= BAR_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
