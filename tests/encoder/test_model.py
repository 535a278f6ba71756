from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import clipgs
from clipgs.config import Encoder
from clipgs.encoder import ClipGS, prepare
from clipgs.encoder.transformer import Shape
from clipgs.splats.gaussians import Gaussians

from .conftest import random_gaussians

SHALLOW = Shape(64, 2, 2, 128, gated=True, hidden_norm=True)  # as base's blocks
# A batch norm takes away whatever the layers before it add to all rows alike.
BEFORE_A_NORM = {f"tokenizer.points.conv{layer}.bias" for layer in (1, 2, 3)}


def toy_task(B=6, N=40, D=16):
    """Splats and targets that positions and colours alone do not tell."""
    gaussians, targets = random_gaussians(B, N), F.normalize(torch.randn(B, D), dim=-1)
    return gaussians, targets


def step(model, gaussians, targets, optimizer=None):
    logits = model(gaussians) @ targets.T * 10
    loss = F.cross_entropy(logits, torch.arange(len(targets)))
    loss.backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_embeddings_have_unit_length(small):
    embedding = ClipGS(small, 16, SHALLOW)(random_gaussians(3, 50))
    assert embedding.shape == (3, 16)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


def test_base_has_88_million_parameters_as_the_paper_says():
    with torch.device("meta"):
        model = ClipGS(Encoder(), 1024)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(88e6, rel=0.02)


def test_the_names_are_exported_and_torch_comes_only_with_their_use():
    import subprocess
    import sys

    code = "import sys, clipgs.encoder; assert 'torch' not in sys.modules; clipgs.encoder.ClipGS; clipgs.encoder.build"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert clipgs.ClipGS is ClipGS


@pytest.mark.parametrize("mode", ["sync", "local", "frozen"])
def test_the_gradient_reaches_every_parameter(small, mode):
    model = ClipGS(small.model_copy(update={"batch_norm": mode}), 16, SHALLOW)
    gaussians, targets = toy_task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, gaussians, targets, optimizer)  # branch two's last layer starts at zero, and hides the layers before
    step(model, gaussians, targets)
    exempt = set() if mode == "frozen" else BEFORE_A_NORM
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert name in exempt or parameter.grad.abs().max() > 0, name


def test_branch_two_changes_nothing_at_first_and_something_after_100_steps(small):
    model = ClipGS(small, 16, SHALLOW)
    gaussians, targets = toy_task()

    def without_branch_two():
        model.eval()
        with torch.no_grad():
            whole = model(gaussians)
            refinement, model.tokenizer.refinement = model.tokenizer.refinement, None
            alone = model(gaussians)
            model.tokenizer.refinement = refinement
        model.train()
        return (whole - alone).norm(dim=1)

    assert (without_branch_two() == 0).all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = [step(model, gaussians, targets, optimizer) for _ in range(100)]
    assert losses[-1] < 0.5 * losses[0]
    assert without_branch_two().min() > 0.01


def test_attributes_of_branch_two_are_learnt_from(small):
    """Objects that differ in nothing but their opacities can be told apart."""
    one = random_gaussians(1, 60)
    gaussians = replace(Gaussians.stack([one[0]] * 4), opacity_logits=torch.randn(4, 60) * 2)
    targets = F.normalize(torch.randn(4, 16), dim=-1)
    model = ClipGS(small, 16, SHALLOW)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = [step(model, gaussians, targets, optimizer) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("B", "N", "count"),
    [(1, 60, None), (1, 100, None), (2, 5, None), (3, 60, [60, 3, 1]), (1, 1, None)],
)
def test_few_objects_and_few_gaussians_are_finite(small, training, B, N, count):
    model = ClipGS(small, 16, SHALLOW).train(training)
    embedding = model(random_gaussians(B, N, count))
    embedding[:, 0].sum().backward()
    assert embedding.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("N", [100, 50_000])
@torch.no_grad()
def test_objects_of_100_and_of_50000_gaussians(N):
    gaussians = prepare(random_gaussians(1, N)[0])
    assert len(gaussians) == {100: 100, 50_000: 10_000}[N]
    model = ClipGS(Encoder(size="tiny"), 16).eval()
    assert model(Gaussians.stack([gaussians])).isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {"means": torch.zeros(1, 60, 3)},
        {"opacity_logits": torch.full((1, 60), -torch.inf)},
        {"log_scales": torch.full((1, 60, 3), -torch.inf)},
        {"quats_wxyz": torch.zeros(1, 60, 4)},
        {"colors": torch.full((1, 60, 3), 0.5)},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_degenerate_splats_are_finite_forward_and_backward(small, change, training):
    model = ClipGS(small, 16, SHALLOW).train(training)
    torch.nn.init.normal_(model.tokenizer.add.weight)
    embedding = model(replace(random_gaussians(1, 60), **change))
    embedding[:, 0].sum().backward()
    assert embedding.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_an_object_does_not_depend_on_its_batch(small):
    model = ClipGS(small, 16, SHALLOW).eval()
    objects = [random_gaussians(1, N)[0] for N in (60, 20, 40)]
    together = model(Gaussians.stack(objects))
    for row, gaussians in zip(together, objects, strict=True):
        torch.testing.assert_close(row, model(Gaussians.stack([gaussians]))[0], atol=1e-5, rtol=0)


def test_half_precision_stays_near(small):
    model = ClipGS(small, 16, SHALLOW)
    torch.nn.init.normal_(model.tokenizer.add.weight, std=0.1)
    gaussians = random_gaussians(4, 60)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(gaussians)
    assert half.dtype == torch.float32
    assert (half * model(gaussians)).sum(1).min() > 0.99


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")  # of the tracer
def test_the_whole_forward_and_backward_is_one_graph(small):
    """Nothing breaks the graph that torch.compile sees, so nothing waits for the device."""
    model = ClipGS(
        small.model_copy(update={"drop_path": 0.1, "patch_dropout": 0.5, "order_fusion": "sample"}), 16, SHALLOW
    )
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    embedding = compiled(random_gaussians(2, 50, [50, 40]))
    embedding[:, 0].sum().backward()
    assert embedding.isfinite().all()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32:UserWarning")  # of the compiler
def test_compiled_gradients_are_the_plain_ones_and_each_its_own(small):
    model, gaussians = ClipGS(small, 16, SHALLOW).cuda(), random_gaussians(3, 60, [60, 30, 9]).to("cuda")
    found = []
    for embed in (model, torch.compile(model, fullgraph=True, dynamic=False)):
        model.zero_grad()
        embed(gaussians)[:, 0].sum().backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        assert len({gradient.data_ptr() for gradient in gradients.values()}) == len(gradients)
        found.append({name: gradient.clone() for name, gradient in gradients.items()})
    for name, plain in found[0].items():
        assert (found[1][name] - plain).abs().max() <= 1e-3 * plain.abs().max().clamp(min=1e-3), name


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_on_a_gpu_the_embedding_is_the_cpus_and_nothing_waits(small):
    model = ClipGS(small, 16, SHALLOW).eval()
    gaussians = random_gaussians(3, 60, [60, 30, 9])
    expected = model(gaussians)
    model, gaussians = model.cuda(), gaussians.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = model.train()(gaussians)
        ours[:, 0].sum().backward()
        ours = model.eval()(gaussians)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ours.shape == expected.shape
