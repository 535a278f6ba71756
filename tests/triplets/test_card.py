import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clipgs.config import Pack
from clipgs.core.errors import ClipgsError
from clipgs.splats.gaussians import Gaussians
from clipgs.triplets import card
from clipgs.triplets.contact_sheet import Sample, contact_sheet
from clipgs.triplets.dataset import TripletDataset
from tests.packed_world import write_index
from tests.triplets.conftest import make_shard


def rows(count: int = 3, **values) -> list[dict]:
    numbers = {"psnr": 30.0, "psnr_foreground": None, "ssim": 0.9, "alpha_iou": 0.9, "gaussians": 10, "bytes": 1000}
    labels = {"category": "mug", "license": "CC-BY-4.0", "credit": "A. Maker", "page": None}
    base = {"status": "ok", "stage": None, "error": None, "split": "train", "shard": "00000", **numbers, **labels}
    return [{"uid": f"u{i}", **base, **values} for i in range(count)]


def write(packed) -> None:
    views = {shard.name: shard.views for shard in packed}
    card.write_card(packed[0].tar.parent, [shard.table for shard in packed], views, Pack(title="My mugs", samples=4))


def test_card_of_a_dataset(packed):
    folder = packed[0].tar.parent
    write(packed)
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == ["cc-by-4.0"]
    assert front["size_categories"] == ["n<1K"]
    assert "# My mugs" in text
    assert "| objects in the catalog | 10 |" in text
    assert "| triplets | 6 |" in text
    assert "| splits | test 2, train 4 |" in text
    assert "| PSNR, dB | 35.50 | 35.50 | 35.50 | 35.50 |" in text
    assert "| mug | 6 |" in text
    assert re.search(r"\| fit \| held-out PSNR is 12.3 dB, fit.min\\_psnr is 20 dB \| in/\S+.glb \| 2 \|", text)
    assert "| catalog | duplicate of" in text
    for maker in range(3):
        assert f"| A. Maker {maker} | CC-BY-4.0 | 2 |" in text
    credits = list(csv.DictReader(io.StringIO((folder / "CREDITS.csv").read_text())))
    assert len(credits) == 6
    assert credits[1] == {
        "uid": "b-mug",
        "file": "in/b-mug.glb",
        "category": "mug",
        "license": "CC-BY-4.0",
        "credit": "A. Maker 0",
        "page": "https://example.org/0",
    }
    for name in ("quality.png", "contact_sheet.png"):
        assert f"]({name})" in text
        with Image.open(folder / name) as image:
            image.load()


LOAD = """
import json, sys
import datasets

rows = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])["train"]
streamed = datasets.load_dataset(sys.argv[1], split="train", streaming=True)
found = {
    "keys": rows["__key__"][:],
    "streamed": [row["__key__"] for row in streamed],
    "columns": rows.column_names,
    "ply": [row["ply"].hex() for row in rows],
    "images": [row["00.webp"].size for row in rows],
    "text": rows["txt"][:],
    "json": rows["json"][:],
}
print(json.dumps(found))
"""


def loaded(folder, cache) -> dict:
    """What the library `datasets` makes of the folder."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", LOAD, str(folder), str(cache / "datasets")]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def test_the_library_of_the_hub_loads_each_triplet_once_by_the_folders_name(shard, tmp_path):
    # Of the first objects it could not tell the type of these.
    shard.inputs["labels"] = [label | {"license": None, "credit": None} for label in shard.inputs["labels"]]
    shard.inputs["stages"]["fit"] = [row | {"psnr": None} for row in shard.inputs["stages"]["fit"]]
    other = make_shard(shard.folder, "00001", ["f", "g", "h", "i", "j"])
    for one in (shard, other):
        one.pack()
    write_index(shard.folder)
    write([shard, other])
    folder, index = shard.tar.parent, TripletDataset(shard.tar.parent)
    make_shard(shard.folder, "00002", ["k", "l", "m", "n", "o"]).pack()  # before the card is written again
    found = loaded(folder, tmp_path / "cache")
    assert found["keys"] == found["streamed"] == [*index.uids, "k", "l", "m"]
    assert found["columns"] == [*(name.partition(".")[2] for name in index.members(0)), "__key__", "__url__"]
    for i, item in enumerate(index):
        assert torch.equal(Gaussians.from_ply(bytes.fromhex(found["ply"][i])).means, item["gaussians"].means)
        assert found["text"][i] == item["text"]
        assert found["json"][i] == item["meta"]
    assert found["images"] == [[32, 32]] * 9
    assert [meta["license"] for meta in found["json"]] == [None] * 3 + ["CC-BY-4.0"] * 6


def test_same_triplets_same_bytes(packed):
    folder = packed[0].tar.parent
    names = ("README.md", "CREDITS.csv", "quality.png", "contact_sheet.png")
    write(packed)
    before = [(folder / name).read_bytes() for name in names]
    write(packed[::-1])
    assert [(folder / name).read_bytes() for name in names] == before


def test_sheet_shows_mesh_and_splat_of_the_same_view(packed):
    """The fixture's mesh views and renders are the same pictures, but for WebP's losses."""
    folder = packed[0].tar.parent
    views = {shard.name: shard.views for shard in packed}
    chosen = [{"uid": "b-mug", "category": "mug", "shard": "00000", "psnr": 35.5}]
    (sample,) = card._samples(folder, chosen, views, 24)
    difference = np.abs(sample.mesh.astype(int) - sample.splat)
    assert difference.mean() < 60  # two unrelated pictures of noise differ by 85
    assert sample.caption == "a mugé 0"


def test_card_without_triplets(tmp_path):
    text = card.readme(rows(2, status="failed", stage="fetch", error="no such file", file="mug.glb"), "Nothing")
    assert "| fetch | no such file | mug.glb | 2 |" in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == ["unknown"]
    assert card._histogram([]).startswith(b"\x89PNG")
    assert contact_sheet([], "Nothing").size[0] > 0


def test_text_from_the_data_stays_text():
    nasty = "<script>alert(1)</script> [x](http://evil.example) | `a` *b* _c_ # d\n| e & www.evil.example"
    text = card.escape(nasty)
    assert "<" not in text.replace("&lt;", "")
    assert "\n" not in text
    assert "\\[x\\](http&#58;//evil" in text
    assert " \\| \\`a\\` \\*b\\* \\_c\\_ \\# d \\| e &amp; www&#46;evil" in text
    table = card.readme(rows(1, credit=nasty, category=nasty, license=nasty), nasty)
    assert "<script>" not in table.split("---\n", 2)[2]
    assert yaml.safe_load(table.split("---\n")[1])["pretty_name"] == nasty


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("CC-BY-4.0", "cc-by-4.0"),
        ("CC BY 3.0", "cc-by-3.0"),
        ("by", "cc-by-4.0"),
        ("by-nc-sa", "cc-by-nc-sa-4.0"),
        ("Creative Commons BY-SA 4.0", "cc-by-sa-4.0"),
        ("CC0", "cc0-1.0"),
        ("CC0-1.0", "cc0-1.0"),
        ("MIT", "mit"),
        ("BSD-3-Clause", "bsd-3-clause"),
        ("MIT License", "mit"),
        ("The MIT License (MIT)", "mit"),
        ("https://opensource.org/licenses/MIT", "mit"),
        ("Creative Commons - Attribution", "cc-by-4.0"),
        ("Creative Commons Attribution-NonCommercial", "cc-by-nc-4.0"),
        ("Creative Commons Attribution Non-Commercial Share Alike 3.0 Unported", "cc-by-nc-sa-3.0"),
        ("CC Attribution-NoDerivs", "cc-by-nd-4.0"),
        ("CC-BY-NC-ND-4.0", "cc-by-nc-nd-4.0"),
        ("Attribution 4.0 International", "cc-by-4.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "cc-by-nc-sa-4.0"),
        ("http://www.creativecommons.org/licenses/by/2.5", "cc-by-2.5"),
        ("https://creativecommons.org/licenses/by/3.0/us/legalcode", "cc-by-3.0"),
        ("creativecommons.org/licenses/by-sa/4.0/deed.en", "cc-by-sa-4.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "other"),
        ("Creative Commons Zero v1.0 Universal", "cc0-1.0"),
        ("CC0 1.0 Universal (CC0 1.0) Public Domain Dedication", "cc0-1.0"),
        ("public-domain", "cc0-1.0"),
        ("CC-BY-SA-2.0", "other"),  # the hub has no name for it
        ("Apache License, Version 2.0", "apache-2.0"),
        ("Apache 2", "apache-2.0"),
        ("http://www.apache.org/licenses/LICENSE-2.0", "apache-2.0"),
        ("BSD 2-Clause Simplified License", "bsd-2-clause"),
        ('BSD 3-Clause "New" or "Revised" License', "bsd-3-clause"),
        ("New BSD License", "bsd"),
        ("BSD", "bsd"),
        ("GNU General Public License v3.0", "gpl-3.0"),
        ("GPLv3", "gpl-3.0"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("GNU Lesser General Public License v2.1 only", "lgpl-2.1"),
        ("editorial use only", "other"),
        ("no CC BY", "other"),
        ("MIT or Apache 2.0", "other"),
        ("Лицензия MIT", "other"),
        ("https://example.org/licenses/by/4.0", "other"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_hub_license(name, hub):
    assert card.hub_license(name) == hub


@pytest.mark.parametrize(
    ("values", "language"),
    [
        ({"caption_source": "Cap3D", "source": "objaverse"}, ["en"]),
        ({"caption_source": "CoCa, chosen by the teacher", "source": "folder"}, ["en"]),
        ({"caption_source": "catalog text", "source": "procedural"}, ["en"]),
        ({"caption_source": "catalog text", "source": "folder"}, None),
    ],
)
def test_the_language_is_stated_where_it_is_known(values, language):
    def stated(*known):
        return yaml.safe_load(card.readme(known, "Mugs").split("---\n")[1]).get("language")

    assert stated(*rows(3, **values)) == language
    assert stated(*rows(3, **values), *rows(1, caption_source="catalog text", source="folder")) is None
    assert stated() is None


def test_failures_that_differ_in_numbers_are_one_reason():
    failed = [{"stage": "fit", "error": f"PSNR is {number} dB", "file": f"{number}.glb"} for number in (3.5, 12.25)]
    failed += [{"stage": "catalog", "error": "duplicate of 0123456789abcdef", "file": "b.glb"}]
    failed += [{"stage": "catalog", "error": "excluded: its author asked", "file": "a person's.glb"}]
    failed += [{"stage": "view", "error": "view 3 is blank"}] * 3  # an earlier version packed without `file`
    assert card.failures(failed) == [
        ("view", "view 3 is blank", "", 3),
        ("fit", "PSNR is … dB", "12.25.glb", 2),
        ("catalog", "duplicate of 0123456789abcdef", "b.glb", 1),
        ("catalog", "excluded: its author asked", "", 1),
    ]


def test_no_credit_is_lost_where_there_are_too_many_for_the_page():
    many = [row for i in range(600) for row in rows(1, credit=f"Maker {i}")]
    text = card.readme(many, "Many")
    assert "600 different credits" in text
    assert "Maker 17" not in text
    assert len(card._credits(many).splitlines()) == 601


def test_what_was_left_out_is_counted():
    curation = {
        "source": "objaverse",
        "taken": 7,
        "refused": {"licence": 2, "max_faces": 1},
        "rules": {"licenses": ["by"], "max_faces": 10, "min_faces": None, "lvis": "test"},
    }
    text = card.readme(rows(2, status="failed", stage="fetch", error="x"), "Chosen", curation)
    assert "7 objects taken, 3 left out" in text
    for line in ("| licence | 2 |", "| lvis |", "| max"):
        assert line in text
    assert "min_faces" not in text.replace("\\", "")
    assert "## Selection" not in card.readme(
        rows(1), "All", {"source": "folder", "taken": 1, "refused": {}, "rules": {}}
    )


def test_size_category():
    sizes = {0: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 24_000: "10K<n<100K", 240_000: "100K<n<1M"}
    assert {count: card._size_category(count) for count in sizes} == sizes


def test_a_missing_view_is_an_error_that_names_the_file(packed):
    packed[1].views.unlink()
    with pytest.raises(ClipgsError, match=r"views/00001\.parquet is missing; make it again with: snakemake"):
        write(packed)


def test_captions_are_wrapped_and_cut():
    grey = np.full((32, 32, 3), 128, np.uint8)
    short = contact_sheet([Sample(grey, grey, "a mug", 30.0)], "Title")
    long = contact_sheet([Sample(grey, grey, "word " * 200, 30.0)], "Title " * 50)
    unbroken = contact_sheet([Sample(grey, grey, "x" * 500, 30.0)], "Title")
    assert short.size[0] == long.size[0] == unbroken.size[0]
    assert long.size[1] > short.size[1] == unbroken.size[1] - 2 * 17
    right_margin = np.asarray(long)[:, -8:]
    assert (right_margin == 255).all()
    assert (np.asarray(unbroken)[:, -8:] == 255).all()


@pytest.mark.parametrize("finer", [1, 2])
def test_mesh_and_splat_are_cut_alike(finer):
    mesh, splat = np.full((2, 64, 64, 3), 255, np.uint8)
    mesh[30:34, 30:34] = (200, 0, 0)
    splat[30:34, 30:34] = (0, 0, 200)
    splat = splat.repeat(finer, axis=0).repeat(finer, axis=1)
    sheet = np.asarray(contact_sheet([Sample(mesh, splat, "a dot", 30.0)], "Title")).astype(int)
    red, blue = sheet[..., 0] - sheet[..., 2] > 100, sheet[..., 2] - sheet[..., 0] > 100
    rows, columns = np.nonzero(red)
    blue_rows, blue_columns = np.nonzero(blue)
    assert abs(rows.mean() - blue_rows.mean()) < 1
    assert abs(blue_columns.mean() - columns.mean() - 174) < 1  # the width of a picture and the gap
    assert 18 <= np.ptp(rows) <= 24  # 4 of 64 pixels, at most twice as large: 21 of 168


def test_captions_are_counted_by_source_and_marked_ones_named():
    written = rows(3, caption_source="CoCa, chosen by the teacher", caption_score=0.25, caption_note=None)
    low = rows(1, caption_source="Cap3D", caption_score=0.05, caption_note="scores 0.050 against its own pictures")
    text = card.readme([*written, *low], "Title")
    assert "| CoCa, chosen by the teacher | 3 |" in text
    assert "median 0.250" in text
    assert "1 of 4 are marked as too unlike their object" in text
    assert "marked" not in card.readme(rows(2, caption_source="catalog text"), "Title")
