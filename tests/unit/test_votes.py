"""What members say of a round: reports of the one in flight, votes on the one that was committed last."""

from __future__ import annotations

import pytest

from tsugi_kpool.core.hub.round_reports import RoundReports
from tsugi_kpool.core.hub.votes import VoteBook
from tsugi_kpool.core.messages import Fire, Reduced

MEMBERS = (0, 1, 2)


def said(replica: int, digest: str = "a", weights: tuple[int, ...] = (), round: int = 1, **more) -> Reduced:
    return Reduced(1, replica, f"i{replica}", 1, round, digest, 1.0 + replica, 100, weights, 0.0, 0.0, **more)


def fire(*adapters: int, round: int = 1) -> Fire:
    return Fire(1, round, adapters, MEMBERS, "count")


def reports(*each: Reduced, shared: bool = False) -> RoundReports:
    made = RoundReports(MEMBERS, shared)
    for report in each:
        made.take(report)
    return made


@pytest.mark.parametrize(
    ("each", "shared", "decided"),
    [
        ([said(0), said(1)], False, False),
        ([said(0), said(1), said(2, "b")], False, True),
        ([said(1, counted=(1,))], True, False),
        ([said(1, counted=(1,), receipt="r")], True, True),
        ([said(1, counted=(1,), receipt="r")], False, False),
        ([said(1, counted=(1,), receipt="r"), said(2, "b")], True, False),
        ([said(1, counted=(1,), receipt="r", unusable=(0,))], True, False),
    ],
    ids=["not all", "all", "no receipt", "a receipt", "no exchange", "apart", "unusable"],
)
def test_all_settle_a_round_or_one_that_shows_what_the_exchange_has_said(each, shared, decided):
    assert reports(*each, shared=shared).decided is decided


def test_who_has_left_is_not_waited_for_and_leaves_nobody_out_by_its_word():
    told = reports(said(1, unusable=(2,), blamer=1), said(2))
    told.go_on_without(0)
    assert (told.awaited, told.unusable(), told.blamer) == (set(), (2,), 1)
    told.go_on_without(1)
    assert (told.unusable(), told.blamer, told.digests()) == ((), None, {2: "a"})
    assert told.of_one_word


def test_the_first_member_speaks_for_all_or_whoever_shows_what_the_exchange_has_said():
    assert reports(said(1), said(2)).for_all() is None
    assert reports(said(1), said(0, weights=(1, 2, 3))).for_all() == said(0, weights=(1, 2, 3))
    shown = said(2, counted=MEMBERS, receipt="r")
    assert reports(said(0), said(1, counted=MEMBERS), shown, shared=True).for_all() == shown
    assert RoundReports().for_all() is None


def test_late_votes_settle_a_committed_round_and_its_digest_is_known_from_then_on():
    votes = VoteBook()
    votes.committed(fire(0, 1), {1, 2}, {0: "a"}, "a")
    assert votes.agreed_on == {}, "the first word may be the one that is wrong"
    assert votes.is_late(said(1))
    assert not votes.is_late(said(0)), "it has voted"
    assert not votes.is_late(said(1, round=2))
    assert not votes.take(said(1))
    assert votes.forget(2), "nobody else is awaited"
    assert (votes.behind, votes.agreed_on) == (None, {(0, 1): "a"})


def test_members_that_say_something_else_leave_the_votes_open():
    votes = VoteBook()
    votes.committed(fire(0), {2}, {0: "a", 1: "a"}, "a")
    assert not votes.take(said(2, "b"))
    assert votes.behind is not None
    assert votes.forget(2), "who said so has left"
    assert votes.agreed_on == {(0,): "a"}


def test_a_digest_says_nothing_any_more_once_one_of_its_adapters_moves_on():
    votes = VoteBook()
    votes.committed(fire(0, 1), set(), {}, "a")
    votes.committed(fire(2), set(), {}, "b")
    assert votes.agreed_on == {(0, 1): "a", (2,): "b"}
    votes.committed(fire(1, round=3), set(), {}, "c")
    assert votes.agreed_on == {(2,): "b", (1,): "c"}
