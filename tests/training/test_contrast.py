import math

import pytest
import torch
from torch.nn import functional

from clipgs.training.losses import image_voting_loss, multi_positive_loss, text_loss, votes


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def batch(objects, views=3, dim=7, seed=0):
    shape = unit(objects, dim, seed=seed).requires_grad_()
    scores = torch.rand(objects, views, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.2
    return shape, unit(objects, dim, seed=seed + 1), unit(objects, views, dim, seed=seed + 2), scores


def cross_entropy(logits, own):
    """Of one row, with plain numbers."""
    return math.log(sum(math.exp(value) for value in logits)) - own


def plain_text_loss(shape, text, scale, captions=None):
    shape, total, count = shape.detach(), 0.0, len(shape)
    for b in range(count):
        negatives = [j for j in range(count) if j == b or captions is None or captions[j] != captions[b]]
        own = scale * float(shape[b] @ text[b])
        total += cross_entropy([scale * float(shape[b] @ text[j]) for j in negatives], own)
        total += cross_entropy([scale * float(shape[j] @ text[b]) for j in negatives], own)
    return total / (2 * count)


def plain_image_loss(shape, images, weights, scale):
    shape, total, (count, views) = shape.detach(), 0.0, weights.shape
    for k in range(views):
        for b in range(count):
            own = scale * float(shape[b] @ images[b, k])
            one = cross_entropy([scale * float(shape[b] @ images[j, k]) for j in range(count)], own)
            two = cross_entropy([scale * float(shape[j] @ images[b, k]) for j in range(count)], own)
            total += float(weights[b, k]) * (one + two)
    return total / (2 * count * views)


@pytest.mark.parametrize("objects", [1, 2, 9])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_text_loss_is_the_double_loop(objects, scale):
    shape, text, _, _ = batch(objects)
    assert text_loss(shape, text, scale).item() == pytest.approx(plain_text_loss(shape, text, scale), abs=1e-12)


def test_equal_captions_are_no_negatives_of_each_other():
    shape, text, _, _ = batch(6)
    captions = torch.tensor([3, 5, 3, 7, 5, 3])
    masked = text_loss(shape, text, 10.0, captions=captions)
    assert masked.item() == pytest.approx(plain_text_loss(shape, text, 10.0, captions.tolist()), abs=1e-12)
    assert masked < text_loss(shape, text, 10.0)
    assert text_loss(shape, text, 10.0, captions=torch.arange(6)) == text_loss(shape, text, 10.0)
    every = text_loss(shape, text, 10.0, captions=torch.zeros(6, dtype=torch.int64))
    every.backward()
    assert every.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(shape.grad).all()


@pytest.mark.parametrize("objects", [1, 2, 9])
@pytest.mark.parametrize("views", [1, 3])
def test_image_voting_loss_is_the_double_loop(objects, views):
    shape, _, images, scores = batch(objects, views)
    weights = [[max(float(score), 0.0) for score in row] for row in scores]
    loss = image_voting_loss(shape, images, scores, 14.3)
    assert loss.item() == pytest.approx(
        plain_image_loss(shape, images, torch.tensor(weights, dtype=torch.float64), 14.3), abs=1e-12
    )


def test_the_norms_of_the_scores():
    scores = torch.tensor([[0.1, 0.3], [-0.5, 0.2], [-1.0, -1.0]], dtype=torch.float64)
    assert votes(scores, "none").tolist() == [[0.1, 0.3], [0.0, 0.2], [0.0, 0.0]]
    assert torch.allclose(votes(scores, "mean_one"), torch.tensor([[0.5, 1.5], [0, 2], [0, 0]], dtype=torch.float64))
    heavier = math.exp(0.3) / (math.exp(0.1) + math.exp(0.3))
    assert votes(scores, "softmax")[0].tolist() == pytest.approx([2 * (1 - heavier), 2 * heavier])
    assert votes(scores, "uniform").tolist() == [[1.0, 1.0]] * 3  # also where the cosine is negative
    shape, _, images, scores = batch(5)
    for norm in ("mean_one", "softmax", "uniform"):
        loss = image_voting_loss(shape, images, scores, 5.0, score_norm=norm)
        assert loss.item() == pytest.approx(plain_image_loss(shape, images, votes(scores, norm), 5.0), abs=1e-12)


def test_the_sum_over_views_weighs_k_times_their_mean():
    shape, _, images, scores = batch(5, views=4)
    mean = image_voting_loss(shape, images, scores, 5.0)
    assert image_voting_loss(shape, images, scores, 5.0, over_views="sum").item() == pytest.approx(4 * mean.item())


@pytest.mark.parametrize("norm", ["none", "mean_one", "softmax"])
def test_another_score_moves_the_gradient(norm):
    def gradient(scores):
        shape, _, images, _ = batch(4)
        (result,) = torch.autograd.grad(image_voting_loss(shape, images, scores, 5.0, score_norm=norm), shape)
        return result

    scores = torch.full((4, 3), 0.3, dtype=torch.float64)
    raised = scores.clone()
    raised[0, 0] = 0.6
    assert (gradient(raised) - gradient(scores)).abs().max() > 1e-3


def test_other_views_of_an_object_are_never_its_negatives():
    """Views that equal the shape would be the strongest negatives there could be."""
    shape, _, images, scores = batch(4)
    own = images.clone()
    own[:, 1:] = shape.detach()[:, None]
    one_view = image_voting_loss(shape, images[:, :1], scores[:, :1].abs(), 20.0)
    all_views = image_voting_loss(shape, own, torch.cat([scores[:, :1].abs(), scores[:, 1:] * 0], 1), 20.0)
    assert all_views.item() == pytest.approx(one_view.item() / 3, abs=1e-12)


@pytest.mark.parametrize("views", [1, 4])
def test_multi_positive_is_the_double_loop(views):
    shape, _, images, _ = batch(5, views=views)
    every = images.flatten(0, 1).detach()  # [5 K, D]
    total = 0.0
    for b in range(5):
        to_images = (8.0 * shape[b].detach() @ every.T).log_softmax(0)
        for k in range(views):
            to_shapes = (8.0 * images[b, k].detach() @ shape.detach().T).log_softmax(0)
            total -= float(to_images[b * views + k] + to_shapes[b]) / (2 * 5 * views)
    assert multi_positive_loss(shape, images, 8.0).item() == pytest.approx(total, abs=1e-12)


def test_one_view_with_weight_one_is_the_same_loss_either_way():
    shape, _, images, scores = batch(6, views=1)
    voted = image_voting_loss(shape, images, scores, 9.0, score_norm="uniform")
    assert multi_positive_loss(shape, images, 9.0).item() == pytest.approx(voted.item())


def test_gradients_are_right():
    shape, text, images, scores = batch(4, views=2, dim=3)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    captions = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda s, t, x: text_loss(s, t, x, captions=captions), (shape, text, scale))
    assert torch.autograd.gradcheck(lambda s, x: image_voting_loss(s, images, scores, x), (shape, scale))
