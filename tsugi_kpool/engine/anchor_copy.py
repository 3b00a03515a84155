"""The anchors that this replica is to evaluate: copied by the aggregator, taken by the training thread."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from torch import Tensor

from .buffer import ElasticBuffer


@dataclass(frozen=True)
class Version:
    """The anchors of a committed version, which nothing changes any more."""

    number: int
    anchor: Tensor
    """[N, P] fp32, on the CPU."""


class AnchorCopy:
    """Copies the anchors of the versions that a Commit gives to this replica.

    Args:
        replica: Our number.
        buffer: Whose anchors they are.
    """

    def __init__(self, replica: int, buffer: ElasticBuffer) -> None:
        self._replica, self._buffer = replica, buffer
        self._copies: queue.SimpleQueue[Version] = queue.SimpleQueue()

    def committed(self, version: int, evaluator: int | None) -> None:
        """Aggregator thread, before the next order: only there do anchors move."""
        if evaluator == self._replica:
            self._copies.put(Version(version, self._buffer.update.anchor.detach().clone()))

    def take(self) -> Version | None:
        """Training thread: return the newest copy that has not been taken; older ones are dropped."""
        newest = None
        while not self._copies.empty():
            newest = self._copies.get_nowait()
        return newest
