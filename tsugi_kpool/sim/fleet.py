"""A whole fleet in virtual time: the real hub, simulated replicas, one channel, one data plane.

All random numbers come from the seed, and each part has its own generator: the same seed gives the same run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial

from tsugi_kpool.core.effects import FleetStage, HubPlan
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.goodput import goodput
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.messages import (
    Broken,
    Bye,
    Commit,
    Compare,
    Drain,
    Fire,
    Generation,
    Hello,
    Message,
    Reduced,
)
from tsugi_kpool.core.replica.linger import Linger
from tsugi_kpool.core.replica.orders import Limits
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.rounds.closing import quorum_of
from tsugi_kpool.core.rounds.reduction import sent_payloads
from tsugi_kpool.core.rounds.told import told_of
from tsugi_kpool.core.settings import Trigger

from .collective import Collective, outcome_of
from .exchange import Shared, SimulatedExchange
from .hub_host import HubHost
from .kernel import Channel, Kernel
from .replica import Contribution, Replica, SimulatedResult
from .report import SimulationReport
from .scenario import HubCrash, LinkModel, Speeds, spread
from .telling import Telling, key_of
from .trainer import Trainer
from .uplink import Uplink, Wire

TICKETS = Tickets()
"""The hub's and the exchange's, which have no secret here."""


class Fleet:
    """Replicas and their hub. `run` may be called again to go on.

    Args:
        plan: The run's plan, as the real hub gets it.
        speeds: How fast the replicas are.
        link: The links between them.
        seed: Seed of all random numbers.
        keep_alive: Send beats that have no news, vitals, and the hub's answers to both, too. They change nothing on
            an ordered link, where every piece of news has been told already (a test says so), and are most of an
            hour's events; a link that loses messages, and a hub that dies, always have them.
        crashes: When the hub dies.
        watched: Whether the hub draws conclusions about who is slow and why. Nothing that the fleet does depends on
            them (a test says so), and they are a third of the work.
        turn_s: How long a turn of the hub takes; what comes meanwhile waits in its queue.
    """

    def __init__(
        self,
        plan: HubPlan,
        speeds: Speeds,
        link: LinkModel,
        seed: int,
        keep_alive: bool = False,
        crashes: tuple[HubCrash, ...] = (),
        watched: bool = True,
        turn_s: float = 0.0,
    ) -> None:
        self.plan, self.link, self.seed = plan, link, seed
        self.kernel = Kernel()
        self.channel = Channel(self.kernel, link, 2 * plan.replicas, random.Random(f"{seed}:channel"))
        limits = Limits(plan.replicas + plan.spare, plan.kpool.n, plan.samples, plan.micro_batch)
        self._wire = Wire(self.kernel, self.channel, keep_alive or not link.ordered or bool(crashes), limits)
        self.hub_host = HubHost(self.kernel, plan, self._wire.send, crashes, watched, self._wire.keep_alive, turn_s)
        self.history: list[tuple[int, ...]] = [(0,) * plan.kpool.n]
        """Anchors of each version, from the first replica that committed it."""
        self.differences: list[str] = []
        """Descriptions of commits that differed."""
        self._draw = random.Random(f"{seed}:collective")
        self._collective: Collective | None = None
        self.telling = Telling(seed)
        self.exchange = (
            SimulatedExchange(self.kernel, link, quorum_of(plan.kpool), self._reachable, self._shared, self._combined)
            if plan.exchange
            else None
        )
        if self.exchange is not None:
            self.exchange.refused = self._refused
        self.replicas: list[Replica] = []
        self._trainers: list[Trainer] = []
        self._uplinks: list[Uplink] = []
        for number in range(plan.replicas):
            self._add(number, speeds)
        for uplink in self._uplinks:
            uplink.join(self._hello(uplink.incarnation))

    @property
    def hub(self) -> Hub:
        """The present hub or, while there is none, the last one."""
        return self.hub_host.hub

    @property
    def events(self) -> list[Event]:
        """The hubs' events, without those of single steps."""
        return self.hub_host.events

    @property
    def there(self) -> list[Replica]:
        """The replicas whose processes have not died."""
        return self.replicas

    @property
    def replayed(self) -> bool:
        """Whether any replica has left in the middle of the run."""
        return bool(self.hub.fenced)

    def run(self, seconds: float) -> SimulationReport:
        """Let virtual time pass until the run has ended or failed. Returns the report."""
        self.advance(seconds)
        return draw_up(self)

    def advance(self, seconds: float) -> None:
        """Let virtual time pass without a report, which walks all replicas: for large fleets."""
        self.kernel.run(self.kernel.now_s + seconds)

    def interrupt(self) -> None:
        """Interrupt the run, as its user would."""
        self.hub_host.perform(self.hub.interrupt())

    @property
    def too_large(self) -> tuple[str, ...]:
        """Kinds of messages of which one did not fit into a frame: a real fleet of this size stops there."""
        return tuple(sorted(self._wire.too_large))

    @property
    def over(self) -> bool:
        """Whether every replica has finished, or the run has failed."""
        return self.hub.stage is FleetStage.FAILED or all(replica.finished for replica in self.replicas)

    def _add(self, number: int, speeds: Speeds) -> None:
        draw = random.Random(f"{self.seed}:replica:{number}")
        replica = self._replica(number, draw)
        if self.plan.kpool.linger:
            replica.linger = Linger(self.plan.kpool)
        trainer = Trainer(self.kernel, replica, speeds, self.plan.micro_batch, draw)
        uplink = Uplink(
            self._wire,
            (number, replica.incarnation),
            replica.beat,
            self.hub_host.hear,
            partial(self._hear, replica),
            trainer.go_on,
        )
        trainer.connect(uplink)
        self.replicas.append(replica)
        self._trainers.append(trainer)
        self._uplinks.append(uplink)

    def _hello(self, incarnation: str) -> Hello:
        return Hello(0, 0, "", "simulated", 0, self.plan.config_hash, "simulated", key=key_of(incarnation))

    def _replica(self, number: int, draw: random.Random) -> Replica:
        """Return a new replica. Benchmarks override this with one that trains a model."""
        kpool = self.plan.kpool
        measure = kpool.trigger is Trigger.CONVERGENCE and not isinstance(kpool.eps, str)
        return Replica(number, kpool.n, measure, draw)

    # --- the replicas -------------------------------------------------------------------------------------

    def _hear(self, replica: Replica, order: Message) -> None:
        """An order has arrived. At an exchange it waits while the replica's thread is in a round, as the engine's do,
        unless it ends that round."""
        if self.exchange is None or not isinstance(order, Fire | Commit | Generation):
            self._obey(replica, order)
            return
        if isinstance(order, Commit):
            replica.told = max(replica.told, order.round)
        if replica.stage is not Stage.IN_FLIGHT:
            self._obey(replica, order)
        elif isinstance(order, Generation) and order.generation > replica.tried and order.version == replica.version:
            self._obey(replica, order)  # the round that it is in will not be committed
        else:
            replica.held.append(order)

    def _obey(self, replica: Replica, order: Message) -> None:
        trainer, uplink = self._trainers[replica.number], self._uplinks[replica.number]
        if isinstance(order, Drain):
            replica.draining = True
            trainer.go_on()
            return
        if isinstance(order, Compare):
            self._show(replica, order)
            return
        version, finished = replica.version, replica.finished
        action = replica.obey(order)
        if replica.version != version:
            self._compare(replica)
            uplink.nudge()
            if not replica.overlap or replica.linger is not None:
                trainer.go_on()
        if replica.finished and not finished:
            uplink.report(Bye(0, 0, ""))
            self.kernel.stopped = self.over
        if action.forms:
            uplink.nudge()
            trainer.go_on()
        if action.starts and isinstance(order, Fire):
            self._join(replica, order)

    def _show(self, replica: Replica, order: Compare) -> None:
        """Say what each member has told this one in the round in flight."""
        if (order.generation, order.round, replica.stage) == (replica.generation, replica.round, Stage.REDUCED):
            keys = {each.number: key_of(each.incarnation) for each in self.replicas}
            if shown := self.telling.compared(order, replica.number, keys):
                self._uplinks[replica.number].report(shown)

    def _compare(self, replica: Replica) -> None:
        """Compare a replica's commit with the hub's, and its anchors with those of the first replica that
        committed."""
        if replica.version > self.hub.rounds.version:
            self.differences.append(f"replica {replica.number} applied version {replica.version} before the hub")
        anchors = tuple(replica.anchor)
        if replica.version == len(self.history):
            self.history.append(anchors)
        elif anchors != self.history[replica.version]:
            self.differences.append(f"replica {replica.number} differs at version {replica.version}")

    # --- the data plane -----------------------------------------------------------------------------------

    def _reachable(self, replica: Replica) -> bool:
        """Return whether a replica can send and receive at present."""
        return not replica.closed

    def _combined(self, fire: Fire, parts: Mapping[int, Contribution], seconds: float) -> SimulatedResult:
        """Return what a round at the exchange amounts to, of the parts of these members, in their order."""
        return outcome_of(fire, list(parts.values()), self.link.adapter_bytes * len(fire.adapters), seconds)

    def _shared(self, replica: Replica, shared: Shared, joined_s: float) -> None:
        """A member has got an exchange's result."""
        number, fire, outcome = replica.number, shared.fire, shared.result
        digest = replica.on_reduced(outcome, outcome.payload_bytes, number in shared.counted)
        says = number in shared.reporters
        reduced = Reduced(
            0, 0, "", fire.generation, fire.round, digest, outcome.seconds, outcome.payload_bytes,
            outcome.weights if says else (), *outcome.noise, outcome.adapters if says else (),
            self.kernel.now_s - joined_s, replica.shipped_durable,
            counted=shared.counted if says else (), durables=shared.durables if says else (),
            told=(told := told_of(shared.counted, outcome.weights, shared.durables)),
            receipt=TICKETS.of_result(fire.generation, fire.round, told) if says and self._written(shared) else "",
        )  # fmt: skip
        self._uplinks[number].report(reduced)
        self._go_through(replica)

    def _written(self, shared: Shared) -> bool:
        return self.exchange is not None and self.exchange.written(shared)

    def _refused(self, replica: Replica, fire: Fire) -> None:
        """The exchange has lost what this round amounts to."""
        replica.let_go()
        replica.broken = Broken(0, 0, "", fire.generation, fire.round, "its result is lost")
        self._uplinks[replica.number].report(replica.broken)
        self._go_through(replica)

    def _go_through(self, replica: Replica) -> None:
        """Obey what has come meanwhile, until another round begins."""
        while replica.held and replica.stage is not Stage.IN_FLIGHT and not replica.closed:
            self._obey(replica, replica.held.pop(0))

    def _join(self, replica: Replica, fire: Fire) -> None:
        if self.exchange is not None and len(fire.members) > 1:
            self.exchange.give(replica, fire, replica.contribute(fire), fetches=fire.round <= replica.told)
            return
        collective = self._collective
        if collective is None or collective.fire.round != fire.round:
            collective = self._collective = Collective(fire, self.kernel.now_s)
        if not collective.join(replica.number, replica.contribute(fire), self.kernel.now_s):
            return
        payload_bytes = self.link.adapter_bytes * len(fire.adapters)
        kpool, members = self.plan.kpool, len(fire.members)
        seconds = self.link.reduce_s(kpool, members, payload_bytes) * spread(self._draw, self.link.jitter)
        seconds += self.link.combine_s(kpool, members, payload_bytes)
        waited_s = self.kernel.now_s - collective.began_s
        outcome = collective.outcome(payload_bytes, waited_s + seconds)
        self.kernel.after(seconds, self._reduce, fire, outcome, collective.joined_s)

    def _reduce(self, fire: Fire, outcome: SimulatedResult, joined_s: dict[int, float]) -> None:
        self._reduce_on(fire.members, fire, outcome, joined_s)

    def _reduce_on(
        self, members: Sequence[int], fire: Fire, outcome: SimulatedResult, joined_s: dict[int, float]
    ) -> None:
        now_s = self.kernel.now_s
        self.telling.begin(fire, now_s)
        sent_bytes = round(outcome.payload_bytes * sent_payloads(self.plan.kpool, len(fire.members)))
        for number in members:
            digest = self.telling.vote(number, self.replicas[number].on_reduced(outcome, sent_bytes))
            durable = self.replicas[number].shipped_durable
            first = number == fire.members[0]  # which says for all what all would say alike
            reduced = Reduced(
                0, 0, "", fire.generation, fire.round, digest, outcome.seconds, outcome.payload_bytes,
                outcome.weights if first else (), *outcome.noise, outcome.adapters if first else (),
                now_s - joined_s[number], durable,
            )  # fmt: skip
            self._uplinks[number].report(reduced)


def draw_up(fleet: Fleet) -> SimulationReport:
    """Return the report of a fleet at present."""
    hub, replicas = fleet.hub, fleet.replicas
    steps = sum(replica.staleness.steps for replica in replicas)
    return SimulationReport(
        seed=fleet.seed,
        seconds=fleet.kernel.now_s,
        stage=str(hub.stage),
        failure=hub.failure,
        rounds={str(reason): count for reason, count in hub.rounds.by_reason.items()},
        versions=hub.rounds.version,
        goodput=goodput(replica.beat() for replica in replicas),
        staleness=sum(replica.staleness.versions for replica in replicas) / steps if steps else None,
        samples=tuple(replica.progress.samples for replica in replicas),
        tokens=sum(replica.progress.tokens for replica in replicas),
        sent_bytes=tuple(replica.sent_bytes for replica in replicas),
        control_messages=fleet.channel.sent,
        lag_s=tuple(row.lag_s for row in fleet_status(hub, fleet.kernel.now_s).replicas),
        anchors=fleet.history[-1],
    )
