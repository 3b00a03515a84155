"""Fleets of up to 1,000 replicas in virtual time: what the seed decides, what a straggler and a slow link cost."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.messages import Commit
from tsugi_kpool.core.replica.ledger import ContributionLedger
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.settings import Routing, SelectAt, Trigger
from tsugi_kpool.sim import (
    Fleet,
    HubCrash,
    LinkModel,
    SimulationReport,
    Slow,
    Speeds,
    check_accounting,
    check_agreement,
    check_refusals,
)
from tsugi_kpool.sim.kernel import Channel, Kernel
from tsugi_kpool.sim.replica import Replica

MEGABYTE = 1 << 20


def plan(replicas=8, samples=1_000_000, **settings):
    """A plan whose data last longer than the test, unless told otherwise."""
    return hub_plan(replicas=replicas, samples=samples, kpool=kpool(n=8, **{"k": 2, **settings}))


def checked(fleet: Fleet, seconds: float) -> SimulationReport:
    """Run, check docs/design.md rules 1 and 2, report."""
    report = fleet.run(seconds)
    assert report.failure is None
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    assert check_refusals(fleet) == []
    return report


def test_nothing_that_a_fleet_does_depends_on_who_is_called_slow():
    found = []
    for watched in (True, False):
        speeds = Speeds((0.2,), jitter=0.2, slow=(Slow(2, 4.0, from_s=60.0),))
        crashes = (HubCrash(at_s=90.0, down_s=2.0),)
        fleet = Fleet(plan(4, samples=2000), speeds, LinkModel(), seed=1, crashes=crashes, watched=watched)
        report = checked(fleet, 600.0)
        told = [event.name for event in fleet.events if event.name in ("slow", "recovered")]
        others = [(event.name, event.data) for event in fleet.events if event.name not in ("slow", "recovered")]
        found.append((fleet.history, others, report.seconds, report.samples))
        assert bool(told) is watched
    assert found[0] == found[1]


NOISY = Speeds((2.0,), jitter=0.2, slow=(Slow(0, 4.0),))
ROUGH = LinkModel(latency_s=0.03, jitter=0.8, loss=0.2, duplication=0.1)


@pytest.mark.parametrize("link", [LinkModel(jitter=0.5), ROUGH])
def test_the_seed_decides_everything(link):
    first, again, other = (Fleet(plan(), NOISY, link, seed).run(300) for seed in (7, 7, 8))
    assert first == again
    assert first.anchors != other.anchors
    assert first.versions > 10


def test_running_on_is_the_same_as_running_through():
    through = Fleet(plan(), NOISY, LinkModel(jitter=0.5), seed=3).run(120)
    halting = Fleet(plan(), NOISY, LinkModel(jitter=0.5), seed=3)
    halting.run(17.3)
    halting.run(60.0)
    assert replace(halting.run(120 - 17.3 - 60.0), seconds=120.0) == through


def test_beats_without_news_change_nothing_on_an_ordered_link():
    """Which is why large simulations may leave them out."""
    quiet, chatty = (Fleet(plan(), NOISY, LinkModel(), seed=1, keep_alive=keep).run(300) for keep in (False, True))
    assert chatty.control_messages > quiet.control_messages
    assert replace(chatty, control_messages=quiet.control_messages) == quiet


@pytest.mark.timeout(300)
def test_a_thousand_replicas_for_three_minutes():
    link = LinkModel(adapter_bytes=4 * MEGABYTE)
    fleet = Fleet(plan(replicas=1000, samples=10_000_000), Speeds((2.0,), jitter=0.1), link, seed=0)
    report = checked(fleet, 180)
    assert report.versions > 15
    assert report.goodput == pytest.approx(1.0)
    assert min(report.samples) > 80


def test_a_straggler_slows_nobody_else():
    """Each replica trains what its own speed allows; the shares are those of the speeds."""
    alone = checked(Fleet(plan(), Speeds((2.0,)), LinkModel(), seed=0), 600).samples
    with_slow = checked(Fleet(plan(), Speeds((2.0,), slow=(Slow(3, 4.0),)), LinkModel(), seed=0), 600).samples
    assert with_slow[3] == pytest.approx(alone[3] / 4, abs=1)
    others = [count for replica, count in enumerate(with_slow) if replica != 3]
    assert others == pytest.approx([alone[0]] * 7, abs=1)


def test_a_slow_link_gets_smaller_rounds_more_often():
    """Rounds of K of N cost K/N of the bytes each and come N/K times as often: the link is as busy as before."""
    slow = LinkModel(latency_s=0.0001, bandwidth_bytes_per_s=6.25e6, adapter_bytes=MEGABYTE)
    some, everything = (checked(Fleet(plan(k=k), Speeds((0.2,)), slow, seed=0), 400) for k in (2, 8))
    assert some.versions / everything.versions == pytest.approx(4.0, rel=0.1)
    per_round = [report.sent_bytes[0] / report.versions for report in (some, everything)]
    assert per_round[1] / per_round[0] == pytest.approx(4.0, rel=0.1)
    assert some.goodput == everything.goodput == pytest.approx(1.0), "nobody waits for the link"
    assert some.sent_bytes[0] == pytest.approx(everything.sent_bytes[0], rel=0.1)


def test_a_replica_that_turns_slow_begins_to_lag():
    fleet = Fleet(plan(), Speeds((1.0,), slow=(Slow(5, 4.0, from_s=100.0),)), LinkModel(), seed=0)
    before, after = checked(fleet, 100), checked(fleet, 100)
    assert max(before.lag_s) <= 1.0
    # It has done 25 steps meanwhile, the others 100: it stands where they stood 75 s ago.
    assert after.lag_s[5] == pytest.approx(75.0, abs=4.0)
    assert max(lag for replica, lag in enumerate(after.lag_s) if replica != 5) <= 1.0


def test_a_replica_may_become_fast_again():
    slow = (Slow(5, 4.0, from_s=100.0), Slow(5, 1.0, from_s=200.0))
    report = checked(Fleet(plan(), Speeds((1.0,), slow=slow), LinkModel(), seed=0), 300)
    assert report.lag_s[5] == pytest.approx(75.0, abs=4.0), "it keeps its distance"


def test_lost_control_messages_cost_time_and_nothing_else():
    """At 30 % loss the run still ends with every sample trained once, and every replica on the same anchors."""
    work = plan(samples=2000)
    clean = LinkModel(latency_s=0.03)
    rough = replace(clean, loss=0.3, duplication=0.3, jitter=1.0)
    reports = [checked(Fleet(work, Speeds((0.5,), jitter=0.1), link, seed=0), 3600) for link in (clean, rough)]
    assert [report.stage for report in reports] == ["finished", "finished"]
    assert [sum(report.samples) for report in reports] == [2000, 2000]
    assert reports[0].tokens == reports[1].tokens
    assert reports[1].seconds > reports[0].seconds
    assert reports[1].versions < reports[0].versions, "rounds take longer when orders are lost"


@pytest.mark.parametrize("routing", Routing)
def test_every_routing_ends_with_everything_committed(routing):
    report = checked(Fleet(plan(samples=600, k=2, routing=routing), NOISY, ROUGH, seed=1), 3600)
    assert report.stage == "finished"
    assert sum(report.samples) == 600


@pytest.mark.parametrize("link", [LinkModel(), ROUGH])
def test_training_only_the_active_adapters_loses_nothing(link):
    """Rounds ship what the orders before them have named, and the last one what is left of all."""
    fleet = Fleet(plan(samples=600, k=2, select_at=SelectAt.TRAIN), NOISY, link, seed=1)
    report = checked(fleet, 3600)
    assert report.stage == "finished"
    produced = [sum(replica.ledger.produced) for replica in fleet.replicas]
    assert sum(produced) == report.tokens * 2, "every step trains K adapters"
    fired = [event.data["adapters"] for event in fleet.events if event.name == "fired"]
    assert fired[:4] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert fired[-1] == list(range(8))


def test_loss_aware_ships_what_changes_most_more_often():
    """Adapter i of the model changes by i + 1 for each step; taking turns ships all alike."""
    counts = {}
    for routing in (Routing.LOSS_AWARE, Routing.ROUND_ROBIN):
        fleet = Fleet(plan(routing=routing, k=1), Speeds((1.0,), jitter=0.1), LinkModel(), seed=0)
        checked(fleet, 600)
        shipped = [event.data["adapters"] for event in fleet.events if event.name == "fired"]
        counts[routing] = [sum(adapter in adapters for adapters in shipped) for adapter in range(8)]
    assert max(counts[Routing.ROUND_ROBIN]) - min(counts[Routing.ROUND_ROBIN]) <= 1
    assert counts[Routing.LOSS_AWARE][7] > 1.5 * counts[Routing.LOSS_AWARE][0] > 0


def test_convergence_trigger_waits_for_what_the_noise_asks():
    """The modelled gradients have trSigma / |G|^2 = 16 steps: at eps 0.5 a round needs about 32."""
    settings = {"trigger": Trigger.CONVERGENCE, "eps": 0.5, "k": 8}
    fleet = Fleet(plan(**settings), Speeds((1.0,), jitter=0.1), LinkModel(), seed=0)
    report = checked(fleet, 2000)
    fired = [event.data for event in fleet.events if event.name == "fired" and event.data["reason"] == "converged"]
    assert len(fired) > report.versions / 2
    assert sum(event["pooled"] for event in fired) / len(fired) == pytest.approx(32, rel=0.5)


def test_staleness_is_what_trained_on_while_the_round_was_in_flight():
    """Rounds of 4 steps each: one is always in progress when it fires, a second begins during a slow gather."""
    settings = {"k": 8, "trigger": Trigger.COUNT, "count": 4}
    fast, slow = (
        checked(Fleet(plan(**settings), Speeds((0.5,)), LinkModel(bandwidth_bytes_per_s=rate), seed=0), 300)
        for rate in (1e12, 4e6)
    )
    assert fast.versions == slow.versions == 149
    assert fast.staleness == pytest.approx(1 / 4, abs=0.01)
    assert slow.staleness == pytest.approx(2 / 4, abs=0.01)


# --- the checks can fail ----------------------------------------------------------------------------------


def test_check_agreement_sees_a_replica_that_goes_its_own_way():
    fleet = Fleet(plan(), Speeds((1.0,)), LinkModel(), seed=0)
    fleet.run(60)
    fleet.replicas[2].anchor[0] += 1
    assert "replica 2 has left the anchors" in check_agreement(fleet)[0]


def test_check_agreement_sees_a_commit_that_the_hub_has_not_decided():
    fleet = Fleet(plan(), Speeds((1.0,)), LinkModel(latency_s=0.05), seed=0)
    replica = fleet.replicas[0]
    while replica.stage is not Stage.REDUCED:
        fleet.run(0.01)
    fleet._obey(replica, Commit(replica.generation, replica.round))
    assert check_agreement(fleet) == ["replica 0 applied version 1 before the hub"]


def test_whose_anchors_differ_from_most_of_the_others_is_quarantined_by_the_hub():
    fleet = Fleet(plan(), Speeds((1.0,)), LinkModel(), seed=0)
    fleet.run(60)
    for adapter in range(8):
        fleet.replicas[2].anchor[adapter] += 1
    before = fleet.hub.rounds.version
    assert fleet.run(60).failure is None
    assert 2 not in fleet.hub.present
    assert "quarantined" in (fleet.hub.members[2].lost or "")
    assert fleet.hub.rounds.version > before


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda replica: replica.ledger.committed.__setitem__(0, replica.ledger.committed[0] + 1), "hub knows"),
        (lambda replica: replica.live.__setitem__(0, replica.live[0] + 1), "values shipped and buffered"),
        (lambda replica: replica.ledger.collect(5), "trained"),
        (lambda replica: replica.trained.append(replica.trained[0]), "twice"),
    ],
)
def test_check_accounting_sees_what_does_not_add_up(spoil, problem):
    fleet = Fleet(plan(), Speeds((1.0,)), LinkModel(), seed=0)
    fleet.run(60)
    while len({replica.version for replica in fleet.replicas} | {fleet.hub.rounds.version}) > 1:
        fleet.run(0.01)
    assert check_accounting(fleet) == []
    spoil(fleet.replicas[0])
    assert any(problem in found for found in check_accounting(fleet))


def test_check_refusals_sees_what_an_honest_link_would_not_send():
    fleet = Fleet(plan(), Speeds((1.0,)), LinkModel(), seed=0)
    checked(fleet, 10)
    beat = fleet.replicas[0].beat()
    fleet.hub_host.hear(msgspec.structs.replace(beat, samples=beat.samples + 10**6), fleet._uplinks[0].route)
    fleet.hub_host.hear(beat, fleet._uplinks[1].route)
    assert check_refusals(fleet) == ["Beat, range: 1 times", "Beat, identity: 1 times"]


def test_a_hub_that_is_short_of_time_hears_the_newest_beat_and_decides_the_same():
    """What comes during a turn waits; a beat that has been replaced tells nothing that the next one does not."""
    busy = Fleet(plan(samples=2000), Speeds((0.1,), jitter=0.3), LinkModel(), seed=0, turn_s=0.4)
    report = checked(busy, 3600)
    assert report.stage == "finished"
    assert busy.hub_host.replaced_beats > 100
    assert sum(report.samples) == 2000


def test_a_ledger_that_forgets_half_a_shipment_is_found_out(monkeypatch):
    original = ContributionLedger.commit

    def forgetful(self, shipment):
        original(self, replace(shipment, tokens=tuple(tokens // 2 for tokens in shipment.tokens)))

    monkeypatch.setattr(ContributionLedger, "commit", forgetful)
    fleet = Fleet(plan(samples=200), Speeds((1.0,)), LinkModel(), seed=0)
    fleet.run(200)
    assert check_accounting(fleet) != []


# --- the parts --------------------------------------------------------------------------------------------


def test_equal_times_keep_the_order_of_scheduling():
    kernel, seen = Kernel(), []
    for number in range(50):
        kernel.after(1.0, seen.append, number)
    kernel.run(1.0)
    assert seen == list(range(50))
    assert kernel.now_s == 1.0


def test_an_ordered_link_keeps_the_order_of_messages_whatever_their_delays():
    kernel, seen = Kernel(), []
    channel = Channel(kernel, LinkModel(latency_s=0.1, jitter=2.0), 2, random.Random(0))
    for number in range(200):
        channel.send(1, seen.append, number)
    kernel.run(1e6)
    assert seen == list(range(200))


def test_a_lossy_link_loses_repeats_and_reorders():
    kernel, seen = Kernel(), []
    channel = Channel(kernel, LinkModel(latency_s=0.1, jitter=1.0, loss=0.3, duplication=0.2), 2, random.Random(0))
    for number in range(2000):
        channel.send(1, seen.append, number)
    kernel.run(1e6)
    assert len(set(seen)) == pytest.approx(1400, rel=0.05)
    assert len(seen) == pytest.approx(1400 * 1.2, rel=0.05)
    assert seen != sorted(seen)


def test_a_commit_without_a_landing_is_our_own_mistake():
    with pytest.raises(RuntimeError, match="not been reduced"):
        Replica(0, 2, False, random.Random(0))._commit()
