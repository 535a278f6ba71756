import pytest
import torch


@pytest.fixture
def one_thread():
    """Sums in another order have other last digits; and small tensors are quicker without a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
