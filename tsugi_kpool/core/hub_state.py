"""What the hub knows: the state that its parts (joining, orders, firing, endings) read and change."""

from __future__ import annotations

from .effects import FleetStage, HubPlan
from .fleet import Frontier, Member, Tally
from .ledger import LeaseBook
from .messages import Evaluated
from .phase import PhaseBook
from .refusals import Refusals
from .round_book import RoundBook


class HubState:
    """Plain facts; every decision over them is a function of a sibling module."""

    def __init__(self, plan: HubPlan, now_s: float) -> None:
        self.plan = plan
        self.started_s = now_s
        self.stage = FleetStage.GATHERING
        self.failure: str | None = None
        self.failed_replica: int | None = None
        self.epoch = 0
        self.members: dict[int, Member] = {}
        self.rounds = RoundBook(plan.kpool, plan.seed)
        self.frontier = Frontier()
        self.tally = Tally(plan.kpool.n)
        self.phase = PhaseBook()
        self.leases = LeaseBook(plan.samples, plan.lease_samples, plan.micro_batch, plan.replicas)
        self.refusals = Refusals()
        self.interrupted = False
        self.resumed = False
        """Whether this hub has gone on from another one's journal."""
        self.evaluations: dict[tuple[str, int], Evaluated] = {}
        self.store: dict[str, bytes] = {}
        """Rendezvous keys of the epochs' groups."""

    @property
    def waits_for_all(self) -> bool:
        """Whether nobody could take the place of a replica that may not join: then the run cannot begin."""
        return self.stage is FleetStage.GATHERING and not self.plan.supervised and not self.plan.joinable

    @property
    def training(self) -> bool:
        """Whether rounds may fire."""
        return self.stage in (FleetStage.TRAINING, FleetStage.DRAINING)

    @property
    def ended(self) -> bool:
        """True when every replica has said good-bye after the end."""
        return self.stage is FleetStage.FINISHED and all(m.gone for m in self.members.values())

    def pooled(self, adapters: tuple[int, ...]) -> int:
        """Micro-steps that all members have buffered for these adapters (the least of them)."""
        return min(self.tally.pooled[adapter] for adapter in adapters)


def names(replicas: list[int]) -> str:
    """Replicas' numbers as a failure's text has them."""
    return ", ".join(str(replica) for replica in replicas)
