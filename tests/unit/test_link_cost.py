"""kpool.k=auto: what a round costs on the link, and which K follows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import kpool
from tsugi_kpool.core.rounds.link_cost import PROBE_EVERY, AutoK, LinkCost, choose_k, fit
from tsugi_kpool.core.settings import Mode

MB = 1_000_000


@pytest.mark.parametrize(
    ("latency_s", "transfer_s", "k"),
    [
        (0.001, 0.5, 8),  # hidden behind a step
        (0.01, 5.0, 2),  # slow: a quarter
        (0.01, 40.0, 1),  # very slow: an eighth
        (0.4, 5.0, 4),  # 4 latencies are more than a fifth of 5 s, 2 are not
        (0.2, 5.0, 2),
        (2.0, 5.0, 8),  # bound by latency
        (3.0, 0.0, 8),
        (1.5, 40.0, 2),  # very slow, but 8 latencies are more than a fifth of 40 s
    ],
)
def test_k_by_the_rule_of_the_design(latency_s, transfer_s, k):
    """Steps of 1 s, 8 adapters of 1 MB."""
    assert choose_k(8, LinkCost(latency_s, transfer_s / (8 * MB)), 8 * MB, 1.0) == k


@given(
    n=st.integers(1, 40),
    latency_s=st.floats(0, 100),
    per_byte=st.floats(0, 1e-3),
    full_bytes=st.floats(0, 1e9),
    step_s=st.floats(1e-3, 100),
)
def test_k_is_always_possible_and_pays_for_its_latency(n, latency_s, per_byte, full_bytes, step_s):
    k = choose_k(n, LinkCost(latency_s, per_byte), full_bytes, step_s)
    assert 1 <= k <= n
    if k < n:
        assert latency_s + per_byte * full_bytes > step_s
        assert n // k * latency_s <= 0.2 * per_byte * full_bytes * (1 + 1e-9)


def test_latency_and_bandwidth_are_found_again():
    cost = fit({2 * MB: [0.3] * 3, 8 * MB: [0.9] * 3})
    assert cost.latency_s == pytest.approx(0.1)
    assert cost.seconds_per_byte == pytest.approx(1e-7)


def test_one_slow_round_does_not_change_the_estimate():
    assert fit({2 * MB: [0.3, 0.3, 9.0], 8 * MB: [0.9, 0.9, 0.9]}) == fit({2 * MB: [0.3], 8 * MB: [0.9]})


def test_one_size_says_nothing():
    assert fit({}) is None
    assert fit({MB: [0.1, 0.2]}) is None


@pytest.mark.parametrize(
    ("rounds", "cost"),
    [
        ({MB: [0.2], 2 * MB: [0.1]}, LinkCost(pytest.approx(0.15), 0.0)),  # larger and quicker: no size to be seen
        ({MB: [0.1], 2 * MB: [0.3]}, LinkCost(0.0, pytest.approx(0.2 / (1.5 * MB)))),  # no negative latency
    ],
)
def test_noise_makes_no_negative_costs(rounds, cost):
    found = fit(rounds)
    assert (found.latency_s, found.seconds_per_byte) == (cost.latency_s, cost.seconds_per_byte)


def run(auto: AutoK, rounds: int, latency_s: float, per_adapter_s: float, step_s: float) -> list[int]:
    draw, shipped = random.Random(0), []
    for _ in range(rounds):
        k = auto.next()
        shipped.append(k)
        seconds = (latency_s + k * per_adapter_s) * draw.uniform(0.95, 1.05)
        auto.committed(k, k * MB, seconds, step_s)
    return shipped


def test_it_measures_two_sizes_before_it_chooses():
    assert run(AutoK(8, 60.0), 9, 0.01, 1.0, 1.0) == [2, 8, 2, 8, 2, 8, 2, 2, 2]


def test_it_looks_again_now_and_then_and_follows_the_link():
    auto = AutoK(8, 60.0)
    before = run(auto, 150, 0.01, 1.0, 1.0)
    assert before[6:].count(8) == (len(before) - 1) // PROBE_EVERY
    after = run(auto, 4 * PROBE_EVERY, 0.01, 0.001, 1.0)  # the link has become fast
    assert after[-1] == 8


def test_it_tries_no_round_that_might_fail():
    """A quarter takes 20 s, all would take 80 of the 60 that a round may: an eighth is what it compares with."""
    shipped = run(AutoK(8, 60.0), 200, 0.01, 10.0, 1.0)
    assert max(shipped) == 2
    assert shipped[-1] == 1


def test_a_pool_of_one_has_no_choice():
    assert set(run(AutoK(1, 60.0), 20, 0.1, 1.0, 1.0)) == {1}


def test_auto_is_allowed_and_counts_as_its_smallest_choice():
    assert kpool(k="auto").problems() == []
    assert "at least n / k = 8" in kpool(k="auto", n=8, mode=Mode.GRADIENT, max_staleness=7).problems()[0]
