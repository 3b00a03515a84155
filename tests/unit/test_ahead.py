"""The next round of an exchange begins while members still get the result of the last one: the hub's side."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import Keep, Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.firing import check_round
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.replay import began, replay
from tsugi_kpool.core.journal import Entry
from tsugi_kpool.core.messages import Abort, Ack, Beat, Broken, Commit, Fire, Generation, Hello, LeaseRequest, Reduced
from tsugi_kpool.core.messages.frame import Message
from tsugi_kpool.core.rounds.told import told_of

ALL = (0, 1, 2, 3)


class Table:
    """A hub whose four members have an exchange; `now_s` passes when a test says so."""

    def __init__(self, k: int = 2) -> None:
        settings = kpool(n=4, k=k, trigger="count", count=2, min_steps=1)
        self.plan = hub_plan(replicas=4, kpool=settings, exchange="a certificate")
        self.hub, self.now_s = Hub(self.plan, 0.0), 1.0
        self.effects: list[object] = []
        for replica in ALL:
            self.hear(Hello(0, replica, f"i{replica}", "host", 1, "c0ffee", "layout"))
            self.hear(LeaseRequest(replica, f"i{replica}", 1))
        for replica in ALL:
            self.beat(replica, 0)

    def hear(self, message: Message) -> None:
        self.effects += self.hub.receive(message, self.now_s)

    def beat(self, replica: int, version: int, joined: int = 0, **changes: object) -> None:
        beat = Beat(
            replica, f"i{replica}", 1, version, 0, "training", 3, 1, 9, 1.0, 1.0, 0.3, 1.0, 1e-3, (3,) * 4, 0, False,
            joined=joined,
        )  # fmt: skip
        self.hear(msgspec.structs.replace(beat, **changes))

    def vote(self, replica: int, round: int, digest: str = "same", receipt: str | None = None) -> None:
        """This member has the round's result; the receipt is the exchange's unless another one is given."""
        lists = (ALL, (4,) * 4, (1,) * 4)
        told = told_of(*lists)
        good = self.hub.rounds.tickets.of_result(1, round, told) if replica < 3 else ""
        counted, weights, durables = lists if replica < 3 else ((), (), ())
        self.hear(
            Reduced(
                round, replica, f"i{replica}", 1, round, digest, 0.1, 8, weights, 0.0, 0.0, counted=counted,
                durables=durables, told=told, receipt=good if receipt is None else receipt,
            )
        )  # fmt: skip

    def orders(self, kind: type) -> list:
        return [each.message for each in self.effects if isinstance(each, Send) and isinstance(each.message, kind)]

    def sent(self, replica: int) -> list[tuple[str, int]]:
        """The rounds' orders to this member, since it was last asked."""
        told = [each for each in self.effects if isinstance(each, Send) and each.replica == replica]
        self.effects = [each for each in self.effects if each not in told]
        return [(type(each.message).__name__, each.message.round) for each in told
                if isinstance(each.message, Fire | Commit | Abort)]  # fmt: skip

    def left(self) -> dict[int, str]:
        told = [each.data for each in self.effects if isinstance(each, Event) and each.name == "left"]
        return {each["replica"]: each["reason"] for each in told}

    def again(self) -> Hub:
        """The hub that goes on from this one's journal."""
        kept = [Entry(0.0, each.record) for each in self.effects if isinstance(each, Keep)]
        return replay(self.plan, [began(self.plan), *kept], self.now_s)


def test_the_first_word_that_the_exchange_vouches_for_commits_a_round() -> None:
    table = Table()
    table.vote(1, 1)
    assert {each.round for each in table.orders(Commit)} == {1}
    assert len(table.orders(Commit)) == 4
    assert table.hub.rounds.version == 1
    assert [table.hub.members[each].durable_samples for each in ALL] == [1] * 4


@pytest.mark.parametrize("receipt", ["", "forged"])
def test_without_its_receipt_all_votes_are_waited_for(receipt: str) -> None:
    table = Table()
    for replica in ALL[:3]:
        table.vote(replica, 1, receipt=receipt)
        assert table.hub.rounds.version == 0
    table.vote(3, 1, receipt=receipt)
    assert table.hub.rounds.version == 1
    assert table.hub.rounds.votes.behind is None


def test_a_word_that_another_one_contradicts_commits_nothing_before_all_have_voted() -> None:
    table = Table()
    table.vote(3, 1, digest="other")
    table.vote(0, 1)
    table.vote(1, 1)
    assert table.hub.rounds.version == 0
    table.vote(2, 1)
    assert set(table.left()) == {3}


def test_the_next_round_fires_when_one_has_the_commit_and_is_committed_when_all_have_voted_on_the_last_one() -> None:
    table = Table()
    table.vote(0, 1)
    assert [each.round for each in table.orders(Fire)] == [1] * 4
    table.beat(0, 1, joined=1)
    assert [each.round for each in table.orders(Fire)] == [1] * 4 + [2] * 4
    fire = table.orders(Fire)[-1]
    assert (fire.version, fire.shared) == (1, 1)
    for replica in (1, 2):
        table.vote(replica, 1)
        table.beat(replica, 1, joined=2)
    for replica in (0, 1, 2):
        table.vote(replica, 2)
    assert table.hub.rounds.version == 1, "one has not said yet what the last round gives"
    table.vote(3, 1)
    assert table.hub.rounds.version == 2


def test_a_round_of_the_same_adapters_waits_for_all() -> None:
    table = Table(k=4)
    table.vote(0, 1)
    for replica in ALL:
        assert len(table.orders(Fire)) == 4
        table.beat(replica, 1, joined=1)
    assert len(table.orders(Fire)) == 8


def test_nobody_is_further_behind_than_by_one_round() -> None:
    table = Table()
    for replica in ALL:
        table.vote(replica, 1)
    for replica in (0, 1, 2):
        table.beat(replica, 1, joined=1)
    table.vote(0, 2)
    for replica in (1, 2, 3):
        table.vote(replica, 2)
    assert table.hub.rounds.version == 2
    table.beat(0, 2, joined=2)
    assert len(table.orders(Fire)) == 8, "one has not even the commit of the first"
    table.beat(3, 1, joined=1)
    assert len(table.orders(Fire)) == 12


def test_who_has_missed_a_rounds_orders_gets_them_in_order() -> None:
    table = Table()
    table.vote(0, 1)
    table.beat(0, 1, joined=1)
    table.sent(3)
    table.now_s += 1.5
    table.beat(3, 0, joined=0)
    assert table.sent(3) == [("Fire", 1), ("Commit", 1), ("Fire", 2)]
    table.now_s += 1.5
    table.beat(3, 0, joined=1)
    assert table.sent(3) == [("Commit", 1), ("Fire", 2)], "it gets the result"


def test_who_differs_later_leaves_and_the_committed_round_stands() -> None:
    table = Table()
    table.vote(0, 1)
    table.beat(0, 1, joined=1)
    table.vote(1, 1)
    table.vote(3, 1, digest="other")
    assert table.left() == {}
    table.vote(2, 1)
    (reason,) = table.left().values()
    assert set(table.left()) == {3}
    assert "the anchors of round 1 differ from those of the other 3 replicas" in reason
    assert table.hub.rounds.version == 1
    assert table.hub.rounds.votes.behind is None
    assert table.orders(Generation)[-1].version == 1


def test_the_first_word_may_be_the_one_that_differs() -> None:
    table = Table()
    table.vote(0, 1, digest="other")
    for replica in (1, 2, 3):
        table.vote(replica, 1)
    assert set(table.left()) == {0}
    assert table.hub.rounds.version == 1


def test_where_nobody_knows_whose_anchors_are_right_the_run_ends() -> None:
    table = Table()
    for replica, digest in enumerate(("a", "a", "b", "b")):
        table.vote(replica, 1, digest)
    assert "round 1, which was committed, gave different anchors" in (table.hub.failure or "")


def test_who_has_lost_a_committed_round_leaves() -> None:
    table = Table()
    table.vote(0, 1)
    table.hear(Broken(9, 2, "i2", 1, 1, "the exchange has not answered in time"))
    assert table.left() == {2: "it has lost round 1: the exchange has not answered in time"}


def test_a_round_that_somebody_has_let_go_of_needs_the_votes_of_all() -> None:
    """It could not follow the Commit: the round is tried again with everybody."""
    table = Table()
    table.hear(Broken(9, 2, "i2", 1, 1, "the exchange has not answered in time"))
    table.vote(0, 1)
    assert table.hub.rounds.version == 0
    assert check_round(table.hub, table.now_s) == []


def test_a_death_among_those_behind_keeps_nobody_waiting() -> None:
    table = Table()
    table.vote(0, 1)
    table.beat(0, 1, joined=1)
    for replica in (1, 2):
        table.vote(replica, 1)
    for replica in (0, 1, 2):
        table.vote(replica, 2)
    assert table.hub.rounds.version == 1
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    table.effects += check_round(table.hub, table.now_s)
    assert table.hub.rounds.version == 2


def test_every_vote_is_acknowledged_though_a_commit_has_come_before_it() -> None:
    table = Table()
    for replica in ALL:
        table.vote(replica, 1)
    table.effects += table.hub.tick(table.now_s + 1.0)
    assert {each.replica for each in table.effects if isinstance(each, Send) and each.message == Ack(1)} == set(ALL)


def test_a_hub_that_goes_on_knows_who_has_not_voted() -> None:
    table = Table()
    table.vote(0, 1)
    table.beat(0, 1, joined=1)
    table.vote(1, 1)
    hub = table.again()
    assert hub.rounds.votes.behind is not None
    assert hub.rounds.votes.behind.awaited == {2, 3}
    assert hub.rounds.landed is not None
    assert (hub.rounds.version, hub.rounds.landed.round) == (1, 1)
    assert hub.rounds.in_flight is not None
    assert hub.rounds.in_flight.round == 2
    assert any(isinstance(each, records.RoundCommitted) for each in kept_of(table))


def kept_of(table: Table) -> list[records.AnyRecord]:
    return [each.record for each in table.effects if isinstance(each, Keep)]
