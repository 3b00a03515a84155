"""How long a replica waits for the end, and what it says when it does not wait any longer."""

from __future__ import annotations

import pytest

from tests.support import hub_plan
from tests.unit.test_guard import beat, hello
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.refusals import NOTICE_EVERY_S, Kind, Refusals
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.replica.closing import STILL_S, Waiting, moved, why_not


def fleet(*activities: str):
    hub = Hub(hub_plan(), 0.0)
    for replica in range(2):
        hub.receive(hello(replica), 0.0)
    for replica, activity in enumerate(activities):
        hub.receive(beat(replica, activity=activity, drained=activity == "draining"), 1.0)
    return fleet_status(hub, 1.0)


ONE_TRAINS, NOBODY = fleet("draining", "training"), fleet("draining", "draining")


@pytest.mark.parametrize(
    ("seen", "timeout_s", "text"),
    [
        (Waiting(0, 3000.0, 500.0, ONE_TRAINS), None, None),
        (Waiting(0, 3000.0, 500.0), None, None),
        (Waiting(0, 30.0, 30.0, NOBODY), None, None),
        (Waiting(0, 30.0, 30.0, NOBODY), 20.0, "did not come to an end within 20 s: no other replica trains"),
        (Waiting(0, 30.0, 0.0, ONE_TRAINS), 20.0, "within 20 s: replica 1 (h) is training at step 2"),
        (Waiting(0, 130.0, 130.0, NOBODY), None, "every loop has ended, but no round has been committed for 130 s"),
        (Waiting(0, 9e3, STILL_S + 1, ONE_TRAINS), None, "nothing has moved for 3601 s: replica 1 (h) is training"),
        (Waiting(0, 9e3, STILL_S + 1), None, "the hub has not said how they are"),
        (Waiting(0, 5.0, 0.0, ONE_TRAINS, "Beat (range)"), None, None),
        (Waiting(0, 11.0, 0.0, ONE_TRAINS, "Beat (range)"), None, "does not take in what this replica says, Beat"),
    ],
)
def test_the_wait_for_the_end_has_an_end_with_a_reason(seen, timeout_s, text):
    reason = why_not(seen, 60.0, timeout_s)
    assert reason is None if text is None else text in str(reason)


def test_what_moves_is_seen():
    assert moved(None, NOBODY)
    assert moved(ONE_TRAINS, NOBODY)
    assert not moved(NOBODY, fleet("draining", "draining"))
    assert not moved(NOBODY, None)


def test_a_member_is_told_what_of_its_own_was_refused_and_the_status_names_it():
    hub = Hub(hub_plan(), 0.0)
    for replica in range(2):
        hub.receive(hello(replica), 0.0)
    assert Guard(hub).verdict(beat(1, busy_s=-0.1), 1) is Kind.RANGE
    notice = hub.refusals.add_of(1, "Beat", Kind.RANGE, 1.0)
    assert (notice.message, notice.kind, notice.times) == ("Beat", "range", 1)
    assert hub.refusals.add_of(1, "Beat", Kind.RANGE, 1.1) is None, "not at every beat"
    assert hub.refusals.add_of(0, "Reduced", Kind.RANGE, 1.1) is not None
    assert hub.refusals.add_of(1, "Beat", Kind.RANGE, 1.0 + NOTICE_EVERY_S).times == 3
    status = fleet_status(hub, 2.0)
    assert status.refused_of == ("3 Beat of replica 1 (range)", "1 Reduced of replica 0 (range)")
    assert "4 frames of holders of a key were refused: 3 Beat of replica 1 (range)" in status.health_reasons[0]


def test_late_copies_are_nobodys_trouble():
    refusals = Refusals()
    refusals.add_of(1, "Beat", Kind.OLD, 1.0)
    assert (refusals.named(), refusals.counts) == ((), {"old": 1})
