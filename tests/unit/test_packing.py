"""Which samples share a row, and the order of rows by length."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugi_cli.data.packing import WINDOW, by_length, joined, pack, padding
from tsugi_cli.data.rows import Sample

lengths_and_capacity = st.integers(1, 200).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=120), st.just(capacity))
)


def some_lengths(n: int, seed: int = 0) -> list[int]:
    chance = random.Random(seed)
    return [min(2048, max(8, int(chance.lognormvariate(5, 0.8)))) for _ in range(n)]


@given(lengths_and_capacity, st.integers(0, 3))
def test_every_sample_is_in_exactly_one_row_and_no_row_is_too_long(given_, seed):
    lengths, capacity = given_
    rows = pack(lengths, capacity, seed)
    assert sorted(each for row in rows for each in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and 0 < sum(lengths[each] for each in row) <= capacity for row in rows)
    assert rows == pack(lengths, capacity, seed)


@given(lengths_and_capacity)
def test_no_two_rows_could_be_one_more_than_once(given_):
    """Best fit opens a row only for what fits nowhere: at most one row is filled to a half or less."""
    lengths, capacity = given_
    filled = [sum(lengths[each] for each in row) for row in pack(lengths, capacity, 0)]
    assert sum(2 * each <= capacity for each in filled) <= 1


def test_rows_of_ordinary_data_are_almost_full():
    lengths = some_lengths(5000)
    rows = pack(lengths, 2048, 0)
    assert len(rows) <= 1.01 * sum(lengths) / 2048 + 1


def test_a_seed_changes_which_samples_meet_and_in_which_order():
    lengths = [10] * 40
    first, second = pack(lengths, 40, 0), pack(lengths, 40, 1)
    assert len(first) == len(second) == 10
    assert {tuple(row) for row in first} != {tuple(row) for row in second}


def test_nothing_and_what_is_too_long():
    assert pack([], 8, 0) == []
    assert pack([8, 8], 8, 0) in ([[0], [1]], [[1], [0]])
    with pytest.raises(ValueError, match="9 tokens does not fit into a row of 8"):
        pack([3, 9], 8, 0)


def test_a_row_keeps_its_samples_apart_and_predicts_no_first_token():
    samples = [
        Sample([1, 2, 3, 4], ((2, 4),)),
        Sample([5, 6, 7], ((0, 2),)),
        Sample([8], ((0, 1),)),
        Sample([9, 10], ((1, 2),)),
    ]
    row = joined(samples, [3, 4, 7, 9])
    assert row.ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert row.lengths == (4, 3, 1, 2)
    assert row.spans == ((2, 4), (5, 6), (9, 10))
    assert row.tokens == sum(sample.tokens for sample in samples) == 4
    assert row.members == (3, 4, 7, 9)


@settings(max_examples=40)
@given(st.integers(0, 3000), st.integers(0, 3), st.integers(1, 9))
def test_order_by_length_has_every_row_once_and_in_its_window(n, seed, group):
    lengths = some_lengths(n)
    order = list(range(n))
    random.Random(seed).shuffle(order)
    found = by_length(order, lengths, group, random.Random(seed))
    assert found == by_length(order, lengths, group, random.Random(seed))
    window = WINDOW // group * group
    for start in range(0, n, window):
        assert sorted(found[start : start + window]) == sorted(order[start : start + window])


@pytest.mark.parametrize("size", [2, 3, 4, 8, 32])
def test_little_of_a_batch_of_the_groups_size_is_padding(size):
    lengths = some_lengths(4096)
    order = by_length(list(range(4096)), lengths, size, random.Random(0))
    assert padding([lengths[each] for each in order], size) < 0.25 * padding(lengths, size)


def test_rows_of_a_group_meet_and_what_comes_next_is_left_to_chance():
    """Neighbours of other groups are no more alike than any two rows: a run learns less from rows that are."""
    lengths = sorted(some_lengths(1024))
    mean = sum(lengths) / len(lengths)
    apart = sum(abs(a - b) for a in lengths[::16] for b in lengths[::16]) / 64**2
    inside, between = [], []
    for seed in range(20):
        order = list(range(1024))
        random.Random(seed).shuffle(order)
        found = [lengths[each] for each in by_length(order, lengths, 4, random.Random(seed))]
        inside += [abs(a - b) for a, b in zip(found[0::4], found[1::4], strict=True)]
        between += [abs(a - b) for a, b in zip(found[3::4], found[4::4], strict=False)]
    assert sum(inside) / len(inside) < 0.05 * mean
    assert sum(between) / len(between) == pytest.approx(apart, rel=0.1)


def test_padding_is_a_share_of_what_is_computed():
    assert padding([4, 4, 2, 2], 2) == 0
    assert padding([4, 2, 2], 2) == pytest.approx(2 / 10)
    assert padding([], 2) == 0
