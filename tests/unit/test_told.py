"""What a few members report of an exchange's round counts only as all members say it, and as it can be."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.leaving import leave
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.messages import Abort, Beat, Commit, Fire, Generation, Hello, LeaseRequest, Message, Reduced
from tsugi_kpool.core.rounds.told import told_of

ALL = (0, 1, 2, 3)
TRUE = ((0, 1, 2, 3), (4, 4, 4, 4), (1, 1, 1, 1))
"""Counted, weights, durables."""


class Table:
    """A hub whose four members have an exchange, and its first round."""

    def __init__(self) -> None:
        settings = kpool(trigger="count", count=2, min_steps=1)
        self.hub = Hub(hub_plan(replicas=4, sample_tokens=10, kpool=settings, exchange="a certificate"), 0.0)
        self.guard, self.refused = Guard(self.hub), list[Kind]()
        self.effects: list[object] = []
        for replica in ALL:
            self.hear(Hello(0, replica, f"i{replica}", "host", 1, "c0ffee", "layout"))
            self.hear(LeaseRequest(replica, f"i{replica}", 1))
        for replica in ALL:
            self.hear(
                Beat(
                    replica, f"i{replica}", 1, 0, 0, "training", 3, 1, 9, 1.0, 1.0, 0.3, 1.0, 1e-3, (3,) * 4, 0, False
                )
            )
        self.fire = self.orders(Fire)[0]

    def hear(self, message: Message) -> None:
        kind = self.guard.verdict(message, None)
        if kind is not None:
            self.refused.append(kind)
            return
        self.effects += self.hub.receive(message, 1.0)

    def reduce(self, replica: int, lists: tuple = TRUE, said: tuple | None = None, **facts: object) -> None:
        """This member reports what these lists say, or says so and reports others."""
        counted, weights, durables = said or lists
        reports = replica in counted[:3]
        message = Reduced(
            1, replica, f"i{replica}", self.fire.generation, self.fire.round, "same", 0.1, 8,
            weights if reports else (), 0.0, 0.0, counted=counted if reports else (),
            durables=durables if reports else (), told=told_of(*lists),
        )  # fmt: skip
        self.hear(msgspec.structs.replace(message, **facts))

    def orders(self, kind: type) -> list:
        return [each.message for each in self.effects if isinstance(each, Send) and isinstance(each.message, kind)]

    def left(self) -> dict[int, str]:
        told = [each.data for each in self.effects if isinstance(each, Event) and each.name == "left"]
        return {each["replica"]: each["reason"] for each in told}


@pytest.mark.parametrize(
    "lie",
    [
        ((1, 2, 3), (4, 4, 4), (1, 1, 1)),  # another one's part was missed
        ((0, 1, 2, 3), (4, 4, 4, 4), (1, 1, 1, 2)),  # samples are durable that are not
        ((0, 1, 2, 3), (4, 4, 4, 40), (1, 1, 1, 1)),
    ],
)
def test_one_reporter_cannot_say_of_others_what_the_result_does_not(lie: tuple) -> None:
    table = Table()
    table.reduce(0, TRUE, said=(ALL, *lie[1:]) if len(lie[0]) == 4 else lie)
    if lie[0][0] == 0:
        assert table.refused == [Kind.RANGE], "its lists are not those that it votes for"
        table.reduce(0)
    else:
        table = Table()
        table.reduce(1, TRUE, said=lie)
        assert table.refused == [Kind.RANGE]
        table.reduce(0)
    table = Table()
    for replica in (0, 2, 3):
        table.reduce(replica)
    table.reduce(1, lie)
    assert set(table.left()) == {1}, "it votes for lists that nobody else has"
    assert table.hub.rounds.version == 0


def test_the_honest_round_is_committed_with_what_all_say() -> None:
    table = Table()
    for replica in ALL:
        table.reduce(replica)
    assert table.refused == []
    assert [each.missed for each in table.orders(Commit)] == [()] * 4
    assert [table.hub.members[each].durable_samples for each in ALL] == [1] * 4


@pytest.mark.parametrize("lists", [(ALL, (4, 4, 4, 4), (1, 1, 1, 2**53)), (ALL, (4, 4, 4, 2**40), (1, 1, 1, 1))])
def test_whose_part_claims_what_cannot_be_leaves_and_not_who_reports_it(lists: tuple) -> None:
    table = Table()
    for replica in ALL:
        table.reduce(replica, lists)
    assert table.refused == [], "the reporters are honest"
    (reason,) = table.left().values()
    assert set(table.left()) == {3}
    assert reason.startswith("quarantined: it ")
    assert table.hub.rounds.version == 0
    assert table.orders(Generation)[-1].members == (0, 1, 2)


@pytest.mark.parametrize(
    "facts", [{"lists": (ALL, (4, 4, 4, 4), (1, 1, 1, 2**53))}, {"unusable": (3,), "digest": "spoilt"}]
)
def test_the_round_of_one_that_has_left_and_whose_part_cannot_be_is_tried_again(facts: dict) -> None:
    table = Table()
    table.effects += leave(table.hub, {3: "its worker was killed"}, 1.0)
    for replica in (0, 1, 2):
        table.reduce(replica, **facts)
    assert {each.round for each in table.orders(Abort)} == {1}
    assert table.orders(Generation)[-1].members == (0, 1, 2)
    assert set(table.left()) == {3}


def test_nobody_leaves_for_the_word_of_one_that_has_gone() -> None:
    table = Table()
    table.reduce(0, unusable=(1, 2, 3), digest="spoilt")
    table.effects += leave(table.hub, {0: "its worker was killed"}, 1.0)
    for replica in (1, 2, 3):
        table.reduce(replica)
    assert set(table.left()) == {0}
    assert table.hub.rounds.version == 1
