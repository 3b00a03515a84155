"""The rounds of a run as the hub keeps them: which is in flight, who has landed, what has been committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .messages import Commit, Fire, Landed
from .noise import Noise
from .selection import Selection
from .settings import KPool
from .trigger import Reason

ROUND_GRACE_S = 5.0
"""The hub gives a round this much longer than the members' own deadline, which ends it with a better reason."""


class RoundBook:
    """At most one round is in flight; versions count the committed ones."""

    def __init__(self, kpool: KPool, seed: int) -> None:
        self._kpool = kpool
        self.version = 0
        self.number = 0
        """The newest round's number."""
        self.in_flight: Fire | None = None
        self.newest_commit: Commit | None = None
        self.noise = Noise()
        self.by_reason: dict[str, int] = {}
        self.aborted = 0
        self._fired_s = 0.0
        self._landed: dict[int, Landed] = {}
        self._awaited: set[int] = set()
        self.selection = Selection(kpool, seed)

    def due(self) -> tuple[int, ...]:
        """The adapters that the next round ships; chosen once between two rounds, asked for on every beat."""
        return self.selection.due

    def fire(
        self, epoch: int, adapters: tuple[int, ...], members: tuple[int, ...], reason: Reason, now_s: float
    ) -> Fire:
        """Open the next round."""
        self.number += 1
        self.by_reason[reason] = self.by_reason.get(reason, 0) + 1
        self._fired_s, self._landed, self._awaited = now_s, {}, set(members)
        self.in_flight = Fire(epoch, self.number, adapters, members, reason, self.version)
        return self.in_flight

    def land(self, landed: Landed) -> bool:
        """Note that a member's collective has landed; true when it was the last one missing."""
        fire = self.in_flight
        if fire is None or (landed.epoch, landed.round) != (fire.epoch, fire.round):
            return False
        if landed.replica not in self._awaited or len(landed.weights) != len(fire.members):
            return False
        self._awaited.discard(landed.replica)
        self._landed[landed.replica] = landed
        return not self._awaited

    def missing(self, now_s: float) -> list[int]:
        """Members that have not landed although the round is overdue."""
        if self.in_flight is None or now_s - self._fired_s <= self._kpool.round_timeout_s + ROUND_GRACE_S:
            return []
        return sorted(self._awaited)

    def disagreement(self) -> str | None:
        """The members' digests in words when they are not all equal."""
        if len({landed.digest for landed in self._landed.values()}) <= 1:
            return None
        return ", ".join(f"replica {r}: {each.digest[:12]}" for r, each in sorted(self._landed.items()))

    def commit(self, pooled: Sequence[int]) -> tuple[Commit, dict[int, int], dict[str, Any]]:
        """Land the round in flight: the order, each member's committed tokens, and facts for the record.

        Args:
            pooled: Micro-steps that all members have buffered for each adapter, by their newest beats.
        """
        fire = self.in_flight
        if fire is None:
            raise RuntimeError("no round is in flight")
        landed = self._landed[fire.members[0]]
        self.in_flight, self.newest_commit = None, Commit(fire.epoch, fire.round)
        self.version += 1
        self.selection.committed(fire, landed.adapters, pooled)
        self.noise = self.noise.updated(landed.noise_norm2, landed.noise_trace)
        facts = {
            "round": fire.round,
            "version": self.version,
            "seconds": max(each.seconds for each in self._landed.values()),
            "payload_bytes": landed.payload_bytes,
            "weights": list(landed.weights),
            "digest": landed.digest,
        }
        return self.newest_commit, dict(zip(fire.members, landed.weights, strict=True)), facts

    def abort(self) -> Fire | None:
        """Forget the round in flight, if there is one."""
        fire, self.in_flight = self.in_flight, None
        self.aborted += fire is not None
        return fire
