"""A resumed run whose first members all leave before anything is committed: who comes after them begins from the
checkpoint, not from anchors that only a new run has."""

from __future__ import annotations

import random

import pytest

from tests.sim.test_exchange import check_whole_run
from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import ASKER, Send
from tsugi_kpool.core.hub.slot_requests import grant
from tsugi_kpool.core.messages import Generation, Slot, SlotRequest
from tsugi_kpool.sim import FaultyFleet, LinkModel, SimulatedFault, Speeds
from tsugi_kpool.sim.replica import Replica

REPLICAS = 3
FRESH = 12_345
"""Of each adapter, where nobody has said that there is a checkpoint; the simulator's is 0."""


class Resumed(FaultyFleet):
    """All replicas come from other machines, which ask for a place first; newcomers get the donor's anchors."""

    begun: set[tuple[int, ...]]
    """The anchors with which members of first generations have begun."""

    def _place(self, number: int) -> Slot | None:
        effects = grant(self.hub, SlotRequest(f"machine {number}"), self.kernel.now_s)
        self.hub_host.perform(effects)
        said = [each.message for each in effects if isinstance(each, Send) and each.replica == ASKER]
        return next((each for each in said if isinstance(each, Slot)), None)

    def _replica(self, number: int, draw: random.Random) -> Replica:
        replica = super()._replica(number, draw)
        place = self._place(number)
        if place is None or not place.resumed:
            replica.adopt((FRESH,) * self.plan.kpool.n, 0)
        return replica

    def _form(self, replica: Replica, order: Generation) -> None:
        if order.donor not in self._away.dead or replica.number not in order.newcomers:
            super()._form(replica, order)  # else nobody gives it anchors: the hub's next generation has another donor

    def _inherit(self, replica: Replica, order: Generation) -> None:
        if order.version:
            super()._inherit(replica, order)
        else:
            replica.adopt(tuple(self.replicas[order.donor].anchor), 0)
            self.begun.add(tuple(replica.anchor))


def resumed_fleet(seed: int, faults: tuple[SimulatedFault, ...], exchange: str) -> Resumed:
    plan = hub_plan(
        replicas=REPLICAS, joinable=REPLICAS, config="seed: 0", samples=60, silent_timeout_s=4.0, exchange=exchange,
        resumed="a" * 64, kpool=kpool(n=4, k=2, trigger="count", count=4, min_steps=4),
    )  # fmt: skip
    link = LinkModel(adapter_bytes=1_000_000, bandwidth_bytes_per_s=2e7, hub_bytes_per_s=2e7)
    fleet = Resumed(plan, Speeds((1.0,), jitter=0.2), link, seed, faults)
    fleet.begun = set()
    return fleet


@pytest.mark.parametrize("exchange", ["a certificate", ""])
def test_those_who_come_after_all_have_left_before_the_first_commit_begin_from_the_checkpoint(exchange: str) -> None:
    for seed in range(5):
        draw = random.Random(seed)
        first, *others = draw.sample(range(REPLICAS), REPLICAS)
        faults = [SimulatedFault("kill", first, at_s=0.3, back_s=0.1)]  # it is let in again, and in no group yet
        faults += [SimulatedFault("kill", each, draw.uniform(0.6, 0.7), back_s=2.0) for each in others]
        fleet = resumed_fleet(seed, tuple(faults), exchange)
        fleet.run(4000.0)
        check_whole_run(fleet)
        assert fleet.begun == {(0,) * 4}, f"seed {seed}: as the checkpoint has them"
        told = [each.name for each in fleet.events]
        before = told[: told.index("committed")]
        assert (len(fleet.fired), before.count("left")) == (REPLICAS, REPLICAS), f"seed {seed}: not all have left"
