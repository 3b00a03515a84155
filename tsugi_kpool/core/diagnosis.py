"""The diagnosis of a slow replica, input and result: parts of its time, facts of machine and link, a cause."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from .messages.facts import MachineFacts
from .renamed import VALUES, key_of

NOTHING = MachineFacts()
"""Facts of a machine of which nothing is known."""


class Part(StrEnum):
    """The parts of a replica's time."""

    STEP = "step"
    DATA_WAIT = "data wait"
    SYNC_WAIT = "sync wait"
    OUTSIDE = "outside"
    ROUND = "round"
    """Not time of the training thread: the replica's link makes rounds longer, and nobody waits for those."""

    @classmethod
    def _missing_(cls, value: object) -> Part | None:
        """Return the part that a value in an earlier version's journal means."""
        new = VALUES.get(value) if isinstance(value, str) else None
        return None if new is None else cls(new)


class Cause(StrEnum):
    """The root cause of slowness."""

    COMPUTE = "compute"
    MEMORY = "memory"
    DATA = "data"
    LINK = "link"
    ROUNDS = "rounds"
    OUTSIDE = "outside"


class Parts(msgspec.Struct, frozen=True, gc=False, rename=key_of):
    """Seconds of a typical step and of the time until the next one, by part."""

    step: float
    data_wait: float
    sync_wait: float
    outside: float

    @property
    def total(self) -> float:
        return self.step + self.data_wait + self.sync_wait + self.outside

    def largest_growth(self, before: Parts) -> Part:
        """Return the part whose seconds have grown most compared with `before`."""
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
    """Another replica's link whose round-trip time has grown. A round waits for the links of all its members."""

    replica: int
    before_s: float
    now_s: float


@dataclass(frozen=True)
class Symptoms:
    """The input of a diagnosis: a replica before and after it turned slow. For one that was never faster, "before" is
    another replica of the usual speed."""

    before: Parts
    after: Parts
    usual: MachineFacts = NOTHING
    """The machine before; for a replica that was never faster, that of the replica it is compared with."""
    now: MachineFacts = NOTHING
    link_before: LinkFacts = LinkFacts()
    link_now: LinkFacts = LinkFacts()
    other: OtherLink | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The part of the time that grew, its cause, and the evidence for it, strongest first."""

    part: Part
    cause: Cause
    evidence: tuple[str, ...]


def compared(before_s: float, now_s: float) -> str:
    """Two durations in words, the present one first."""
    return f"{seconds_text(now_s)} (before: {seconds_text(before_s)})"


def seconds_text(value: float) -> str:
    """A duration in words."""
    return f"{value * 1000:.0f} ms" if value < 0.0995 else f"{value:.2f} s"
