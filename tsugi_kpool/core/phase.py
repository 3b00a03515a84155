"""The phase of every replica against the fleet: what the hub gathers from beats and vitals, and concludes from it."""

from __future__ import annotations

from dataclasses import dataclass

from .effects import Effect
from .messages import Beat, Slowness, Vitals

TURN_S = 1.0
"""Conclusions are drawn at most this often: they cost more than taking a beat in."""


@dataclass(frozen=True)
class Phase:
    """What is known of one replica's phase."""

    slowness: Slowness | None = None
    jitters: bool = False
    drift: float | None = None
    drift_error: float | None = None
    vitals: Vitals | None = None


class PhaseBook:
    """Takes in facts as they come, and once a second says who is slow and why. O(1) memory for each replica."""

    def __init__(self) -> None:
        self._vitals: dict[int, Vitals] = {}

    def beat(self, beat: Beat, now_s: float) -> None:
        """A beat that tells of a new micro-step."""

    def vitals(self, vitals: Vitals) -> None:
        """How a replica's machine is."""
        self._vitals[vitals.replica] = vitals

    def turn(self, _now_s: float) -> list[Effect]:
        """Draw conclusions when it is time to: an event for each replica that turned slow, or recovered."""
        return []

    def of(self, replica: int, _now_s: float) -> Phase:
        """What is known of this replica now."""
        return Phase(vitals=self._vitals.get(replica))
