"""The codes that benchmarks/straggler_tax/apart.py compares: a wrong one would make a good rule look bad."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "straggler_tax"))

from codes import BLOCK, CHUNK, CODES, KEPT


def numbers(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("code", "most"), [("mean", 0.0), ("int4", 0.15), ("int2", 0.45), ("sparse", 0.95)])
@pytest.mark.parametrize("count", [BLOCK, CHUNK, 2 * CHUNK + 17])
def test_what_arrives_is_nearer_than_nothing_and_as_long(code, most, count):
    sent = numbers(count)
    arrived = CODES[code].apply(sent)
    assert arrived.shape == sent.shape
    assert float((arrived - sent).norm() / sent.norm()) <= most


def test_zeros_stay_zeros_but_where_a_code_has_no_zero():
    zeros = torch.zeros(CHUNK)
    assert all(float(CODES[code].apply(zeros).abs().max()) < 1e-20 for code in CODES)


def test_the_sparse_code_sends_the_largest_numbers_with_their_signs_and_two_sizes():
    sent = numbers(CHUNK)
    arrived = CODES["sparse"].apply(sent)
    kept = arrived.nonzero().flatten()
    assert len(kept) == KEPT
    assert float(sent[kept].abs().min()) >= float(sent.abs().sort(descending=True).values[KEPT - 1])
    assert torch.equal(arrived[kept].sign(), sent[kept].sign())
    assert len(arrived[kept].abs().unique()) == 2


def test_bits_that_a_replica_sends():
    assert CODES["mean"].sent_bits(4) == 48.0  # a ring all-reduce of fp32
    assert CODES["int4"].sent_bits(4) == 1.5 * 4.5
    assert CODES["sparse"].sent_bits(4) == 3 * (KEPT * 14 + 32) / CHUNK
