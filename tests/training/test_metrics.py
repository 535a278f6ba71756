import pytest
import torch

from clipgs.training.metrics import validation_retrieval
from tests.training.small_dataset import unit


def test_retrieval_is_the_plain_count():
    shapes, texts, images = unit(9, 5, seed=0), unit(9, 5, seed=1), unit(9, 3, 5, seed=2)
    captions = torch.tensor([0, 1, 2, 0, 3, 4, 5, 6, 0])

    def place(query, own, also_right):
        better = [j for j in range(9) if j != own and j not in also_right and query @ shapes[j] >= query @ shapes[own]]
        return len(better)

    of_texts = [place(texts[i], i, [j for j in range(9) if captions[j] == captions[i]]) for i in range(9)]
    of_images = [place(images[i, k], i, []) for i in range(9) for k in range(3)]
    numbers = validation_retrieval(shapes, texts, images, captions)
    for name, places in (("text", of_texts), ("image", of_images)):
        assert numbers[f"{name}_r1"] == pytest.approx(sum(p == 0 for p in places) / len(places))
        assert numbers[f"{name}_mrr"] == pytest.approx(sum(1 / (p + 1) for p in places) / len(places))
    collapsed = validation_retrieval(shapes[:1].expand(9, 5), texts, images, torch.arange(9))
    assert collapsed["text_r1"] == collapsed["image_r1"] == 0  # all the same finds nothing
