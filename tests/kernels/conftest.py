"""All kernel tests run with unwritten memory full of NaN, so that reading it shows, on one thread of torch.

Torch's deterministic mode does the filling; it also raises where an operation has no deterministic version.
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    threads, filled = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.set_num_threads(threads)
