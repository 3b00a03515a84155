"""Members that are a round behind at an exchange: what must not be lost, judged or believed too early meanwhile."""

from __future__ import annotations

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
    assert table.hub.rounds.behind is None
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
    assert table.hub.rounds.behind is None
    assert table.hub.rounds.missing(table.now_s + 1.0) == []
