"""What the hub knows of one replica: its newest beat, how far it has come, and its rates over the newest window."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import msgspec

from tsugi_kpool.core.messages import Beat, Hello
from tsugi_kpool.core.rounds.fire_delay import Step
from tsugi_kpool.core.slow.tax import Rates

RATE_WINDOW_S = 20.0
"""Rates are taken over at least this long, or over all of a younger run."""
LEAST_S = 1e-9
"""Nobody has trained for less: a replica that says so has said nothing. Divided by less, counts are no numbers."""


class _Mark(msgspec.Struct, frozen=True, gc=False):
    """How far a member had come when a step was heard of."""

    heard_s: float
    tokens: int
    busy_s: float
    own_s: float
    """When it had ended by the replica's own clock, which starts with its training."""
    samples: int
    steps: int
    ended_s: float
    """When the step had ended, by our clock: the beat may have been made later."""


@dataclass
class Member:
    """One replica as the hub sees it; times are the hub's own monotonic seconds."""

    hello: Hello
    joined_s: float
    heard_s: float
    beat: Beat | None = None
    committed_tokens: int = 0
    """Of its tokens, summed over adapters."""
    durable_samples: int = 0
    """Of its samples, those whose work is committed for every adapter."""
    answered_s: float = -math.inf
    """When a beat of it was last acknowledged."""
    ordered_s: float = 0.0
    """When it was last sent an order: repeats are paced by this."""
    gone: bool = False
    """It has said good-bye after its work was done."""
    lost: str | None = None
    """Why it has left in the middle of the run."""
    cut: bool = False
    """Its connection has closed since it was last heard: it is frozen, dead or cut off, and no busy interpreter."""
    formed: bool = False
    """It has been in a group: it stands on the fleet's anchors."""
    advanced_s: float = -math.inf
    """When it was last heard to have ended a step, or to have taken up training."""
    studied_s: float = -math.inf
    """When a beat of it was last taken as a mark of its pace."""
    _marks: deque[_Mark] = field(default_factory=deque)
    _rates: Rates | None = None
    """None since the newest mark."""

    def retire(self) -> None:
        """Another process is this replica now: of this one only what it has done counts."""
        self._marks.clear()
        self._rates = None

    @property
    def here(self) -> bool:
        """Whether it takes part, or may."""
        return not self.gone and self.lost is None

    @property
    def generation(self) -> int:
        return self.beat.generation if self.beat else 0

    @property
    def version(self) -> int:
        return self.beat.version if self.beat else 0

    @property
    def steps(self) -> int:
        return self.beat.steps if self.beat else 0

    @property
    def tokens(self) -> int:
        return self.beat.tokens if self.beat else 0

    @property
    def drained(self) -> bool:
        return self.beat is not None and self.beat.drained

    def trained(self, n: int) -> tuple[int, int]:
        """Samples and tokens that it has trained on: by its newest beat, or more where the journal knows of more.

        A hub that went on from a journal has heard no beat of a member that died with the hub before it.

        Args:
            n: Adapters in the pool: each commits every token once.
        """
        samples = self.beat.samples if self.beat else 0
        return max(samples, self.durable_samples), max(self.tokens, self.committed_tokens // n)

    def observe(self, beat: Beat, now_s: float) -> bool:
        """Take in a beat; true when it tells of a new step."""
        advanced = beat.steps > (self.beat.steps if self.beat else 0)
        self.heard_s = now_s
        self.beat = beat
        self.formed = self.formed or beat.generation > 0
        if advanced:
            self.advanced_s = now_s
        marks = self._marks
        if advanced or not marks:
            ended_s = now_s - (max(0.0, beat.trained_s - beat.stepped_s) if beat.stepped_s else 0.0)
            # Joining, loading and a first evaluation may take minutes, in which nobody trains: no rate counts them.
            own_s = beat.stepped_s if beat.stepped_s or not beat.steps else beat.trained_s
            marks.append(_Mark(now_s, beat.tokens, beat.busy_s, own_s, beat.samples, beat.steps, ended_s))
            self._rates = None
            while len(marks) > 2 and now_s - marks[1].heard_s > RATE_WINDOW_S:
                marks.popleft()
        return advanced

    def tokens_per_s(self) -> float:
        """Supervised tokens per second of training over the newest window; 0 before it has ended a step."""
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        return (last.tokens - first.tokens) / max(last.own_s - first.own_s, 1e-9)

    def seconds_per_sample(self) -> float:
        """Busy seconds for each sample over the newest window; 0 before two steps."""
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        busy_s = last.busy_s - first.busy_s
        return busy_s / max(1, last.samples - first.samples) if busy_s > LEAST_S else 0.0

    def seconds_per_step(self) -> float:
        """Seconds from one step's end to the next one's over the newest window; 0 before two steps."""
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        return max(0.0, last.own_s - first.own_s) / max(1, last.steps - first.steps)

    def step(self) -> Step | None:
        """The step in progress; None when there is none, or nothing to expect it by."""
        beat = self.beat
        if beat is None or beat.drained or not beat.steps or not self._marks:
            return None
        return Step(self.hello.replica, self._marks[-1].ended_s, beat.step_s)

    def rates(self) -> Rates:
        """Over the newest window; zeros before two steps."""
        if len(self._marks) < 2:
            return Rates(0.0, 0.0)
        if self._rates is None:  # asked for once a second
            first, last = self._marks[0], self._marks[-1]
            tokens = last.tokens - first.tokens
            seconds_per_token = (last.busy_s - first.busy_s) / tokens if tokens > 0 else 0.0
            self._rates = Rates(seconds_per_token, tokens / max(last.own_s - first.own_s, 1e-9))
        return self._rates

    def newest(self) -> tuple[float, float]:
        """Tokens trained over the newest window, and those that its own rate in steps allows; see `goodput`."""
        if len(self._marks) < 2:
            return 0.0, 0.0
        first, last = self._marks[0], self._marks[-1]
        tokens, busy_s = last.tokens - first.tokens, last.busy_s - first.busy_s
        return (tokens, tokens / busy_s * (last.own_s - first.own_s)) if busy_s > 0.0 else (0.0, 0.0)
