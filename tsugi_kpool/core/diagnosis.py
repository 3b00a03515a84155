"""What a diagnosis is made of and what it says: the parts of a replica's time, facts of machine and link, a cause."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from .messages.facts import MachineFacts
from .renamed import VALUES, key_of

NOTHING = MachineFacts()
"""A machine of which nothing is known."""


class Part(StrEnum):
    """What a replica's time goes into."""

    STEP = "step"
    DATA_WAIT = "data wait"
    SYNC_WAIT = "sync wait"
    OUTSIDE = "outside"
    ROUND = "round"
    """No time of its training thread: its link makes the rounds longer, for which nobody waits."""

    @classmethod
    def _missing_(cls, value: object) -> Part | None:
        """As a journal of an earlier version says it."""
        new = VALUES.get(value) if isinstance(value, str) else None
        return None if new is None else cls(new)


class Cause(StrEnum):
    """Why it is slow."""

    COMPUTE = "compute"
    MEMORY = "memory"
    DATA = "data"
    LINK = "link"
    ROUNDS = "rounds"
    OUTSIDE = "outside"


class Parts(msgspec.Struct, frozen=True, gc=False, rename=key_of):
    """Seconds of one usual step and of what lies between it and the next."""

    step: float
    data_wait: float
    sync_wait: float
    outside: float

    @property
    def total(self) -> float:
        return self.step + self.data_wait + self.sync_wait + self.outside

    def largest_growth(self, before: Parts) -> Part:
        """The part that has grown most since."""
        grown = {
            Part.STEP: self.step - before.step,
            Part.DATA_WAIT: self.data_wait - before.data_wait,
            Part.SYNC_WAIT: self.sync_wait - before.sync_wait,
            Part.OUTSIDE: self.outside - before.outside,
        }
        return max(grown, key=grown.__getitem__)


@dataclass(frozen=True)
class LinkFacts:
    """What is known of a replica's link; None where nothing is."""

    rtt_s: float | None = None
    """The median of the newest round trips to the hub."""
    transfer_s: float | None = None
    """Seconds of the newest rounds' collectives after the last member had joined."""


@dataclass(frozen=True)
class OtherLink:
    """The link of another replica, whose round trip has grown: a round waits for all members' links."""

    replica: int
    before_s: float
    now_s: float


@dataclass(frozen=True)
class Symptoms:
    """What a diagnosis is made of: a replica before and after, or the fleet and the replica."""

    before: Parts
    after: Parts
    usual: MachineFacts = NOTHING
    """The machine before; unknown when it was never faster."""
    now: MachineFacts = NOTHING
    link_before: LinkFacts = LinkFacts()
    link_now: LinkFacts = LinkFacts()
    other: OtherLink | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The part that takes longer, why, and what speaks for it, the weightiest first."""

    part: Part
    cause: Cause
    evidence: tuple[str, ...]


def compared(before_s: float, now_s: float) -> str:
    """Two durations in words, the present one first."""
    return f"{seconds_text(now_s)} (before: {seconds_text(before_s)})"


def seconds_text(value: float) -> str:
    """A duration in words."""
    return f"{value * 1000:.0f} ms" if value < 0.0995 else f"{value:.2f} s"
