"""The presets of data sets, each on a tiny tree that is laid out as the data set is shipped."""

import gzip
import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from clipgs.catalog.sources import source
from clipgs.config import check
from clipgs.meshes.materials import surface_rgba
from clipgs.meshes.stages import ToRead
from tests.conftest import CHECKOUT
from tests.meshes.glb_builder import Glb

TALL = (
    "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 {y} {z}\nvt 0 0\nusemtl m\n"
    "f 1/1 3/1 2/1\nf 1/1 2/1 4/1\nf 1/1 4/1 3/1\nf 2/1 3/1 4/1\n"
)


def obj(library: str, *, up: str) -> bytes:
    usemtl = TALL.format(**({"y": 5, "z": 0.1} if up == "y" else {"y": 0.1, "z": 5}))
    return f"mtllib {library}\n{usemtl}".encode()


def picture(*color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def stl() -> bytes:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.1, 5]], "<f4")
    triangles = corners[[[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]]
    return bytes(80) + struct.pack("<I", 4) + b"".join(bytes(12) + t.tobytes() + b"\0\0" for t in triangles)


def glb(tmp_path) -> bytes:
    model = Glb()
    model.node(model.mesh(material=model.material(factor=(1.0, 0.0, 0.0, 1.0))), scale=[1, 5, 1])
    return model.save(tmp_path / "some.glb").read_bytes()


def shapenet(_):
    place = "04379243/1b3c6b2fbcf834cf62b600da24e0965"
    return {
        f"{place}/models/model_normalized.obj": obj("model_normalized.mtl", up="y"),
        f"{place}/models/model_normalized.mtl": b"newmtl m\nKd 1 1 1\nmap_Kd ../images/texture0.jpg\n",
        f"{place}/images/texture0.jpg": picture(255, 0, 0),
        "taxonomy.json": json.dumps(
            [{"synsetId": "04379243", "name": "table"}, {"synsetId": "03179701", "name": "desk,writing desk"}]
        ).encode(),
        "all.csv": b"id,synsetId,subSynsetId,modelId,split\n1,04379243,03179701,1b3c6b2fbcf834cf62b600da24e0965,val\n",
    }, {"category": "table", "text": "desk", "license": "ShapeNet terms of use", "split": "validation"}


def google_scanned_objects(_):
    return {
        "Cole_Shoe/meshes/model.obj": obj("model.mtl", up="z"),
        "Cole_Shoe/meshes/model.mtl": b"newmtl m\nmap_Kd texture.png\n",
        "Cole_Shoe/materials/textures/texture.png": picture(255, 0, 0),
        "Cole_Shoe/metadata.pbtxt": b'name: "Cole_Shoe"\ncategories {\n  first: "Shoe"\n}\n',
    }, {"category": "Shoe", "text": "Cole Shoe", "license": "CC-BY-4.0", "credit": "Google LLC"}


def abo(tmp_path):
    names = [{"language_tag": "de_DE", "value": "Stuhl"}, {"language_tag": "en_US", "value": "Red Chair"}]
    product = {"item_id": "B1", "3dmodel_id": "B07", "item_name": names, "product_type": [{"value": "CHAIR"}]}
    return {
        "3dmodels/original/7/B07.glb": glb(tmp_path),
        "listings/metadata/listings_0.json.gz": gzip.compress(json.dumps(product).encode() + b"\n"),
    }, {"category": "chair", "text": "Red Chair", "license": "CC-BY-NC-4.0"}


def thingi10k(_):
    return {
        "raw_meshes/100026.stl": stl(),
        "metadata/contextual_data.csv": b"Thing ID,Category,Sub-category,Name,Author\n34783,Art,Sculptures,A cat,Me\n",
        "metadata/input_summary.csv": b"ID,Thing ID,License\n100026,34783,Creative Commons - Attribution\n",
    }, {"category": "Sculptures", "text": "A cat", "license": "Creative Commons - Attribution", "group": "34783"}


def ycb(_):
    return {
        "002_master_chef_can/google_16k/textured.obj": obj("textured.mtl", up="z").replace(b"usemtl m\n", b""),
        "002_master_chef_can/google_16k/textured.mtl": b"newmtl material_0\nmap_Kd texture_map.png\n",
        "002_master_chef_can/google_16k/texture_map.png": picture(255, 0, 0),
        "002_master_chef_can/tsdf/textured.obj": obj("absent.mtl", up="z"),
    }, {"category": "master chef can", "text": "master chef can", "license": "CC-BY-4.0"}


@pytest.mark.parametrize(
    "tree", [shapenet, google_scanned_objects, abo, thingi10k, ycb], ids=lambda tree: tree.__name__
)
def test_a_data_set_is_read_as_it_is_shipped(tmp_path, monkeypatch, tree):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    name = tree.__name__
    files, expected = tree(tmp_path)
    settings = yaml.safe_load((CHECKOUT / "configs" / f"{name}.yaml").read_text())
    folder = settings["catalog"]["folder"]
    for file, data in files.items():
        path = tmp_path / folder["path"] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    command = [sys.executable, str(CHECKOUT / "configs" / "manifest.py"), name, folder["path"], folder["manifest"]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith(": 1 meshes\n")

    config = check(settings)
    objects = source(config)
    (locator,) = objects.locators()
    row = {"locator": locator, **objects.identify(locator)}
    found = {**objects.labels([locator])[0], **row}
    assert row["note"] is None
    assert {key: found[key] for key in expected} == expected
    assert objects.fetch(row).is_file()
    mesh = ToRead(config, {**row, "source": "folder"}, row["sha256"], 0).load()
    assert np.ptp(np.concatenate([part.vertices for part in mesh.parts]), axis=0).argmax() == 1
    color = surface_rgba(mesh.parts[0], np.zeros(1, int), np.eye(3)[:1])[0, :3]
    np.testing.assert_allclose(color, (0.7, 0.7, 0.7) if name == "thingi10k" else (1, 0, 0), atol=1e-5)
    assert not objects.notes() or "not in the manifest" in " ".join(objects.notes())


def test_a_folder_without_meshes_is_said(tmp_path):
    command = [sys.executable, str(CHECKOUT / "configs" / "manifest.py"), "ycb", str(tmp_path), str(tmp_path / "m.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds no mesh of ycb" in done.stderr
