import open_clip
import pytest
import torch
from open_clip import coca_model

from clipgs.teacher import names
from clipgs.triplets.captions import cannot_write
from clipgs.triplets.coca import END, START, _nucleus, sample
from tests.packed_world import TINY_COCA, save_model

LENGTH, COUNT = 9, 2


@pytest.fixture(scope="module")
def coca(tmp_path_factory):
    """A CoCa with weights at random that ends some captions early."""
    folder = save_model(tmp_path_factory.mktemp("models") / "coca", TINY_COCA)
    model = open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)
    own = model.forward

    def soon_done(*arguments, **named):
        out = own(*arguments, **named)
        out["logits"][..., END] += 10.0  # a third of the probability, as 49,408 words share the rest
        return out

    model.forward = soon_done
    return model


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sampled(model, images, top_p=0.9, seed=0):
    torch.manual_seed(seed)
    return sample(model, images, COUNT, top_p, LENGTH)


@pytest.mark.skipif(not coca_model._has_transformers, reason="open_clip's own needs transformers 4.55")
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tokens_are_open_clips_own(coca, images, top_p, seed):
    torch.manual_seed(seed)
    own = coca.generate(images.repeat_interleave(COUNT, 0), generation_type="top_p", top_p=top_p, seq_len=LENGTH)
    assert torch.equal(sampled(coca, images, top_p, seed), own)


def test_a_caption_starts_ends_and_is_filled_up(coca, images):
    tokens = torch.cat([sampled(coca, images, seed=seed) for seed in range(4)])
    assert tokens.shape == (4 * len(images) * COUNT, LENGTH)
    assert (tokens[:, 0] == START).all()
    ends = ((tokens == END) | (tokens == coca.pad_id)).int().argmax(1)
    assert ends.min() >= 4  # not among its first five tokens
    assert ends.max() == LENGTH - 1
    assert len(ends.unique()) > 2
    for row, end in zip(tokens, ends, strict=True):
        assert (row[end + 1 :] == coca.pad_id).all()


def test_it_stops_where_all_have_ended(coca, images, monkeypatch):
    def only_the_end(_image, tokens, **_):
        logits = torch.zeros(*tokens.shape, 49408)
        logits[..., END] = 100.0
        logits[..., coca.pad_id] = -100.0
        return {"logits": logits}

    monkeypatch.setattr(coca, "forward", only_the_end)
    tokens = sampled(coca, images)
    assert tokens.shape[1] == 6
    assert (tokens[:, 5] == END).all()


def test_the_exclamation_mark_ends_a_caption_as_the_end_does(coca, images, monkeypatch):
    def only_padding(_image, tokens, **_):
        logits = torch.zeros(*tokens.shape, 49408)
        logits[..., coca.pad_id] = 100.0
        return {"logits": logits}

    monkeypatch.setattr(coca, "forward", only_padding)
    assert sampled(coca, images).shape[1] == 2


def test_a_seed_gives_the_same_captions_and_another_others(coca, images):
    assert torch.equal(sampled(coca, images), sampled(coca, images))
    assert not torch.equal(sampled(coca, images), sampled(coca, images, seed=1))


def test_images_are_encoded_once_and_ended_captions_no_more(coca, images, monkeypatch):
    encoded, computed = [], []
    visual, text = coca.visual.forward, coca.text.forward
    monkeypatch.setattr(coca.visual, "forward", lambda given: encoded.append(len(given)) or visual(given))
    monkeypatch.setattr(coca.text, "forward", lambda given: computed.append(len(given)) or text(given))
    tokens = sampled(coca, images)
    assert encoded == [len(images)]
    ended = ((tokens == END) | (tokens == coca.pad_id)).cummax(1).values
    assert computed == [int((~ended[:, place]).sum()) for place in range(len(computed))]
    assert computed[-1] < computed[0] == len(tokens)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.75, 2), (0.9, 3), (1.0, 4), (1e-9, 1)])
def test_the_nucleus_is_the_likeliest_that_reach_the_probability(top_p, kept):
    likely = torch.tensor([[0.25, 0.0625, 0.5, 0.1875], [0.0625, 0.5, 0.1875, 0.25]])
    nucleus = _nucleus(likely.log(), top_p).softmax(-1)
    for row, all_of_row in zip(nucleus, likely, strict=True):
        best = all_of_row.argsort(descending=True)[:kept]
        expected = torch.zeros(4)
        expected[best] = all_of_row[best] / all_of_row[best].sum()
        assert torch.allclose(row, expected, atol=1e-6)


def test_which_models_of_open_clip_write():
    reasons = {
        name: cannot_write(names.installed(name).architecture)
        for name in open_clip.list_models()
        if "coca" in name or name == "ViT-B-32"
    }
    assert [name for name, reason in reasons.items() if reason is None] == ["coca_ViT-B-32", "coca_ViT-L-14"]
    assert "its vocabulary has 64,000 words" in reasons["coca_base"]
    assert "its texts are read by roberta-base" in reasons["coca_roberta-ViT-B-32"]
    assert "it has no decoder" in reasons["ViT-B-32"]


def test_every_written_model_of_open_clip_with_weights_is_one_that_writes():
    for name in {name for name, _ in open_clip.list_pretrained() if "coca" in name}:
        assert cannot_write(names.installed(name).architecture) is None
