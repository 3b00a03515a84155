"""A simulated replica with real decisions and ledgers; each adapter is one exact number instead of a tensor.

Values are integers (fixed point), and means are rounded down. So sums are exact in any order, and agreement and
accounting can be checked for equality after any number of rounds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tsugi_kpool.core.evaluation import stage_of
from tsugi_kpool.core.messages import AdapterFacts, Beat, Broken, Commit, Evaluated, Finish, Fire, Generation, Message
from tsugi_kpool.core.replica.ledger import ContributionLedger, Shipment
from tsugi_kpool.core.replica.linger import Linger
from tsugi_kpool.core.replica.stage import Action, Stage, react

SIGNAL, NOISE = 1_000.0, 4_000.0
"""Mean and standard deviation of a step's change of the first adapter: trSigma / |G|^2 is 16 steps."""
LOWEST, SPAN = SIGNAL - NOISE * 3**0.5, NOISE * 12**0.5
"""The uniform distribution with this mean and deviation: quicker to draw from than a normal one."""
WORK_PER_SAMPLE = 10
"""Tokens computed on, per sample: samples are padded to one length, so all take the same time."""
EVALUATION_STEPS = 3
"""Steps after each of which a part of an evaluation is done."""
TOKENS_BEFORE = (0, 1, 5, 7, 12)
"""Tokens in the first 0 to 4 samples. Samples have 1, 4, 2, 5, 3 of them, again and again."""


@dataclass(frozen=True)
class Contribution:
    """A replica's part of a round."""

    shipment: Shipment
    deltas: tuple[int, ...]
    norm2_sums: tuple[int, ...]
    """Q of the convergence trigger, for each adapter; zeros when it is not measured."""
    version_sums: tuple[int, ...]
    """Sum of the versions that the shipped steps were computed on, for each adapter."""


@dataclass(frozen=True)
class SimulatedResult:
    """A reduced round, to be applied on Commit."""

    means: tuple[int, ...]
    weights: tuple[int, ...]
    noise: tuple[float, float]
    adapters: tuple[AdapterFacts, ...]
    payload_bytes: int
    seconds: float
    steps: tuple[int, ...]
    """Of each member, summed over adapters."""


@dataclass(slots=True)
class SimulatedProgress:
    """A replica's progress, in its own time."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    """Seconds without data between two steps."""
    lingered_s: float = 0.0
    """Seconds that it has waited for commits of its own changes."""
    step_s: float = 0.0

    @property
    def passed_s(self) -> float:
        """Seconds since training began, up to the newest step's end."""
        return self.busy_s + self.waited_s + self.lingered_s


@dataclass(slots=True)
class Staleness:
    """Versions committed between the one that a step was computed on and the one that its change went into."""

    versions: int = 0
    """Summed over committed steps and adapters."""
    steps: int = 0


def tokens_of(start: int, stop: int) -> int:
    """Return the supervised tokens of the samples at these positions: 1 to 5 each, so that weights differ."""
    return stop // 5 * 15 + TOKENS_BEFORE[stop % 5] - start // 5 * 15 - TOKENS_BEFORE[start % 5]


class Replica:
    """The state of one replica. It acts when it is told to, and neither sends nor schedules anything."""

    def __init__(self, number: int, n: int, measure: bool, draw: random.Random) -> None:
        self.number, self.incarnation = number, f"simulated-{number}"
        self._measure = measure
        self.ledger = ContributionLedger(n)
        self.anchor = [0] * n
        self.walked = 0
        """Sum of all its own changes of the first adapter."""
        self.missed, self.missed_tokens = [0] * n, [0] * n
        """For each adapter, the parts of `walked` and of all tokens from steps in which it did not train."""
        self.active: tuple[int, ...] = ()
        """Adapters that train from the next step on; empty: all."""
        self.shipped = [0] * n
        """Its committed changes, for each adapter."""
        self.stage, self.generation, self.round, self.version, self.reduced = Stage.OUTSIDE, 0, 0, 0, 0
        self.tried = 0
        """Newest generation whose group it has tried to form."""
        self.broken: Broken | None = None
        """What it has said of that group: it has broken, or did not form."""
        self.in_flight: tuple[Contribution, SimulatedResult | None] | None = None
        self.held: list[Message] = []
        """Orders that have come while a round at an exchange was in flight here."""
        self.told = 0
        """The newest round that it has heard to be committed."""
        self.progress, self.staleness = SimulatedProgress(), Staleness()
        self.trained: list[tuple[int, int]] = []
        """Ranges of the data order that it has trained on."""
        self.ticket = 0
        """Ticket of the newest lease that it has begun."""
        self.evaluating = 0
        """The newest version whose anchors it has copied to evaluate them."""
        self._steps_left = 0
        """Steps until it has evaluated that copy."""
        self.draining = self.drained = self.finished = self.closed = False
        self.overlap = True
        """Whether it begins steps while a round is in flight."""
        self.linger: Linger | None = None
        """Decides how long it waits after a step; None: never."""
        self.rank = self.members = 0
        """Its place in the newest round, and among how many."""
        self.sent_bytes = 0
        self._live, self._norm2_sums = [0] * n, [0] * n
        self._unsettled = self._unsettled_square = 0
        """Sums of the first adapter's changes, and of their squares, that are not yet in the two lists above."""
        self._version_sum, self._version_marks = 0, [0] * n
        self._random = draw.random

    # --- training -----------------------------------------------------------------------------------------

    def train(self, start: int, stop: int, computed_on: int, seconds: float, active: tuple[int, ...] = ()) -> None:
        """Count a step of the active adapters (empty: all) on the positions [start, stop), computed on version
        `computed_on`."""
        tokens = tokens_of(start, stop)
        change = int(LOWEST + SPAN * self._random())
        self.walked += change
        self._unsettled += change
        self._unsettled_square += change * change
        if active:
            self._rest(active, change, tokens, computed_on)
        self.ledger.collect(tokens, active, stop - start)
        self._version_sum += computed_on
        progress = self.progress
        progress.steps += 1
        progress.samples += stop - start
        progress.tokens += tokens
        progress.busy_s += seconds
        progress.step_s = seconds
        if self.trained and self.trained[-1][1] == start:
            self.trained[-1] = (self.trained[-1][0], stop)
        else:
            self.trained.append((start, stop))

    def evaluated(self) -> Evaluated | None:
        """After a step: go on with the evaluation, and return what it has measured when it is through."""
        if not self._steps_left:
            return None
        self._steps_left -= 1
        sums = {"loss_sum": 1.0 + 1.0 / self.evaluating, "loss_tokens": 1.0}
        return None if self._steps_left else Evaluated(0, 0, "", stage_of(self.evaluating), sums, ())

    @property
    def waiting(self) -> bool:
        """Whether the next step has to wait for the round in flight."""
        return not self.overlap and self.stage in (Stage.IN_FLIGHT, Stage.REDUCED)

    def begin(self) -> None:
        """A step begins."""

    def lingers_s(self) -> float:
        """After a step: return how long it waits at most for the commit of its own newest change."""
        if self.linger is None:
            return 0.0
        self.linger.stepped(self.progress.step_s)
        return self.linger.bound_s(self.version, self.members, self.ledger.steps)

    @property
    def live(self) -> list[int]:
        """The values of all adapters. They are computed on demand, because a round has many steps."""
        if self._unsettled_square:
            for adapter in range(len(self._live)):
                self._live[adapter] += self._unsettled * (adapter + 1)
                if self._measure:
                    self._norm2_sums[adapter] += self._unsettled_square * (adapter + 1) ** 2
            self._unsettled = self._unsettled_square = 0
        return self._live

    def _rest(self, active: tuple[int, ...], change: int, tokens: int, computed_on: int) -> None:
        """Take back what was given to adapters that do not train, and note what they have missed."""
        live = self.live
        for adapter in range(len(live)):
            if adapter not in active:
                live[adapter] -= change * (adapter + 1)
                self.missed[adapter] += change
                self.missed_tokens[adapter] += tokens
                self._version_marks[adapter] += computed_on
                if self._measure:
                    self._norm2_sums[adapter] -= (change * (adapter + 1)) ** 2

    def beat(self) -> Beat:
        """Return the present beat. Time since training began counts up to the newest step's end."""
        progress = self.progress
        return Beat(
            self.number, self.incarnation, self.generation, self.version, self.reduced,
            "draining" if self.drained else "training", progress.steps, progress.samples, progress.tokens,
            progress.busy_s, progress.passed_s, progress.step_s, 1.0, 1.0,
            tuple(self.ledger.steps), self.sent_bytes, self.drained, received_bytes=self.sent_bytes,
            joined=self.round, ticket=self.ticket,
            worked=progress.samples * WORK_PER_SAMPLE, wait_s=progress.waited_s,
            sync_wait_s=progress.lingered_s, stepped_s=progress.passed_s,
        )  # fmt: skip

    def corrupt(self) -> None:
        """Flip a bit of the anchors. The live values move with them, so that its buffer stays what it was."""
        for adapter in range(len(self.anchor)):
            self.anchor[adapter] += 1
            self.live[adapter] += 1

    # --- rounds -------------------------------------------------------------------------------------------

    def obey(self, order: Message) -> Action:
        """Change the state as the order asks, and return the action; the caller starts the collective."""
        if isinstance(order, Finish):
            self.finished |= order.version == self.version
            return Action.IGNORE
        action = react(self.stage, self.tried, self.round, self.version, order)
        if action is not Action.IGNORE and isinstance(order, Generation | Fire | Commit):
            self.active = order.active
        if action.commits:
            if isinstance(order, Commit) and order.evaluator == self.number:
                self.evaluating, self._steps_left = self.version + 1, EVALUATION_STEPS
            self._commit()
        if action.forgets:
            self.in_flight, self.stage = None, Stage.IDLE
        if action.forms and isinstance(order, Generation):
            self.in_flight, self.stage = None, Stage.IDLE
            self.generation = self.tried = order.generation
            self.broken = None
        return action

    def adopt(self, anchor: tuple[int, ...], version: int) -> None:
        """Take over the fleet's anchors. Only before it has trained."""
        self.anchor, self._live, self.version = list(anchor), list(anchor), version

    def let_go(self) -> None:
        """Leave a broken collective: what was shipped stays buffered, and the hub decides how to go on."""
        self.in_flight, self.stage = None, Stage.OUTSIDE

    def joined(self, fire: Fire) -> None:
        """It takes part in this round."""
        self.round, self.stage = fire.round, Stage.IN_FLIGHT
        self.rank, self.members = fire.members.index(self.number), len(fire.members)

    def contribute(self, fire: Fire) -> Contribution:
        """Return what is buffered now as a contribution; nothing leaves the buffer before the Commit."""
        self.joined(fire)
        adapters, live = fire.adapters, self.live
        contribution = Contribution(
            self.ledger.shipment(adapters),
            tuple(live[a] - self.anchor[a] for a in adapters),
            tuple(self._norm2_sums[a] for a in adapters),
            tuple(self._version_sum - self._version_marks[a] for a in adapters),
        )
        self.in_flight = (contribution, None)
        return contribution

    def on_reduced(self, outcome: SimulatedResult, sent_bytes: int = 0, counted: bool = True) -> str:
        """End the collective here. Returns the digest of the selected adapters' new anchors.

        Args:
            outcome: The round's.
            sent_bytes: What it has taken.
            counted: Whether our part is in it; else it stays buffered.
        """
        if self.in_flight is None:
            raise RuntimeError("no round is in flight")
        contribution = self.in_flight[0] if counted else self._nothing(self.in_flight[0])
        self.in_flight = (contribution, outcome)
        self.stage, self.reduced = Stage.REDUCED, self.round
        self.sent_bytes += sent_bytes
        adapters = contribution.shipment.adapters
        return str([self.anchor[a] + mean for a, mean in zip(adapters, outcome.means, strict=True)])

    def _nothing(self, contribution: Contribution) -> Contribution:
        shipment = contribution.shipment
        none = (0,) * len(shipment.adapters)
        empty = Shipment(shipment.adapters, none, none, shipment.samples, self.ledger.durable)
        return Contribution(empty, none, none, none)

    @property
    def shipped_durable(self) -> int:
        """Samples that are durable once the round in flight is committed."""
        return self.in_flight[0].shipment.durable if self.in_flight else 0

    def _commit(self) -> None:
        """Commit: anchors move by the mean, what was shipped leaves the buffer, own progress since then is kept."""
        contribution, outcome = self.in_flight or (None, None)
        if contribution is None or outcome is None:
            raise RuntimeError("a Commit for a round that has not been reduced here")
        shipment = contribution.shipment
        self.ledger.commit(shipment)
        self.version += 1
        if self.linger is not None:
            self.linger.committed(outcome.steps, self.rank)
        steps, live = sum(shipment.steps), self.live
        self.staleness.steps += steps
        self.staleness.versions += steps * (self.version - 1) - sum(contribution.version_sums)
        for place, adapter in enumerate(shipment.adapters):
            mean, delta = outcome.means[place], contribution.deltas[place]
            self.anchor[adapter] += mean
            live[adapter] += mean - delta
            self.shipped[adapter] += delta
            self._norm2_sums[adapter] -= contribution.norm2_sums[place]
            self._version_marks[adapter] += contribution.version_sums[place]
        self.in_flight, self.stage = None, Stage.IDLE
