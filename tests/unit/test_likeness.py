"""Who joins with other versions, data or models hears what differs, with both values, and so does the hub's user."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_seats import events, make_dispatcher, place, said
from tests.unit.test_slot_requests import make_hub
from tsugi_cli.console.events import event_text
from tsugi_cli.data.facts import Facts
from tsugi_cli.launch.guest import check_data, check_likeness
from tsugi_kpool.about import about
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.events import Event, TurnedAway
from tsugi_kpool.core.hub.slots import MOST_TURNED_AWAY
from tsugi_kpool.core.likeness import MAY, MOST_WORDS, MUST, refusal, unlike
from tsugi_kpool.core.messages import Hello, Refused, Slot, SlotRequest, StopRequest
from tsugi_kpool.errors import LaunchError

OURS = {
    "wire": "1",
    "tsugi": "0.1.0",
    "transformers": "5.1.0",
    "peft": "0.19.1",
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
}
THEIRS = {**OURS, "host": "laptop"}


@pytest.mark.parametrize(
    ("changes", "names", "found"),
    [
        ({}, MUST, None),
        ({"tsugi": "0.2.0"}, MUST, "it has tsugi 0.2.0, the hub 0.1.0"),
        ({"tsugi": "0.2.0", "wire": "2"}, MUST, "it has wire 2, the hub 1"),
        ({"torch": "2.12.1"}, MUST, None),
        ({"torch": "2.13.1+cu126", "python": "3.11.9", "transformers": "5.1.4"}, MAY, None),
        ({"torch": "2.12.1", "transformers": "5.2.0"}, MAY, "it has transformers 5.2.0, the hub 5.1.0"),
        ({"python": "3.13.0"}, MAY, "it has python 3.13.0, the hub 3.11.7"),
        ({"something": "else"}, MAY, None),
    ],
)
def test_the_first_version_that_differs_is_named_with_both_values(changes, names, found):
    assert unlike({**THEIRS, **changes}, OURS, names) == found


def test_a_machine_that_says_nothing_of_itself_is_compared_by_what_it_makes():
    assert refusal({}, OURS) is None
    assert refusal(THEIRS, {}) is None


def test_this_machine_names_all_that_is_compared():
    assert {*MUST, *MAY, "host"} <= set(about())


def told(answers) -> list[TurnedAway]:
    return [each for each, _ in answers if isinstance(each, Event) and each.name == "turned_away"]


def with_versions():
    hub = make_hub()
    hub.slots.about, hub.slots.data = OURS, "d" * 64
    return hub, make_dispatcher(hub)[0]


def test_another_version_gets_no_place_and_both_ends_hear_why():
    hub, dispatcher = with_versions()
    answers = dispatcher.hear(b"a", SlotRequest("t", {**THEIRS, "tsugi": "0.2.0"}), 0.0)
    (refused,) = said(answers)
    assert isinstance(refused, Refused)
    (event,) = told(answers)
    for text in (refused.reason, event_text(event.data | {"event": event.name})):
        assert "tsugi 0.2.0" in text
        assert "the hub 0.1.0" in text
    assert "laptop" in event_text(event.data | {"event": event.name})
    assert told(dispatcher.hear(b"a", SlotRequest("t", {**THEIRS, "tsugi": "0.2.0"}), 1.0)) == [], "once"
    assert hub.slots.of("t") is None


def test_a_place_tells_the_hubs_versions_and_data():
    _, dispatcher = with_versions()
    slot = place(dispatcher, "t")
    assert (slot.about, slot.data) == (OURS, "d" * 64)


def test_what_a_machine_lacks_is_told_to_the_hub_when_it_gives_its_place_back():
    hub, dispatcher = with_versions()
    dispatcher.hear(b"a", SlotRequest("t", THEIRS), 0.0)
    answers = dispatcher.hear(b"a", StopRequest("t", "this machine's prepared data differ from the hub's"), 1.0)
    (event,) = told(answers)
    assert (event.host, event.reason) == ("laptop", "this machine's prepared data differ from the hub's")
    assert "seat_freed" in events(answers)
    assert hub.slots.of("t") is None


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ("other:data:start", "adapter pool differs from replica 0's (other, not pool)"),
        ("pool:other:start", "prepared data differ from replica 0's (other, not data)"),
        ("pool:data:other", "start values differ from replica 0's (other, not start)"),
    ],
)
def test_a_replica_with_other_data_or_model_is_named_on_both_ends_with_the_likely_reason(layout, what):
    hub, dispatcher = with_versions()
    first = Hello(1, 0, "i0", "desk", 1, "c0ffee", "pool:data:start")
    hub.receive(first, 0.0)
    (slot,) = said(dispatcher.hear(b"a", SlotRequest("t", {**THEIRS, "peft": "0.20.0"}), 0.0))
    hub.stage = FleetStage.TRAINING  # the run goes on without it
    hello = Hello(1, slot.replica, "i1", "laptop", 1, "c0ffee", layout, slot.seat)
    answers = dispatcher.hear(b"r", hello, 1.0)
    (refused,) = said(answers)
    (event,) = told(answers)
    assert refused.reason == event.reason
    assert what in event.reason
    assert "it has peft 0.20.0, the hub 0.19.1" in event.reason


def test_who_is_turned_away_again_and_again_fills_no_journal():
    _, dispatcher = with_versions()
    found = [dispatcher.hear(b"a", SlotRequest("t", {"tsugi": f"{n}"}), 0.0) for n in range(2 * MOST_TURNED_AWAY)]
    assert sum(len(told(each)) for each in found) == MOST_TURNED_AWAY
    long = {f"p{n}": "1" for n in range(MOST_WORDS + 1)}
    assert dispatcher.hear(b"b", SlotRequest("u", long), 0.0) == []
    assert dispatcher.hear(b"b", SlotRequest("u", {"host": "x" * 1000}), 0.0) == []


def test_a_joiner_compares_before_it_loads_anything():
    slot = Slot("t", 1, "run", "seed: 0", "c0ffee", about={**about(), "tsugi": "9.9"})
    with pytest.raises(LaunchError, match=r"it has tsugi .*, the hub 9\.9"):
        check_likeness(slot)
    facts = Facts("entry", "a" * 64, 1, 1, 1, 1, {})
    same = replace(facts, fingerprint="b" * 64)
    slot = Slot("t", 1, "run", "seed: 0", "c0ffee", about={**about(), "transformers": "4.0"}, data="b" * 64)
    check_likeness(slot)
    check_data(slot, same)
    with pytest.raises(LaunchError, match=r"prepared data differ .*transformers .*, the hub 4\.0"):
        check_data(slot, facts)
