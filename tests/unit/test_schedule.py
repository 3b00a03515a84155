"""Learning rate and weight decay go by the fleet's tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugi_cli.config.spec import Train
from tsugi_cli.finetune.schedule import Schedule

TRAIN = Train(
    epochs=1.0, max_steps=None, micro_batch=2, lr=1e-3, warmup=0.1, final_lr=0.1, weight_decay=0.01, beta2=0.99,
    grad_clip=1.0, lease_steps=1, lease_ahead_s=0.0,
)  # fmt: skip


def test_half_of_the_samples_may_be_a_tenth_of_the_tokens():
    schedule = Schedule(TRAIN, [1] * 50 + [9] * 50, replicas=2)
    assert schedule.done(50) == pytest.approx(0.1)
    assert schedule.lr(50) == pytest.approx(1e-3), "warm-up has just ended"
    assert schedule.lr(75) == pytest.approx(1e-3 * 0.55), "half of the rest: the middle of the cosine"


def test_it_rises_then_falls_to_the_final_share():
    schedule = Schedule(TRAIN, [3] * 1000, replicas=1)
    rates = [schedule.lr(position) for position in range(1001)]
    top = rates.index(max(rates))
    assert 0.0 < rates[0] < 0.1 * 1e-3
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)


RATES = {
    "cosine_with_min_lr": (1.0, 0.55, 0.1),
    "cosine": (1.0, 0.5, 0.0),
    "linear": (1.0, 0.5, 0.0),
    "constant": (1.0, 1.0, 1.0),
    "wsd": (1.0, 1.0, 0.0),
}
"""At the end of the warm-up, in the middle of the rest, and at the end: shares of lr."""


@pytest.mark.parametrize("scheduler", RATES)
def test_a_scheduler_ends_where_its_name_says(scheduler):
    schedule = Schedule(replace(TRAIN, scheduler=scheduler, final_lr=None), [2] * 1000, replicas=1)
    rates = [schedule.lr(position) / 1e-3 for position in range(1001)]
    assert (rates[100], rates[550], rates[1000]) == pytest.approx(RATES[scheduler])
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "wsd"])
def test_whoever_wants_another_end_gets_it(scheduler):
    schedule = Schedule(replace(TRAIN, scheduler=scheduler, final_lr=0.3), [2] * 1000, replicas=1)
    assert schedule.lr(1000) == pytest.approx(0.3e-3)


def test_wsd_falls_over_its_decay_alone():
    """400 samples in steps of two: 50 steps are a quarter of the run."""
    for decay in (0.25, 50.0):
        schedule = Schedule(replace(TRAIN, scheduler="wsd", decay=decay, final_lr=None), [7] * 400, replicas=1)
        assert schedule.lr(300) == pytest.approx(1e-3)
        assert schedule.lr(350) == pytest.approx(0.5e-3)
        assert schedule.lr(301) < 1e-3


def test_warm_up_in_steps_of_the_fleet_is_the_same_share_of_its_tokens():
    share, steps = (
        Schedule(replace(TRAIN, warmup=warmup, accumulate=2), [5] * 400, replicas=3) for warmup in (0.2, 20.0)
    )
    assert [share.lr(each) for each in range(401)] == pytest.approx([steps.lr(each) for each in range(401)])
    endless = Schedule(replace(TRAIN, warmup=1000.0), [5] * 400, replicas=1)
    assert endless.lr(399) < endless.lr(400) == pytest.approx(1e-3), "a warm-up longer than the run rises to its end"


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 8))
def test_done_is_the_share_of_tokens_before_a_position(tokens, replicas):
    schedule = Schedule(TRAIN, tokens, replicas)
    shares = [schedule.done(position) for position in range(len(tokens) + 1)]
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    steps = [after - before for before, after in pairwise(shares)]
    assert steps == pytest.approx([each / sum(tokens) for each in tokens])


@given(st.lists(st.integers(1, 500), min_size=2, max_size=80).filter(lambda tokens: len(tokens) % 2 == 0))
def test_a_run_decays_as_much_however_its_tokens_are_cut(tokens):
    """Steps of two samples, of one, or all in one: the decays sum up to one for every mean step."""
    schedule = Schedule(TRAIN, tokens, replicas=2)
    pairs = [a + b for a, b in zip(tokens[::2], tokens[1::2], strict=True)]
    expected = TRAIN.weight_decay * len(pairs)
    for cut in (pairs, tokens, [sum(tokens)]):
        assert sum(schedule.decay(each) for each in cut) == pytest.approx(expected)
    assert schedule.round_tokens == pytest.approx(2 * sum(tokens) / len(pairs))


def test_the_optimizer_is_given_both():
    optimizer = SimpleNamespace(param_groups=[{}, {}])
    schedule = Schedule(TRAIN, [4] * 10, replicas=1)
    assert schedule.set_lr(optimizer, 0) == optimizer.param_groups[1]["lr"] == schedule.lr(0)
    schedule.set_decay(optimizer, 4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.005, 0.005]
