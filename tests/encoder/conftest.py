import pytest
import torch

from clipgs.config import Encoder
from clipgs.splats.gaussians import Gaussians


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers in every test; one thread, since what is small here only waits for a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small() -> Encoder:
    """Settings of a small encoder without randomness in training."""
    return Encoder(size="tiny", groups=16, group_size=8, refinement_width=16, drop_path=0.0, patch_dropout=0.0)


def random_gaussians(B: int, N: int, count: list[int] | None = None) -> Gaussians:
    """Splats that look like prepared ones, without a meaning."""
    return Gaussians(
        means=torch.randn(B, N, 3) * 0.4,
        quats_wxyz=torch.randn(B, N, 4),
        log_scales=torch.randn(B, N, 3) - 4,
        opacity_logits=torch.randn(B, N) + 2,
        colors=torch.rand(B, N, 3),
        count=None if count is None else torch.tensor(count),
    )
