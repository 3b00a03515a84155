"""What a replica keeps of its own training for a curve of eval loss: the adapters at some moments, times and counts.

The adapters are evaluated after the run, by another process, so that evaluation costs the training no time: what it
does cost is one copy of the adapters for each moment.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.run_dir import RunPaths

from .pace import StepPacing
from .traffic import sent_bytes


class Agreed(Protocol):
    """Whoever holds what all replicas agree on: the engine, or a strategy of `tsugi bench`."""

    @property
    def version(self) -> int:
        """How often it has changed, or how many tokens stand in it."""

    def anchors(self) -> Tensor:
        """A copy: [N, P], fp32."""


@dataclass(frozen=True)
class Moment:
    """When the adapters were kept."""

    at_s: float
    """Since this replica began to train."""
    version: int
    """Of the adapters."""


@dataclass
class Measured:
    """One replica's training."""

    began_unix_s: float = 0.0
    ended_unix_s: float = 0.0
    steps: int = 0
    busy_s: float = 0.0
    """In steps, waits for others left out."""
    late: int = 0
    """Steps that took longer than the emulated device's."""
    sent_bytes: int = 0
    """By this process over TCP, while it trained."""
    moments: list[Moment] = field(default_factory=list)


class Track:
    """Keeps the adapters at `count` moments that are equally far apart in trained tokens, and at the end.

    Args:
        count: 0 keeps and measures nothing.
        paths: Where `end` writes.
        replica: Number 0 keeps the adapters, the others only measure.
    """

    def __init__(self, count: int, paths: RunPaths, replica: int) -> None:
        self._count, self._paths, self._replica = count, paths, replica
        self._measured, self._kept = Measured(), list[Tensor]()
        self._began_s = 0.0

    @staticmethod
    def of(spec: RunSpec, paths: RunPaths, replica: int, worker: int) -> Track:
        """The one that the settings ask for; of a replica's workers the first one keeps it."""
        return Track(spec.evaluate.snapshots if worker == 0 else 0, paths, replica)

    def begin(self) -> None:
        """Training begins."""
        if self._count:
            self._measured.sent_bytes = -sent_bytes()
            self._measured.began_unix_s = time.time()
        self._began_s = time.monotonic()

    def look(self, done: float, agreed: Agreed) -> None:
        """Between two steps: keep the adapters if their time has come. `done`: share of the run, 0 to 1."""
        if self._replica == 0 and len(self._kept) < self._count and done * self._count >= len(self._kept):
            self._keep(agreed)

    def end(self, pace: StepPacing, agreed: Agreed) -> None:
        """Training has ended, everybody has the same adapters: write down what was kept."""
        if not self._count:
            return
        if self._replica == 0:
            self._keep(agreed)
        measured = self._measured
        measured.ended_unix_s = measured.began_unix_s + time.monotonic() - self._began_s
        measured.sent_bytes += sent_bytes()
        measured.steps, measured.busy_s, measured.late = pace.steps, pace.busy_s, pace.late
        if self._replica == 0:
            _save(self._kept, self._paths.snapshots)
        self._paths.track(self._replica).parent.mkdir(exist_ok=True)
        write_json(self._paths.track(self._replica), asdict(measured))

    def _keep(self, agreed: Agreed) -> None:
        self._measured.moments.append(Moment(time.monotonic() - self._began_s, agreed.version))
        self._kept.append(agreed.anchors())


def _save(kept: list[Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    save_file({str(number): values for number, values in enumerate(kept)}, path)
