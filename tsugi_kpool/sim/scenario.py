"""The scenario of a simulation: how fast replicas are, and what their links can carry."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tsugi_kpool.core.rounds.reduction import CHECK_SHARE, reduction
from tsugi_kpool.core.settings import KPool, Reduce


@dataclass(frozen=True)
class Slow:
    """This replica takes `factor` times as long from `from_s` on; a later entry for the same replica replaces
    this."""

    replica: int
    factor: float
    from_s: float = 0.0


@dataclass(frozen=True)
class Speeds:
    """How long steps take."""

    step_s: tuple[float, ...]
    """Seconds of each replica's step; a single value is everybody's."""
    jitter: float = 0.0
    """Sigma of the lognormal factor on every step; its mean is 1."""
    slow: tuple[Slow, ...] = ()
    """Stragglers, and replicas that turn slow (or fast again) at some time."""

    def base_s(self, replica: int) -> float:
        """Return the seconds of this replica's step without any slowdown."""
        return self.step_s[replica if len(self.step_s) > 1 else 0]

    def changes(self, replica: int) -> tuple[Slow, ...]:
        """Return this replica's changes of speed, in order of time."""
        return tuple(sorted((s for s in self.slow if s.replica == replica), key=lambda s: s.from_s))


@dataclass(frozen=True)
class Far:
    """The only connection between two halves of a fleet: replicas with low numbers and the hub on one side, the
    others on the other."""

    latency_s: float
    """One way."""
    bandwidth_bytes_per_s: float
    """Bandwidth of each direction, shared by all."""


OWNER_PARTS = 6.0
"""Parts that a member could combine in the time that a two-stage round takes it, whatever the number of members: it
codes and hashes its shards, averages those that it owns, and decodes all means (benchmarks/results/scale_ways.json).
"""


@dataclass(frozen=True)
class LinkModel:
    """The links between any two machines of the fleet, for control messages and for payloads.

    Without loss and duplication the control channel keeps the order of messages, as TCP does. With either of them it
    also reorders messages, by `jitter`.
    """

    latency_s: float = 0.001
    """One way."""
    bandwidth_bytes_per_s: float = 1.25e9
    """Bandwidth of one replica, in each direction."""
    adapter_bytes: int = 65_536
    """Bytes of one adapter as coded on the wire."""
    jitter: float = 0.0
    """Sigma of the lognormal factor on every delay; its mean is 1."""
    loss: float = 0.0
    """Share of the control messages that are lost. Payloads go over TCP: they are late, never lost."""
    duplication: float = 0.0
    """Share of the control messages that arrive twice."""
    combine_s_per_byte: float = 0.0
    """Processor time of every member for each byte of each member's part, once all have arrived."""
    hub_bytes_per_s: float = 1.25e9
    """Bandwidth of the hub's machine in each direction, through which an exchange's parts and results go."""
    slow: tuple[tuple[int, float], ...] = ()
    """(replica, factor): its payloads take so many times as long to an exchange and back."""
    on_hub: tuple[int, ...] = ()
    """Replicas on the hub's machine: their payloads pass no link on their way to an exchange and back."""
    far: Far | None = None
    """The connection between two halves of the fleet; None: all machines are equally near."""

    @property
    def ordered(self) -> bool:
        """Whether control messages arrive, once, in the order in which they were sent."""
        return not self.loss and not self.duplication

    def slowness(self, replica: int) -> float:
        """Return how many times as long this replica's payloads take."""
        return next((factor for number, factor in self.slow if number == replica), 1.0)

    def combine_s(self, kpool: KPool, members: int, payload_bytes: int) -> float:
        """Return the seconds in which a member decodes and averages what has come."""
        parts = OWNER_PARTS if reduction(kpool, members) is Reduce.SCATTER else members
        return parts * payload_bytes * self.combine_s_per_byte

    def gather_s(self, members: int, payload_bytes: int) -> float:
        """Return the seconds of an all-gather without jitter: a ring, in which every part takes members - 1 hops.

        A ring over two halves crosses between them once in each direction. Either this hop is the bottleneck, because
        all parts but one pass it one after the other; or the way of one part around the ring is, which crosses both.
        """
        hop_s = self.latency_s + payload_bytes / self.bandwidth_bytes_per_s
        if self.far is None or members < 2:
            return (members - 1) * hop_s
        transfer_s = payload_bytes / self.far.bandwidth_bytes_per_s
        crossings = min(2, members - 1)
        round_s = (members - 1 - crossings) * hop_s + crossings * (self.far.latency_s + transfer_s)
        return max(round_s, self.far.latency_s + (members - 1) * transfer_s, (members - 1) * hop_s)

    def scatter_s(self, members: int, payload_bytes: int) -> float:
        """Return the seconds of a two-stage round without jitter: twice every member sends a shard to each other one.

        Of the shards between two halves, a quarter of all pass their connection in each direction. In some rounds an
        owner is checked: one member gets a payload more. Here each takes the mean of that.
        """
        shard = payload_bytes / members
        hop_s = self.latency_s + (members - 1) * shard / self.bandwidth_bytes_per_s
        if self.far is None or members < 2:
            return (2.0 + CHECK_SHARE) * hop_s
        half = members // 2
        far_s = self.far.latency_s + half * (members - half) * shard / self.far.bandwidth_bytes_per_s
        check_s = max(hop_s, self.far.latency_s + half * shard / self.far.bandwidth_bytes_per_s)
        return 2.0 * max(hop_s, far_s) + CHECK_SHARE * check_s

    def reduce_s(self, kpool: KPool, members: int, payload_bytes: int) -> float:
        """Return the seconds of a round's collectives without jitter, in the way that it takes."""
        if reduction(kpool, members) is Reduce.SCATTER:
            return self.scatter_s(members, payload_bytes)
        return self.gather_s(members, payload_bytes)


@dataclass(frozen=True)
class HubCrash:
    """The hub's process is killed, and another one starts from its journal `down_s` later.

    The crash is at a time, or between writing the nth record and sending what follows from it.
    """

    at_s: float | None = None
    after_record: int | None = None
    torn: bool = False
    """Whether the nth record itself is only half written."""
    down_s: float = 10.0


def spread(draw: random.Random, sigma: float) -> float:
    """Return a lognormal factor with mean 1; for sigma 0 exactly 1, without drawing a number."""
    return math.exp(draw.gauss(-sigma * sigma / 2, sigma)) if sigma else 1.0
