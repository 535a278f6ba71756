"""Streams by meshoptimizer's own encoder (1.3.0), and one that the specification writes out."""

import base64
import random

import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.meshopt import decode
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES

NUMBERS = np.arange(40)
ROWS = np.stack([NUMBERS, 300 * NUMBERS, NUMBERS**3 & 0xFFFF, 0 * NUMBERS + 7], axis=1).astype("<u2")
FLOATS = (NUMBERS * 0.25 - 3).astype("<f4")[:, None]
GRID = [f for y in range(3) for x in range(3) for a in [4 * y + x] for f in (a, a + 1, a + 4, a + 4, a + 1, a + 5)]
INDICES = np.array([*GRID, 15, 0, 9, 3, 12, 6, 40, 2, 1, 40, 1, 0], "<u2")
EXACT = {
    ("ATTRIBUTES", "rows, version 0"): (
        ROWS,
        "oBUqqqqqqqqqqqqqAAAAHwBYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhY//8AAFhYWFhYWFhYFSququoEBK6q6q4EBASr"
        "qgAABB8AAg4mSnq2/q1NHpblVUbuXWLRBuol1iHyEsF2RfVmMf//AAC9wk4ZdcX2vhkAAou/BAQEBmZoqqzu7///EBIUFBb//wAA"
        "GBgaHB4eIiIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAcA",
    ),
    ("ATTRIBUTES", "rows, version 1: deltas of two bytes"): (
        ROWS,
        "oXmnFSqqqqqqqqqqqqoAAABYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFgVKqqqqqqqqqqqqgAAAAIOJkp6"
        "tv6tTR6W5VVG7l1i0QbqJdYh8hLBdkX1ZjG9wk4ZdcX2vgkAAou/BAQEBmZoqqzu7///EBIUFBb/ABgYGhweHiIiAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAHAAEA",
    ),
    ("ATTRIBUTES", "floats, version 0"): (
        FLOATS,
        "oAAAHwAfHx8fPz8/P39//////4CAQEBAQCAgICAgICAgEBAQ//8AABAQEBAQEBAQBQAQAfiEfACAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAABAwA==",
    ),
    ("ATTRIBUTES", "floats, version 1: XOR of turned words"): (
        FLOATS,
        "oWgFIDAPFwcQAA8aDiYvTE+P//j8GDDQ0DD0xPJi4mLxMRj8Ht3dAAAHAw8DAAAAAAAAAAAAAAAAAAAAAAAAAAAAQMBS",
    ),
    ("INDICES", ""): (
        INDICES,
        "0QAEDAAKEA4EDAAKEA4EDAAKEAoEDAAKEA4EDAAKEA4EDAAKEAoEDAAKEA4EDAAKEA4EDAAKEAA6JBYkFqEBDgIBAAIAAAAA",
    ),
}
TRIANGLES = "4f4eEA4QDo4eFA4TDo4eEw4TDv///wQPCPcAHW0G/0pLAQB2h1ZneKmGZYlomAFpAAA="
# Of vectors of length 1, quaternions, numbers and colours: what was encoded, and how far the decoded may be from it.
CORNER = np.sqrt(1 / 3)
VECTORS = np.array([[1, 0, 0, 1], [0, -1, 0, 1], [0, 0, -1, 1], [CORNER, -CORNER, -CORNER, 1], [0.6, 0, 0.8, 1]])
COLORS = np.array([[1, 0, 0, 1], [0, 1, 0, 0.5], [0.2, 0.4, 0.8, 0], [1, 1, 1, 1]])
TURNS = np.array([[0, 0, 0, 1], [0.6, 0, 0, 0.8], [0, 0.8, 0.6, 0], [0.5, 0.5, 0.5, 0.5]])
FILTERED = {
    ("OCTAHEDRAL", "i1", 0.02): (
        VECTORS * 127,
        "oAE/wAAA/f5TPQE/wAAA/QNYqgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAH8Af38=",
    ),
    ("OCTAHEDRAL", "<i2", 0.002): (
        VECTORS * 32767,
        "oAEnwAAArDABP8AAAA0OAwMBL8AAAAOnqgE/wAAADx4ZDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAD/BwAA/wf/fw==",
    ),
    ("QUATERNION", "<i2", 0.001): (
        TURNS * 32767,
        "oAEzAAAATPQBMwAAADYJAQMAAAC/AQMAAAAsAQMAAAC/AQMAAAAsAQ0AAAADAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8f",
    ),
    ("EXPONENTIAL", "<f4", 0.0001): (
        np.array([[1, -2.5, 1000], [0, 0.001, 3e-5]]),
        "oAABMAAAAD8AAAEwAAAAdQEwAAAAkAEgAAAAATAAAAAVATAAAADUAAABMAAAADEAAAAAAAAAAAAAAAAAAAAAAAAAAAAgAPMA2P/0gD4A/A==",
    ),
    ("COLOR", "u1", 0.01): (
        COLORS * 255,
        "of8AfhfnAP2XmACD6BoAfX/+AAAAAAAAAAAAAAAAAAAAAAAAAEB/wf8A",
    ),
    ("COLOR", "<u2", 0.001): (
        COLORS * 65535,
        "of//AAFoZwAGABAAAmhnAA0JCgADaGUAFg8CAAIAAQAFBw4AAAAAAAAAAAAAAAAAAAAE/wcB/P8PAAA=",
    ),
}
CUBE = "oAAAAAEAwAAA/wAAAAEMzAAA////AAAAAT//AAD/////////AAAAAAAAAAAAAAAAAAAAAAAAAAAAAIC/AACAvwAAgL8="
FACES = "4f4A/w8HFqECBxORBQ8G/wIEAgMAdodWZ3iphmWJaJgBaQAA"


def decoded(stream: str | bytes, mode: str, count: int, stride: int, **fields) -> bytes:
    data = base64.b64decode(stream) if isinstance(stream, str) else stream
    return decode(data, {"mode": mode, "count": count, "byteStride": stride, **fields}, max_count=10_000)


@pytest.mark.parametrize(("mode", "case"), EXACT)
def test_numbers_are_exact(mode, case):
    values, stream = EXACT[mode, case]
    assert decoded(stream, mode, len(values), values[:1].nbytes) == values.tobytes()


@pytest.mark.parametrize("stride", [2, 4])
def test_triangles_keep_their_order_and_winding(stride):
    faces = np.frombuffer(decoded(TRIANGLES, "TRIANGLES", len(INDICES), stride), f"<u{stride}").reshape(-1, 3)
    # The encoder may begin a triangle at another corner.
    assert [set(face) for face in faces.tolist()] == [set(face) for face in INDICES.reshape(-1, 3).tolist()]
    for face, wanted in zip(faces.tolist(), INDICES.reshape(-1, 3).tolist(), strict=True):
        assert face in ([wanted[i:] + wanted[:i] for i in range(3)])


@pytest.mark.parametrize(("name", "dtype", "error"), FILTERED)
def test_filters(name, dtype, error):
    wanted, stream = FILTERED[name, dtype, error]
    rows = decoded(stream, "ATTRIBUTES", len(wanted), wanted.shape[1] * np.dtype(dtype).itemsize, filter=name)
    values = np.frombuffer(rows, dtype).reshape(wanted.shape)
    np.testing.assert_allclose(values, wanted, rtol=error, atol=error * np.abs(wanted).max() * (name != "EXPONENTIAL"))


def test_the_example_of_the_specification():
    group = bytes.fromhex("175ff0bc77a9210034b5")
    # Version 0, elements of four bytes: the group is that of the first byte, and the others are zero.
    stream = b"\xa0" + b"\x02" + group + b"\0" * 3 + b"\0" * 32
    values = np.frombuffer(decoded(stream, "ATTRIBUTES", 16, 4), np.uint8).reshape(16, 4)
    deltas = [-1, -4, -3, 26, -91, 0, -6, 6, -4, -4, 5, -5, 1, -1, 0, 0]
    assert values[:, 0].tolist() == (np.cumsum(deltas) % 256).tolist()
    assert not values[:, 1:].any()


def test_damaged_streams_are_errors_or_numbers():
    streams = [(stream, mode, len(v), v[:1].nbytes, "NONE") for (mode, _), (v, stream) in EXACT.items()]
    streams += [(TRIANGLES, "TRIANGLES", len(INDICES), 2, "NONE")]
    streams += [
        (stream, "ATTRIBUTES", len(v), v.shape[1] * np.dtype(dtype).itemsize, name)
        for (name, dtype, _), (v, stream) in FILTERED.items()
    ]
    rng, refused = random.Random(1), 0
    for _ in range(2000):
        stream, mode, count, stride, name = rng.choice(streams)
        data = bytearray(base64.b64decode(stream))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.5 else data
        count = rng.choice([count, rng.randrange(9999)])
        try:
            assert len(decoded(bytes(data), mode, count, stride, filter=name)) == count * stride
        except ObjectError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "POINTS"}, "unknown mode 'POINTS'"),
        ({"filter": "ZIGZAG"}, "filter 'ZIGZAG'"),
        ({"byteStride": 6}, "6 bytes an element"),
        ({"byteStride": 12, "filter": "OCTAHEDRAL"}, "12 bytes an element"),
        ({"count": -1}, "-1 elements"),
        ({"count": 1.5}, "1.5 elements"),
        ({"mode": "TRIANGLES", "byteStride": 2, "count": 4}, "4 elements"),
        ({"count": 10_001}, "more than the limit of 10000"),
        ({"count": 9_999}, "damaged"),
        ({"mode": "INDICES", "byteStride": 2}, "damaged"),
    ],
)
def test_what_is_refused(fields, message):
    described = {"mode": "ATTRIBUTES", "count": 8, "byteStride": 12} | fields
    with pytest.raises(ObjectError, match=message):
        decode(base64.b64decode(CUBE), described, max_count=10_000)


def _compressed_cube(glb, name: str, fallback: bytes | None) -> None:
    views = []
    for stream, mode, count, stride in ((CUBE, "ATTRIBUTES", 8, 12), (FACES, "TRIANGLES", 36, 2)):
        packed = glb.view(base64.b64decode(stream))
        start = 0 if mode == "ATTRIBUTES" else 96
        extension = {**glb.json["bufferViews"][packed], "mode": mode, "count": count, "byteStride": stride}
        described = {"buffer": 1, "byteOffset": start, "byteLength": count * stride, "extensions": {name: extension}}
        views.append(glb.list("bufferViews", described))
    placeholder = {"byteLength": 168, "extensions": {name: {"fallback": True}}}
    if fallback is not None:
        placeholder = {"byteLength": 168, "uri": "data:;base64," + base64.b64encode(fallback).decode()}
    glb.json["buffers"] = [{"byteLength": len(glb.binary)}, placeholder]
    accessors = [
        glb.list("accessors", {"bufferView": views[0], "componentType": 5126, "count": 8, "type": "VEC3"}),
        glb.list("accessors", {"bufferView": views[1], "componentType": 5123, "count": 36, "type": "SCALAR"}),
    ]
    glb.node(glb.mesh(accessors[0], accessors[1]))


@pytest.mark.parametrize("name", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_a_compressed_mesh(glb, loaded, name):
    _compressed_cube(glb, name, fallback=None)
    glb.json["extensionsRequired"] = [name]
    result = loaded(glb)
    (part,) = result.parts
    np.testing.assert_allclose(part.vertices / result.scale, CUBE_CORNERS, atol=1e-6)
    assert {tuple(np.sort(f)) for f in part.faces} == {tuple(np.sort(f)) for f in CUBE_FACES}


def test_plain_data_beside_a_damaged_stream_is_read(glb, loaded):
    _compressed_cube(glb, "EXT_meshopt_compression", CUBE_CORNERS.tobytes() + CUBE_FACES.tobytes())
    glb.binary = glb.binary[:1] + b"\xff" * 20 + glb.binary[21:]
    assert loaded(glb).face_count == 12
    glb.json["extensionsRequired"] = ["EXT_meshopt_compression"]
    with pytest.raises(ObjectError, match="meshopt data of 8 ATTRIBUTES is damaged"):
        loaded(glb)
