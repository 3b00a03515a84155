"""What the hub knows: the state that its parts (joining, orders, firing, endings) read and change."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from tsugi_kpool.core.effects import FleetStage, HubPlan
from tsugi_kpool.core.messages import Evaluated, Generation, Reduced
from tsugi_kpool.core.records import EvaluationGiven, Skipped
from tsugi_kpool.core.rounds.sizing import WorkSizes
from tsugi_kpool.core.slow.stragglers import Stragglers

from .disputes import Disputes
from .figures import FiguresBook
from .frontier import Frontier
from .group_key import GroupKeys
from .lease_book import LeaseBook
from .members import Member
from .refusals import Refusals
from .round_book import RoundBook
from .slots import Slots
from .tally import Tally

Asked = dict[tuple[int, bool], tuple[tuple[int, ...], int]]
"""(version, final) of checkpoints -> who writes them, and which of them the anchors."""


@dataclass
class Evaluations:
    """What has been evaluated, and what is."""

    known: dict[tuple[str, int], Evaluated] = field(default_factory=dict)
    """By stage and replica."""
    given: EvaluationGiven | None = None
    """What a replica evaluates while it trains."""
    at: float = 0.0
    """Where the run stood, in the unit of `evaluate.every`, at the newest version that was evaluated."""
    stopped_early: bool = False


@dataclass
class Contact:
    """Who is not reached, by whom."""

    unformed: str = ""
    """Why no group has formed; empty as soon as one has."""
    unreached: dict[tuple[int, int], str] = field(default_factory=dict)
    """(member, another one that it does not reach) -> that in words; until a round is committed."""
    deaf: bool = False
    """Nobody at all has been heard lately, so nobody is judged."""
    unheard: str = ""
    """That in words, once it has lasted."""


@dataclass
class Departed:
    """Who has left this generation while its round in flight went on."""

    members: dict[int, Member] = field(default_factory=dict)
    """Until that round is decided: what they held is not handed out again before."""
    due: bool = False
    """Whether there was anybody: the next generation opens as soon as no round is in flight."""


@dataclass
class Opening:
    """The present generation's."""

    at_s: float
    order: Generation | None = None
    """As it was last said."""


class HubState:
    """Plain facts; every decision over them is a function of a sibling module."""

    def __init__(self, plan: HubPlan, now_s: float) -> None:
        self.plan = plan
        self.started_s = now_s
        self.stage = FleetStage.GATHERING
        self.failure: str | None = None
        self.failed_replica: int | None = None
        self.quorum_failed = False
        self.generation = 0
        self.members: dict[int, Member] = {}
        """By number, those that have left, too."""
        self.present: tuple[int, ...] = ()
        """The members of the present generation."""
        self.waiting: set[int] = set()
        """Replicas that have been let in and are in no generation yet."""
        self.newcomers: tuple[int, ...] = ()
        self.donor, self.opening = 0, Opening(now_s)
        self.fenced: dict[str, str] = {}
        """Incarnations that have left in the middle of the run, and why."""
        self.skipped: dict[tuple[str, int], Skipped] = {}  # (incarnation, seq) -> what was left out
        self.strikes: Counter[int] = Counter()
        """How often a member has thrown away what it had buffered since it last shipped something sound."""
        self.quarantined: set[int] = set()
        """Replicas that have left because their numbers cannot be, and have not come back."""
        self.past: list[Member] = []
        """Members in whose place another process has come."""
        self.last_left = ""
        self.parting: set[int] = set()
        """Members that whoever brought them wants back: they leave when what they have is committed."""
        self.broken: dict[int, str] = {}
        """Members whose collective in this generation has failed, and how."""
        self.broken_s, self.contact = 0.0, Contact()  # since when
        self.retries = 0
        """Generations in a row that were opened because a collective broke with everybody there."""
        self.paused_s: float | None = None
        """Since when there are too few replicas."""
        self.judged_s = self.looked_s = self.grace_until_s = now_s
        self.all_advanced_s = -math.inf
        """Since then at least every present member has ended a step, or taken up training."""
        self.rounds, self.departed = RoundBook(plan.kpool, bool(plan.exchange)), Departed()
        self.frontier = Frontier()
        self.tally = Tally(plan.kpool.n)
        self.stragglers = Stragglers()
        self.leases = LeaseBook(plan.samples, plan.lease_samples, plan.micro_batch, plan.replicas, plan.done)
        self.sizes = WorkSizes(plan.micro_batch)
        self.reductions: list[tuple[float, Reduced]] = []
        """Taken in when, and not acknowledged yet."""
        self.ready_s: float | None = None
        """Since when the next round could have fired; None while it could not."""
        self.delayed_for: tuple[int, ...] = ()
        """The replicas for which it is delayed."""
        self.refusals, self.figures, self.group_keys = Refusals(), FiguresBook(), GroupKeys(plan.run)
        self.slots, self.disputes = Slots.of_plan(plan), Disputes()
        self.interrupted = False
        self.asked: Asked = {}
        self.save_wanted, self.passed_over = False, frozenset[int]()
        """The next round that is committed becomes a checkpoint; these write no anchors while others are there."""
        self.resumed = False
        """Whether this hub has gone on from another one's journal."""
        self.evaluation = Evaluations()
        self.store: dict[str, bytes] = {}  # rendezvous keys of the generations' groups

    @property
    def most(self) -> int:
        """How many replicas there may be at present: the run begins with the planned ones, then others may come."""
        return self.plan.replicas + (self.plan.spare if self.stage is not FleetStage.GATHERING else 0)

    @property
    def waits_for_all(self) -> bool:
        """Whether nobody could take the place of a replica that may not join: then the run cannot begin."""
        return self.stage is FleetStage.GATHERING and not self.plan.supervised and not self.slots.replicas

    @property
    def training(self) -> bool:
        """Whether rounds may fire."""
        return self.stage is FleetStage.TRAINING or self.stage is FleetStage.DRAINING

    @property
    def evaluations(self) -> dict[tuple[str, int], Evaluated]:
        """What has been evaluated, by stage and replica."""
        return self.evaluation.known

    @property
    def stopped_early(self) -> bool:
        """Whether the run ends because its evaluations have found no lower loss."""
        return self.evaluation.stopped_early

    @property
    def lacks_quorum(self) -> bool:
        """Whether too few replicas are left to go on: from when one leaves, not from the next tick on."""
        if self.stage is not FleetStage.TRAINING or self.interrupted:
            return False
        return len(self.present) < self.plan.min_replicas

    @property
    def held_until_s(self) -> float | None:
        """When a round that is delayed fires at the latest: the hub's owner calls `tick` then. None when none is."""
        return None if self.ready_s is None else self.ready_s + self.plan.kpool.fire_delay_s

    @property
    def ended(self) -> bool:
        """True when every replica has said good-bye after the end."""
        return self.over and not any(m.here for m in self.members.values())

    @property
    def complete(self) -> bool:
        """Whether it ended with everything committed and nothing of the data left, or stopped early by itself."""
        if self.stage is not FleetStage.FINISHED:
            return False
        return self.stopped_early or (not self.interrupted and not self.leases.left)

    @property
    def over(self) -> bool:
        """Whether the run has come to its end, other than by a failure."""
        return self.stage is FleetStage.FINISHED or self.stage is FleetStage.INTERRUPTED

    def live(self) -> list[Member]:
        """The members that have not left."""
        return [member for member in self.members.values() if member.lost is None]

    def step_s(self) -> float:
        """The median of the members' newest steps, in seconds; 0 before the first, and where nobody asks."""
        if self.rounds.selection.auto is None:
            return 0.0
        steps = [each.beat.step_s for each in self.live() if each.beat and each.beat.steps]
        return median(steps) if steps else 0.0

    def pooled(self, adapters: tuple[int, ...]) -> int:
        """Steps that all members have buffered for these adapters (the least of them)."""
        return min(map(self.tally.pooled.__getitem__, adapters))


def names(replicas: list[int]) -> str:
    """Replicas' numbers as a failure's text has them."""
    return ", ".join(str(replica) for replica in replicas)
