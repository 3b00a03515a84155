"""Fault injection: replicas of a fleet die, freeze and are cut off, by the rules of aggregator and launcher."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tsugi_kpool.core.effects import FleetStage, HubPlan
from tsugi_kpool.core.hub.quarantine import STRIKES
from tsugi_kpool.core.messages import Abort, Broken, Discarded, Fire, Generation, Message, Refill, Refused
from tsugi_kpool.core.replica.stage import Stage, unaware

from .collective import Collective
from .fleet import Fleet
from .replica import Replica, SimulatedResult
from .scenario import HubCrash, LinkModel, Speeds

NOTICED_S = 0.02
"""Time after which the death of a peer breaks its connections."""
FORM_S = 20.0
"""Timeout of forming a group, as in engine.collective."""


@dataclass(frozen=True)
class SimulatedFault:
    """A fault of one replica.

    `kind`: kill, freeze (its process), cut (its network), corrupt (a bit of its anchors), spoil (its buffer is not
    finite, again and again), part (it leaves on request; no fault).
    """

    kind: str
    replica: int
    at_s: float
    for_s: float = 0.0
    """Seconds for which it is frozen or cut off."""
    told_s: float | None = 0.4
    """Seconds after which the launcher tells the hub of a kill. None: nobody tells, and the silence must show it."""
    back_s: float | None = None
    """Seconds after a death until a new process is started; None: never."""


@dataclass
class Past:
    """An incarnation that has ended."""

    replica: Replica
    fenced: bool = False
    """Whether it was still running when the fleet went on without it."""


@dataclass
class _Away:
    frozen: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)

    @property
    def all(self) -> set[int]:
        return self.frozen | self.cut | self.dead


class FaultyFleet(Fleet):
    """A fleet and its faults. `fired` lists the faults that hit a replica at work.

    Without `keep_alive` there are no heartbeats, so no plan may have a `silent_timeout_s`, and faults must be kills
    that the launcher reports.
    """

    def __init__(
        self,
        plan: HubPlan,
        speeds: Speeds,
        link: LinkModel,
        seed: int,
        faults: tuple[SimulatedFault, ...],
        crashes: tuple[HubCrash, ...] = (),
        keep_alive: bool = True,
        turn_s: float = 0.0,
    ) -> None:
        self.fired: list[SimulatedFault] = []
        self.past: list[Past] = []
        self.corrupted: set[str] = set()
        """Incarnations whose anchors were corrupted."""
        self._speeds, self._away = speeds, _Away()
        self._coin = random.Random(f"{seed}:faults")
        self._incarnations = 0
        self._members: tuple[int, ...] = ()
        self._member_set: frozenset[int] = frozenset()
        super().__init__(plan, speeds, link, seed, keep_alive, crashes, turn_s=turn_s)
        for fault in faults:
            self.kernel.at(fault.at_s, self._strike, fault)

    @property
    def over(self) -> bool:
        """Whether every living replica has finished, or the run has failed."""
        there = self.there
        return self.hub.stage is FleetStage.FAILED or (bool(there) and all(replica.finished for replica in there))

    @property
    def there(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.number not in self._away.dead]

    # --- faults -------------------------------------------------------------------------------------------

    def _strike(self, fault: SimulatedFault) -> None:
        number = fault.replica
        if not self.replicas[number].generation:
            self.kernel.after(0.5, self._strike, fault)  # it is not at work yet
            return
        if number in self._away.all or self.replicas[number].finished:
            return
        self.fired.append(fault)
        if fault.kind == "part":
            self.hub_host.perform(self.hub.let_go(number))
            return
        if fault.kind in ("corrupt", "spoil"):
            self._spoil(fault)
            return
        if fault.kind == "kill":
            self._die(number, fault.back_s)
            if fault.told_s is not None:
                self.kernel.after(fault.told_s, self._tell, self.replicas[number].incarnation, number)
            return
        uplink, trainer = self._uplinks[number], self._trainers[number]
        if fault.kind == "freeze":
            self._away.frozen.add(number)
            uplink.frozen = trainer.frozen = True
        else:
            self._away.cut.add(number)
            uplink.cut = True
            self._break(number)
        self.kernel.after(fault.for_s, self._heal, self.replicas[number])

    def _spoil(self, fault: SimulatedFault) -> None:
        replica = self.replicas[fault.replica]
        if fault.kind == "corrupt":
            self.corrupted.add(replica.incarnation)
            replica.corrupt()
            return
        for _ in range(STRIKES):
            self._uplinks[replica.number].report(Discarded(0, 0, "", "what it has buffered is no numbers", 0))

    def _compare(self, replica: Replica) -> None:
        if replica.incarnation not in self.corrupted:
            super()._compare(replica)

    def _tell(self, incarnation: str, number: int) -> None:
        member = self.hub.members.get(number)
        if member is not None and member.hello.incarnation == incarnation:
            self.hub_host.leave(number, "killed")

    def _heal(self, replica: Replica) -> None:
        if self.replicas[replica.number] is not replica or replica.number in self._away.dead:
            return
        self._away.frozen.discard(replica.number)
        self._away.cut.discard(replica.number)
        uplink, trainer = self._uplinks[replica.number], self._trainers[replica.number]
        trainer.frozen = False
        uplink.thaw()
        trainer.go_on()

    def _die(self, number: int, back_s: float | None, fenced: bool = False) -> None:
        self._uplinks[number].closed = self._trainers[number].closed = self.replicas[number].closed = True
        self._away.dead.add(number)
        self._away.frozen.discard(number)
        self._away.cut.discard(number)
        self.past.append(Past(self.replicas[number], fenced))
        self._break(number)
        self.kernel.stopped = self.over
        if back_s is not None:
            self.kernel.after(back_s, self._come_back, number)

    def _come_back(self, number: int) -> None:
        """Start a new process in its place, as soon as the hub takes the old one for dead."""
        member = self.hub.members.get(number)
        if self.hub.stage is not FleetStage.TRAINING or self.hub.interrupted:
            return
        if member is not None and member.here:
            self.kernel.after(0.5, self._come_back, number)
            return
        self._incarnations += 1
        self._add(number, self._speeds)
        for each in (self.replicas, self._trainers, self._uplinks):
            each[number] = each.pop()  # type: ignore[assignment]
        self._away.dead.discard(number)
        self._uplinks[number].join(self._hello(self._uplinks[number].incarnation))

    def _replica(self, number: int, draw: random.Random) -> Replica:
        replica = super()._replica(number, draw)
        if self._incarnations:
            replica.incarnation += f"-{self._incarnations}"
        return replica

    # --- what follows from them ---------------------------------------------------------------------------

    def _break(self, number: int) -> None:
        """Let the others' collectives with this replica fail. An all-gather is not atomic: one that is about to end
        may succeed. At an exchange only its own part is missing."""
        if self.exchange is not None:
            if number in self._away.dead:
                self.exchange.lose(number)
            return
        for replica in self.replicas:
            if replica.stage is Stage.IN_FLIGHT and self._meets(replica, number):
                self.kernel.after(NOTICED_S, self._broke, replica, replica.generation, replica.round)

    def _reachable(self, replica: Replica) -> bool:
        away = self._away.frozen | self._away.cut
        return not replica.closed and (replica.number not in away or self.replicas[replica.number] is not replica)

    def _meets(self, replica: Replica, number: int) -> bool:
        fire = self._collective.fire if self._collective is not None else None
        return fire is not None and replica.round == fire.round and number in self._set_of(fire.members)

    def _lacks(self, members: tuple[int, ...]) -> bool:
        """Return whether one of these members cannot be reached by the others, who need it. Every member asks, so the
        set is made once."""
        if self.exchange is not None:
            return False
        return not self._set_of(members).isdisjoint(self._away.dead | self._away.cut)

    def _set_of(self, members: tuple[int, ...]) -> frozenset[int]:
        if members is not self._members:
            self._members, self._member_set = members, frozenset(members)
        return self._member_set

    def _broke(self, replica: Replica, generation: int, round_: int) -> None:
        uplink = self._uplinks[replica.number]
        if self.replicas[replica.number] is not replica or replica.number in self._away.dead | self._away.frozen:
            return
        if replica.tried != generation or (
            round_ and (replica.round != round_ or replica.stage is not Stage.IN_FLIGHT)
        ):
            return
        replica.let_go()
        replica.broken = Broken(0, 0, "", generation, round_, "connection closed by peer")
        uplink.report(replica.broken)

    def _obey(self, replica: Replica, order: Message) -> None:
        number = replica.number
        if isinstance(order, Refused):
            if order.fenced:
                self._die(number, None if order.quarantined else 1.0, fenced=True)
        elif isinstance(order, Refill):
            if not replica.draining and not replica.finished:
                replica.drained = False
                self._uplinks[number].ask_again()
                self._trainers[number].go_on()
        elif replica.broken is not None and unaware(replica.broken, order):
            self._uplinks[number].report(replica.broken)
        elif isinstance(order, Abort) and replica.stage is Stage.IN_FLIGHT and order.round == replica.round:
            replica.let_go()
        elif isinstance(order, Generation) and order.generation > replica.tried:
            self._form(replica, order)
        else:
            super()._obey(replica, order)

    def _form(self, replica: Replica, order: Generation) -> None:
        newcomer = replica.number in order.newcomers and not replica.generation
        if newcomer and order.version >= len(self.history):
            self.kernel.after(0.05, self._obey, replica, order)  # the donor has not committed that yet
            return
        if newcomer:
            self._inherit(replica, order)
        if not self._lacks(order.members):
            super()._obey(replica, order)
            return
        before, version = replica.generation, replica.version
        replica.obey(order)
        replica.generation = before
        replica.let_go()
        if replica.version != version:
            self._compare(replica)
        self.kernel.after(NOTICED_S, self._broke, replica, order.generation, 0)

    def _inherit(self, replica: Replica, order: Generation) -> None:
        """A newcomer gets the donor's anchors."""
        replica.adopt(self.history[order.version], order.version)

    def _join(self, replica: Replica, fire: Fire) -> None:
        if self._lacks(fire.members):
            collective = self._collective
            if collective is None or collective.fire.round != fire.round:
                self._collective = Collective(fire, self.kernel.now_s)
            replica.contribute(fire)
            self.kernel.after(NOTICED_S, self._broke, replica, fire.generation, fire.round)
            return
        super()._join(replica, fire)

    def _reduce(self, fire: Fire, outcome: SimulatedResult, joined_s: dict[int, float]) -> None:
        """Reduce the round on the members that are still in it; if one has just gone, only on some of them."""
        lost = self._lacks(fire.members)
        able = [
            number
            for number in fire.members
            if number not in self._away.all
            and (self.replicas[number].generation, self.replicas[number].round) == (fire.generation, fire.round)
            and self.replicas[number].stage is Stage.IN_FLIGHT
            and not (lost and self._coin.random() < 0.5)
        ]
        self._reduce_on(able, fire, outcome, joined_s)
