"""Mixtures: how a pass is shared among sources."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugi_cli.data.mixture import mixture, repeats, shares

sources = st.lists(st.tuples(st.integers(0, 40), st.floats(0, 9, allow_subnormal=False)), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("sizes", "weights", "total", "wanted"),
    [
        ([100, 100], [1, 1], None, [100, 100]),
        ([100, 100], [3, 1], None, [150, 50]),
        ([1000, 10], [0.5, 0.5], None, [505, 505]),
        ([10, 10, 10], [1, 1, 1], 10, [4, 3, 3]),
        ([100, 50], [1, 0], None, [100, 0]),
        ([100, 0], [1, 5], None, [100, 0]),
        ([1000, 5], [1, 1e-9], None, [1005, 1]),
    ],
)
def test_weights_share_a_pass(sizes, weights, total, wanted):
    assert shares(sizes, weights, total) == wanted


@given(sources, st.integers(0, 2))
def test_every_row_of_a_source_comes_as_often_as_the_others_or_once_more(given_, seed):
    sizes, weights = [size for size, _ in given_], [weight for _, weight in given_]
    if not any(size and weight for size, weight in given_):
        return
    picks = mixture(sizes, weights, seed)
    assert picks == mixture(sizes, weights, seed)
    counts = Counter(picks)
    for source, (size, share) in enumerate(zip(sizes, shares(sizes, weights), strict=True)):
        each = [counts[source, row] for row in range(size)]
        assert sum(each) == share
        assert not share or max(each) - min(each) <= 1
    assert sum(counts.values()) == len(picks)


def test_sources_are_spread_over_the_pass_and_rows_come_by_chance():
    picks = mixture([300, 100], [3, 1], seed=0)
    for start in range(0, 400, 40):
        assert abs(sum(source == 1 for source, _ in picks[start : start + 40]) - 10) <= 1
    rows = [row for source, row in picks if source == 0]
    assert rows != sorted(rows)
    assert rows != [row for source, row in mixture([300, 100], [3, 1], seed=1) if source == 0]


def test_how_often_a_row_is_repeated():
    assert repeats([1000, 10, 0], [500, 505, 0]) == [0.5, 50.5, 0.0]


@pytest.mark.parametrize(("sizes", "weights"), [([0], [1]), ([5], [0]), ([], []), ([5], [1, 2]), ([5, 5], [1, -1])])
def test_what_is_no_mixture(sizes, weights):
    with pytest.raises(ValueError, match=r"weight"):
        mixture(sizes, weights, seed=0)
