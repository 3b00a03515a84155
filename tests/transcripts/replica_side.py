"""A replica of a transcript: the real reaction to orders, outbox and books; an adapter is one whole number."""

from __future__ import annotations

import random
from collections import deque

from tsugi_kpool.core.messages import (
    Ack,
    Broken,
    Bye,
    Commit,
    Drain,
    Finish,
    Fire,
    Hello,
    Lease,
    Message,
    Reduced,
    Refill,
    Refused,
    Saved,
    Stamps,
)
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.replica.outbox import Outbox
from tsugi_kpool.core.replica.stage import Action
from tsugi_kpool.sim.collective import Collective
from tsugi_kpool.sim.replica import LOWEST, SPAN, Contribution, Replica

from .wording import value_words

STEP_S = 1.0
"""Seconds of a step, unless the transcript gives a pace."""
PAYLOAD_BYTES = 1000


class Steady(random.Random):
    """Draws one value for ever: every step changes adapter i by i + 1 times the same whole number."""

    def __init__(self, change: int) -> None:
        super().__init__(0)
        self._value = (change + (0.5 if change >= 0 else -0.5) - LOWEST) / SPAN

    def random(self) -> float:
        return self._value


class Process:
    """One process of a replica: another one has another incarnation.

    Args:
        number: The replica's.
        life: How many processes were this replica before.
        n: Adapters in the pool.
    """

    def __init__(self, number: int, life: int, n: int) -> None:
        self.number, self.life = number, life
        self.replica = Replica(number, n, False, Steady(10 * (number + 1)))
        self.replica.incarnation = f"{number}{'abcdef'[life]}"
        self.outbox = Outbox(number, self.replica.incarnation)
        self.dead = False
        self._connections = 0
        self.connect()
        self.pace_s = 0.0
        """Seconds of a step while time passes; 0: it trains only when the transcript says so."""
        self.next_step_s = self.beat_s = self.vitals_s = 0.0
        self.machine: MachineFacts | None = None
        self._leased: deque[int] = deque()
        self._ended = False
        """There are no more data to ask for."""
        self.news = False
        """It has something to tell that no beat has told yet."""

    def connect(self) -> None:
        """Another connection to the hub."""
        self._connections += 1
        self.route = f"{self.replica.incarnation}{self._connections}".encode()
        self.cut = False

    def run_at(self, seconds: float, now_s: float) -> None:
        """Steps take this long from now on."""
        self.pace_s, self.next_step_s = seconds, now_s + seconds

    def train(self, leased: bool, seconds: float) -> None:
        """One step on the next sample that it has been handed, or on one of its own."""
        replica = self.replica
        if leased and not self._leased:
            raise ValueError(f"replica {self.number} has no data")
        at = self._leased.popleft() if leased else replica.progress.samples
        replica.train(at, at + 1, replica.version, seconds)
        self._drain_at_the_end()
        self.news = True

    def hello(self, config_hash: str) -> None:
        self.outbox.add(Hello(0, 0, "", "host", 0, config_hash, "layout"))

    def ask(self) -> None:
        self.outbox.ask_for_lease()

    def lose(self) -> None:
        """The collective has failed here: what was shipped is still buffered, and the hub says what comes next."""
        self.outbox.add(Broken(0, 0, "", self.replica.generation, self.replica.round, "connection closed by peer"))
        self.replica.let_go()

    def saved(self, files: list[str], final: bool) -> None:
        """These files of the checkpoint of its present version are written."""
        for file in files:
            self.outbox.add(Saved(0, 0, "", self.replica.version, final, file, 1000, "5" * 64))

    def on_reduced(self, collective: Collective) -> None:
        """The collective has ended here: nothing is applied, the result is reported."""
        fire, first = collective.fire, self.number == collective.fire.members[0]
        outcome = collective.outcome(PAYLOAD_BYTES, 0.1)
        digest = self.replica.on_reduced(outcome).replace(" ", "")
        contribution: Contribution = self.replica.in_flight[0]  # type: ignore[index]
        self.outbox.add(
            Reduced(
                0, 0, "", fire.generation, fire.round, digest, outcome.seconds, PAYLOAD_BYTES,
                outcome.weights if first else (), *outcome.noise, outcome.adapters if first else (),
                0.1, contribution.shipment.durable, sum(contribution.shipment.tokens),
            )
        )  # fmt: skip

    def take(self, message: Message) -> str | None:
        """Do what a message asks for; what was done in words, where it is more than to take note of it."""
        match message:
            case Ack():
                self.outbox.settle(message.seq)
            case Lease():
                return self._take_lease(message)
            case Refused():
                self.dead = True
                return "ends"
            case Drain():
                self.replica.drained = self.news = True
                return "begins no further step"
            case Stamps():
                pass
            case Refill():
                self.replica.drained = self._ended = False
                self.ask()
            case _:
                return self._obey(message)
        return None

    def _take_lease(self, lease: Lease) -> str | None:
        if not self.outbox.answered_by(lease):
            return None
        self.replica.ticket = lease.ticket
        self._leased += range(lease.start, lease.stop)
        self._ended = lease.start == lease.stop
        self._drain_at_the_end()
        return None

    def _drain_at_the_end(self) -> None:
        if self._ended and not self._leased:
            self.replica.drained = self.news = True

    def _obey(self, order: Message) -> str:
        """An order about groups and rounds: `react` says what it means at this stage."""
        replica = self.replica
        before = replica.stage
        if isinstance(order, Commit):
            self.outbox.committed(order.round)  # the hub has our Reduced, whether it has said so or not
        action = replica.obey(order)
        if isinstance(order, Finish):
            if replica.finished:
                self.outbox.add(Bye(0, 0, ""))
            return "has finished" if replica.finished else "has not committed that version yet"
        self.news = self.news or action.commits or action.forms
        return f"{before}: {self._follows(action, order)}"

    def _follows(self, action: Action, order: Message) -> str:
        """What an action leads to."""
        if action is Action.IGNORE:
            return "ignores it"
        replica, told = self.replica, str(action)
        if action.commits:
            told += f"; version {replica.version}, anchors {value_words(replica.anchor)}"
        if any(replica.ledger.steps) and (action.commits or action.forms):
            told += f"; buffered {value_words(replica.ledger.steps)}, so own values {value_words(replica.live)}"
        if action.starts and isinstance(order, Fire):
            part = replica.contribute(order)
            told += (
                f"; ships steps {value_words(part.shipment.steps)}, tokens "
                f"{value_words(part.shipment.tokens)}, changes {value_words(part.deltas)}"
            )
        return told
