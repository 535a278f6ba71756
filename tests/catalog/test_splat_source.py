"""Ready splats: the source, how they are put into the frame, and their way through the workflow beside meshes."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch

from clipgs.catalog import shards, stages
from clipgs.catalog.sources import procedural
from clipgs.catalog.sources.splats import SplatSource
from clipgs.config import check, merge
from clipgs.core.bundles import read_table, read_tar
from clipgs.core.errors import ObjectError, UsageError
from clipgs.splats import ready
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.quaternions import product, rotation_matrices
from clipgs.splats.render import render
from clipgs.stages import STAGES

ORDER = ("label", "fetch", "sample", "view", "fit", "render", "caption", "pack")


def splat(rows=400, seed=0) -> Gaussians:
    """An upright block of 2 x 6 x 1, its upper end red, its lower end blue."""
    generator = torch.Generator().manual_seed(seed)
    means = (torch.rand(rows, 3, generator=generator) - 0.5) * torch.tensor([2.0, 6.0, 1.0])
    quats = torch.randn(rows, 4, generator=generator)
    log_scales = torch.randn(rows, 3, generator=generator) * 0.5 - 2
    up = (means[:, 1:2] + 3) / 6
    return Gaussians(means, quats, log_scales, torch.full((rows,), 3.0), torch.cat([up, up * 0, 1 - up], dim=1))


def write(path, gaussians, harmonics=0, comment=""):
    """A PLY as the first 3DGS program writes it: with normals, and harmonics where there are any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    names += [*(f"f_rest_{i}" for i in range(harmonics)), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    count = len(gaussians)
    parts = (gaussians.means, torch.zeros(count, 3), (gaussians.colors - 0.5) / 0.28209479177387814)
    parts += (torch.full((count, harmonics), 0.1), gaussians.opacity_logits[:, None])
    rows = torch.cat([*parts, gaussians.log_scales, gaussians.quats_wxyz], dim=1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", *([comment] if comment else []), f"element vertex {count}"]
    header += [*(f"property float {name}" for name in names), "end_header\n"]
    path.write_bytes("\n".join(header).encode() + rows.tobytes())


def splat_source(path, **settings):
    return SplatSource(check({"catalog": {"source": "splats", "splats": {"path": str(path), **settings}}}))


def covariances(gaussians):
    rotations = rotation_matrices(torch.nn.functional.normalize(gaussians.quats_wxyz.double()))
    halves = rotations * gaussians.scales.double()[:, None]
    return halves @ halves.transpose(1, 2)


def test_meshes_and_other_files_are_no_objects(tmp_path):
    write(tmp_path / "a" / "b.ply", splat())
    for name in ("c.glb", "d.npz", "e.json", "meta.json", "f.gz", "g.png"):
        (tmp_path / name).write_bytes(b"{}")
    source = splat_source(tmp_path, up_axis="-y")
    assert source.locators() == ["a/b.ply"]
    row = {"locator": "a/b.ply", **source.identify("a/b.ply")}
    assert row["note"] is None
    assert source.fetch(row) == tmp_path / "a" / "b.ply"
    assert source.up_axis(row) == "-y"


def test_an_empty_folder_and_no_folder_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"holds no splat \(\.ply \.splat"):
        splat_source(tmp_path).locators()
    with pytest.raises(UsageError, match=r"catalog\.splats\.path is not set"):
        SplatSource(check({"catalog": {"source": "splats"}}))


def placed(source: SplatSource, config, locator: str):
    """What the stages `freeze`, `fetch` and `fit` make of one object."""
    row = {"source": "splats", "locator": locator, **source.identify(locator)}
    if row["note"] is not None:
        raise ObjectError(row["note"])
    source.fetch(row)
    return ready._place(ready.ReadySplat(config, row, row["sha256"]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"plain text", "not a PLY"),
        (b"ply\nformat ascii 1.0\n", "cut short"),
        (b"ply\nformat ascii 1.0\nelement face 3\nend_header\n", "its vertices have no x, y"),
        (b"ply\nelement vertex 3\nproperty float x\nproperty float y\nend_header\n", "no z, f_dc_0"),
        (b"ply\nelement vertex 3\nproperty uint packed_position\nend_header\n", "no packed_rotation"),
    ],
)
def test_what_is_no_splat_is_refused_with_its_reason(tmp_path, data, words):
    (tmp_path / "a.ply").write_bytes(data)
    config = check({"cache": str(tmp_path), "catalog": {"source": "splats", "splats": {"path": str(tmp_path)}}})
    with pytest.raises(ObjectError, match=words):
        placed(SplatSource(config), config, "a.ply")


def test_a_splat_that_was_replaced_is_not_placed(tmp_path):
    write(tmp_path / "a.ply", splat(30))
    config = check({"cache": str(tmp_path), "catalog": {"source": "splats", "splats": {"path": str(tmp_path)}}})
    source = SplatSource(config)
    row = {"source": "splats", "locator": "a.ply", **source.identify("a.ply")}
    payload = ready.ReadySplat(config, row, row["sha256"])
    assert ready._place(payload)[0]["gaussians"] == 30
    write(tmp_path / "a.ply", splat(31))
    with pytest.raises(ObjectError, match=r"a\.ply has changed since it was frozen"):
        ready._place(payload)


@pytest.mark.parametrize("up_axis", ["y", "-y", "z"])
def test_a_splat_stands_upright_in_the_frame(up_axis):
    upright = splat()
    # Backwards from Y up to the axis that the file calls up, then anywhere at any size.
    turn = torch.tensor({"y": np.eye(3), "-y": np.diag([1, -1, -1]), "z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]]}[up_axis])
    turn = turn.double()
    theirs = upright.means.double() @ turn.T * 7 + torch.tensor([100.0, -50, 3]).double()
    inverse = torch.tensor(ready._TURNS[up_axis], dtype=torch.float64) * torch.tensor([1, -1, -1, -1])
    quats = product(inverse, upright.quats_wxyz.double())
    given = Gaussians(theirs.float(), quats.float(), upright.log_scales + math.log(7), *_rest(upright))
    placed, centre, scale = ready.place(given, up_axis, 1.0)
    extent = upright.means.max(dim=0).values - upright.means.min(dim=0).values
    middle = (upright.means.max(dim=0).values + upright.means.min(dim=0).values) / 2
    torch.testing.assert_close(placed.means, (upright.means - middle) / extent.max(), rtol=0, atol=1e-5)
    expected = covariances(upright) / extent.max().double() ** 2
    torch.testing.assert_close(covariances(placed), expected, rtol=1e-4, atol=1e-9)
    turned = given.means.double() @ rotation_matrices(torch.tensor(ready._TURNS[up_axis], dtype=torch.float64)).T
    torch.testing.assert_close((turned - torch.tensor(centre)) * scale, placed.means.double(), rtol=0, atol=1e-6)


def _rest(gaussians):
    return gaussians.opacity_logits, gaussians.colors


def test_a_floater_and_what_nobody_sees_do_not_set_the_box():
    block = splat(1000)
    means = torch.cat([block.means, torch.tensor([[500.0, 0, 0], [0, 0, 300]])])
    logits = torch.cat([block.opacity_logits, torch.tensor([3.0, -5.0])])
    tail = (block.quats_wxyz[:2], block.log_scales[:2], block.colors[:2])
    quats, scales, colors = (
        torch.cat(pair) for pair in zip((block.quats_wxyz, block.log_scales, block.colors), tail, strict=True)
    )
    placed, _, _ = ready.place(Gaussians(means, quats, scales, logits, colors), "y", 0.99)
    extent = placed.means[:1000].max(dim=0).values - placed.means[:1000].min(dim=0).values
    assert float(extent.max()) == pytest.approx(1, abs=1e-5)


def test_a_thin_tip_belongs_to_the_object():
    block = splat(1000)
    block.means[3] = torch.tensor([0.0, 4.0, 0.0])  # a quarter of the height is 1.5
    placed, _, _ = ready.place(block, "y", 0.99)
    assert float(placed.means[3, 1]) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda means: means * 0, "no size"), (lambda means: means * 1e16, "no size of an object")],
)
def test_a_splat_of_no_size_or_an_absurd_one_is_refused(change, words):
    block = splat(10)
    with pytest.raises(ObjectError, match=words):
        ready.place(Gaussians(change(block.means), block.quats_wxyz, block.log_scales, *_rest(block)), "y", 0.99)


SETTINGS = {
    "device": "cpu",
    "catalog": {"source": "folder", "splats": {"up_axis": "-y", "max_gaussians": 1000}},
    "points": {"count": 600},
    "views": {"pixels": 32, "count": 6, "held_out": 2},
    "fit": {"gaussians": 150, "steps": 20, "min_psnr": 5.0},
    "render": {"pixels": 32},
    "workers": {"threads": 1},
}


def upside_down(gaussians):
    """The same thing in the frame of most photographs, Y down."""
    quats = product(torch.tensor([0.0, -1, 0, 0]).double(), gaussians.quats_wxyz.double()).float()
    return Gaussians(gaussians.means * torch.tensor([1.0, -1, -1]), quats, gaussians.log_scales, *_rest(gaussians))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """An output with a mesh in its first shard and ready splats in its second, made by the stages."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "meshes").mkdir()
    (folder / "meshes" / "chair.glb").write_bytes(procedural.build(procedural.locator(0, 0)))
    with open(folder / "meshes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "text"], ["chair.glb", "a chair of somebody"]])
    write(folder / "splats" / "block.ply", upside_down(splat()), harmonics=45)
    broken = splat()
    broken.means[:, 0] = float("nan")
    write(folder / "splats" / "broken.ply", broken)
    write(folder / "splats" / "large.ply", splat(1001))
    hidden = splat()
    write(
        folder / "splats" / "unseen.ply",
        Gaussians(hidden.means, hidden.quats_wxyz, hidden.log_scales, hidden.opacity_logits - 20, hidden.colors),
    )
    (folder / "splats" / "mesh.ply").write_bytes(b"ply\nelement vertex 1\nproperty float x\nend_header\n")
    with open(folder / "splats.csv", "w", newline="") as file:
        names = ("block", "broken", "large", "unseen", "mesh")
        rows = [[f"{name}.ply", name, "block", "a red and blue block", "CC-BY-4.0", "A. Maker"] for name in names]
        csv.writer(file).writerows([["file", "uid", "category", "text", "license", "credit"], *rows])
    meshes = {"path": str(folder / "meshes"), "manifest": str(folder / "meshes.csv")}
    splats = {"path": str(folder / "splats"), "manifest": str(folder / "splats.csv")}
    places = {"output": str(folder / "out"), "cache": str(folder / "cache")}
    places |= {"catalog": {"folder": meshes, "splats": splats}}
    for name, shard in (("folder", "00000"), ("splats", "00001")):
        config = check(merge(SETTINGS, places, {"catalog": {"source": name}}))
        assert shards.plan(config).pending == (shard,)
        stages.freeze(config, [shard])
        for stage in ORDER:
            STAGES[stage].function(config, shard, 1)
    stages.objects(config)
    STAGES["index"].function(config)
    return config


def rows_of(config, folder, shard="00001"):
    return {row["uid"]: row for row in read_table(config.output_path / folder / f"{shard}.parquet")}


def test_bad_splats_are_rows_with_a_reason(mixed):
    rows = rows_of(mixed, "triplets")
    failures = {uid: (row["stage"], row["error"]) for uid, row in rows.items() if row["status"] != "ok"}
    assert failures.keys() == {"broken", "large", "unseen", "mesh"}
    assert failures["broken"][0] == "fit"
    assert "none of its 400 Gaussians can be used" in failures["broken"][1]
    assert failures["large"] == ("fit", "ObjectError: it has 1001 Gaussians, catalog.splats.max_gaussians is 1000")
    assert failures["unseen"] == ("fit", "ObjectError: none of its Gaussians can be seen")
    assert failures["mesh"][0] == "fit"


def test_a_ready_splat_passes_by_what_meshes_need(mixed):
    assert rows_of(mixed, "points") == rows_of(mixed, "views") == {}
    row = rows_of(mixed, "splats")["block"]
    assert row["note"] == "45 spherical harmonics above degree 0 are dropped"
    assert row["psnr"] is None
    assert row["gaussians"] == 400


def test_its_triplet_says_what_it_is(mixed):
    row = rows_of(mixed, "triplets")["block"]
    assert (row["source"], row["psnr"], row["gaussians"]) == ("splats", None, 400)
    members = dict(read_tar(mixed.output_path / "triplets" / "00001.tar"))
    meta = json.loads(members["block.json"])
    assert meta["mesh"]["source"] == "splats"
    assert meta["mesh"]["up_axis"] == "-y"
    assert meta["quality"] == {"psnr": None, "psnr_foreground": None, "ssim": None, "alpha_iou": None, "gaussians": 400}
    assert meta["license"] == "CC-BY-4.0"
    assert members["block.txt"] == b"a red and blue block"
    placed = Gaussians.from_ply(members["block.ply"])
    extent = placed.means.max(dim=0).values - placed.means.min(dim=0).values
    assert float(extent.max()) == float(extent[1]) == pytest.approx(1, abs=1e-5)
    assert meta["mesh_to_splat"]["scale"] == pytest.approx(1 / 6, rel=0.05)


def test_it_is_pictured_upright(mixed):
    from clipgs.triplets.dataset import TripletDataset

    dataset = TripletDataset(mixed.output_path / "triplets")
    item = dataset[list(dataset.uids).index("block")]
    assert item["images"].shape == (6, 32, 32, 3)
    viewmats = torch.tensor(item["meta"]["cameras"]["viewmats"])
    sides = [i for i in range(6) if abs(viewmats[i, 1, 1]) > 0.9]  # seen about level
    assert sides
    for view in sides:
        image = item["images"][view].float()
        upper, lower = image[6:12, 14:18].mean(dim=(0, 1)), image[20:26, 14:18].mean(dim=(0, 1))
        assert upper[0] > lower[0]  # red above
        assert upper[2] < lower[2]  # blue below
    Ks = torch.tensor(item["meta"]["cameras"]["Ks"])
    again = render(item["gaussians"], viewmats, Ks, 32)
    assert (again.int() - item["images"].int()).abs().float().mean() < 4  # the WebP is lossy


def test_card_index_and_status_take_both_kinds(mixed):
    from clipgs.operate.status import packed

    index = {row["uid"]: row for row in read_table(mixed.output_path / "triplets" / "index.parquet")}
    assert {row["source"] for row in index.values()} == {"folder", "splats"}
    notes = {row["source"]: row["splat_note"] for row in index.values()}
    assert notes == {"folder": None, "splats": "45 spherical harmonics above degree 0 are dropped"}
    card = (mixed.output_path / "triplets" / "README.md").read_text()
    assert "A. Maker" in card
    assert packed(mixed)[0].startswith("objects: 2 packed, 4 failed, PSNR")


def test_another_source_in_the_output_leaves_older_labels_as_they_were(mixed):
    labels = read_table(shards.labels_path(mixed, "00000"))
    assert [row["text"] for row in labels] == ["a chair of somebody"]
    before = shards.plan(mixed).label_digests
    assert before.keys() == {"00000", "00001"}
    other = mixed.model_copy(update={"catalog": mixed.catalog.model_copy(update={"source": "folder"})})
    assert shards.plan(other).label_digests == before
    stages.label(mixed, "00000")
    assert read_table(shards.labels_path(mixed, "00000")) == labels


def test_the_same_splat_gives_the_same_bytes(mixed, tmp_path):
    config = mixed.model_copy(update={"output": str(tmp_path)})
    for folder in ("catalog", "meshes", "points", "views"):
        shutil.copytree(mixed.output_path / folder, tmp_path / folder)
    STAGES["fit"].function(config, "00001", 2)
    tar = "splats/00001.tar"
    assert (tmp_path / tar).read_bytes() == (mixed.output_path / tar).read_bytes()


def test_nothing_but_splats_makes_a_card_too(mixed, tmp_path):
    from clipgs.triplets.card import write_card
    from clipgs.triplets.pack import merge_index

    source = mixed.output_path / "triplets"
    for name in ("00001.tar", "00001.parquet"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    merge_index([tmp_path / "00001.parquet"], tmp_path / "index.parquet")
    views = {"00001": mixed.output_path / "views" / "00001.parquet"}
    write_card(tmp_path, [tmp_path / "00001.parquet"], views, mixed.pack)
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000
    assert "ready splats" in (tmp_path / "README.md").read_text()
