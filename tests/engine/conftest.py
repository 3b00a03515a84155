"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch.optim import optimizer as torch_optimizer


class Listed(OrderedDict):
    """torch iterates over its global hooks; here, and only here, another thread removes its own meanwhile."""

    def values(self):
        return list(super().values())


@pytest.fixture
def hooks_of_two_threads(monkeypatch):
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        monkeypatch.setattr(torch_optimizer, name, Listed())
