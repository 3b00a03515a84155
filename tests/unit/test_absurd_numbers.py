"""A member may say any number: the hub goes on, and what the others are told does not change."""

from __future__ import annotations

import math

import msgspec
import pytest

from tests.support import hub_plan, kpool
from tests.unit.test_messages import BEAT
from tsugi_kpool.core.hub.frontier import FRONTIER_KEPT, Frontier
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import Beat, Hello, LeaseRequest
from tsugi_kpool.core.rounds.link_cost import AutoK

TINY, HUGE = 5e-324, 1.7e308
ABSURD = {
    "no time at all": lambda n: {"busy_s": TINY * n},
    "more time than there is": lambda n: {"busy_s": HUGE / 100 * n, "step_s": HUGE},
    "from nothing to years": lambda n: {"busy_s": TINY * n if n < 20 else 1e8 * (n - 19)},
    "more steps than memory": lambda n: {"steps": n << 40},
    "waits without end": lambda n: {"busy_s": 0.1 * n, "wait_s": 9e8, "sync_wait_s": 9e8, "stepped_s": HUGE},
    "work without end": lambda n: {"busy_s": 0.1 * n, "worked": 2**53 - 40 + n},
}


@pytest.mark.parametrize("says", ABSURD.values(), ids=ABSURD)
def test_the_hub_outlives_absurd_beats(says):
    plan = hub_plan(lease_ahead_s=10.0, samples=1000, kpool=kpool(size_work=True))
    hub, lone = Hub(plan, 0.0), Hub(plan, 0.0)
    for each in (hub, lone):
        for replica in range(2):
            each.receive(Hello(1, replica, f"i{replica}", "h", 1, "c0ffee", "l"), 0.0)
            each.receive(LeaseRequest(replica, f"i{replica}", 1), 0.0)
    guard = Guard(hub)
    sane = msgspec.structs.replace(
        BEAT, generation=1, version=0, reduced=0, samples=1, tokens=0, pooled=(0,) * 4, sent_bytes=0, step_s=0.0
    )
    for n in range(1, 40):
        theirs = {"replica": 0, "incarnation": "i0", "steps": n, "worked": 10 * n} | says(n)
        absurd = msgspec.structs.replace(sane, **theirs)
        if guard.verdict(absurd, 0) is None:
            hub.receive(absurd, float(n))
        ours = msgspec.structs.replace(sane, replica=1, incarnation="i1", steps=n, busy_s=n / 10, worked=10 * n)
        assert guard.verdict(ours, 1) is None
        for each in (hub, lone):
            each.receive(ours, n + 0.5)
            each.tick(n + 0.6)
    assert hub.receive(LeaseRequest(1, "i1", 2), 50.0) == lone.receive(LeaseRequest(1, "i1", 2), 50.0)
    hub.receive(LeaseRequest(0, "i0", 2), 50.0)
    assert fleet_status(hub, 50.0).stage == "training"
    assert hub.failure is None


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        (field.name, wrong)
        for field in msgspec.structs.fields(Beat)
        for wrong in {int: (-1, 2**53 + 1), float: (math.nan, math.inf, -math.inf)}.get(field.type, ())
    ],
)
def test_no_number_of_a_beat_is_heard_that_is_none_or_out_of_range(field, wrong):
    hub = Hub(hub_plan(samples=0), 0.0)
    for replica in range(2):
        hub.receive(Hello(1, replica, f"i{replica}", "h", 1, "c0ffee", "l"), 0.0)
    sane = msgspec.structs.replace(BEAT, replica=0, incarnation="i0", generation=1, version=0, pooled=(0,) * 4)
    guard = Guard(hub)
    assert guard.verdict(sane, 0) is None
    assert guard.verdict(msgspec.structs.replace(sane, **{field: wrong}), 0) is Kind.RANGE


def test_a_round_without_bytes_or_of_an_age_says_nothing_of_the_link():
    auto = AutoK(8, limit_s=20.0)
    before = auto.next()
    for payload_bytes, seconds in ((0, 1.0), (10, HUGE), (10, -1.0)):
        auto.committed(2, payload_bytes, seconds, 0.1)
    assert (auto.next(), auto.cost) == (before, None)


def test_the_frontier_keeps_what_is_new_and_thins_what_is_old():
    frontier = Frontier()
    for count in range(1, 2 * FRONTIER_KEPT):
        frontier.advance(count, float(count))
    assert len(frontier._counts) <= FRONTIER_KEPT
    newest = 2 * FRONTIER_KEPT - 1
    assert frontier.lag(newest, newest + 0.5) == (0, 0.0)
    assert frontier.lag(newest - 10, newest + 0.5) == (10, 9.5), "the next count was reached 9 s before the newest"
    behind, lag_s = frontier.lag(100, float(newest))
    assert behind == newest - 100
    assert newest - 120 <= lag_s <= newest - 101
