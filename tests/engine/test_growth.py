"""Rounds leave nothing behind: no tensor, no thread, no open file more after hundreds of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "engine"))

from memory import Pair, census, setting

from tsugi_kpool.core.settings import Mode, Payload


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", Mode)
def test_nothing_grows_over_rounds(mode):
    pair = Pair(setting(mode, Payload.INT8))
    try:
        pair.rounds(40)
        before = census()
        pair.rounds(200)
        after = census()
    finally:
        pair.close()
    for what in ("tensors", "threads", "files"):
        assert after[what] <= before[what], what
    assert after["objects"] < before["objects"] + 200, "less than one object a round: caches may still fill"
