"""Members that are a round behind at an exchange: what must not be lost, judged or believed too early meanwhile."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.test_ahead import ALL, Table
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.messages import Commit, Fire, Generation
from tsugi_kpool.core.replica.stage import Action, Stage, react


def test_the_last_vote_on_a_round_gives_the_next_one_its_whole_time() -> None:
    """A hub's clock is its machine's: it has run for long."""
    table = Table()
    table.now_s = 10_000.0
    table.hub.tick(table.now_s)
    table.vote(0, 1)
    table.beat(0, 1, joined=1)
    for replica in (1, 2, 3):
        table.vote(replica, 1)
    assert table.hub.rounds.votes.behind is None
    assert table.hub.rounds.in_flight is not None
    assert table.hub.rounds.missing(table.now_s + 1.0) == []
    assert table.hub.rounds.missing(table.now_s + 100.0) == [*ALL]


def test_who_leaves_while_others_are_behind_takes_no_time_from_the_next_round() -> None:
    table = Table()
    table.now_s = 10_000.0
    table.hub.tick(table.now_s)
    table.vote(0, 1)
    table.beat(0, 1, joined=1)
    table.vote(1, 1)
    table.vote(2, 1)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    assert table.hub.rounds.votes.behind is None
    assert table.hub.rounds.missing(table.now_s + 1.0) == []


def test_a_checkpoint_is_one_of_anchors_that_all_have_voted_on() -> None:
    table = Table()
    table.hub.save()
    for replica in (0, 1, 2):
        table.vote(replica, 1)
        assert table.hub.rounds.version == 0
    table.vote(3, 1)
    assert [each.save for each in table.orders(Commit)] == [True] * 4


def test_a_checkpoint_that_becomes_due_while_some_are_behind_is_that_of_the_next_round() -> None:
    table = Table()
    table.vote(0, 1)
    table.hub.save()
    for replica in (1, 2, 3):
        table.vote(replica, 1)
        table.beat(replica, 1, joined=1)
    table.beat(0, 1, joined=1)
    assert not any(each.save for each in table.orders(Commit))
    for replica in ALL:
        table.vote(replica, 2)
    assert [each.round for each in table.orders(Commit) if each.save] == [2] * 4


def test_no_round_fires_before_all_have_the_commit_that_asks_for_a_checkpoint() -> None:
    """Who misses it would learn from the Fire that the round counts, and write nothing."""
    table = Table()
    table.hub.save()
    for replica in ALL:
        table.vote(replica, 1)
    for replica in (0, 1, 2):
        table.beat(replica, 1, joined=1)
    assert len(table.orders(Fire)) == 4
    table.beat(3, 1, joined=1)
    assert len(table.orders(Fire)) == 8


def test_without_overlap_a_round_fires_when_all_have_the_last_one() -> None:
    """Training waits for rounds: it waits no longer than before for one that is slow to get its result."""
    table = Table()
    table.hub.plan = replace(table.plan, kpool=replace(table.plan.kpool, overlap=False))
    for replica in ALL:
        table.vote(replica, 1)
        assert len(table.orders(Fire)) == 4
        table.beat(replica, 1, joined=1)
    assert len(table.orders(Fire)) == 8


def test_a_run_is_over_when_all_have_voted_on_its_last_round() -> None:
    """All show its version; the vote of one has been lost, and comes again."""
    table = Table(k=4)
    table.hub.interrupt()
    done = {"pooled": (0,) * 4, "drained": True, "joined": 1}
    table.vote(0, 1)
    for replica in ALL:
        table.beat(replica, 1, **done)
    for replica in (1, 2):
        table.vote(replica, 1)
    table.effects += table.hub.tick(table.now_s)
    assert table.hub.stage is FleetStage.TRAINING
    table.vote(3, 1)
    table.effects += table.hub.tick(table.now_s)
    assert table.hub.stage is FleetStage.FINISHED


def test_newcomers_wait_until_all_have_voted_on_what_they_begin_from() -> None:
    table = Table()
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    table.vote(0, 1, digest="other")
    table.effects += table.hub.tick(table.now_s)
    assert table.hub.rounds.version == 1
    assert [each.generation for each in table.orders(Generation)] == [1] * 4
    table.vote(1, 1)
    table.vote(2, 1)
    assert set(table.left()) == {0, 3}, "it would have been the donor"
    assert {each.generation for each in table.orders(Generation)} == {1, 2}


def test_who_has_missed_two_commits_and_hears_of_a_generation_forgets_nothing() -> None:
    """Its round was committed, and the next one, too: it hears of that from the orders that are said again."""
    order = Generation(2, (0, 1), 6)
    assert react(Stage.REDUCED, 1, 5, 4, order) is Action.IGNORE
    assert react(Stage.REDUCED, 1, 5, 5, order) is Action.COMMIT_THEN_FORM
    assert react(Stage.REDUCED, 1, 6, 6, order) is Action.FORGET_THEN_FORM
