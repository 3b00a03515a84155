"""The engine's settings `kpool.*`: checked once, shared by hub, engine and command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, TypeVar


class Level(StrEnum):
    """Which users a setting is for."""

    BASIC = "basic"
    """For users who know the model, the data and the machines."""
    ADVANCED = "advanced"
    """For users who have read what it does; the default is right for nearly everybody."""


T = TypeVar("T")
Basic = Annotated[T, Level.BASIC]
Advanced = Annotated[T, Level.ADVANCED]


class Mode(StrEnum):
    """What a replica buffers (docs/design.md section 3, Modes)."""

    LOCAL = "local"
    """Every replica takes its own optimizer steps; the buffered quantity is its change since the anchor."""
    GRADIENT = "gradient"
    """Nobody steps alone: gradient sums are buffered, and every round is one optimizer step of the fleet."""


class SelectAt(StrEnum):
    """Where K of N is decided."""

    SHIP = "ship"
    """All N adapters train on every step; K of them are shipped in a round."""
    TRAIN = "train"
    """Only the K adapters of the next round train; the others stay unchanged. All N are in the forward pass."""


class Routing(StrEnum):
    """Which K adapters a round ships."""

    ROUND_ROBIN = "round_robin"
    """Take turns."""
    LOSS_AWARE = "loss_aware"
    """The adapters with the largest buffered change, times the rounds that they have waited, go first."""


WITHDRAWN = {
    "kpool.routing": {
        "random": "it was a control, and let adapters wait 8 to 10 rounds instead of 3",
        "converged": "it ended 0.001 to 0.012 nats worse than round_robin wherever it was tried",
    }
}
"""Values of earlier versions that were removed, and why (docs/decisions/0036). Whoever still sets one is told."""


def withdrawn(key: str, value: object) -> str:
    """Return the end of an error message that says why this value was removed; empty when it was not."""
    reason = WITHDRAWN.get(key, {}).get(value) if isinstance(value, str) else None
    return f"; {value} has gone: {reason}" if reason else ""


class Trigger(StrEnum):
    """When a round fires, inside [min_steps, max_steps]."""

    CONVERGENCE = "convergence"
    COUNT = "count"


class Payload(StrEnum):
    """How shipped values are coded on the wire."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"


class Reduce(StrEnum):
    """How a round sums its parts."""

    AUTO = "auto"
    """`scatter` from four members on, where it can be; else `gather`."""
    GATHER = "gather"
    """Everybody sends its part to all others, and each sums for itself: R - 1 payloads sent."""
    SCATTER = "scatter"
    """Each member sums one shard for all, and sends its coded mean to them: 2 (R - 1) / R payloads sent."""


@dataclass(frozen=True, kw_only=True)
class KPool:
    """Settings of the pool, the trigger and the wire.

    Counts of steps are per replica in the pool: with 2 replicas and ``min_steps=2`` the pool holds at
    least 4 steps of the selected adapters before a round may fire.
    """

    n: Basic[int]
    """Adapters in the pool (N)."""
    k: Basic[int | Literal["auto"]]
    """Adapters shipped in a round (K); "auto" lets the hub choose by the cost of rounds on the link."""
    mode: Advanced[Mode]
    select_at: Advanced[SelectAt]
    routing: Advanced[Routing]
    trigger: Advanced[Trigger]
    eps: Advanced[float | Literal["auto"]]
    """Convergence threshold on trSigma / (n |G|^2); "auto" fires as soon as the link is free."""
    count: Advanced[int]
    """Steps per replica at which the count trigger fires, and convergence while its estimate is unknown."""
    min_steps: Advanced[int]
    """Steps per replica that a round holds at least."""
    max_steps: Advanced[int]
    """Steps per replica at which a round fires in any case."""
    payload: Basic[Payload]
    error_feedback: Advanced[bool]
    """Whether what quantisation lost stays in the buffer (true) or is forgotten (false)."""
    round_timeout_s: Advanced[float]
    """A collective that takes longer fails its round."""
    overlap: Advanced[bool]
    """Train on while a round is in flight (true), or begin no step before it has been committed (false)."""
    max_staleness: Advanced[int]
    """Gradient mode: gradients computed on parameters that are more versions old than this are discarded and counted.
    """
    fire_delay_s: Advanced[float] = 0.0
    """A round that could fire is delayed for up to this long while a step is about to end; 0 delays none."""
    size_work: Advanced[bool] = False
    """Give slow replicas smaller micro-batches, so that their contributions are not many rounds late."""
    reduce: Advanced[Reduce] = Reduce.GATHER
    """How a round sums its parts: everybody for itself, or an owner for each shard; "auto" by the number of replicas.
    """
    linger: Advanced[float] = 0.0
    """Share of a step, 0.2 at most, that a replica may wait after a step for the commit of its own newest change; 0:
    never."""

    round_quorum: Advanced[float] = 0.5
    """Over an exchange: share of the replicas whose parts must be there before a round does without the others'."""
    round_grace_s: Advanced[float | Literal["auto"]] = 10.0
    """So many seconds later, and at most half of kpool.round_timeout_s, a round at an exchange goes on without them,
    and they keep their parts; "auto": half of what the time between two rounds leaves."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one text each; empty when all is well."""
        found = [
            f"kpool.{name} must be at least 1, found {value}"
            for name, value in (("n", self.n), ("k", self.k), ("min_steps", self.min_steps))
            if isinstance(value, int) and value < 1
        ]
        if isinstance(self.k, int) and self.k > self.n >= 1:
            found.append(f"kpool.k must not exceed kpool.n, found k={self.k} with n={self.n}")
        if isinstance(self.eps, float | int) and self.eps <= 0:
            found.append(f'kpool.eps must be positive or "auto", found {self.eps}')
        if self.max_steps < self.min_steps:
            found.append(
                f"kpool.max_steps must be at least kpool.min_steps, found {self.max_steps} < {self.min_steps}"
            )
        if not self.min_steps <= self.count <= self.max_steps:
            found.append(
                f"kpool.count must lie in [min_steps, max_steps] = [{self.min_steps}, {self.max_steps}], "
                f"found {self.count}"
            )
        if self.round_timeout_s <= 0:
            found.append(f"kpool.round_timeout_s must be positive, found {self.round_timeout_s}")
        if not 0.0 < self.round_quorum <= 1.0:
            found.append(f"kpool.round_quorum must lie in (0, 1], found {self.round_quorum}")
        if isinstance(self.round_grace_s, float | int) and not self.round_grace_s >= 0:
            found.append(f"kpool.round_grace_s must not be negative, found {self.round_grace_s}")
        if not 0.0 <= self.fire_delay_s <= LONGEST_FIRE_DELAY_S:
            found.append(f"kpool.fire_delay_s must lie in [0, {LONGEST_FIRE_DELAY_S:g}], found {self.fire_delay_s}")
        if self.mode is Mode.GRADIENT and self.reduce is Reduce.SCATTER:
            found.append(
                "kpool.reduce=scatter goes with kpool.mode=local: a residual of a mean gradient has no place in the "
                "fleet's optimizer (auto and gather go with both)"
            )
        return found + self._linger_problems() + self._staleness_problems()

    def _linger_problems(self) -> list[str]:
        if not 0.0 <= self.linger <= LONGEST_LINGER:
            return [
                f"kpool.linger must lie in [0, {LONGEST_LINGER:g}], a share of a step, found {self.linger:g}: who "
                "waits longer loses more time than it gains"
            ]
        if self.linger and self.mode is Mode.GRADIENT:
            return [
                "kpool.linger goes with kpool.mode=local, in which every replica steps alone; in gradient mode "
                "kpool.overlap=false waits for rounds"
            ]
        return []

    def _staleness_problems(self) -> list[str]:
        """Check that max_staleness is at least n / k, the rounds that an adapter waits for its turn. Below that,
        healthy gradients would be discarded."""
        if self.max_staleness < 0:
            return [f"kpool.max_staleness must not be negative, found {self.max_staleness}"]
        fewest = self.k if isinstance(self.k, int) else -(-self.n // 8)  # what auto may choose
        turns = -(-self.n // max(1, fewest))
        if self.mode is Mode.GRADIENT and self.max_staleness < turns:
            return [
                f"kpool.max_staleness must be at least n / k = {turns} in gradient mode, "
                f"because an adapter waits that many rounds for its turn, found {self.max_staleness}"
            ]
        return []

    def notes(self) -> list[str]:
        """Return notes about values that are allowed but do not do what one might expect."""
        found = []
        if self.mode is Mode.GRADIENT and self.routing is not Routing.ROUND_ROBIN:
            found = [
                f"kpool.routing={self.routing} may leave an adapter out for longer than its turn: what is then over "
                f"kpool.max_staleness={self.max_staleness} versions late is discarded (and counted)"
            ]
        if self.trigger is Trigger.CONVERGENCE and isinstance(self.eps, float) and self.eps < SMALL_EPS:
            found += [
                f"kpool.eps={self.eps:g} asks for more steps than max_steps allows: "
                f"rounds will fire at the cap of {self.max_steps} per replica (usual values: 0.5 to 4, or auto)"
            ]
        if self.payload is Payload.INT2 and not self.error_feedback:
            found += [
                "kpool.payload=int2 tells a number to a quarter of its block's largest one, and with "
                "kpool.error_feedback=false what that loses is never sent"
            ]
        return found


LONGEST_FIRE_DELAY_S = 1.0
"""Upper limit: with a longer delay replicas would wait for each other."""
LONGEST_LINGER = 0.2
"""Upper limit of `linger`: a fifth of a step."""
# Steps grow by (1 + eps) and tokens by (1 + 1/eps) (McCandlish et al. 2018, arXiv 1812.06162, section 2.3):
# at 0.05 a round costs 21 times the tokens, which no cap of ours admits.
SMALL_EPS = 0.05
