"""Real files that are broken or odd: every one ends as a right triplet's views or as a row with a reason."""

import csv
import hashlib
import socket
from pathlib import Path

import pytest

from clipgs.core.workers import Failure, run

TABLE = Path(__file__).parent / "hostile.csv"
PIXELS = 48


def views_of(path: Path) -> tuple[int, tuple[float, ...]]:
    """Loads, samples and renders as the stages do, where any use of a network is an error."""

    def no_network(*arguments, **options):
        raise AssertionError("the network was touched")

    socket.socket.connect = socket.socket.connect_ex = no_network
    socket.create_connection = socket.getaddrinfo = no_network

    from clipgs.meshes.cameras import canonical
    from clipgs.meshes.load import load
    from clipgs.meshes.points import sample
    from clipgs.meshes.views import check, render

    mesh = load(path, max_faces=2_000_000, max_texture_pixels=1 << 26)
    _, rgb, _ = sample(mesh, 2000, seed=0)
    views = render(mesh, *canonical(6, pixels=PIXELS), PIXELS)
    check(views)
    return mesh.face_count, tuple(rgb.mean(axis=0).tolist())


def rows() -> list[dict[str, str]]:
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def outcomes(shared):
    """What became of each file of the folder, all through one pool."""
    files = [shared / "data" / "hostile" / row["file"] for row in rows()]
    results = run(views_of, files, workers=2, timeout_seconds=120, memory_mb=1500)
    return {rows()[index]["file"]: result for index, result in results}


def test_the_table_names_every_file(shared):
    folder = shared / "data" / "hostile"
    with open(folder / "manifest.csv", newline="") as file:
        manifest = {row["file"]: row["uid"] for row in csv.DictReader(file)}
    assert sorted(row["file"] for row in rows()) == sorted(manifest)
    for name, uid in manifest.items():  # the words below are about these very bytes
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest().startswith(uid)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["file"])
def test_outcome(row, outcomes):
    result = outcomes[row["file"]]
    if row["faces"]:
        assert not isinstance(result, Failure), result.error
        faces, color = result
        assert faces == int(row["faces"])
        assert color == pytest.approx([float(value) for value in row["color"].split()], abs=0.03)
    else:
        assert isinstance(result, Failure)
        assert result.error == f"ObjectError: {row['error']}"
