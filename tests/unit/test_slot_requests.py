"""Places for replicas from other machines, and seats that are free again when somebody goes before the run begins."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import hub_plan, kpool
from tests.unit.test_messages import BEAT
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import FleetStage, Keep, Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub import endings, liveness, slot_requests, slots
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.liveness import CUT_S
from tsugi_kpool.core.hub.quarantine import STRIKES
from tsugi_kpool.core.hub.replay import began, replay
from tsugi_kpool.core.hub.slots import HELD_S, UNHEARD_S
from tsugi_kpool.core.journal import Entry, encode_entries, parse
from tsugi_kpool.core.messages import (
    Ack,
    Beat,
    Bye,
    Discarded,
    Failed,
    Fell,
    Hello,
    LeaseRequest,
    Refused,
    Slot,
    SlotRequest,
)


def make_hub(joinable=2, **changes) -> Hub:
    """A run of three replicas, of which the last ones come from elsewhere."""
    changes = {"supervised": False, "start_timeout_s": 600.0, "kpool": kpool(n=len(BEAT.pooled)), **changes}
    return Hub(hub_plan(replicas=3, joinable=joinable, config="seed: 0", **changes), 0.0)


def ask(hub: Hub, ticket: str, now_s: float = 0.0):
    """The hub's answer to a ticket."""
    return slot_requests.grant(hub, SlotRequest(ticket), now_s)[-1].message


def hello(replica: int, incarnation: str) -> Hello:
    return Hello(1, replica, incarnation, "host", 1, "c0ffee", "layout")


def test_every_asker_gets_a_place_of_its_own():
    hub = make_hub()
    first, second = ask(hub, "a"), ask(hub, "b")
    assert (first.replica, second.replica) == (1, 2)
    assert ask(hub, "a", 1.0) == first
    assert isinstance(ask(hub, "c", 1.0), Refused)


def test_a_place_that_nobody_took_is_free_again():
    hub = make_hub(1)
    ask(hub, "a")
    assert isinstance(ask(hub, "b", HELD_S), Refused)
    assert isinstance(ask(hub, "b", HELD_S + 1), Slot)


def test_a_place_that_was_taken_is_not_given_again():
    hub = make_hub(1)
    ask(hub, "a")
    hub.receive(hello(2, "i"), 1.0)
    assert isinstance(ask(hub, "b", HELD_S + 1), Refused)
    assert "starts all its replicas itself" in ask(make_hub(0), "a").reason


def test_a_place_is_written_down_before_it_is_told_and_the_next_hub_knows_it():
    hub = make_hub()
    kept, sent = slot_requests.grant(hub, SlotRequest("a"), 0.0)
    assert isinstance(kept, Keep)
    assert isinstance(sent, Send)
    journal, _ = encode_entries([began(hub.plan), Entry(1.0, kept.record)])
    again = replay(hub.plan, parse(journal).entries, 100.0)
    assert ask(again, "b", 100.0).replica == 2, "the place of the first one is held for it"
    assert ask(again, "a", 100.0).replica == 1


def left(effects) -> list[str]:
    return [each.data["reason"] for each in effects if isinstance(each, Event) and each.name == "seat_freed"]


def test_who_dies_while_others_gather_leaves_its_seat_and_its_data_to_the_next_one():
    """By silence, by a failure of its own, by a good-bye; the run goes on, and the same data is handed out again."""
    for last_word in (None, Failed(3, 2, "old", "no memory"), Bye(3, 2, "old")):
        hub = make_hub(1)
        ask(hub, "a")
        hub.receive(hello(2, "old"), 1.0)
        lease = hub.receive(LeaseRequest(2, "old", 1), 1.0)[-1].message
        beat = Beat(**{**{f: getattr(BEAT, f) for f in BEAT.__struct_fields__}, "replica": 2, "incarnation": "old"})
        hub.receive(beat, 2.0)
        assert left(hub.tick(2.0 + HELD_S)) == []
        effects = hub.tick(3.0 + HELD_S) if last_word is None else hub.receive(last_word, 3.0)
        assert len(left(effects)) == 1
        assert last_word is None or Send(2, Ack(3)) in effects
        assert (hub.stage, hub.failure, set(hub.members)) == (FleetStage.GATHERING, None, set())
        assert (hub.tally.drained, hub.tally.pooled) == (0, [0] * len(BEAT.pooled))
        assert ask(hub, "b", 50.0).replica == 2
        hub.receive(hello(2, "new"), 50.0)
        again = hub.receive(LeaseRequest(2, "new", 1), 50.0)[-1].message
        assert (again.start, again.stop) == (lease.start, lease.stop)


def test_who_throws_all_away_while_others_gather_loses_its_seat_and_ends_nobodys_run():
    """The next one who takes it begins without the strikes of the one before, with this hub and with the next."""
    hub, kept = make_hub(1), [began(make_hub(1).plan)]

    def note(effects) -> list:
        kept.extend(Entry(1.0, each.record) for each in effects if isinstance(each, Keep))
        return effects

    note(slot_requests.grant(hub, SlotRequest("a"), 0.0))
    note(hub.receive(hello(2, "old"), 1.0))
    for number in range(STRIKES):
        effects = note(hub.receive(Discarded(number + 2, 2, "old", "the loss is nan", 5), 1.0))
    assert len(left(effects)) == 1
    (told,) = [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, Refused)]
    assert told.fenced
    assert told.quarantined
    for each in (hub, replay(hub.plan, kept, 2.0)):
        assert (each.stage, each.failure, set(each.members)) == (FleetStage.GATHERING, None, set())
        assert ask(each, "b", 2.0).replica == 2
        each.receive(hello(2, "new"), 2.0)
        assert left(each.receive(Discarded(2, 2, "new", "a bad sample", 5), 3.0)) == []


def test_a_seat_of_our_own_launcher_or_of_a_run_that_has_begun_is_not_given_away():
    hub = make_hub(1)
    hub.receive(hello(0, "a"), 0.0)
    assert left(hub.tick(HELD_S + 5)) == []
    hub.receive(hello(1, "b"), HELD_S)
    hub.receive(hello(2, "c"), HELD_S)
    assert hub.stage is FleetStage.TRAINING
    assert left(hub.receive(Failed(3, 2, "c", "no memory"), HELD_S)) == []
    assert "no memory" in hub.failure


def test_a_seat_that_was_freed_is_free_for_the_next_hub():
    hub = make_hub(1)
    entries = [
        began(hub.plan),
        *(Entry(1.0, each) for each in (records.SlotGiven("a", 2), records.Joined(hello(2, "old")))),
        Entry(2.0, records.SeatFreed(2)),
    ]
    again = replay(hub.plan, entries, 100.0)
    assert again.members == {}
    assert ask(again, "b", 100.0).replica == 2


def test_a_launcher_elsewhere_says_that_its_replica_was_killed():
    hub = make_hub()
    for number, ticket in ((1, "a"), (2, "b")):
        ask(hub, ticket)
        hub.receive(hello(number, f"i{number}"), 1.0)
    hub.receive(hello(0, "i0"), 1.0)
    assert hub.present == (0, 1, 2)
    assert slot_requests.fell(hub, Fell("nobody's", 1, "killed"), 2.0) == []
    assert slot_requests.fell(hub, Fell("b", 99, "killed"), 2.0) == [], (
        "an earlier process than the one that is there"
    )
    effects = slot_requests.fell(hub, Fell("b", 1, "its worker was killed"), 2.0)
    assert [each.data["reason"] for each in effects if getattr(each, "name", "") == "left"] == [
        "its worker was killed"
    ]
    assert hub.present == (0, 1)
    assert slot_requests.fell(hub, Fell("b", 1, "its worker was killed"), 3.0) == []


def test_who_comes_before_the_first_commit_is_told_of_the_checkpoint_and_nobody_later():
    """Until then all who have begun from it may leave, and those who come after them must begin from it, too."""
    hub = make_hub(resumed="a" * 64)
    assert ask(hub, "a").resumed == "a" * 64
    hub.stage = FleetStage.TRAINING
    assert ask(hub, "a").resumed == "a" * 64
    hub.rounds.version = 1
    assert ask(hub, "a").resumed == ""


def test_a_spare_place_is_given_when_the_run_has_begun():
    """Nobody waits for it, and it does not count among those that the run begins with."""
    hub = make_hub(0, spare=2)
    assert isinstance(ask(hub, "a"), Refused)
    assert "replicas 0 to 2" in hub.receive(hello(3, "early"), 0.0)[0].message.reason
    hub = make_hub(0, spare=2)
    for replica in range(3):
        hub.receive(hello(replica, f"i{replica}"), 1.0)
    assert hub.stage is FleetStage.TRAINING
    assert [ask(hub, ticket, 2.0).replica for ticket in "ab"] == [3, 4]
    assert isinstance(ask(hub, "c", 2.0), Refused)
    assert isinstance(hub.receive(hello(3, "i3"), 3.0)[-1].message, Ack)
    hub.tick(4.0)
    assert hub.present == (0, 1, 2, 3)
    assert hub.newcomers == (0, 1, 2, 3), "nobody has been heard in a group yet"
    assert isinstance(hub.receive(hello(5, "i5"), 5.0)[0].message, Refused)


@pytest.mark.parametrize("formed", [True, False])
def test_a_newcomer_that_has_no_anchors_yet_does_not_go_on_alone(formed):
    """All who had them have gone before it was in their group: it would train on from the start, as if from there."""
    hub = make_hub(0, spare=1)
    for replica in range(3):
        hub.receive(hello(replica, f"i{replica}"), 1.0)
        hub.receive(msgspec.structs.replace(BEAT, replica=replica, incarnation=f"i{replica}"), 1.1)
    ask(hub, "a", 2.0)
    hub.receive(hello(3, "i3"), 3.0)
    hub.tick(4.0)
    assert (hub.present, hub.newcomers) == ((0, 1, 2, 3), (3,))
    hub.rounds.version = 5
    if formed:
        hub.receive(msgspec.structs.replace(BEAT, replica=3, incarnation="i3", generation=2, version=5), 4.1)
    hub.leave(dict.fromkeys(range(3), "killed"), 5.0)
    assert hub.present == (3,) if formed else "every replica has gone" in (hub.failure or "")


def test_a_place_is_free_again_when_the_connection_that_it_was_given_over_has_closed():
    """Who comes back before anybody else has asked still has it."""
    hub = make_hub(1)
    ask(hub, "a")
    hub.slots.closed("a")
    assert ask(hub, "a", 1.0).replica == 2
    assert isinstance(ask(hub, "b", 2.0), Refused)
    hub.slots.closed("a")
    assert ask(hub, "b", 3.0).replica == 2
    assert isinstance(ask(hub, "a", 3.0), Refused)


def test_who_is_cut_off_while_others_gather_leaves_its_seat_within_seconds():
    hub = make_hub(1)
    ask(hub, "a")
    hub.receive(hello(2, "old"), 1.0)
    hub.slots.closed("a")
    assert liveness.doubtful(hub, 1.0 + CUT_S) == []
    assert liveness.doubtful(hub, 2.0 + CUT_S) == [2]
    liveness.connected(hub, 2, False)
    assert len(left(hub.tick(2.1 + CUT_S))) == 1
    assert ask(hub, "b", 2.2 + CUT_S).replica == 2


def test_a_process_whose_seat_was_freed_is_told_so_by_this_hub_and_the_next():
    hub = make_hub(1)
    kept = [each.record for each in slot_requests.grant(hub, SlotRequest("a"), 0.0) if isinstance(each, Keep)]
    kept += [each.record for each in hub.receive(hello(2, "old"), 1.0) if isinstance(each, Keep)]
    kept += [each.record for each in hub.tick(2.0 + HELD_S) if isinstance(each, Keep)]
    late = msgspec.structs.replace(BEAT, replica=2, incarnation="old", generation=0, version=0, reduced=0)
    for each in (hub, replay(hub.plan, [began(hub.plan), *(Entry(1.0, record) for record in kept)], 40.0)):
        assert Guard(each).verdict(late, None) is None
        (told,) = [effect.message for effect in each.receive(late, 41.0) if isinstance(effect, Send)]
        assert told.fenced
        assert "silent" in told.reason


def test_a_refusal_says_whether_it_is_too_early_over_or_full():
    hub = make_hub(0, spare=1)
    assert ask(hub, "a").reason.startswith(slots.TOO_EARLY)
    for replica in range(3):
        hub.receive(hello(replica, f"i{replica}"), 1.0)
    assert isinstance(ask(hub, "a", 2.0), Slot)
    assert ask(hub, "b", 2.0).reason.startswith(slots.NONE_MISSING)
    endings.fail(hub, "the disk is full")
    assert ask(hub, "c", 60.0).reason == slots.ENDED


def test_a_refusal_says_whether_it_may_pass():
    """Who has the place has just asked for it, has been silent since, has joined, or has been silent since that."""
    hub, reasons = make_hub(1), []
    ask(hub, "a")
    for now_s in (UNHEARD_S, UNHEARD_S + 1):
        reasons.append(ask(hub, "b", now_s).reason)
    ask(hub, "a", 8.0)
    reasons.append(ask(hub, "b", 9.0).reason)
    hub.receive(hello(2, "i"), 10.0)
    for now_s in (10.0 + UNHEARD_S, 11.0 + UNHEARD_S):
        reasons.append(ask(hub, "b", now_s).reason)
    none, some = "no replica is missing: 0 of 1 have joined", "no replica is missing: 1 of 1 have joined"
    about, unheard = f", {slots.ABOUT_TO}", f", but replica 2 {slots.UNHEARD}"
    assert reasons == [none + about, none + unheard, none + about, some, some + unheard]
    passing = [slots.may_pass_s(each) for each in reasons]
    assert passing[0] == passing[2] > UNHEARD_S
    assert passing[1] == passing[4] > HELD_S
    assert passing[3] == 0.0


def test_who_asks_while_the_silent_one_keeps_its_place_gets_it_in_the_end():
    """The time that a refusal names is enough: the place is free before it is over."""
    hub, asked_s = make_hub(1), 1.0
    ask(hub, "a")
    until_s = asked_s + slots.may_pass_s(ask(hub, "b", asked_s + UNHEARD_S).reason)
    while isinstance(answer := ask(hub, "b", asked_s), Refused):
        asked_s += 2.0
        assert asked_s <= until_s
    assert answer.replica == 2
