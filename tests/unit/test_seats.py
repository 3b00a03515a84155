"""Who may be which replica, who may stop what, and how little one token's holder can take or fill."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.test_messages import BEAT
from tests.unit.test_slot_requests import make_hub
from tsugi_kpool.core.effects import FleetStage, Keep, Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub import changes
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.replay import began, replay
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.slots import GIVEN_AT_ONCE, HELD_S, LOADING_S
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.journal import Entry, encode_entries, encode_entry, parse
from tsugi_kpool.core.messages import (
    Ack,
    Beat,
    Bye,
    Drain,
    Fell,
    Finish,
    Hello,
    LeaseRequest,
    Refused,
    Slot,
    SlotRequest,
    StopRequest,
    StopRun,
)
from tsugi_kpool.core.records import Interrupted
from tsugi_kpool.sideband.hub.dispatcher import COMING_AT_ONCE, Dispatcher

SECRET = "the hub's"


class Egress:
    def learn(self, replica, route):
        """Nobody is sent anything."""


class Counter:
    """Called when the run is to end."""

    def __init__(self) -> None:
        self.called = 0

    def __call__(self) -> None:
        self.called += 1


def make_dispatcher(hub: Hub, secret: str = SECRET) -> tuple[Dispatcher, Counter]:
    interrupt = Counter()
    return Dispatcher(hub, Egress(), interrupt, secret), interrupt


def said(answers) -> list:
    return [each.message for each, _ in answers if isinstance(each, Send)]


def kept(answers) -> list:
    return [each.record for each, _ in answers if isinstance(each, Keep)]


def events(answers) -> list[str]:
    return [each.name for each, _ in answers if isinstance(each, Event)]


def place(dispatcher: Dispatcher, ticket: str, now_s: float = 0.0) -> Slot:
    (found,) = said(dispatcher.hear(ticket.encode(), SlotRequest(ticket), now_s))
    assert isinstance(found, Slot), found
    return found


def hello(replica: int, seat: str, incarnation: str | None = None) -> Hello:
    return Hello(1, replica, incarnation or f"i{replica}", "host", 1, "c0ffee", "layout", seat)


def beat(replica: int, **changes) -> Beat:
    facts = {"generation": 1, "version": 0, "reduced": 0, "samples": 0, "tokens": 0, "steps": 0}
    facts |= {"replica": replica, "incarnation": f"i{replica}", "pooled": (0,) * len(BEAT.pooled)}
    return msgspec.structs.replace(BEAT, **facts | changes)


def training(hub: Hub) -> tuple[Dispatcher, Counter, list[str]]:
    """Replica 0 is the launcher's own; the others have come with tickets, and all have formed generation 1."""
    dispatcher, interrupt = make_dispatcher(hub)
    tickets = ["" if replica not in hub.slots.replicas else f"t{replica}" for replica in range(hub.plan.replicas)]
    for replica, ticket in enumerate(tickets):
        proof = place(dispatcher, ticket).seat if ticket else seat_key(SECRET, replica)
        dispatcher.hear(b"%d" % replica, hello(replica, proof), 1.0)
    for replica in range(hub.plan.replicas):
        dispatcher.hear(b"%d" % replica, beat(replica), 2.0)
    assert hub.stage is FleetStage.TRAINING
    return dispatcher, interrupt, tickets


# --- who may be which replica ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replica", "seat"),
    [
        (0, ""),
        (0, seat_key("another hub's", 0)),
        (0, seat_key(SECRET, 1)),
        (0, seat_key(SECRET, 0, "mine")),
        (1, ""),
        (1, seat_key(SECRET, 1)),
        (1, seat_key(SECRET, 1, "another's")),
        (2, seat_key(SECRET, 1, "mine")),
    ],
)
def test_nobody_takes_a_seat_that_was_not_given_to_it_and_nothing_ends_by_trying(replica, seat):
    hub = make_hub()
    dispatcher, _ = make_dispatcher(hub)
    place(dispatcher, "mine")
    (found,) = said(dispatcher.hear(b"thief", hello(replica, seat), 1.0))
    assert isinstance(found, Refused)
    assert f"replica {replica}'s place" in found.reason
    assert (hub.members, hub.failure, hub.refusals.counts["identity"]) == ({}, None, 1)


def test_who_holds_a_place_and_who_the_launcher_started_are_let_in_and_the_proof_is_written_down_nowhere():
    hub = make_hub()
    dispatcher, _ = make_dispatcher(hub)
    mine = place(dispatcher, "mine")
    for replica, proof in ((0, seat_key(SECRET, 0)), (mine.replica, mine.seat)):
        answers = dispatcher.hear(b"%d" % replica, hello(replica, proof), 1.0)
        assert said(answers) == [Ack(1)]
        assert proof.encode() not in encode_entries([Entry(1.0, each) for each in kept(answers)])[0]
    assert hub.members[mine.replica].hello.seat == ""


def test_a_worker_that_is_started_again_is_let_in_and_so_it_is_by_the_next_hub():
    hub = make_hub(joinable=1)
    dispatcher, _ = make_dispatcher(hub)
    mine = place(dispatcher, "mine")
    lines = [Entry(0.0, each) for each in kept(dispatcher.hear(b"x", hello(0, seat_key(SECRET, 0)), 1.0))]
    given = [
        Entry(0.0, each)
        for each in kept(make_dispatcher(make_hub(joinable=1))[0].hear(b"m", SlotRequest("mine"), 0.0))
    ]
    journal, _ = encode_entries([began(hub.plan), *given, *lines])
    again = replay(hub.plan, parse(journal).entries, 100.0)
    dispatcher, _ = make_dispatcher(again)
    assert said(dispatcher.hear(b"m", hello(mine.replica, mine.seat), 101.0)) == [Ack(1)]
    again.members[0].lost = "it was killed"
    again.stage = FleetStage.TRAINING
    assert said(dispatcher.hear(b"y", hello(0, seat_key(SECRET, 0), "another"), 102.0)) == [Ack(1)]


def test_a_seat_that_was_given_to_somebody_else_is_its_own_no_more():
    hub = make_hub(joinable=1)
    dispatcher, _ = make_dispatcher(hub)
    first = place(dispatcher, "first")
    assert place(dispatcher, "second", HELD_S + 1.0).replica == first.replica
    (found,) = said(dispatcher.hear(b"late", hello(first.replica, first.seat), HELD_S + 2.0))
    assert isinstance(found, Refused)
    assert hub.members == {}


def test_without_keys_there_is_nothing_to_prove_with():
    hub = make_hub()
    dispatcher, _ = make_dispatcher(hub, secret="")
    assert place(dispatcher, "mine").seat == ""
    assert said(dispatcher.hear(b"x", hello(1, ""), 1.0)) == [Ack(1)]


# --- who may stop what ----------------------------------------------------------------------------------------


def test_a_stop_of_who_has_not_joined_frees_its_place_and_ends_nobodys_run():
    """One that is still loading, while one other trains; and one that never meant to join."""
    hub = make_hub(joinable=0, spare=1)
    dispatcher, interrupt, _ = training(hub)
    spare = place(dispatcher, "loading", 3.0)
    hub.leave({1: "killed", 2: "killed"}, 3.0)
    assert hub.present == (0,)
    answers = dispatcher.hear(b"loading", StopRequest("loading"), 4.0)
    assert (interrupt.called, hub.stage, hub.interrupted) == (0, FleetStage.TRAINING, False)
    assert events(answers) == ["seat_freed"]
    assert place(dispatcher, "another", 5.0).replica == spare.replica
    assert dispatcher.hear(b"loading", StopRequest("loading"), 6.0) == []
    assert set(hub.members) == {0, 1, 2}, "what those who have left had done still counts"


def test_a_member_that_stops_leaves_and_the_others_go_on():
    hub = make_hub()
    dispatcher, interrupt, tickets = training(hub)
    assert said(dispatcher.hear(b"2", StopRequest(tickets[2]), 3.0)) == [Drain("its user stopped it")]
    dispatcher.hear(b"2", beat(2, drained=True), 4.0)
    hub.tick(4.1)
    assert hub.present == (0, 1)
    assert (interrupt.called, hub.interrupted, hub.over) == (0, False, False)


def leave_one_after_the_other(hub: Hub, dispatcher: Dispatcher, tickets: list[str], version: int = 0) -> list:
    """All members go, the last one, too."""
    effects = []
    for replica, ticket in enumerate(tickets):
        dispatcher.hear(b"%d" % replica, StopRequest(ticket), 3.0)
    for replica in range(len(tickets)):
        for each in hub.present:
            if each >= replica:
                dispatcher.hear(
                    b"%d" % each, beat(each, generation=hub.generation, version=version, drained=True), 4.0
                )
        effects += hub.tick(4.1 + replica)
    return effects


def test_the_last_one_that_leaves_takes_the_anchors_along_and_the_run_is_interrupted():
    hub = make_hub(joinable=3)
    dispatcher, interrupt, tickets = training(hub)
    dispatcher.hear(b"0", LeaseRequest(0, "i0", 1), 2.5)
    hub.rounds.version = 1
    effects = leave_one_after_the_other(hub, dispatcher, tickets, version=1)
    assert (hub.stage, hub.interrupted, hub.failure, hub.complete) == (FleetStage.INTERRUPTED, True, None, False)
    assert (hub.over, hub.ended, interrupt.called) == (True, True, 0)
    assert fleet_status(hub, 9.0).interrupted
    assert [each for each in effects if isinstance(each, Keep)][-1].record == Interrupted(over=True, deserted=True)
    goodbyes = [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, Finish)]
    assert [each.evaluate for each in goodbyes] == [False] * 3
    found = said(dispatcher.hear(b"late", hello(0, seat_key(SECRET, 0, tickets[0]), "late"), 9.0))
    assert "this run has ended" in found[0].reason
    again = make_hub(joinable=3)
    changes.apply(again, parse(encode_entry(Entry(1.0, Interrupted(over=True)))[0]).entries[0].record, 1.0)
    assert again.stage is FleetStage.INTERRUPTED


def test_when_nothing_was_committed_others_may_begin_where_all_have_left():
    """No round has been reduced: whoever comes begins as the first ones did, unless nobody comes for too long."""
    hub = make_hub(joinable=3, quorum_timeout_s=60.0)
    dispatcher, _, tickets = training(hub)
    dispatcher.hear(b"0", LeaseRequest(0, "i0", 1), 2.5)
    leave_one_after_the_other(hub, dispatcher, tickets)
    assert (hub.stage, hub.present, hub.over) == (FleetStage.TRAINING, (), False)
    hub.tick(10.0)
    assert hub.paused_s is not None
    for ticket in tickets:
        dispatcher.hear(b"gone", StopRequest(ticket), 10.0)
    mine = place(dispatcher, "mine", 11.0)
    dispatcher.hear(b"mine", hello(mine.replica, mine.seat, "new"), 12.0)
    hub.tick(12.1)
    assert hub.present == (mine.replica,)
    lone = make_hub(joinable=3, quorum_timeout_s=60.0)
    dispatcher, _, tickets = training(lone)
    leave_one_after_the_other(lone, dispatcher, tickets)
    for now_s in (10.0, 50.0, 75.0):
        lone.tick(now_s)
    assert lone.quorum_failed
    assert not lone.complete


def test_a_run_does_not_finish_while_who_leaves_holds_data_that_it_has_not_trained_on():
    """The others are done and say so; what the one that leaves was handed is theirs now."""
    hub = make_hub(joinable=1, samples=4, lease_samples=4)
    dispatcher, _, tickets = training(hub)
    for ticket in range(1, 9):
        dispatcher.hear(b"2", LeaseRequest(2, "i2", ticket), 2.5)
    assert hub.leases.exhausted
    dispatcher.hear(b"2", StopRequest(tickets[2]), 3.0)
    for replica in range(3):
        newest = hub.leases.newest_ticket(replica)
        dispatcher.hear(b"%d" % replica, beat(replica, drained=True, ticket=newest), 4.0)
    assert hub.stage is FleetStage.TRAINING
    hub.tick(4.1)
    assert (hub.present, hub.leases.left, hub.stage) == ((0, 1), 4, FleetStage.TRAINING)


def test_only_what_nobody_but_the_owner_may_send_interrupts():
    hub = make_hub()
    dispatcher, interrupt, tickets = training(hub)
    for message in (*map(StopRequest, tickets[1:]), Fell(tickets[1], 1, "killed"), Bye(5, 2, "i2")):
        dispatcher.hear(b"x", message, 3.0)
    assert (interrupt.called, hub.interrupted) == (0, False)
    assert said(dispatcher.hear(b"owner", StopRun(), 4.0)) == [Ack(0)]
    assert interrupt.called == 1


def test_a_run_that_has_finished_is_not_interrupted_any_more():
    hub = make_hub(samples=0)
    dispatcher, _, _ = training(hub)
    for replica in range(3):
        dispatcher.hear(b"%d" % replica, beat(replica, drained=True), 4.0)
    assert (hub.stage, hub.complete) == (FleetStage.FINISHED, True)
    assert hub.interrupt() == []
    assert hub.complete


# --- what one token's holder can take or fill -------------------------------------------------------------------


def test_one_connection_gets_one_place():
    hub = make_hub()
    dispatcher, _ = make_dispatcher(hub)
    first, second = (dispatcher.hear(b"one", SlotRequest(ticket), 0.0) for ticket in ("a", "b"))
    assert isinstance(said(first)[-1], Slot)
    assert "over this connection" in said(second)[0].reason
    assert kept(second) == []
    dispatcher.hear(b"one", StopRequest("a"), 1.0)
    assert isinstance(said(dispatcher.hear(b"one", SlotRequest("b"), 2.0))[-1], Slot), (
        "it has given the first one back"
    )


def test_who_asks_and_gives_back_again_and_again_fills_no_journal():
    hub = make_hub(joinable=1)
    dispatcher, _ = make_dispatcher(hub)
    written = b""
    for number in range(1000):
        route, ticket, now_s = b"%d" % number, f"t{number}", number / 1000
        for message in (SlotRequest(ticket), StopRequest(ticket)):
            heard = kept(dispatcher.hear(route, message, now_s))
            written += encode_entries([Entry(now_s, each) for each in heard])[0]
    assert len(written) < 250 * (GIVEN_AT_ONCE + 10)
    (busy,) = said(dispatcher.hear(b"honest", SlotRequest("honest"), 1.0))
    assert "ask again in a minute" in busy.reason
    assert isinstance(said(dispatcher.hear(b"honest", SlotRequest("honest"), 80.0))[-1], Slot)


@pytest.mark.parametrize("ticket", ["", "x" * 65, "x" * 6000])
def test_tickets_are_short(ticket):
    hub = make_hub()
    dispatcher, _ = make_dispatcher(hub)
    for message in (SlotRequest(ticket), StopRequest(ticket), Fell(ticket, 1, "killed")):
        assert dispatcher.hear(b"x", message, 0.0) == []
    assert hub.refusals.counts == {"range": 3}


@pytest.mark.parametrize("told", [Fell("t1", -1, "killed"), Fell("t1", 2**60, "killed"), Fell("t1", 1, "x" * 3000)])
def test_what_a_launcher_elsewhere_says_passes_the_guard(told):
    hub = make_hub()
    dispatcher, _, _ = training(hub)
    assert dispatcher.hear(b"t1", told, 3.0) == []
    assert (hub.refusals.counts["range"], hub.present) == (1, (0, 1, 2))


def test_a_place_is_not_kept_for_ever_by_asking_again():
    hub = make_hub(joinable=1)
    dispatcher, _ = make_dispatcher(hub)
    for now_s in range(0, int(LOADING_S) + 20, 10):
        place(dispatcher, "idle", float(now_s))
    assert place(dispatcher, "honest", LOADING_S + 20.0).replica == 2


def test_process_after_process_as_one_replica_is_slowed_down():
    hub = make_hub(joinable=1)
    dispatcher, _, tickets = training(hub)
    proof, came = seat_key(SECRET, 2, tickets[2]), 0
    for number in range(100):
        hub.leave({2: "said good-bye"}, 3.0)
        came += Ack(1) in said(dispatcher.hear(b"r%d" % number, hello(2, proof, f"new{number}"), 3.0))
    assert came == COMING_AT_ONCE
