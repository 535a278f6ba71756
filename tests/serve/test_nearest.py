"""The exact search over the mapped file of embeddings."""

import numpy as np
import pytest

from clipgs.core.bundles import write_tensors
from clipgs.core.errors import ClipgsError
from clipgs.core.files import sha256_of, write_bytes
from clipgs.encoder import MODEL
from clipgs.serve import nearest
from clipgs.serve.nearest import Vectors


def vectors(folder, shapes):
    write_bytes(folder / "run" / MODEL, b"weights")
    about = {"model_sha256": sha256_of(folder / "run" / MODEL), "uids": [f"{i:06d}" for i in range(len(shapes))]}
    write_tensors(folder / "embeddings.safetensors", {"shapes": shapes}, about)
    return Vectors(folder / "embeddings.safetensors", folder / "run")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_it_finds_what_a_product_in_double_precision_finds(tmp_path, monkeypatch, kind, rows):
    monkeypatch.setattr(nearest, "_ROWS", 64)
    generator = np.random.default_rng(rows)
    shapes = generator.standard_normal((rows, 48)).astype(np.float32)
    shapes = (shapes / np.linalg.norm(shapes, axis=1, keepdims=True)).astype(kind)
    query = generator.standard_normal(48).astype(np.float32)
    query /= np.linalg.norm(query)
    found = vectors(tmp_path, shapes)
    wanted = shapes.astype(np.float64) @ query.astype(np.float64)
    wanted /= np.linalg.norm(shapes.astype(np.float64), axis=1) * np.linalg.norm(query.astype(np.float64))
    for _ in range(2):  # the pages that the first search gave back are read again
        order, scores = found.ordered(query, np.arange(rows))
        assert order.tolist() == np.argsort(-wanted, kind="stable").tolist()
        np.testing.assert_allclose(scores, wanted[order], atol=1e-6)
    chosen = np.arange(0, rows, 3)
    order, _ = found.ordered(query, chosen)
    assert order.tolist() == chosen[np.argsort(-wanted[chosen], kind="stable")].tolist()


def test_beyond_those_that_are_scored_again_the_order_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "_EXACT_ROWS", 10)
    shapes = np.eye(40, dtype=np.float32)
    query = np.linspace(1, 2, 40, dtype=np.float32)
    order, scores = vectors(tmp_path, shapes).ordered(query / np.linalg.norm(query), np.arange(40))
    assert order.tolist() == list(range(39, -1, -1))
    assert (np.diff(scores) <= 0).all()


def test_equal_embeddings_keep_their_order(tmp_path):
    shapes = np.tile(np.float32([0.6, 0.8]), (2000, 1))
    order, _ = vectors(tmp_path, shapes).ordered(np.float32([1, 0]), np.arange(2000))
    assert order.tolist() == list(range(2000))


def test_no_object_is_chosen(tmp_path):
    order, scores = vectors(tmp_path, np.eye(3, dtype=np.float32)).ordered(np.float32([1, 0, 0]), np.arange(0))
    assert (len(order), len(scores)) == (0, 0)


def test_an_output_without_objects(tmp_path):
    found = vectors(tmp_path, np.empty((0, 3), np.float32))
    assert (len(found), found.dim) == (0, 3)


def test_embeddings_that_were_written_again_are_not_mixed_with_the_old_ones(tmp_path):
    found = vectors(tmp_path, np.eye(3, dtype=np.float32))
    vectors(tmp_path, np.eye(3, dtype=np.float32)[::-1])
    with pytest.raises(ClipgsError, match="has changed since the server started"):
        found.ordered(np.float32([1, 0, 0]), np.arange(3))
