"""Evaluation while training, decided by the hub: who, when, what if it leaves, and when the run ends by it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from tests.sim.test_hub_restart import check_whole_run
from tests.support import hub_plan, kpool
from tests.unit.test_hub import check_rules, make_fleet
from tests.unit.test_quarantine import Table
from tsugi_cli.launch.summary import evaluated_whole
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import FleetStage, Keep, Send
from tsugi_kpool.core.evaluation import (
    Every,
    Unit,
    best,
    due,
    loss_of,
    parse,
    slowest,
    stage_of,
    version_in,
    worse_since,
)
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.replay import replay
from tsugi_kpool.core.journal import parse as parse_journal
from tsugi_kpool.core.messages import Ack, Commit, Drain, Evaluated
from tsugi_kpool.sim import HubCrash, LinkModel, Speeds, check_accounting, check_agreement
from tsugi_kpool.sim.faults import FaultyFleet, SimulatedFault
from tsugi_kpool.sim.fleet import Fleet

OFTEN = Every(1.0, Unit.STEPS)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("200", 200.0, Unit.STEPS),
        ("200 steps", 200.0, Unit.STEPS),
        ("10min", 600.0, Unit.SECONDS),
        ("90s", 90.0, Unit.SECONDS),
        ("1.5h", 5400.0, Unit.SECONDS),
        ("5%", 0.05, Unit.SHARE),
        ("0.25", 0.25, Unit.SHARE),
    ],
)
def test_how_often_in_steps_minutes_or_a_share(text, amount, unit):
    assert parse(text) == Every(pytest.approx(amount), unit)


@pytest.mark.parametrize("text", ["", "often", "-5", "0", "0%", "200%", "5 weeks", "1e3", "nan"])
def test_what_says_no_such_thing_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_it_is_due_at_each_multiple_and_late_ones_do_not_pile_up():
    every = Every(10.0, Unit.STEPS)
    assert next(at for at in range(40) if due(every, at, 0.0)) == 10
    assert not due(every, 39.0, 31.0)
    assert due(every, 40.0, 12.0)


def test_the_slowest_of_equals_is_the_last_one():
    assert slowest({0: 1.0, 1: 4.0, 2: 2.0}) == 1
    assert slowest({0: 1.0, 1: 1.0}) == 1
    assert slowest({}) is None


def test_a_loss_that_is_no_number_is_never_the_best():
    losses = [loss_of({"loss_sum": each, "loss_tokens": 2.0}) for each in (6.0, math.nan, 4.0, math.inf, 4.0)]
    assert losses == [3.0, math.inf, 2.0, math.inf, 2.0]
    assert best(dict(enumerate(losses))) == 2
    assert [worse_since(losses[:n]) for n in range(6)] == [0, 0, 1, 0, 1, 2]
    assert best({1: math.inf}) is None
    assert version_in(stage_of(12)) == 12
    assert version_in("trained") is None


# --- at the hub's table ------------------------------------------------------------------------------------


def table_of(replicas: int, **plan) -> Table:
    table = Table(replicas)
    table.hub.plan = replace(table.hub.plan, evaluate=OFTEN, **plan)
    return table


def commit(table: Table) -> tuple[list, Commit]:
    """One round; its effects and its Commit."""
    fire, effects = table.fire(), []
    for replica in table.present:
        effects = table.reduce(fire, replica)
    table.version += 1
    return effects, table.orders(effects, Commit)[0]


def measured(table: Table, replica: int, version: int, loss: float, seq: int = 50) -> list:
    sums = {"loss_sum": loss * 8, "loss_tokens": 8.0}
    message = Evaluated(seq, replica, f"i{replica}", stage_of(version), sums, ())
    assert Guard(table.hub).verdict(message, replica) is None
    return table.hub.receive(message, table.now_s)


def test_the_journal_has_it_before_the_commit_is_sent():
    effects, order = commit(table_of(2))
    given = next(n for n, each in enumerate(effects) if isinstance(each, Keep) and _gives(each))
    sent = next(n for n, each in enumerate(effects) if isinstance(each, Send) and isinstance(each.message, Commit))
    assert given < sent
    assert order.evaluator == 1


def _gives(kept: Keep) -> bool:
    return isinstance(kept.record, records.EvaluationGiven)


def test_one_at_a_time_and_the_result_is_an_event_with_its_version():
    table = table_of(2)
    commit(table)
    _, second = commit(table)
    assert second.evaluator is None, "replica 1 has not done the first one"
    effects = measured(table, 1, 1, 2.5)
    (told,) = table.told(effects, "evaluated")
    assert (told["version"], told["loss"]) == (1, 2.5)
    assert measured(table, 1, 1, 2.5)[:-1] == [], "its answer was lost: it comes again"
    assert isinstance(measured(table, 1, 1, 2.5)[-1].message, Ack)


def test_a_generation_in_whose_order_that_commit_may_be_lost_asks_again():
    table = table_of(3)
    _, first = commit(table)
    assert first.evaluator == 2
    table.hub.leave({0: "killed"}, table.now_s)
    table.generation, table.present = 2, [1, 2]
    _, second = commit(table)
    assert second.evaluator == 2
    assert table.hub.evaluation.given.version == 2


def test_whoever_has_the_copy_keeps_it_when_another_leaves():
    table = table_of(3)
    commit(table)
    commit(table)
    table.hub.leave({0: "killed"}, table.now_s)
    assert table.hub.evaluation.given.version == 1
    assert table.told(measured(table, 2, 1, 2.5), "evaluated")


def test_who_was_not_asked_changes_nothing():
    table = table_of(2)
    commit(table)
    assert table.told(measured(table, 0, 1, 0.0), "evaluated") == []
    assert table.hub.evaluation.given is not None


def test_when_the_evaluator_leaves_the_next_commit_names_another():
    table = table_of(3)
    _, first = commit(table)
    table.hub.leave({first.evaluator: "killed"}, table.now_s)
    assert table.hub.evaluation.given is None
    table.generation, table.present = 2, [each for each in range(3) if each != first.evaluator]
    _, second = commit(table)
    assert second.evaluator in table.present
    assert table.hub.evaluation.given.version == 2


def test_a_version_of_old_that_nobody_asked_for_is_refused_at_the_door():
    table = table_of(2)
    commit(table)
    for stage in ("v000002", "v1", "later"):
        message = Evaluated(9, 1, "i1", stage, {}, ())
        assert Guard(table.hub).verdict(message, 1) is not None


def test_the_run_stops_by_itself_in_good_order_and_its_result_is_evaluated():
    table = table_of(2, patience=1)
    commit(table)
    assert not table.orders(measured(table, 1, 1, 2.0), Drain)
    table.hub.evaluation.given = records.EvaluationGiven(1, 2, 99.0)
    table.hub.rounds.version = 2
    effects = measured(table, 1, 2, 2.1, seq=51)
    (told,) = table.told(effects, "stopped_early")
    assert (told["version"], told["loss"], told["evaluations"]) == (1, 2.0, 1)
    assert len(table.orders(effects, Drain)) == 2
    assert table.hub.interrupted
    assert table.hub.stage is FleetStage.TRAINING, "what is buffered is committed first"


# --- in the simulator --------------------------------------------------------------------------------------


def evaluations(fleet: Fleet) -> list:
    return [event.data for event in fleet.events if event.name == "evaluated" and event.data.get("version")]


def given(fleet: Fleet) -> list[tuple[int, int]]:
    return [(e.data["replica"], e.data["version"]) for e in fleet.events if e.name == "evaluating"]


def test_the_slowest_evaluates_and_the_same_samples_are_trained():
    plan = hub_plan(samples=120, evaluate=Every(20.0, Unit.STEPS))
    fleet = make_fleet(plan, [0.1, 0.4])
    fleet.run(400)
    check_rules(fleet)
    assert len(evaluations(fleet)) >= 3
    assert {replica for replica, _ in given(fleet)[1:]} == {1}
    assert fleet.hub.complete


@pytest.mark.parametrize("unit", [Every(0.2, Unit.SHARE), Every(3.0, Unit.SECONDS)])
def test_by_share_and_by_time(unit):
    fleet = make_fleet(hub_plan(samples=120, evaluate=unit), [0.2, 0.3])
    fleet.run(400)
    check_rules(fleet)
    assert 2 <= len(evaluations(fleet)) <= 5


def test_the_evaluator_is_killed_under_way_and_rounds_and_evaluation_go_on():
    plan = hub_plan(replicas=3, samples=300, evaluate=Every(10.0, Unit.STEPS))
    for at_s in (4.0, 5.0, 6.5):
        kill = SimulatedFault("kill", 2, at_s)
        fleet = FaultyFleet(plan, Speeds((0.1, 0.2, 0.9)), LinkModel(), 0, (kill,))
        fleet.run(600)
        assert fleet.fired
        assert fleet.hub.failure is None
        assert check_agreement(fleet) == []
        assert check_accounting(fleet) == []
        assert fleet.hub.complete
        after = [replica for replica, _ in given(fleet)]
        assert after[-1] == 1, "the slowest of those who are left"
        assert evaluations(fleet)[-1]["replica"] == 1


@pytest.mark.parametrize("seed", range(25))
def test_lost_messages_and_dead_hubs_lose_no_evaluation(seed):
    draw = random.Random(seed)
    plan = hub_plan(samples=100, evaluate=Every(10.0, Unit.STEPS), kpool=kpool(k=2))
    link = LinkModel(latency_s=0.03, jitter=0.8, loss=0.1, duplication=0.1)
    crashes = tuple(HubCrash(after_record=draw.randint(5, 60), down_s=draw.uniform(0.5, 4.0)) for _ in range(2))
    fleet = Fleet(plan, Speeds((0.1, 0.25)), link, seed, crashes=crashes)
    fleet.run(600)
    check_whole_run(fleet)
    entries = parse_journal(fleet.hub_host.journal).entries
    kept = [each.record for each in entries]
    asked = [(each.replica, each.version) for each in kept if isinstance(each, records.EvaluationGiven)]
    done = [each.evaluated for each in kept if isinstance(each, records.Evaluation)]
    assert len(done) >= 2
    assert all((each.replica, version_in(each.stage)) in asked for each in done)
    assert len({each.stage for each in done}) == len(done)


def test_the_next_hub_knows_what_was_given_and_found():
    plan = hub_plan(samples=100, evaluate=Every(10.0, Unit.STEPS))
    fleet = make_fleet(plan, [0.2, 0.3])
    fleet.run(8)
    assert fleet.hub.evaluations
    entries = parse_journal(fleet.hub_host.journal).entries
    again = replay(plan, entries, 8.0)
    assert again.evaluations == fleet.hub.evaluations
    assert (again.evaluation.given, again.evaluation.at) == (fleet.hub.evaluation.given, fleet.hub.evaluation.at)


def test_patience_ends_a_run_as_a_user_would_and_counts_as_finished():
    plan = hub_plan(samples=2000, evaluate=Every(10.0, Unit.STEPS), patience=1)
    fleet = make_fleet(plan, [0.1, 0.2])
    fleet.run(5)
    fleet.hub.evaluations["v000000", 0] = Evaluated(1, 0, "", "v000000", {"loss_sum": 0.1, "loss_tokens": 1.0}, ())
    fleet.run(600)
    assert all(replica.finished for replica in fleet.replicas)
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    assert fleet.hub.complete
    assert fleet.hub.leases.left > 0
    assert [event.name for event in fleet.events].count("stopped_early") == 1


def test_the_loss_of_a_part_of_eval_is_compared_with_nothing():
    """Replicas share the last evaluation: of one that has left the loss lacks its samples."""
    hub = Hub(hub_plan(), 0.0)
    for replica in range(2):
        assert not evaluated_whole(hub)
        hub.evaluations["trained", replica] = Evaluated(1, replica, "a", "trained", {}, ())
    assert evaluated_whole(hub)
