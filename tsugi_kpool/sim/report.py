"""What a simulated run amounted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsugi_kpool.core.fleet import goodput
from tsugi_kpool.core.status import fleet_status

if TYPE_CHECKING:
    from .fleet import Fleet


@dataclass(frozen=True)
class Report:
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
    """Mean over committed micro-steps (and adapters) of the versions that landed between the one it was computed on
    and the one that its change went into; 0 in a synchronous run."""
    samples: tuple[int, ...]
    """Trained, for each replica."""
    tokens: int
    sent_bytes: tuple[int, ...]
    """Payload that each replica sent in rounds."""
    control_messages: int
    """Messages that all replicas and the hub gave to the sideband (hub's answers to beats not counted)."""
    lag_s: tuple[float, ...]
    """For each replica: seconds since the furthest one stood where it stands now."""
    anchors: tuple[int, ...]
    """The newest version's values."""


def draw_up(fleet: Fleet) -> Report:
    """The report of a fleet as it stands."""
    hub, replicas = fleet.hub, fleet.replicas
    steps = sum(replica.staleness.steps for replica in replicas)
    return Report(
        seed=fleet.seed,
        seconds=fleet.kernel.now_s,
        stage=str(hub.stage),
        failure=hub.failure,
        rounds={str(reason): count for reason, count in hub.rounds.by_reason.items()},
        versions=hub.rounds.version,
        goodput=goodput(replica.beat() for replica in replicas),
        staleness=sum(replica.staleness.versions for replica in replicas) / steps if steps else None,
        samples=tuple(replica.progress.samples for replica in replicas),
        tokens=sum(replica.progress.tokens for replica in replicas),
        sent_bytes=tuple(replica.sent_bytes for replica in replicas),
        control_messages=fleet.channel.sent,
        lag_s=tuple(row.lag_s for row in fleet_status(hub, fleet.kernel.now_s).replicas),
        anchors=fleet.history[-1],
    )
