"""What a simulated fleet runs on: how fast its replicas are, and what its links can carry."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Slow:
    """From `from_s` on this replica takes `factor` times as long; a later one of the same replica replaces it."""

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
        """Seconds of this replica's step before any slowness."""
        return self.step_s[replica if len(self.step_s) > 1 else 0]

    def changes(self, replica: int) -> tuple[Slow, ...]:
        """This replica's changes of speed, in the order of time."""
        return tuple(sorted((s for s in self.slow if s.replica == replica), key=lambda s: s.from_s))


@dataclass(frozen=True)
class Far:
    """The one way between two halves of a fleet: replicas with low numbers and the hub here, the others there."""

    latency_s: float
    """One way."""
    bandwidth_bytes_per_s: float
    """Of each direction, for all together."""


@dataclass(frozen=True)
class LinkModel:
    """What lies between any two machines of the fleet, for control messages and for payloads.

    Without loss and duplication the control channel keeps the order of messages, as TCP does. With either it also
    reorders them, by `jitter`.
    """

    latency_s: float = 0.001
    """One way."""
    bandwidth_bytes_per_s: float = 1.25e9
    """What one replica can send, and at the same time receive."""
    adapter_bytes: int = 65_536
    """One adapter as it is coded on the wire."""
    jitter: float = 0.0
    """Sigma of the lognormal factor on every delay; its mean is 1."""
    loss: float = 0.0
    """Share of the control messages that are lost. Payloads go over TCP: they are late, never lost."""
    duplication: float = 0.0
    """Share of the control messages that arrive twice."""
    combine_s_per_byte: float = 0.0
    """Processor time of every member for each byte of each member's part, once all have arrived."""
    far: Far | None = None
    """What lies between the halves of the fleet; None: any two machines are as near as any others."""

    @property
    def ordered(self) -> bool:
        """Whether control messages arrive, once, in the order in which they were sent."""
        return not self.loss and not self.duplication

    def combine_s(self, members: int, payload_bytes: int) -> float:
        """Seconds until a member has decoded and averaged what it has gathered."""
        return members * payload_bytes * self.combine_s_per_byte

    def gather_s(self, members: int, payload_bytes: int) -> float:
        """Seconds of an all-gather before jitter: a ring, in which every part takes members - 1 hops.

        A ring of two halves has one hop each way between them. Either that hop is what takes longest, because all
        parts but one pass it one after the other, or a part's own way round is, which leads over both of them.
        """
        hop_s = self.latency_s + payload_bytes / self.bandwidth_bytes_per_s
        if self.far is None or members < 2:
            return (members - 1) * hop_s
        transfer_s = payload_bytes / self.far.bandwidth_bytes_per_s
        crossings = min(2, members - 1)
        round_s = (members - 1 - crossings) * hop_s + crossings * (self.far.latency_s + transfer_s)
        return max(round_s, self.far.latency_s + (members - 1) * transfer_s, (members - 1) * hop_s)


@dataclass(frozen=True)
class HubCrash:
    """The hub's process is killed, and another one starts over its journal `down_s` later.

    Either at a time, or between writing down the nth record and sending what that justifies.
    """

    at_s: float | None = None
    after_record: int | None = None
    torn: bool = False
    """The nth record itself is only half written."""
    down_s: float = 10.0


def spread(draw: random.Random, sigma: float) -> float:
    """A lognormal factor with mean 1; exactly 1, and nothing drawn, for sigma 0."""
    return math.exp(draw.gauss(-sigma * sigma / 2, sigma)) if sigma else 1.0
