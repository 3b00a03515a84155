"""What the hub orders for a checkpoint: the data ledger of that very version, however late anybody hears of it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.support import hub_plan, kpool
from tests.unit.test_hub import check_rules, joined_hub, make_fleet
from tsugi_kpool.core.checkpoint import ANCHORS, part_name
from tsugi_kpool.core.effects import CheckpointPart, Send
from tsugi_kpool.core.hub import checkpoint_orders, endings, ranges
from tsugi_kpool.core.hub.checkpoint_orders import MAX_REASON
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.replay import replay
from tsugi_kpool.core.hub.slots import Slots
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.messages import Ack, Commit, Saved


@pytest.mark.parametrize("seed", range(20))
def test_a_ledger_grows_and_ends_with_all_data(seed):
    """Checkpoints are wanted at any moment of runs over lossy channels."""
    draw = random.Random(seed)
    plan = hub_plan(samples=draw.randint(60, 120), checkpoints=True, kpool=kpool(k=draw.choice([1, 2, 4])))
    fleet = make_fleet(plan, [draw.uniform(0.05, 0.6) for _ in range(2)], seed, loss=draw.choice([0.0, 0.2]))
    at_s = 0.0
    while not fleet.hub.ended and at_s < 3000:
        at_s += draw.uniform(0.5, 3.0)
        fleet.run(at_s)
        fleet.hub.save()
    check_rules(fleet)
    orders = fleet.hub_host.ordered
    assert len(orders) > 2
    assert [order.final for order in orders] == [False] * (len(orders) - 1) + [True]
    assert orders[-1].done == ((0, plan.samples),)
    assert orders[-1].trained == plan.samples
    committed = [event.data["version"] for event in fleet.events if event.name == "committed"]
    for before, after in pairwise(orders):
        left = list(before.done)
        for start, stop in after.done:
            ranges.remove(left, start, stop)
        assert left == [], "what was done stays done"
        assert before.version <= after.version
        assert ranges.count(after.done) <= after.trained + 2 * 10, "beats may be late; see the lease's size"
    assert {order.version for order in orders} <= set(committed)


def test_nothing_is_ordered_that_nobody_wants():
    fleet = make_fleet(hub_plan(), [0.3, 0.3])
    fleet.run(200)
    check_rules(fleet)
    assert fleet.hub_host.ordered == []


def test_the_next_commit_says_it_once():
    fleet = make_fleet(hub_plan(samples=200), [0.2, 0.2])
    sent: list[Commit] = []
    original = fleet.hub.receive

    def listen(message, now_s):
        effects = original(message, now_s)
        sent.extend(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Commit))
        return effects

    fleet.hub.receive = listen
    fleet.run(2)
    fleet.hub.save()
    fleet.run(20)
    assert len({commit.round for commit in sent if commit.save}) == 1
    assert len({commit.round for commit in sent if not commit.save}) > 2


def saved(**changes) -> Saved:
    facts = {"seq": 5, "replica": 1, "incarnation": "i", "version": 3, "final": False, "file": part_name(1)}
    return Saved(**facts | {"bytes": 10, "sha256": "a" * 64} | changes)


def asking_hub(replicas: int = 2, version: int = 3, final: bool = False):
    """A hub that has ordered a checkpoint of its members."""
    hub = joined_hub(replicas)
    hub.rounds.version = version
    checkpoint_orders.order(hub, final)
    return hub


def test_a_written_file_is_acknowledged_and_passed_on():
    effects = asking_hub().receive(saved(), 1.0)
    assert effects == [CheckpointPart(saved()), Send(1, Ack(5))]


def test_a_file_that_nobody_asked_for_is_passed_on_to_nobody():
    assert asking_hub().receive(saved(version=2), 1.0) == [Send(1, Ack(5))]


def test_replicas_from_elsewhere_write_no_part_and_only_the_first_member_the_anchors():
    hub = asking_hub()
    guard = Guard(hub)
    assert guard.verdict(saved(replica=0, file=ANCHORS), 0) is None
    assert guard.verdict(saved(file=ANCHORS), 1) is Kind.RANGE
    hub.slots = Slots(range(1, 2), "run", "", "")
    assert guard.verdict(saved(), 1) is Kind.RANGE
    assert guard.verdict(saved(replica=0), 0) is Kind.RANGE


def test_a_first_member_from_elsewhere_writes_for_all():
    hub = asking_hub()
    hub.slots = Slots(range(2), "run", "", "")
    guard = Guard(hub)
    assert guard.verdict(saved(replica=0, file=ANCHORS), 0) is None
    assert guard.verdict(saved(seq=6, replica=0, file=part_name(0)), 0) is None
    assert guard.verdict(saved(), 1) is Kind.RANGE
    assert guard.verdict(saved(seq=6, file=ANCHORS), 1) is Kind.RANGE


def test_a_hub_that_went_on_from_a_journal_does_not_know_what_was_asked_before():
    hub = joined_hub(2)
    assert Guard(hub).verdict(saved(), 1) is Kind.RANGE
    hub.resumed = True
    assert Guard(hub).verdict(saved(), 1) is None


def test_whom_it_has_asked_is_forgotten_in_time():
    hub = asking_hub()
    for version in range(4, 4 + checkpoint_orders.ASKED):
        hub.rounds.version = version
        checkpoint_orders.order(hub, False)
    assert len(hub.asked) == checkpoint_orders.ASKED
    assert (3, False) not in hub.asked


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"file": ANCHORS}, Kind.RANGE),
        ({"version": 2}, Kind.RANGE),
        ({"final": True}, Kind.RANGE),
        ({"error": "No space left on device", "sha256": ""}, None),
        ({"file": part_name(0)}, Kind.RANGE),
        ({"file": "../../manifest.json"}, Kind.RANGE),
        ({"sha256": "a" * 10}, Kind.RANGE),
        ({"error": "x" * (MAX_REASON + 1)}, Kind.RANGE),
        ({"bytes": -1}, Kind.RANGE),
        ({"incarnation": "another"}, Kind.IDENTITY),
    ],
)
def test_a_member_speaks_of_its_own_files_only(changes, kind):
    assert Guard(asking_hub()).verdict(saved(**changes), 1) is kind


def test_who_gave_what_was_of_no_use_is_passed_over_as_long_as_others_are_there():
    hub = joined_hub(3, checkpoints=True)
    hub.slots = Slots(range(3), "run", "", "")
    hub.rounds.newest_commit, hub.rounds.version = Commit(1, 1), 3
    hub.save(frozenset({0}))
    (order,) = checkpoint_orders.mark(hub)
    assert (order.writer, hub.rounds.newest_commit.save, hub.rounds.newest_commit.writer) == (1, True, 1)
    guard = Guard(hub)
    assert guard.verdict(saved(file=ANCHORS), 1) is None
    assert guard.verdict(saved(seq=6, file=part_name(1)), 1) is None
    assert guard.verdict(saved(seq=7, replica=0, file=ANCHORS), 0) is Kind.RANGE
    assert endings.finish_order(hub).writer == 1, "of the last checkpoint, too"
    hub.save(frozenset({0, 1, 2}))
    (order,) = checkpoint_orders.mark(hub)
    assert (order.writer, hub.rounds.newest_commit.writer) == (0, None), "better than none at all"


@pytest.mark.parametrize(("changes", "told"), [({}, True), ({"exchange": ""}, False), ({"mode": "gradient"}, False)])
def test_what_has_been_agreed_on_goes_with_the_order_where_it_is_a_digest_of_anchors_alone(changes, told):
    changes = {"exchange": "a certificate", "mode": "local", **changes}
    plan = hub_plan(replicas=2, exchange=changes["exchange"], kpool=kpool(mode=changes["mode"]))
    fleet = make_fleet(plan, [0.3, 0.3])
    fleet.run(5)
    assert fleet.hub.rounds.version
    found = dict(checkpoint_orders.ordered(fleet.hub, False).digests)
    assert found == (fleet.hub.rounds.votes.agreed_on if told else {})
    assert bool(found) is told
    rounds = replay(plan, parse(fleet.hub_host.journal).entries, 0.0).rounds
    assert rounds.votes.agreed_on.items() <= fleet.hub.rounds.votes.agreed_on.items()
    assert rounds.votes.agreed_on or rounds.votes.behind, "but of what not all have voted on before it died"
