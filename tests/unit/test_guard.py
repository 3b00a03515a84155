"""What the hub refuses, kind by kind, and that nothing of it reaches a decision."""

from __future__ import annotations

import math

import msgspec
import pytest

from tests.support import hub_plan
from tests.unit.test_messages import BEAT
from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.hub.guard import OLD_SEQ, Guard
from tsugi_kpool.core.hub.health import Health, judge
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.refusals import EVENT_EVERY_S, LATELY_S, Kind, Refusals
from tsugi_kpool.core.hub.seats import Seats, seat_key
from tsugi_kpool.core.messages import (
    Ack,
    Bye,
    Evaluated,
    Finish,
    Hello,
    LeaseRequest,
    Reduced,
    StoreGet,
    StorePut,
    Vitals,
)
from tsugi_kpool.core.records import PARTED
from tsugi_kpool.core.replica import reach

N = hub_plan().kpool.n


def hello(replica, incarnation=None, config="c0ffee"):
    return Hello(1, replica, incarnation or f"i{replica}", "h", 1, config, "l")


def beat(replica=0, **changes):
    values = {"replica": replica, "incarnation": f"i{replica}", "generation": 1, "version": 0, "reduced": 0}
    values |= {"steps": 2, "samples": 2, "tokens": 20, "pooled": (2,) * N} | changes
    return msgspec.structs.replace(BEAT, **values)


@pytest.fixture
def hub():
    """Two members; one has been handed positions 0 to 1 and trained on them."""
    hub = Hub(hub_plan(sample_tokens=10), 0.0)
    for replica in range(2):
        hub.receive(hello(replica), 0.0)
    hub.receive(LeaseRequest(0, "i0", 1), 0.0)
    hub.receive(beat(), 1.0)
    return hub


def reduced(hub, weights, round=None):
    return Reduced(3, 0, "i0", 1, round or hub.rounds.number, "d", 0.1, 8, weights, 0.0, 0.0)


def test_what_honest_members_send_is_taken_in(hub):
    guard = Guard(hub)
    vitals = Vitals(
        0, "i0", 5.0, hub.stragglers.of(0, 1.0).vitals.machine if hub.stragglers.of(0, 1.0).vitals else machine()
    )
    for message in (hello(0), beat(), beat(samples=2), LeaseRequest(0, "i0", 2), vitals, Bye(2, 0, "i0")):
        assert guard.verdict(message, 0) is None
    assert guard.verdict(StorePut(1, 0, "epoch1/0", b"x" * 200), 0) is None
    assert guard.verdict(Evaluated(1, 0, "i0", "base", {"loss_sum": math.nan}, ()), 0) is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"sums": {"loss_sum": -math.inf, "a user's": math.nan, "another": -3.5}}, None),
        ({"sums": {"loss_sum": 1e300}}, Kind.RANGE),
        ({"sums": {"x" * 300: 1.0}}, Kind.RANGE),
        ({"sums": {str(name): 1.0 for name in range(101)}}, Kind.RANGE),
        ({"seq": -1}, Kind.RANGE),
        ({"seq": 2**60}, Kind.RANGE),
        ({"replica": -1}, Kind.RANGE),
        ({"stage": "another"}, Kind.RANGE),
        ({"incarnation": "i1"}, Kind.IDENTITY),
    ],
    ids=str,
)
def test_an_evaluation_may_measure_no_number_and_nothing_that_cannot_be(hub, changes, kind):
    told = Evaluated(1, 0, "i0", "base", {"loss_sum": 1.0}, (("a", "b", "c"),))
    assert Guard(hub).verdict(msgspec.structs.replace(told, **changes), 0) is kind


def machine():
    from tsugi_kpool.core.messages.facts import MachineFacts

    return MachineFacts()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": -1},
        {"tokens": -1},
        {"loss": math.nan},
        {"loss": math.inf},
        {"busy_s": -1.0},
        {"pooled": (1,) * (N - 1)},
        {"pooled": (1,) * (N + 1)},
        {"pooled": (1,) * (N - 1) + (99,)},
        {"samples": 3},
        {"version": 7},
        {"generation": 2},
        {"tokens": 2**60},
        {"activity": "x" * 300},
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused(hub, changes):
    assert Guard(hub).verdict(beat(**changes), 0) is Kind.RANGE


@pytest.mark.parametrize("changes", [{"steps": 1}, {"samples": 1}, {"tokens": 19}], ids=str)
def test_a_beat_from_before_is_refused(hub, changes):
    assert Guard(hub).verdict(beat(**{"pooled": (1,) * N} | changes), 0) is Kind.OLD


def test_weights_beyond_what_was_leased_are_refused(hub):
    """Two positions of ten tokens at most, in N adapters."""
    for replica in range(2):
        hub.receive(beat(replica, steps=9, samples=0, pooled=(9,) * N), 2.0)
    assert hub.rounds.in_flight is not None
    guard = Guard(hub)
    assert guard.verdict(reduced(hub, (N * 20, 0)), 0) is None
    assert guard.verdict(reduced(hub, (N * 20, 1)), 0) is Kind.RANGE
    assert guard.verdict(reduced(hub, (-1, 1)), 0) is Kind.RANGE
    assert guard.verdict(reduced(hub, (1,)), 0) is Kind.RANGE
    assert guard.verdict(reduced(hub, (1, 1), round=9), 0) is Kind.RANGE


@pytest.mark.parametrize(
    ("message", "replica_of"),
    [
        (beat(1), 0),
        (beat(0, incarnation="another"), None),
        (beat(2, incarnation="i2"), None),
        (Bye(2, 0, "i1"), None),
        (StorePut(1, 0, "k", b""), 1),
        (StoreGet(0, "k"), 1),
        (hello(0, "another"), None),
        (hello(1), 0),
        (hello(7), None),
        (hello(1, "new", config="another"), None),
    ],
    ids=repr,
)
def test_nobody_speaks_for_another_replica(hub, message, replica_of):
    assert Guard(hub).verdict(message, replica_of) is Kind.IDENTITY


def test_a_reconnected_member_is_known_by_its_incarnation(hub):
    assert Guard(hub).verdict(beat(), None) is None


def test_library_replicas_that_do_not_match_end_the_wait():
    """Nobody could take such a replica's place: the hub itself refuses it, and the run with it."""
    hub = Hub(hub_plan(supervised=False), 0.0)
    assert Guard(hub).verdict(hello(0, config="another"), None) is None
    joinable = Hub(hub_plan(supervised=False, joinable=1), 0.0)
    assert Guard(joinable).verdict(hello(0, config="another"), None) is Kind.IDENTITY


def test_a_replayed_sequence_number_is_refused(hub):
    guard = Guard(hub)
    assert guard.verdict(Bye(OLD_SEQ + 50, 0, "i0"), 0) is None
    assert guard.verdict(Bye(51, 0, "i0"), 0) is None, "repeated, or overtaken"
    assert guard.verdict(Bye(49, 0, "i0"), 0) is Kind.OLD


def test_store_holds_short_values_and_few_keys(hub):
    guard = Guard(hub)
    assert guard.verdict(StorePut(1, 0, "k", b"x" * 5000), 0) is Kind.RANGE
    assert guard.verdict(StorePut(1, 0, "k" * 300, b""), 0) is Kind.RANGE
    for number in range(400):
        hub.receive(StorePut(1, 0, f"k{number}", b""), 1.0)
    assert guard.verdict(StorePut(1, 0, "one more", b""), 0) is Kind.RANGE
    assert guard.verdict(StorePut(1, 0, "k0", b"again"), 0) is None
    assert guard.verdict(StorePut(1, 0, "k0", b"x" * 5000), 0) is Kind.RANGE, "a key that is there takes no more"


def test_a_lease_is_asked_for_one_after_the_other(hub):
    assert Guard(hub).verdict(LeaseRequest(0, "i0", 3), 0) is Kind.RANGE


def test_a_replica_that_has_left_is_told_so_whatever_it_asks_for(hub):
    """Its books are closed: what it holds and asks for fits nothing that the hub knows, and is no lie."""
    hub.receive(LeaseRequest(1, "i1", 1), 1.0)
    hub.leave({1: "silent"}, 2.0)
    late = LeaseRequest(1, "i1", 2)
    assert Guard(hub).verdict(late, 1) is None
    [answer] = hub.receive(late, 3.0)
    assert answer.message.fenced


@pytest.mark.parametrize("word", [beat(1), LeaseRequest(1, "i1", 1)], ids=lambda each: type(each).__name__)
def test_one_that_was_taken_back_hears_that_it_has_finished_however_late_it_asks(hub, word):
    """It may have missed the first Finish. Told that the fleet goes on without it, it would come again."""
    hub.leave({1: PARTED}, 2.0)
    [answer] = hub.receive(word, 3.0)
    assert isinstance(answer.message, Finish)
    [answer] = hub.receive(Bye(9, 1, "i1"), 4.0)
    assert answer.message == Ack(9)


@pytest.mark.parametrize(
    "word", [beat(1), LeaseRequest(1, "i1", 1), Bye(9, 1, "i1")], ids=lambda each: type(each).__name__
)
def test_a_process_whose_place_another_one_has_taken_is_told_so(hub, word):
    """It was frozen, say. Left without an answer it would take the hub for silent, and end for the wrong reason."""
    hub.leave({1: "silent"}, 2.0)
    hub.receive(hello(1, "another"), 3.0)
    taken, heard_s = hub.members[1], hub.members[1].heard_s
    assert Guard(hub).verdict(word, 1) is None
    [answer] = hub.receive(word, 4.0)
    assert answer.message.fenced
    assert (taken.hello.incarnation, taken.beat, taken.heard_s) == ("another", None, heard_s), "nothing of it counts"
    assert Guard(hub).verdict(msgspec.structs.replace(word, incarnation="guessed"), 1) is Kind.IDENTITY


def test_bucket_lets_through_its_rate():
    bucket = Bucket(rate=10, burst=5)
    assert [bucket.takes(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [bucket.takes(0.1) for _ in range(2)] == [True, False]
    assert sum(bucket.takes(100.0) for _ in range(9)) == 5


def test_bucket_that_was_overdrawn_allows_nothing_until_it_has_saved():
    bucket = Bucket(rate=100, burst=200)
    bucket.spend(350, 0.0)
    assert [bucket.allows_from(amount) for amount in (1, 50, 200, 201)] == [1.51, 2.0, 3.5, math.inf]
    bucket.spend(10, 3.5)
    assert [bucket.allows_from(amount) for amount in (190, 191)] == [3.5, 3.51]


def test_refusals_are_told_of_now_and_then_and_counted_always():
    refusals = Refusals()
    refusals.add(Kind.FLOOD, 3)
    assert [event.data for event in refusals.events(0.0)] == [{"kind": Kind.FLOOD, "times": 3, "in_all": 3}]
    refusals.add(Kind.FLOOD)
    refusals.add(Kind.KEY)
    assert [event.data["kind"] for event in refusals.events(1.0)] == [Kind.KEY]
    assert [event.data["times"] for event in refusals.events(EVENT_EVERY_S)] == [1]
    assert refusals.events(99.0) == []


def test_what_was_refused_a_while_ago_is_counted_and_no_trouble_any_more():
    refusals = Refusals()
    refusals.add(Kind.IDENTITY, 3)
    assert refusals.lately(5.0) == {Kind.IDENTITY: 3}
    assert refusals.lately(5.0 + LATELY_S + 1.0) == {}
    refusals.add(Kind.IDENTITY)
    assert refusals.lately(200.0) == {Kind.IDENTITY: 4}
    assert refusals.counts == {Kind.IDENTITY: 4}


@pytest.mark.parametrize("message", [StorePut(1, 0, "k", b""), StoreGet(0, "k")], ids=repr)
def test_a_rendezvous_over_a_new_connection_waits_for_the_beat_that_shows_whose_it_is(hub, message):
    """After a cut an honest link sends it before its next beat, and again after it."""
    assert Guard(hub).verdict(message, None) is Kind.EARLY
    assert judge("training", (), 0, refused={Kind.EARLY: 9}).health is Health.HEALTHY


def test_the_next_process_of_a_seats_holder_is_early_while_the_one_before_still_counts(hub):
    """Its launcher knows of the death before the hub does. Without the seat's key it is somebody else."""
    secret = "the hub's"
    guard = Guard(hub, Seats(hub.slots, secret))
    mine = msgspec.structs.replace(hello(0, "another"), seat=seat_key(secret, 0))
    assert guard.verdict(mine, None) is Kind.EARLY
    assert guard.verdict(hello(0, "another"), None) is Kind.IDENTITY


def test_where_a_replica_is_dialled_nobody_else_says(hub):
    guard = Guard(hub)
    for key, kind in (
        (reach.key_of(1, 0), None),
        (reach.key_of(1, 1), Kind.IDENTITY),
        ("epoch1/reach/00", Kind.IDENTITY),
        ("epoch1/reach/1/reach/0", Kind.IDENTITY),
        ("epoch1/0/1", None),
    ):
        assert guard.verdict(StorePut(1, 0, key, b"10.0.0.1 5000"), 0) is kind, key


@pytest.mark.parametrize(
    ("said", "ours", "found"),
    [
        (b"10.0.0.2 38211", "10.0.0.1", ("10.0.0.2", 38211)),
        (b"fe80::1%eth0 38211", "fe80::2%eth0", ("fe80::1%eth0", 38211)),
        (b"127.0.0.1 38211", "127.0.0.1", ("127.0.0.1", 38211)),
        (b"127.0.0.1 6379", "10.0.0.1", None),
        (b"0.0.0.0 6379", "10.0.0.1", None),
        (b"224.0.0.1 6379", "10.0.0.1", None),
        (b"an.example 80", "10.0.0.1", None),
        (b"10.0.0.2 65536", "10.0.0.1", None),
        (b"10.0.0.2 0", "10.0.0.1", None),
        ("10.0.0.2 \N{SUPERSCRIPT TWO}".encode(), "10.0.0.1", None),
        (b"\xff", "10.0.0.1", None),
    ],
)
def test_what_is_dialled_is_an_address_of_another_machine(said, ours, found):
    assert reach.read_address(said, ours) == found
