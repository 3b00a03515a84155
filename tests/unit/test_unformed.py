"""A group that does not form is no healthy fleet: the status says why, until a round has begun."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.unit.test_messages import BEAT
from tests.unit.test_slot_requests import hello, make_hub
from tsugi_cli.console.events import event_text
from tsugi_kpool.core.effects import Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.changes import keep
from tsugi_kpool.core.hub.leaving import RETRIES, again
from tsugi_kpool.core.hub.liveness import broke
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import Broken, Fire, Unreached
from tsugi_kpool.core.records import RoundFired
from tsugi_kpool.core.replica.reach import NO_ANSWER, TOO_LARGE

REASON = "the group of 3 members did not form: Connect timeout"


def test_why_no_group_forms_is_in_the_status_until_a_round_has_begun():
    hub = make_hub(2)
    for replica in range(3):
        hub.receive(hello(replica, f"i{replica}"), 0.0)
    assert fleet_status(hub, 1.0).health == "healthy"
    broke(hub, Broken(1, 1, "i1", hub.generation, 0, REASON), 1.0)
    found = fleet_status(hub, 1.0)
    assert found.health == "degraded"
    assert f"replica 1: {REASON}" in found.health_reasons[0]
    keep(hub, RoundFired(Fire(hub.generation, 1, (0,), (0, 1, 2), "count")), 2.0)
    assert fleet_status(hub, 2.0).health == "healthy"


def test_who_does_not_reach_whom_is_named_in_event_status_and_failure():
    hub = make_hub(2)
    for replica in range(3):
        hub.receive(hello(replica, f"i{replica}"), 0.0)
    told = Unreached(2, 1, "i1", hub.generation, 0, "10.0.0.5:38211", NO_ANSWER)
    assert [type(each) for each in hub.receive(replace(told, generation=hub.generation + 1), 1.0)] == [Send]
    (event, answer) = hub.receive(told, 1.0)
    assert event_text({"event": event.name, **event.data}).startswith(
        "replica 1 cannot reach replica 0 at 10.0.0.5:38211: no answer to a connection"
    )
    assert answer.message.seq == 2
    assert len(hub.receive(told, 1.1)) == 1, "once"
    broke(hub, Broken(3, 1, "i1", hub.generation, 0, REASON), 1.0)
    assert (
        "no group forms: replica 1 cannot reach replica 0 at 10.0.0.5:38211"
        in fleet_status(hub, 1.0).health_reasons[0]
    )
    for _ in range(RETRIES + 1):
        again(hub, REASON, 2.0)
    assert "replica 1 cannot reach replica 0 at 10.0.0.5:38211" in (hub.failure or "")


@pytest.mark.parametrize(("reason", "told"), [(NO_ANSWER, 0), (TOO_LARGE, 1)])
def test_where_the_group_has_formed_all_the_same_only_what_breaks_its_rounds_is_told(reason, told):
    hub = make_hub(2)
    for replica in range(3):
        hub.receive(hello(replica, f"i{replica}"), 0.0)
    for member in hub.members.values():
        member.beat = replace(BEAT, generation=hub.generation)
    said = hub.receive(Unreached(2, 1, "i1", hub.generation, 0, "10.0.0.5:38211", reason), 1.0)
    assert sum(isinstance(each, Event) for each in said) == told
    reasons = fleet_status(hub, 1.0).health_reasons
    assert [each.partition(" at ")[0] for each in reasons] == ["replica 1 cannot reach replica 0"] * told
