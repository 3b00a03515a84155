"""docs/design.md section 4, random schedules: what the sideband loses, delays, reorders costs time, nothing else."""

from __future__ import annotations

import random

import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.records import RoundCommitted
from tsugi_kpool.core.settings import Routing, SelectAt, Trigger
from tsugi_kpool.sim import (
    Fleet,
    HubCrash,
    LinkModel,
    Slow,
    Speeds,
    check_accounting,
    check_agreement,
    check_refusals,
)
from tsugi_kpool.sim import checks as checks_module
from tsugi_kpool.sim import fleet as fleet_module
from tsugi_kpool.sim import replica as replica_module
from tsugi_kpool.sim.collective import Collective, mean
from tsugi_kpool.sim.trainer import Trainer


def random_fleet(seed: int) -> Fleet:
    """Speeds, delays, losses, selection, trigger and work: all drawn from the seed."""
    draw = random.Random(seed)
    replicas = draw.choice([1, 2, 3, 5])
    settings = {
        "k": draw.choice([1, 2, 4, "auto"]),
        "select_at": draw.choice(list(SelectAt)),
        "routing": draw.choice(list(Routing)),
        "trigger": draw.choice(list(Trigger)),
        "eps": draw.choice(["auto", 0.5, 4.0]),
        "count": draw.randint(2, 6),
        "fire_delay_s": draw.choice([0.0, 0.05, 0.3]),
        "size_work": draw.random() < 0.5,
        "round_timeout_s": 600.0,
    }
    micro_batch = draw.choice([1, 2, 4])
    work = {
        "samples": draw.randint(1, 80) * micro_batch,
        "micro_batch": micro_batch,
        "lease_samples": 2 * micro_batch,
    }
    slow = (Slow(0, draw.choice([1.0, 4.0]), draw.uniform(0, 20)), Slow(replicas - 1, draw.uniform(1, 3)))
    speeds = Speeds(tuple(draw.uniform(0.02, 1.0) for _ in range(replicas)), draw.choice([0.0, 0.3]), slow)
    loss = draw.choice([0.0, 0.1, 0.3])
    link = LinkModel(
        latency_s=draw.choice([0.001, 0.05]),
        bandwidth_bytes_per_s=draw.choice([1e5, 1e7]),
        jitter=draw.choice([0.0, 1.0]),
        loss=loss,
        duplication=loss,
    )
    crashes = (HubCrash(after_record=draw.randint(1, 60), torn=draw.random() < 0.5, down_s=3.0),) * (seed % 4 == 0)
    plan = hub_plan(replicas=replicas, kpool=kpool(**settings), **work)
    return Fleet(plan, speeds, link, seed, crashes=crashes, turn_s=draw.choice([0.0, 0.01, 0.2]))


def recording(monkeypatch) -> dict[int, tuple]:
    """Round -> (adapters, parts of the members) of everything that went over the data plane."""
    shipped, original = {}, Collective.outcome

    def outcome(self, payload_bytes, seconds):
        shipped[self.fire.round] = (self.fire.adapters, [self._parts[replica] for replica in self.fire.members])
        return original(self, payload_bytes, seconds)

    monkeypatch.setattr(Collective, "outcome", outcome)
    return shipped


@pytest.mark.parametrize("seed", range(200))
def test_random_schedules_keep_the_rules(seed, monkeypatch):
    """Rules 1 and 2 at random moments and at the end, and the anchors are those of the shipped parts alone.

    Every committed round is folded again from what its members put in, once each and in order: a message that was
    lost, late, repeated or overtaken can have left no other trace in the result. In every fourth run the hub dies.
    """
    shipped = recording(monkeypatch)
    fleet = random_fleet(seed)
    draw = random.Random(f"{seed}:moments")
    for _ in range(4):
        fleet.run(draw.uniform(0.1, 15))
        assert check_agreement(fleet) == check_accounting(fleet) == []
    report = fleet.run(4000)
    assert (report.stage, report.failure) == ("finished", None)
    assert check_agreement(fleet) == check_accounting(fleet) == check_refusals(fleet) == []
    assert sum(report.samples) == fleet.plan.samples, "every sample once"
    anchors = [0] * fleet.plan.kpool.n
    entries = parse(fleet.hub_host.journal).entries
    committed = [entry.record.round for entry in entries if isinstance(entry.record, RoundCommitted)]
    for version, round in enumerate(committed, 1):
        adapters, parts = shipped[round]
        for place, adapter in enumerate(adapters):
            anchors[adapter] += mean(parts, place)
        assert tuple(anchors) == fleet.history[version]
    for replica in fleet.replicas:
        assert replica.live == anchors, "all stand on the result"
        assert replica.ledger.committed == replica.ledger.produced


STEPS = 3


class InStep(Trainer):
    """Takes as many steps for every version as the trigger asks for, so that each round holds the same ones."""

    _waiting = False

    def go_on(self) -> None:
        if self._replica.progress.steps < STEPS * (self._replica.version + 1):
            super().go_on()
        elif not self._waiting:
            self._waiting = True
            self._kernel.after(0.01, self._look)

    def _look(self) -> None:
        self._waiting = False
        self.go_on()


@pytest.mark.parametrize(
    ("select_at", "k"), [(SelectAt.SHIP, 4), (SelectAt.TRAIN, 1), (SelectAt.TRAIN, 2)], ids=["all", "one", "two"]
)
@pytest.mark.parametrize("routing", Routing)
def test_the_same_rounds_give_the_same_anchors_over_any_channel(select_at, k, routing, monkeypatch):
    """Where the schedule of rounds is forced, every version is the same to the last bit, in whatever time."""
    for module in (replica_module, checks_module):
        monkeypatch.setattr(module, "tokens_of", lambda start, stop: stop - start)  # whoever gets which sample
    monkeypatch.setattr(fleet_module, "Trainer", InStep)
    trigger = {"trigger": Trigger.COUNT, "count": STEPS, "min_steps": STEPS, "max_steps": STEPS}
    plan = hub_plan(replicas=3, samples=100_000, kpool=kpool(k=k, select_at=select_at, routing=routing, **trigger))
    histories, seconds = [], []
    for loss, jitter in [(0.0, 0.0), (0.0, 1.0), (0.1, 0.5), (0.3, 1.0)]:
        link = LinkModel(latency_s=0.05, jitter=jitter, loss=loss, duplication=loss)
        fleet = Fleet(plan, Speeds((0.1, 0.3, 0.2)), link, seed=5)
        while fleet.hub.rounds.version < 12:
            fleet.run(1.0)
            assert fleet.kernel.now_s < 600
        assert check_agreement(fleet) == check_accounting(fleet) == []
        histories.append(fleet.history[:12])
        seconds.append(fleet.kernel.now_s)
    assert all(history == histories[0] for history in histories)
    assert len(set(histories[0])) == 12
    assert seconds[3] > seconds[0]
