"""A group whose members are threads of one process: a fake of the gloo group, for real tensors without processes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from .collective import CollectiveError

Given = TypeVar("Given")


class ThreadGroup:
    """A group whose members are threads of one process, for tests and simulations with real tensors."""

    severed = False

    def __init__(self, rank: int, shared: ThreadRendezvous) -> None:
        self.rank, self.world = rank, shared.world
        self._shared = shared

    def gather(self, payload: Tensor) -> list[Tensor]:
        return [part.clone() for part in self._shared.exchange(self.rank, payload)]

    def scatter(self, parts: list[Tensor], receives: list[int]) -> list[Tensor]:
        del receives
        return [each[self.rank].clone() for each in self._shared.exchange(self.rank, parts)]

    def broadcast(self, values: Tensor, root: int = 0) -> None:
        values.copy_(self._shared.exchange(self.rank, values.clone())[root])

    def interrupt(self) -> None:
        self._shared.barrier.abort()

    def close(self) -> None:
        self._shared.barrier.abort()


class ThreadRendezvous:
    """The state that the members of a ThreadGroup share."""

    def __init__(self, world: int, timeout_s: float = 30.0) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=timeout_s)
        self._parts: list[Any] = [None] * world

    def exchange(self, rank: int, payload: Given) -> Sequence[Given]:
        """Give something, and return everybody's."""
        self._parts[rank] = payload
        try:
            self.barrier.wait()
            parts = [part for part in self._parts if part is not None]
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise CollectiveError("a member of the thread group has gone") from error
        return parts
