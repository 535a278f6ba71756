import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import nn

from clipgs.encoder.batch_norm import BatchNorm, Moments, centred

SHAPE = (3, 4, 5, 6)  # objects, patches, Gaussians, channels


def pair(channels, mode="local"):
    ours, theirs = BatchNorm(channels, mode).double(), nn.BatchNorm1d(channels).double()
    for norm in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.copy_(torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5)
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
def test_it_is_torchs_batch_norm_over_the_last_axis(training):
    ours, theirs = pair(6)
    ours.train(training)
    theirs.train(training)
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    a, b = ours(x), theirs(y.flatten(0, 2)).view(SHAPE)
    torch.testing.assert_close(a, b)
    weights = torch.randn(SHAPE, dtype=torch.float64)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_frozen_takes_the_running_statistics_in_training_too():
    ours, theirs = pair(6, "frozen")
    x = torch.randn(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(ours.train()(x), theirs.eval()(x.flatten(0, 2)).view(SHAPE))
    torch.testing.assert_close(ours.running_mean, pair(6)[0].running_mean)


def test_no_momentum_moves_no_statistics():
    ours, _ = pair(6)
    ours.momentum = 0.0
    ours(torch.randn(SHAPE, dtype=torch.float64))
    torch.testing.assert_close(ours.running_var, pair(6)[0].running_var)


def test_moments_give_the_statistics_of_a_linear_layer():
    x, weight = torch.randn(SHAPE, dtype=torch.float64) + 1, torch.randn(7, 6, dtype=torch.float64)
    moments = Moments(x)
    y = (x @ weight.T).flatten(0, 2)
    torch.testing.assert_close(weight @ moments.mean, y.mean(0))
    torch.testing.assert_close(((weight @ moments.covariance) * weight).sum(1), y.var(0, correction=0))
    assert moments.rows == 60


def test_moments_of_centred_values_keep_what_is_constant_at_zero_in_half_precision():
    x = torch.randn(4, 8, 16, 3)
    x[..., 1] = 0.7
    x, mean = centred(x)
    covariance = Moments(x.bfloat16()).covariance
    assert covariance[1].abs().max() < 1e-5
    assert mean[1] == pytest.approx(0.7)


def _process(rank, store, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = values[rank].requires_grad_()
    norm, _ = pair(6, "sync")
    y = norm(x)
    (y.square() * torch.arange(6)).sum().backward()
    queue.put((rank, y.detach().numpy(), x.grad.numpy(), norm.running_var.numpy()))
    dist.destroy_process_group()


def test_synchronous_statistics_over_two_processes_are_those_of_the_whole_batch(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_process, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = sorted((queue.get(timeout=120) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join()
    values = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = values.flatten(0, 1).requires_grad_()
    norm, _ = pair(6)
    y = norm(x)
    (y.square() * torch.arange(6)).sum().backward()
    for rank, ours, gradient, running in results:
        rows = slice(rank * SHAPE[0], (rank + 1) * SHAPE[0])
        torch.testing.assert_close(torch.from_numpy(ours), y.detach()[rows])
        torch.testing.assert_close(torch.from_numpy(gradient), x.grad[rows])
        torch.testing.assert_close(torch.from_numpy(running), norm.running_var)
