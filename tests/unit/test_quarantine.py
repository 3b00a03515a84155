"""Replicas whose numbers cannot be leave by name; the others go on, if most of them agree."""

from __future__ import annotations

import math

import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import FleetStage, Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.quarantine import STRIKES, odd_ones
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import (
    Abort,
    Beat,
    Bye,
    Discarded,
    Fire,
    Generation,
    Hello,
    LeaseRequest,
    Reduced,
    Refused,
)
from tsugi_kpool.core.replica.magnitude_check import ABSURD, LEAST, NO_NUMBERS, MagnitudeCheck, possible_weights, size

N = 4


@pytest.mark.parametrize(
    ("said", "odd"),
    [
        ("aaa", ()),
        ("aab", (2,)),
        ("baaca", (0, 3)),
        ("ab", None),
        ("aabb", None),
        ("aabbc", None),
        ("a", ()),
    ],
)
def test_who_differs_from_more_than_half_is_odd(said, odd):
    assert odd_ones(dict(enumerate(said))) == odd


def test_a_contribution_is_measured_by_what_the_fleet_has_committed():
    plausible = MagnitudeCheck()
    assert plausible.verdict([1e30]) is None, "no history, no verdict"
    assert plausible.verdict([1.0, math.inf]) == NO_NUMBERS
    for _ in range(LEAST):
        plausible.committed([0.0, 2.0, math.nan])
    assert plausible.verdict([2.0 * ABSURD]) is None
    assert "times as large" in (plausible.verdict([0.0, 2.1 * ABSURD]) or "")
    assert plausible.verdict([0.0]) is None
    for _ in range(100):
        plausible.committed([200.0])
    assert plausible.verdict([2.1 * ABSURD]) is None, "old rounds are forgotten"


def test_sizes_are_norms_for_one_part():
    assert size(6.0, 3, 0.5) == 4.0
    assert size(math.nan, 3, 0.5) == size(math.inf, 0, 1.0) == math.inf
    assert size(6.0, 0, 1.0) == size(6.0, 3, 0.0) == 0.0


@pytest.mark.parametrize(
    ("tokens", "steps", "possible"),
    [
        ([5.0, 0.0], [1.0, 0.0], True),
        ([0.0], [3.0], True),
        ([5.0], [0.0], False),
        ([-1.0], [1.0], False),
        ([0.5], [1.0], False),
        ([math.nan], [1.0], False),
        ([2.0**60], [1.0], False),
    ],
)
def test_weights_are_counts(tokens, steps, possible):
    assert possible_weights(tokens, steps) is possible


class Table:
    """A hub and its members, in one round after the other."""

    def __init__(self, replicas: int) -> None:
        plan = hub_plan(replicas=replicas, sample_tokens=10, kpool=kpool(trigger="count", count=2, min_steps=1))
        self.hub = Hub(plan, 0.0)
        self.now_s, self.generation, self.version = 0.0, 1, 0
        self.present = list(range(replicas))
        for replica in self.present:
            self.hub.receive(Hello(0, replica, f"i{replica}", "host", 1, "c0ffee", "layout"), 0.0)
            self.hub.receive(LeaseRequest(replica, f"i{replica}", 1), 0.0)

    def fire(self) -> Fire:
        fired: list[Fire] = []
        for replica in self.present:
            self.now_s += 0.2
            beat = Beat(
                replica, f"i{replica}", self.generation, self.version, 0, "training", 3, 1, 9, 1.0, 1.0, 0.3, 1.0,
                1e-3, (3,) * N, 0, False,
            )  # fmt: skip
            fired += self.orders(self.hub.receive(beat, self.now_s), Fire)
        assert fired, "a round was due"
        return fired[0]

    def reduce(self, fire: Fire, replica: int, digest: str = "same", **facts) -> list:
        weights = (4,) * len(fire.members) if replica == fire.members[0] else ()
        message = Reduced(
            1, replica, f"i{replica}", fire.generation, fire.round, digest, 0.1, 8, weights, 0.0, 0.0, **facts
        )
        return self.hub.receive(message, self.now_s)

    @staticmethod
    def orders(effects: list, kind: type) -> list:
        return [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, kind)]

    @staticmethod
    def told(effects: list, name: str) -> list:
        return [each.data for each in effects if isinstance(each, Event) and each.name == name]


def test_the_one_that_differs_leaves_and_the_round_is_tried_again_without_it():
    table = Table(3)
    fire = table.fire()
    table.reduce(fire, 0)
    table.reduce(fire, 1, "another")
    effects = table.reduce(fire, 2)
    (left,) = table.told(effects, "left")
    assert left["replica"] == 1
    assert left["quarantined"]
    assert "quarantined: the anchors of round 1 differ from those of the other 2 replicas" in left["reason"]
    assert {each.round for each in table.orders(effects, Abort)} == {1}
    (refused,) = table.orders(effects, Refused)
    assert refused.fenced
    assert refused.quarantined
    assert {each.members for each in table.orders(effects, Generation)} == {(0, 2)}
    assert table.hub.failure is None
    assert table.hub.rounds.version == 0, "nothing of that round was applied"
    late = table.orders(table.hub.receive(Bye(3, 1, "i1"), table.now_s), Refused)
    assert late == [refused], "and if it has not heard that, it hears it when it speaks next"
    states = {row.replica: row.state for row in fleet_status(table.hub, table.now_s).replicas}
    assert states[1] == "quarantined"
    table.generation, table.present = 2, [0, 2]
    fire = table.fire()
    table.reduce(fire, 0)
    table.reduce(fire, 2)
    assert table.hub.rounds.version == 1


def test_without_a_majority_the_run_ends_by_name():
    table = Table(2)
    fire = table.fire()
    table.reduce(fire, 0, "one")
    table.reduce(fire, 1, "another")
    assert table.hub.stage is FleetStage.FAILED
    assert "replica 0: one, replica 1: another" in (table.hub.failure or "")


def test_a_part_that_all_find_unusable_costs_its_sender_the_place():
    table = Table(2)
    fire = table.fire()
    table.reduce(fire, 0, "unusable", unusable=(1,))
    effects = table.reduce(fire, 1, "unusable", unusable=(1,))
    assert [each["replica"] for each in table.told(effects, "left")] == [1]
    assert table.hub.present == (0,)
    assert table.hub.failure is None


@pytest.mark.parametrize("lie", [{"unusable": (2,)}, {"unusable": (2,), "blamer": 1}, {"blamer": 7}])
def test_one_member_that_blames_another_is_not_believed_however_early_it_reports(lie):
    table = Table(3)
    fire = table.fire()
    table.reduce(fire, 0, **lie)
    table.reduce(fire, 1)
    effects = table.reduce(fire, 2)
    assert [each["replica"] for each in table.told(effects, "left")] == [0]
    assert table.hub.present == (1, 2)


def test_more_weight_than_the_samples_can_have():
    table = Table(2)
    fire = table.fire()
    possible = N * table.hub.leases.held(1) * 10
    table.reduce(fire, 0, weight=possible)
    effects = table.reduce(fire, 1, weight=possible + 1)
    (left,) = table.told(effects, "left")
    assert left["replica"] == 1
    assert f"it ships {possible + 1} tokens" in left["reason"]
    assert table.hub.rounds.version == 0


def test_the_third_time_in_a_row_is_one_too_many():
    table = Table(2)

    def throw_away() -> list:
        return table.hub.receive(Discarded(1, 1, "i1", "the loss is nan", 5), table.now_s)

    for times in range(1, STRIKES):
        (told,) = table.told(throw_away(), "discarded")
        assert told == {"replica": 1, "reason": "the loss is nan", "tokens": 5, "strikes": times}
    fire = table.fire()
    table.reduce(fire, 0)
    table.reduce(fire, 1)
    assert table.hub.rounds.version == 1
    for _ in range(STRIKES - 1):
        throw_away()
    assert table.hub.present == (0, 1), "something sound of it has been committed in between"
    (left,) = table.told(throw_away(), "left")
    assert left["reason"] == f"quarantined: {STRIKES} times in a row: the loss is nan"
    assert table.hub.present == (0,)
