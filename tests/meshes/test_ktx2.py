import base64
import importlib.util
import random
import sys
from contextlib import suppress

import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import decode_image
from tests.meshes.glb_builder import QUAD, QUAD_FACES, QUAD_UV

installed = pytest.mark.skipif(importlib.util.find_spec("opengl_basisu") is None, reason="the extra ktx2 is absent")
# 8 x 8 texels, red above and blue below, by the encoder of Basis Universal 1.15.
FILES = {
    "etc1s": (
        "q0tUWCAyMLsNChoKAAAAAAEAAAAIAAAACAAAAAAAAAAAAAAAAQAAAAEAAAABAAAAaAAAACwAAACUAAAAJAAAALgAAAAAAAAAhAAA"
        "AAAAAAA8AQAAAAAAAAEAAAAAAAAAAAAAAAAAAAAsAAAAAAAAAAIAKACjAQIAAwMAAAAAAAAAAAAAAAA/AAAAAAAAAAAA/////x8A"
        "AABLVFh3cml0ZXIAQmFzaXMgVW5pdmVyc2FsIDEuMTUAAAIAAQAsAAAABQAAACsAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAW"
        "wEQAAAAAAABiwgQwAwAAAAAAgKTHAEwEAAAAAAAgAQiACQABAAAAACSdAFRVVVUFNMBEAAAAAAAAEkUAmAAQAAAAAEAUAiYCAAAA"
        "AACQNgLABIAAAAAAACIQAAA="
    ),
    "uastc": (
        "q0tUWCAyMLsNChoKAAAAAAEAAAAIAAAACAAAAAAAAAAAAAAAAQAAAAEAAAACAAAAaAAAACwAAACUAAAAJAAAAAAAAAAAAAAAAAAA"
        "AAAAAAC4AAAAAAAAACMAAAAAAAAAQAAAAAAAAAAsAAAAAAAAAAIAKACmAQIAAwMAAAAAAAAAAAAAAAB/AAAAAAAAAAAA/////x8A"
        "AABLVFh3cml0ZXIAQmFzaXMgVW5pdmVyc2FsIDEuMTUAACi1L/0gQNUAAIAX2cPj31whANfDA/nfDGEBAwAA5JkoEIAL"
    ),
}
COLORS = np.repeat(np.uint8([[200, 30, 30], [30, 30, 200]]), 4, axis=0)  # of the rows


@installed
@pytest.mark.parametrize("kind", FILES)
def test_a_texture_of_ktx2_alone(glb, loaded, kind):
    image = glb.list("images", {"bufferView": glb.view(base64.b64decode(FILES[kind])), "mimeType": "image/ktx2"})
    texture = glb.list("textures", {"extensions": {"KHR_texture_basisu": {"source": image}}})
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(texture={"index": texture}), TEXCOORD_0=QUAD_UV))
    glb.json["extensionsRequired"] = ["KHR_texture_basisu"]
    (part,) = loaded(glb).parts
    pixels = part.material.base_color_texture.pixels
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(pixels.astype(int), np.tile(COLORS[:, None].astype(int), (1, 8, 1)), atol=3)


def test_a_plain_picture_beside_it_is_taken(glb, loaded):
    texture = glb.texture(np.full((2, 2, 3), 9, np.uint8))
    glb.json["textures"][0]["extensions"] = {"KHR_texture_basisu": {"source": 99}}
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=glb.material(texture=texture), TEXCOORD_0=QUAD_UV))
    assert (loaded(glb).parts[0].material.base_color_texture.pixels == 9).all()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opengl_basisu", None)
    with pytest.raises(ObjectError, match=r"clipgs\[ktx2\]"):
        decode_image(base64.b64decode(FILES["etc1s"]), "a.ktx2", 100)


def test_the_size_is_checked_first():
    data = base64.b64decode(FILES["etc1s"])
    with pytest.raises(ObjectError, match="8 x 8 pixels, more than the limit of 63"):
        decode_image(data, "a.ktx2", 63)
    with pytest.raises(ObjectError, match="ends within its header"):
        decode_image(data[:70], "a.ktx2", 63)


@installed
def test_damaged_files_are_refused_or_pictures():
    rng = random.Random(5)
    for number in range(200):
        data = bytearray(base64.b64decode(FILES[("etc1s", "uastc")[number % 2]]))
        data = data[: rng.randrange(12, len(data))] if number % 4 < 2 else data
        for _ in range(rng.randrange(4)):
            data[rng.randrange(12, len(data))] = rng.randrange(256)
        with suppress(ObjectError):
            assert decode_image(bytes(data), "a.ktx2", 1 << 16).ndim == 3
