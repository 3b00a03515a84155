"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch.optim import optimizer as torch_optimizer


class Listed(OrderedDict):
    """torch iterates over its global hooks; here, and only here, another thread removes its own meanwhile."""

    def values(self):
        return list(super().values())


@pytest.fixture
def hooks_of_two_threads(monkeypatch):
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        monkeypatch.setattr(torch_optimizer, name, Listed())


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread only costs with tensors so small: ten times the time beside a busy neighbour."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
