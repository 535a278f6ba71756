"""What the page is told: lists, searches, objects and failures."""

import io
import json
import os
import shlex

import numpy as np
import pytest
from PIL import Image

from clipgs import cli
from clipgs.core.bundles import TarWriter, read_metadata, read_table, write_table, write_tensors
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.encoder.trained import load_teacher
from clipgs.report.search import square
from clipgs.serve import reader
from clipgs.serve.reader import decoded
from clipgs.serve.site import Site
from clipgs.splats.gaussians import Gaussians
from clipgs.triplets.dataset import TripletDataset, best_render
from clipgs.triplets.pack import schema
from tests.packed_world import write_index
from tests.serve.conftest import NASTY, png, serving

C = "c" * 64


def ranked(shapes, vector):
    return sorted(shapes, key=lambda uid: -float(shapes[uid].astype(np.float64) @ vector))


def test_without_a_run_objects_are_listed_and_words_found(client, output):
    about = client.json("api/about")
    assert (about["objects"], about["near"], about["run"]) == (3, False, None)
    assert about["facets"]["category"] == [["mug", 1], ["none", 1], ["tree", 1]]
    assert client.uids() == sorted(output.uids)
    assert client.uids(q="RED mug", by="words") == ["a"]
    assert client.uids(q="ug", by="words") == []  # a word is found from its beginning
    assert client.uids(q="a.glb (", by="words") == []  # no pattern
    assert "score" not in client.json("api/search")["objects"][0]
    status, _, said = client.ask("api/search?q=mug")
    assert (status, b"no run is trained" in said) == (503, True)


@pytest.mark.parametrize(
    ("filters", "uids"),
    [
        ({"category": "tree"}, ["-b_"]),
        ({"category": "none"}, [C]),
        ({"category": "no such"}, []),
        ({"license": "CC-BY-4.0", "split": "test"}, ["-b_"]),
        ({"psnr_min": "35"}, ["a"]),  # of a ready splat no PSNR is known
        ({"psnr_max": "35"}, ["-b_"]),
        ({"psnr_min": "20", "psnr_max": "50"}, ["-b_", "a"]),
        ({"sort": "psnr"}, ["-b_", "a", C]),
        ({"sort": "-psnr"}, ["a", "-b_", C]),
        ({"offset": "1", "count": "1"}, ["a"]),
        ({"offset": "9"}, []),
    ],
)
def test_filters_and_orders(client, filters, uids):
    assert client.uids(**filters) == uids


@pytest.mark.parametrize(
    "query", [{"psnr_min": "much"}, {"offset": "-1"}, {"count": "1e3"}, {"sort": "uid"}, {"q": 3000 * "a"}]
)
def test_a_wrong_query_is_a_sentence(client, query):
    with pytest.raises(AssertionError, match=r"number|order|longer"):
        client.json("api/search", **query)


def test_text_and_picture_are_read_by_the_runs_teacher(searching, trained):
    teacher = load_teacher(trained.run)
    text = teacher.encode_texts(["a green tree"])[0].double().numpy()
    found = searching.json("api/search", q="a green tree")
    assert [row["uid"] for row in found["objects"]] == ranked(trained.shapes, text)
    np.testing.assert_allclose(
        found["objects"][0]["score"], max(trained.shapes[u] @ text for u in trained.shapes), atol=1e-4
    )
    data = png((10, 200, 10))
    picture = teacher.encode_images(square(np.asarray(Image.open(io.BytesIO(data)))))[0].double().numpy()
    assert searching.uids(data) == ranked(trained.shapes, picture)
    assert searching.uids(data, category="tree") == ["-b_"]
    assert searching.uids(q="a green tree", split="train") == [u for u in ranked(trained.shapes, text) if u != "-b_"]


def test_an_object_is_nearest_to_itself(searching, trained):
    for uid in trained.uids:
        assert searching.uids(like=uid) == ranked(trained.shapes, trained.shapes[uid].astype(np.float64))
    assert searching.ask("api/search?like=nobody")[0] == 404


def test_objects_that_came_after_the_embeddings_are_found_by_words_alone(trained):
    file = trained.folder / "evaluation" / "base" / "embeddings.safetensors"
    metadata = read_metadata(file)
    shapes = np.stack([trained.shapes["a"], trained.shapes[C], np.ones(24, np.float32)])
    write_tensors(file, {"shapes": shapes.astype(np.float16)}, metadata | {"uids": ["a", C, "gone"]})
    with serving(trained.config, trained.run) as client:
        assert client.json("api/about")["lacking"] == 1
        assert client.uids(like="a") == ["a", C]
        assert client.uids(q="caption", by="words") == ["-b_", C]
        assert not client.json("api/object/-b_")["near"]
        assert client.ask("api/search?like=-b_")[0] == 400


@pytest.mark.parametrize("what", ["missing", "damaged", "other weights"])
def test_embeddings_that_cannot_be_used_are_named_and_words_still_found(trained, what):
    file = trained.folder / "evaluation" / "base" / "embeddings.safetensors"
    if what == "missing":
        file.unlink()
    elif what == "damaged":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        (trained.run / ".model.safetensors.check").unlink()
        with open(trained.run / "model.safetensors", "r+b") as model:
            model.seek(-1, os.SEEK_END)
            model.write(b"x")
    with serving(trained.config, trained.run) as client:
        about = client.json("api/about")
        assert not about["near"]
        assert "snakemake evaluate" in about["no_search"]
        assert client.uids(q="red", by="words") == ["a"]
        assert file.exists() == (what != "missing")  # nothing is set aside: the page does not write


def test_a_teacher_that_cannot_be_loaded_is_named_and_objects_still_compared(trained):
    (trained.run / "config.yaml").write_text("teacher: {name: 'local-dir:/nowhere'}")
    with serving(trained.config, trained.run) as client:
        status, _, said = client.ask("api/search?q=tree")
        assert (status, b"/nowhere" in said) == (503, True)
        assert "/nowhere" in client.json("api/about")["reader"]
        assert client.uids(like="a")[0] == "a"


def test_an_object_is_shown_whole(client, output):
    row = client.json("api/object/a")
    assert row["caption"] == f"a red mug {NASTY}"
    assert (row["category"], row["license"], row["file"], row["psnr"]) == ("mug", "CC-BY-4.0", "in/a.glb", 41.0)
    assert (row["renders"], row["mesh_views"], row["mesh_picture"]) == (4, 3, True)
    dataset = TripletDataset(output.folder / "triplets")
    members = dataset.members(list(dataset.uids).index("a"))
    assert client.ask("render/a")[2] == best_render("a", members)
    assert client.ask("render/a/2")[2] == members["a.02.webp"]
    assert client.ask("ply/a")[2] == members["a.ply"]
    assert client.ask("mesh/a/1")[2] == png((1, 0, 0))
    assert client.ask("mesh/a")[1]["Content-Type"] == "image/webp"
    assert len(client.ask("splat/a")[2]) == 32 * len(Gaussians.from_ply(members["a.ply"], "a"))
    assert [
        client.ask(address)[0] for address in ("render/a/4", "mesh/a/3", "mesh/-b_/0", "failed/a", "ply/a/1")
    ] == 5 * [404]


def test_a_picture_that_the_browser_has_is_not_sent_again(client):
    _, headers, data = client.ask("render/a")
    status, _, again = client.ask("render/a", If_None_Match=headers["ETag"])
    assert (status, again) == (304, b"")
    assert data


def test_failures_have_reason_stage_and_picture(client):
    found = client.json("api/failures")
    d, e = found["objects"]
    assert (d["uid"], d["stage"], d["error"], d["picture"]) == ("d", "fit", f"ObjectError: {NASTY}", True)
    assert (e["uid"], e["stage"], e["picture"]) == ("e", "catalog", False)
    assert sorted(found["stages"]) == [["catalog", 1], ["fit", 1]]
    assert client.ask("failed/d")[1]["Content-Type"] == "image/webp"
    assert client.ask("failed/e")[0] == 404
    assert client.json("api/failures", stage="fit")["total"] == 1
    assert client.json("api/failures", q="DUPLICATE of")["total"] == 1
    assert [client.ask(f"{kind}/d")[0] for kind in ("render", "api/object", "splat", "mesh")] == 4 * [404]


def test_an_object_that_was_excluded_still_shows_its_splat(output):
    file = output.folder / "triplets" / "00000.parquet"
    rows = read_table(file)
    for row in rows:
        if row["uid"] == "d":
            row |= {"uid": "a2", "stage": "catalog"}
    write_table(file, rows, schema())
    with TarWriter(output.folder / "renders" / "00000.tar") as tar:
        tar.add("a2/00.webp", png(kind="WEBP"))
    with serving(output.config) as client:
        assert client.ask("failed/a2")[2] == png(kind="WEBP")


def test_what_is_not_on_disk_is_said_and_nothing_ends(output):
    (output.folder / "triplets" / "00000.tar").unlink()
    (output.folder / "views" / "00000.tar").write_bytes(b"no tar")
    (output.folder / "views" / "00000.parquet").unlink()
    with serving(output.config) as client:
        assert client.uids() == sorted(output.uids)
        assert client.json("api/object/a")["renders"] == 0
        assert [client.ask(f"{kind}/a")[0] for kind in ("render", "splat", "ply", "mesh")] == 4 * [404]
        assert not client.json("api/failures")["objects"][0]["picture"]


def test_an_output_that_was_packed_again_is_noticed_and_never_mixed(client, output):
    assert not client.json("api/about")["changed"]
    tar = output.folder / "triplets" / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"a.", b"z."))
    assert client.ask("render/a")[0] == 404
    index = output.folder / "triplets" / "index.parquet"
    os.utime(index, (1, 1))
    assert client.json("api/about")["changed"]
    assert client.json("api/search")["changed"]


def test_without_triplets_it_says_what_to_do(output):
    (output.folder / "triplets" / "index.parquet").unlink()
    with pytest.raises(ClipgsError, match=r"index\.parquet is missing; make it with: snakemake triplets"):
        Site(output.config, None)


def test_the_commands_to_copy_are_understood(client, output, monkeypatch):
    assert client.json("api/about")["exclude"] == "clipgs exclude"
    (output.folder / "run.yaml").write_text("")
    line = client.json("api/about")["exclude"] + " --reason 'not ours' -- -b_ a"
    options = cli.parser().parse_args(shlex.split(line)[1:])
    assert (options.uids, options.output, options.reason) == (["-b_", "a"], output.folder, "not ours")


def test_a_picture_is_upright_and_over_white():
    data = io.BytesIO()
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image.save(data, "PNG", exif=exif)
    assert decoded(data.getvalue()).shape == (40, 20, 3)
    assert decoded(data.getvalue())[0, 0].tolist() == [0, 0, 255]
    data = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(data, "PNG")
    assert (decoded(data.getvalue()) == 255).all()


@pytest.mark.parametrize("data", [b"", b"no picture", png()[:60], b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture_is_a_sentence(searching, data):
    with pytest.raises(UsageError, match="not a picture"):
        decoded(data)
    status, _, said = searching.ask("api/search", "POST", data)
    assert (status, b"not a picture" in said) == (400, True)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(reader, "MAX_MEGAPIXELS", 1)
    with pytest.raises(UsageError, match="megapixels"):
        decoded(png(size=(1200, 1000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="exceeds limit"):
        decoded(png(size=(1200, 900)))


def test_what_the_command_says_of_a_run_that_is_not_there(output, caplog):
    (output.folder / "run.yaml").write_text(json.dumps(output.config.model_dump(mode="json")))
    assert cli.main(["serve", "--output", str(output.folder), "--run", "runs/nope"]) == 2
    assert "there is no folder" in caplog.text


def test_an_output_in_which_every_object_failed(output):
    file = output.folder / "triplets" / "00000.parquet"
    failed = {"status": "failed", "stage": "fit", "error": "no"}
    write_table(file, [row | failed for row in read_table(file)], schema())
    write_index(output.folder)
    with serving(output.config) as client:
        about = client.json("api/about")
        assert (about["objects"], about["psnr"], about["facets"]["category"]) == (0, None, [])
        assert client.uids() == client.uids(q="mug", by="words") == client.uids(category="mug") == []
        assert client.json("api/failures")["total"] == 5


def test_an_index_of_an_earlier_version_is_read(output):
    """Without the columns that came later."""
    import pyarrow.parquet as pq

    file = output.folder / "triplets" / "index.parquet"
    later = ["file", "caption_score", "caption_note", "view_note"]
    pq.write_table(pq.read_table(file).drop_columns(later), file)
    with serving(output.config) as client:
        assert client.uids(q="red", by="words") == ["a"]
        assert client.json("api/object/a")["file"] is None
