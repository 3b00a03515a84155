"""The data ledger: every position is free, held by one replica, or durable; nothing is lost when a holder leaves."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tsugi_kpool.core.hub import ranges
from tsugi_kpool.core.hub.lease_book import LeaseBook
from tsugi_kpool.core.replica.ledger import ContributionLedger

RANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 30)), max_size=30)


@given(RANGES)
def test_ranges_are_sets_of_positions(changes):
    found: list[ranges.Range] = []
    expected: set[int] = set()
    for adds, start, stop in changes:
        (ranges.add if adds else ranges.remove)(found, start, stop)
        expected = expected | set(range(start, stop)) if adds else expected - set(range(start, stop))
    assert {position for start, stop in found for position in range(start, stop)} == expected
    assert all(before[1] < after[0] for before, after in pairwise(found)), "sorted, merged"
    assert ranges.count(found) == len(expected)


@given(
    total=st.integers(1, 60),
    done=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=3),
    events=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["lease", "settle", "leave"]), st.integers(0, 9))),
)
def test_every_position_becomes_durable_once_whoever_leaves(total, done, events):
    """A model of three replicas that train on what they hold; then they take turns until nothing is left."""
    book = LeaseBook(total, size=4, granularity=1, replicas=3, done=tuple(done))
    before = {p for start, stop in done for p in range(start, min(stop, total))}
    order: list[list[int]] = [[], [], []]
    durable, ticket, settled = [0, 0, 0], [0, 0, 0], []

    def lease(replica: int) -> None:
        ticket[replica] += 1
        granted = book.grant(replica, ticket[replica])
        assert book.grant(replica, ticket[replica]) == granted
        order[replica] += range(granted.start, granted.stop)

    def settle(replica: int, count: int) -> None:
        until = min(len(order[replica]), durable[replica] + count)
        settled.extend(order[replica][durable[replica] : until])
        durable[replica] = until
        book.settle(replica, until)

    def leave(replica: int, trained: int) -> None:
        held, count = len(order[replica]), min(len(order[replica]), durable[replica] + trained)
        again, replayed = book.release(replica, count), book.replayed
        assert again == count - durable[replica]
        assert book.replayed == replayed
        assert book.held(replica) == 0 <= held
        order[replica], durable[replica], ticket[replica] = [], 0, 0

    for replica, event, count in events:
        if event == "lease":
            lease(replica)
        else:
            (settle if event == "settle" else leave)(replica, count)
    while not book.exhausted:
        lease(0)
    for replica in range(3):
        settle(replica, total)
    assert len(settled) == len(set(settled)), "no position is durable twice"
    assert set(settled) | before == set(range(total))
    assert not set(settled) & before, "what was done before is not trained on again"
    assert book.durable() == ((0, total),)


def test_what_the_dead_held_is_handed_out_first():
    book = LeaseBook(20, size=4, granularity=2, replicas=1)
    for replica in (0, 1):
        book.grant(replica, 1)
    book.settle(0, 2)
    assert book.release(0, trained=3) == 1, "of three trained samples two were durable"
    assert (book.left, book.replayed) == (14, 1)
    again = [book.grant(1, ticket) for ticket in (2, 3)]
    assert [(lease.start, lease.stop) for lease in again] == [(2, 4), (8, 12)]
    assert book.durable() == ((0, 2),)


def test_a_closed_book_hands_out_nothing_that_comes_back():
    book = LeaseBook(8, size=4, granularity=1, replicas=1)
    book.grant(0, 1)
    book.closed = True
    book.release(0, trained=0)
    lease = book.grant(0, 1)
    assert lease.start == lease.stop
    assert book.exhausted


def test_more_than_was_handed_out_cannot_become_durable():
    book = LeaseBook(8, size=2, granularity=1, replicas=1)
    book.settle(0, 5)
    book.grant(0, 1)
    book.settle(0, 99)
    assert book.durable() == ((0, 2),)


# --- the replica's side -------------------------------------------------------------------------------------


def test_a_sample_is_durable_when_every_adapter_has_committed_it():
    ledger = ContributionLedger(2)
    ledger.collect(10, samples=3)
    first = ledger.shipment([0])
    ledger.collect(10, samples=2)
    assert (first.samples, first.durable, ledger.durable) == (3, 0, 0)
    ledger.commit(first)
    assert ledger.durable == 0, "adapter 1 holds the first sample"
    second = ledger.shipment([1])
    assert second.durable == 3, "adapter 0 holds the fourth"
    ledger.commit(second)
    third = ledger.shipment([0])
    assert (ledger.durable, third.durable) == (3, 5)
    ledger.commit(third)
    assert ledger.durable == 5


def test_an_adapter_that_does_not_train_holds_no_sample_back():
    ledger = ContributionLedger(2)
    ledger.collect(10, adapters=(0,), samples=3)
    shipment = ledger.shipment([0])
    assert shipment.durable == 3
    ledger.commit(shipment)
    ledger.collect(10, adapters=(1,), samples=4)
    assert ledger.durable == 3


def test_what_was_discarded_is_settled():
    ledger = ContributionLedger(1)
    ledger.collect(10, samples=3)
    ledger.discard(0, 10, 1, "stale")
    assert ledger.durable == 3


def test_what_trains_while_nothing_of_it_is_shipped_counts_from_its_own_first_sample():
    ledger = ContributionLedger(2)
    nothing = ledger.shipment([0])
    ledger.collect(1, (1,), samples=1)
    ledger.collect(1, (0,), samples=1)
    ledger.commit(nothing)
    assert ledger.shipment([1]).durable == 1, "adapter 0 holds the second sample, not the first"


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.sampled_from(["train", "ship", "commit", "abort"]), st.sets(st.integers(0, 2), min_size=1)))
)
def test_durable_samples_are_in_no_buffer(history):
    """Against a model that remembers every sample of every adapter's buffer."""
    ledger, shipment, shipped = ContributionLedger(3), None, {}
    buffers: list[set[int]] = [set(), set(), set()]
    for event, adapters in history:
        if event == "train":
            for adapter in adapters:
                buffers[adapter].add(ledger.samples)
            ledger.collect(1, tuple(adapters), samples=1)
        elif event == "ship" and shipment is None:
            shipment = ledger.shipment(sorted(adapters))
            shipped = {adapter: set(buffers[adapter]) for adapter in adapters}
            waiting = [sample for a, each in enumerate(buffers) if a not in adapters for sample in each]
            assert shipment.durable == min(waiting, default=ledger.samples)
        elif shipment is not None:
            if event == "commit":
                ledger.commit(shipment)
                for adapter, samples in shipped.items():
                    buffers[adapter] -= samples
            shipment = None
        assert ledger.durable <= min((sample for each in buffers for sample in each), default=ledger.samples)
