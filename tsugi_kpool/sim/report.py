"""The report of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SimulationReport:
    """Figures of a run up to now; equal for equal plans, speeds, links and seeds."""

    seed: int
    seconds: float
    """Virtual time."""
    stage: str
    failure: str | None
    rounds: dict[str, int]
    """Rounds fired, by reason."""
    versions: int
    """Rounds committed."""
    goodput: float | None
    staleness: float | None
    """Mean staleness over committed steps and adapters: versions committed between the one that a step was computed
    on and the one that its change went into. 0 in a synchronous run."""
    samples: tuple[int, ...]
    """Samples trained, for each replica."""
    tokens: int
    sent_bytes: tuple[int, ...]
    """Payload that each replica sent in rounds."""
    control_messages: int
    """Messages that all replicas and the hub gave to the sideband (hub's answers to beats not counted)."""
    lag_s: tuple[float, ...]
    """For each replica: seconds since the furthest one was where it is now."""
    anchors: tuple[int, ...]
    """The newest version's values."""
