"""The hub checks owners of two-stage rounds: whom it draws, whom it believes, who leaves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from tests.unit.test_quarantine import Table
from tsugi_kpool.core.effects import FleetStage, Send
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.owner_check import Finding, drawn, finding
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.messages import Abort, Ack, Check, Checked, Commit, Fire, Generation
from tsugi_kpool.core.rounds.reduction import CHECK_SHARE
from tsugi_kpool.core.settings import Reduce

MEMBERS = (0, 2, 5, 7)


def test_every_owner_is_drawn_and_never_by_itself():
    checks = [drawn("secret", 1, round, MEMBERS) for round in range(4000)]
    found = [each for each in checks if each is not None]
    assert len(found) / len(checks) == pytest.approx(CHECK_SHARE, abs=0.03)
    assert set(Counter(each.owner for each in found)) == set(MEMBERS)
    assert all(each.checkers[0] != each.owner for each in found)
    assert len({(each.owner, each.checkers) for each in found}) == 12
    assert drawn("secret", 1, 7, MEMBERS) == drawn("secret", 1, 7, MEMBERS), "a hub that is asked twice says the same"
    assert [drawn("other", 1, round, MEMBERS) for round in range(4000)] != checks
    assert all(drawn("", 1, round, MEMBERS) is None for round in range(100)), "without a secret nobody is"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({0: (), 2: (), 5: (), 7: ()}, Finding()),
        ({0: (5,), 2: (5,), 5: (), 7: (5,)}, Finding((0, 2, 7), (5,))),
        ({0: (5,), 2: (), 5: (), 7: ()}, Finding((0,))),
        ({0: (5,), 2: (5,), 5: (0,), 7: ()}, Finding((0, 2, 5))),
        ({0: (5, 7), 2: (5, 5), 5: (5,), 7: (5,)}, Finding((0, 2, 5, 7), (5,))),
        ({0: (5,), 5: ()}, Finding((0,))),
    ],
)
def test_more_than_half_of_all_members_convict(said, expected):
    assert finding(Check(1, 1, 5, tuple(said)), said) == expected


class Checking(Table):
    """A hub that draws a check in every round; `wrong` is what members say of it."""

    def __init__(self, monkeypatch, replicas: int = 4) -> None:
        super().__init__(replicas)
        monkeypatch.setattr("tsugi_kpool.core.hub.owner_check.CHECK_SHARE", 1.0)
        self.hub.rounds.lottery = "secret"
        kpool = replace(self.hub.plan.kpool, reduce=Reduce.SCATTER)
        self.hub.plan = replace(self.hub.plan, kpool=kpool)

    def reduced_by_all(self, **facts) -> tuple[Fire, list]:
        fire = self.fire()
        effects = []
        for replica in self.present:
            effects += self.reduce(fire, replica, **facts)
        return fire, effects

    def says(self, check: Check, replica: int, *wrong: int) -> list:
        message = Checked(
            9, replica, f"i{replica}", check.generation, check.round, check.owner, len(check.checkers), wrong
        )
        return self.hub.receive(message, self.now_s)

    def check_of(self, effects: list) -> Check:
        """The one check that is ordered, to everybody."""
        orders = self.orders(effects, Check)
        assert len(orders) == len(self.present)
        (found,) = set(orders)
        return found


def test_a_round_counts_when_its_check_is_clear(monkeypatch):
    table = Checking(monkeypatch)
    _, effects = table.reduced_by_all()
    check = table.check_of(effects)
    assert not table.orders(effects, Commit)
    for replica in table.present[:-1]:
        assert not table.orders(table.says(check, replica), Commit), "not all have done their part"
    assert {type(each.message) for each in table.hub.tick(table.now_s + 1.0)} == {Ack}, "nothing is drawn meanwhile"
    assert len(table.orders(table.says(check, 3), Commit)) == 4
    assert table.hub.rounds.version == 1


def test_a_wrong_owner_leaves_by_name_when_most_find_it(monkeypatch):
    table = Checking(monkeypatch)
    fire, effects = table.reduced_by_all()
    check = table.check_of(effects)
    (checker,) = check.checkers
    effects = []
    for replica in table.present:
        effects += table.says(check, replica, *([check.owner] if replica == checker else []))
    second = table.check_of(effects)
    assert second == Check(fire.generation, fire.round, check.owner, tuple(table.present)), (
        "one is not believed alone"
    )
    effects = []
    for replica in table.present:
        effects += table.says(second, replica, *([check.owner] if replica != check.owner else []))
    (left,) = table.told(effects, "left")
    assert left["replica"] == check.owner
    assert "not the mean of the parts" in left["reason"]
    assert {each.round for each in table.orders(effects, Abort)} == {fire.round}
    assert check.owner not in table.orders(effects, Generation)[0].members
    assert table.hub.rounds.version == 0, "nothing of it was applied"
    assert check.owner in table.hub.quarantined


def test_who_accuses_an_honest_owner_leaves(monkeypatch):
    table = Checking(monkeypatch)
    _, effects = table.reduced_by_all()
    check = table.check_of(effects)
    (liar,) = check.checkers
    said = []
    for replica in table.present:
        said += table.says(check, replica, *([check.owner] if replica == liar else []))
    second = table.check_of(said)
    effects = []
    for replica in table.present:
        effects += table.says(second, replica, *([check.owner] if replica == liar else []))
    (left,) = table.told(effects, "left")
    assert left["replica"] == liar


def test_of_two_nobody_knows_who_is_right(monkeypatch):
    table = Checking(monkeypatch, 2)
    _, effects = table.reduced_by_all()
    check = table.check_of(effects)
    (checker,) = check.checkers
    effects = table.says(check, check.owner) + table.says(check, checker, check.owner)
    second = table.check_of(effects)
    table.says(second, check.owner)
    table.says(second, checker, check.owner)
    assert table.hub.stage is FleetStage.FAILED
    assert f"replica {check.owner} has summed" in table.hub.failure


@pytest.mark.parametrize("true", [True, False])
def test_the_word_of_one_owner_is_checked_before_anybody_leaves_for_it(monkeypatch, true):
    """Its digest is the same everywhere, because all have read the same word; nobody else has seen the part."""
    table = Checking(monkeypatch)
    _, effects = table.reduced_by_all(unusable=(3,), blamer=1)
    check = table.check_of(effects)
    assert (check.owner, check.checkers) == (1, (0, 1, 2, 3))
    effects = []
    for replica in table.present:
        effects += table.says(check, replica, *(() if true or replica == 1 else (1,)))
    (left,) = table.told(effects, "left")
    assert left["replica"] == (3 if true else 1)


def test_who_leaves_during_a_check_ends_the_round(monkeypatch):
    """Else an owner that is about to be found could have its round committed by leaving."""
    table = Checking(monkeypatch)
    fire, effects = table.reduced_by_all()
    owner = table.check_of(effects).owner
    effects = table.hub.leave({owner: "killed"}, table.now_s)
    assert {each.round for each in table.orders(effects, Abort)} == {fire.round}
    assert table.hub.rounds.version == 0
    assert table.hub.rounds.check is None


def test_a_check_is_said_again_to_those_who_have_not_answered(monkeypatch):
    table = Checking(monkeypatch)
    fire, effects = table.reduced_by_all()
    check = table.check_of(effects)
    table.says(check, 0)
    table.now_s += 5.0
    again = []
    for replica in table.present:
        member = table.hub.members[replica]
        beat = msgspec.structs.replace(member.beat, reduced=fire.round, joined=fire.round)
        sent = [each for each in table.hub.receive(beat, table.now_s) if isinstance(each, Send)]
        again += [each.replica for each in sent if isinstance(each.message, Check)]
    assert again == [1, 2, 3]
    assert table.hub.rounds.missing(table.now_s + 1000.0) == [1, 2, 3], "it has a deadline"


def test_late_and_impossible_words_change_nothing(monkeypatch):
    table = Checking(monkeypatch)
    _, effects = table.reduced_by_all()
    check = table.check_of(effects)
    table.says(Check(check.generation, check.round + 1, check.owner, check.checkers), 0, check.owner)
    table.says(Check(check.generation, check.round, check.owner, (0, 1)), 0, check.owner)
    assert table.hub.rounds.checked == {}
    guard = Guard(table.hub)
    word = Checked(9, 0, "i0", check.generation, check.round, check.owner, 1, (1, 1))
    assert guard.verdict(word, 0) is Kind.RANGE
    assert guard.verdict(msgspec.structs.replace(word, wrong=(99,)), 0) is Kind.RANGE
    assert guard.verdict(msgspec.structs.replace(word, wrong=(1,)), 0) is None
