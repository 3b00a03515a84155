"""The straggler tax: what lock-step would have lost, and the part of it that was not."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.unit.test_messages import BEAT
from tsugi_kpool.core.hub.members import Member
from tsugi_kpool.core.messages import Hello
from tsugi_kpool.core.slow.tax import Rates, StragglerTax


def rates(*seconds_per_token: float, share: float = 1.0) -> list[Rates]:
    """Replicas that train for this share of their time."""
    return [Rates(each, share / each if each else 0.0) for each in seconds_per_token]


def test_the_tax_of_one_4x_straggler_of_four():
    """Own pace 3 + 1/4 tokens a second, lock-step 4 / 4: training at own pace recovers all of the difference."""
    tax = StragglerTax()
    for second in range(101):
        tax.advance(float(second), rates(1.0, 1.0, 1.0, 4.0), True)
    assert tax.lockstep_tokens(325) == pytest.approx(100.0)
    assert tax.recovered() == pytest.approx(1.0)


def test_lock_step_itself_recovers_nothing_and_equal_replicas_pay_no_tax():
    slow, equal = StragglerTax(), StragglerTax()
    for second in range(101):
        slow.advance(float(second), [*rates(1.0, 1.0, 1.0, 4.0, share=1.0 / 3.25)], True)
        equal.advance(float(second), rates(1.0, 1.0, 1.0, 1.04, share=0.8), True)
    assert slow.recovered() == pytest.approx(0.0)
    assert equal.recovered() is None
    assert equal.lockstep_tokens(400) == pytest.approx(400 / 0.8, rel=0.04)


def test_time_in_which_not_all_train_or_are_known_does_not_count():
    tax = StragglerTax()
    tax.advance(0.0, rates(0.0, 1.0), True)
    tax.advance(10.0, rates(1.0, 2.0), True)
    tax.advance(20.0, rates(1.0, 2.0), True)
    tax.advance(30.0, rates(1.0, 2.0), False)
    assert tax.trained == pytest.approx(15.0)
    assert tax.lockstep == pytest.approx(10.0)


def test_what_was_lost_before_a_replica_turned_slow_is_not_charged_to_its_tax():
    """A minute in which equal replicas lost a tenth to waits; then one of two turns 4x slower, and nobody waits."""
    tax, told = StragglerTax(), []
    for second in range(60):
        tax.advance(float(second), rates(1.0, 1.0, share=0.9), True)
    for second in range(60, 100):
        mixed = 1.0 + 3.0 * min(1.0, (second - 60) / 20)  # its window fills with slow steps
        tax.advance(float(second), rates(1.0, mixed), True)
        told.append(tax.recovered())
    assert told[:5] == [None] * 5, "not known yet is no 0 %"
    assert all(each == pytest.approx(1.0) for each in told if each is not None)
    assert told[-1] is not None


TOKENS = 50
"""Of a step."""
LOADED_S = 30.0
"""Replicas join, load and evaluate for so long before the first step; they beat all the while."""


class Trainer:
    """A replica that takes `step_s` for a step and loses a share of its time, as its beats tell the hub."""

    def __init__(self, number: int, step_s: float, lost: float) -> None:
        self.member = Member(Hello(1, number, "i", "h", 1, "c0ffee", "l"), 0.0, 0.0)
        self._step_s, self._lost, self._draw = step_s, lost, random.Random(number)
        self._beat = self._loading = msgspec.structs.replace(
            BEAT, replica=number, steps=0, samples=0, tokens=0, busy_s=0.0, trained_s=0.0, stepped_s=0.0
        )

    def until(self, now_s: float) -> None:
        """Let it train until then; it beats after every step, once a second while it loads."""
        if now_s < LOADED_S:
            self.member.observe(self._loading, now_s)
        while now_s > LOADED_S + self._beat.stepped_s:
            last, busy_s = self._beat, self._step_s * self._draw.lognormvariate(0.0, 0.1)
            ended_s = last.stepped_s + busy_s / (1 - self._lost)
            self._beat = msgspec.structs.replace(
                last, steps=last.steps + 1, samples=last.samples + 1, tokens=last.tokens + TOKENS,
                busy_s=last.busy_s + busy_s, stepped_s=ended_s, trained_s=ended_s, step_s=busy_s,
            )  # fmt: skip
            self.member.observe(self._beat, LOADED_S + ended_s)

    @property
    def seconds_per_token(self) -> float:
        """The truth, of all its steps."""
        return self._beat.busy_s / self._beat.tokens

    @property
    def rate(self) -> float:
        """The truth, too: tokens for every second of training."""
        return self._beat.tokens / self._beat.stepped_s


@pytest.mark.parametrize("lost", [0.0, 0.1])
@pytest.mark.parametrize("step_s", [0.1, 1.0])
def test_the_share_is_right_from_the_first_figure_on(step_s, lost):
    """One of four is 4x slower from the start. Against the truth, of which a first evaluation is no part."""
    tax, told = StragglerTax(), []
    fleet = [Trainer(number, step_s * (4.0 if number == 1 else 1.0), lost) for number in range(4)]
    for second in range(90):
        for trainer in fleet:
            trainer.until(float(second))
        tax.advance(float(second), [trainer.member.rates() for trainer in fleet], second >= LOADED_S)
        share = tax.recovered()
        if share is not None:
            times = [trainer.seconds_per_token for trainer in fleet]
            lockstep, own = len(times) / max(times), sum(1 / each for each in times)
            trained = sum(trainer.rate for trainer in fleet)
            told.append((share, (trained - lockstep) / (own - lockstep)))
            assert tax.lockstep_tokens(1000) == pytest.approx(1000 * lockstep / trained, rel=0.05)
    assert len(told) > 50, "and that is soon"
    for share, truth in told:
        assert share == pytest.approx(truth, abs=0.03)
