"""Reductions that a loop asks for, as the hub adds them up."""

from __future__ import annotations

import pytest

from tests.support import hub_plan
from tests.unit.test_guard import beat, hello
from tsugi_kpool.core.effects import Send
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.messages import Drain, Figures, StopFleet, Totals


@pytest.fixture
def hub():
    hub = Hub(hub_plan(replicas=3), 0.0)
    for replica in range(3):
        hub.receive(hello(replica), 0.0)
    return hub


def say(hub, replica: int, number: int, **sums) -> dict[int, Totals]:
    effects = hub.receive(Figures(7 + replica, replica, f"i{replica}", number, sums), 1.0)
    return {each.replica: each.message for each in effects if isinstance(each, Send)}


def test_all_get_the_sums_once_all_have_said_theirs(hub):
    assert say(hub, 0, 1, loss=1.0) == {}
    assert say(hub, 0, 1, loss=1.0) == {}, "said again, counted once"
    assert say(hub, 2, 1, other=5.0) == {}
    answers = say(hub, 1, 1, loss=2.5)
    assert {replica: (each.seq, each.number, each.replicas) for replica, each in answers.items()} == {
        0: (7, 1, 3), 1: (8, 1, 3), 2: (9, 1, 3),
    }  # fmt: skip
    assert answers[0].sums == {"loss": 3.5, "other": 5.0}
    assert say(hub, 1, 1, loss=2.5)[1].sums == answers[0].sums, "who has lost the answer asks again"
    assert say(hub, 1, 2) == {}


def test_who_has_left_or_ended_is_not_waited_for(hub):
    say(hub, 0, 1, loss=1.0)
    hub.leave({1: "killed"}, 2.0)
    hub.receive(beat(2, drained=True, activity="draining"), 2.0)
    assert say(hub, 0, 1, loss=1.0)[0].sums == {"loss": 1.0}


@pytest.mark.parametrize(
    ("number", "sums", "kind"),
    [
        (1, {"loss": -1.0}, None),
        (2, {}, Kind.RANGE),
        (0, {}, Kind.RANGE),
        (1, {"x" * 300: 1.0}, Kind.RANGE),
        (1, {str(each): 1.0 for each in range(101)}, Kind.RANGE),
        (1, {"loss": float("nan")}, Kind.RANGE),
    ],
)
def test_the_guard_bounds_them(hub, number, sums, kind):
    assert Guard(hub).verdict(Figures(1, 0, "i0", number, sums), 0) is kind


def test_any_replica_may_stop_all(hub):
    effects = hub.receive(StopFleet(5, 1, "i1", "enough"), 1.0)
    assert {each.replica for each in effects if isinstance(each, Send) and isinstance(each.message, Drain)} == {
        0,
        1,
        2,
    }
    assert Guard(hub).verdict(StopFleet(5, 1, "i1", "x" * 3000), 1) is Kind.RANGE
