"""What the hub knows of each replica, and what follows from it: rates, lag, goodput."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from tsugi_kpool.core.messages import Beat, Hello
from tsugi_kpool.core.rounds.fire_delay import Step
from tsugi_kpool.core.slow.tax import Rates

RATE_WINDOW_S = 20.0
"""Rates are taken over at least this long, or over all of a younger run."""
LEAST_S = 1e-9
"""Nobody has trained for less: a replica that says so has said nothing. Divided by less, counts are no numbers."""
FRONTIER_KEPT = 1 << 16


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


class Tally:
    """Sums over all members' newest beats, kept up to date beat by beat.

    The hub asks these questions on every beat. Walking all members for the answer would make R members cost R^2.
    """

    def __init__(self, n: int) -> None:
        self.pooled = [0] * n
        """Steps that all members have buffered, for each adapter."""
        self.samples_per_s = 0.0
        """What all members train on together."""
        self.drained = 0
        """Members that have no more data."""
        self._adapters = range(n)
        self._paces: dict[int, float] = {}
        self._at: Counter[tuple[int, int]] = Counter()

    def at(self, generation: int, version: int) -> int:
        """Members whose newest beat shows this generation and version."""
        return self._at[generation, version]

    def replace(self, old: Beat | None, new: Beat) -> None:
        """A member's newest beat is `new`; before it was `old`, if there was one."""
        if old is None or new.busy_s != old.busy_s or new.steps != old.steps or new.samples != old.samples:
            pace = samples_per_s(new)
            self.samples_per_s += pace - (0.0 if old is None else self._paces[new.replica])
            self._paces[new.replica] = pace
        if old is None:
            self._move(None, (new.generation, new.version))
            self._pool((), new.pooled)
            self.drained += new.drained
            return
        if old.version != new.version or old.generation != new.generation:
            self._move((old.generation, old.version), (new.generation, new.version))
        if old.pooled != new.pooled:
            self._pool(old.pooled, new.pooled)
        self.drained += new.drained - old.drained

    def remove(self, beat: Beat | None) -> None:
        """A member whose newest beat this is has gone before training began."""
        if beat is None:
            return
        self.samples_per_s -= samples_per_s(beat)
        self._pool(beat.pooled, ())
        self.drained -= beat.drained
        self._out_of((beat.generation, beat.version))

    def _move(self, old: tuple[int, int] | None, new: tuple[int, int]) -> None:
        self._at[new] += 1
        if old is not None:
            self._out_of(old)

    def _out_of(self, at: tuple[int, int]) -> None:
        self._at[at] -= 1
        if not self._at[at]:
            del self._at[at]

    def _pool(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        """A beat with too few counts counts as zeros, one with too many is cut: neither may stop the hub."""
        if len(old) == len(new) == len(self.pooled):
            self.pooled = [total - a + b for total, a, b in zip(self.pooled, old, new)]  # noqa: B905  (on every beat)
            return
        for adapter, steps in zip(self._adapters, old, strict=False):
            self.pooled[adapter] -= steps
        for adapter, steps in zip(self._adapters, new, strict=False):
            self.pooled[adapter] += steps


def samples_per_s(beat: Beat | None) -> float:
    """A replica's own pace, waits left out: of its newest step or of all of them, whichever is slower."""
    if beat is None:
        return 0.0
    busy_s = max(beat.busy_s, beat.step_s * beat.steps)
    return max(0, beat.samples) / busy_s if LEAST_S < busy_s < math.inf else 0.0  # what a beat says may be anything


class Frontier:
    """When the furthest replica first reached each step count: the yardstick of lag.

    Counts of long ago are kept every other one only, and a jump is one entry however far it goes: a member may say
    any number.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._reached_s: list[float] = []

    def advance(self, steps: int, now_s: float) -> None:
        """Some replica stands at `steps` now."""
        if steps > (self._counts[-1] if self._counts else 0):
            self._counts.append(steps)
            self._reached_s.append(now_s)
            if len(self._counts) > FRONTIER_KEPT:
                old = FRONTIER_KEPT // 2
                self._counts[:old] = self._counts[1:old:2]
                self._reached_s[:old] = self._reached_s[1:old:2]

    def lag(self, steps: int, now_s: float) -> tuple[int, float]:
        """Steps and seconds since the furthest replica stood where this one stands (0, 0.0 for itself)."""
        behind = (self._counts[-1] if self._counts else 0) - steps
        if behind <= 0:
            return 0, 0.0
        return behind, now_s - self._reached_s[bisect_right(self._counts, steps)]


def goodput(beats: Iterable[Beat]) -> float | None:
    """Tokens trained as a share of what the replicas' own rates allow; None before any was.

    A replica's own rate is its tokens per busy second; time in which it waited for data, a round or a control
    message is lost. Injected slowness (``fault.slow``) emulates a slower device and counts as busy.
    """
    tokens, possible = 0.0, 0.0
    for beat in beats:
        if beat.busy_s > 0.0:
            tokens += beat.tokens
            possible += beat.tokens / beat.busy_s * beat.trained_s
    return min(1.0, tokens / possible) if possible > 0.0 else None


def goodput_now(members: Iterable[Member]) -> float | None:
    """As `goodput`, over the newest rate window; None before any member has ended two steps."""
    newest = [member.newest() for member in members]
    possible = sum(each for _, each in newest)
    return min(1.0, sum(tokens for tokens, _ in newest) / possible) if possible > 0.0 else None


def mean_loss(beats: Iterable[Beat]) -> float | None:
    """The replicas' newest smoothed losses, weighted by their tokens; None before any."""
    weighted = [(beat.loss, beat.tokens) for beat in beats if beat.steps]
    total = sum(tokens for _, tokens in weighted)
    return sum(loss * tokens for loss, tokens in weighted) / total if total else None
