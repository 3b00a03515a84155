"""The only module that calls torch.distributed between replicas: a group of one generation.

A group is a plain ProcessGroupGloo over the members of a generation, which meet in a `SidebandStore`. `thread_group`
is a fake of it, whose members are threads.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllToAllOptions

from tsugi_kpool.errors import TrainingError

from .group_sockets import Sockets
from .members_only import acquainted
from .sideband_store import SidebandStore

FORM_S = 20.0
"""Deadline for forming a group. After it the hub orders another one."""


class CollectiveError(TrainingError):
    """A collective failed or timed out; the group is of no further use."""


class MeshError(CollectiveError):
    """The members were there but could not connect to each other: somebody else may have been in the way."""


class Group(Protocol):
    """The collectives that a round needs."""

    rank: int
    world: int

    def gather(self, payload: Tensor) -> list[Tensor]:
        """Return every member's `payload` (uint8, of one length), in the order of ranks."""

    def scatter(self, parts: list[Tensor], receives: list[int]) -> list[Tensor]:
        """Send `parts[j]` (uint8, of any size) to rank j; return everybody's part for us, in the order of ranks.

        Args:
            parts: For each rank.
            receives: Bytes that each rank has for us.
        """

    def broadcast(self, values: Tensor, root: int = 0) -> None:
        """Overwrite `values` with those of rank `root`."""

    @property
    def severed(self) -> bool:
        """Whether a member's connection has closed: its process has gone, or the way to it."""

    def interrupt(self) -> None:
        """Make a waiting collective, and every later one, fail at once. Called from another thread."""

    def close(self) -> None:
        """Close the sockets."""


class GlooGroup:
    """A gloo group between replicas.

    Args:
        store: Where the members find each other.
        rank: Our place among the members.
        world: How many members.
        interface: Address of this machine to use, such as 127.0.0.1.
        timeout_s: Deadline of every collective.

    Raises:
        CollectiveError: the members did not find each other in time.
    """

    def __init__(self, store: SidebandStore, rank: int, world: int, interface: str, timeout_s: float) -> None:
        self.rank, self.world = rank, world
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=min(timeout_s, FORM_S))
        # `Sockets` before the group: what is open already is not the group's.
        self._timeout, self._sockets = timedelta(seconds=timeout_s), Sockets()
        options._threads = 2
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=interface)]
        try:
            self._group: dist.ProcessGroupGloo | None = dist.ProcessGroupGloo(store, rank, world, options)
        except RuntimeError as error:
            kind = CollectiveError if store.gave_up else MeshError
            raise kind(f"the group of {world} members did not form: {error}") from error
        self._sockets.keep_new()
        self._store = store

    def stranger(self) -> str | None:
        """Return why this group must not be used (somebody else has connected to it), or None. A collective over the
        store.

        Raises:
            CollectiveError: a member does not answer.
            MachineError: this system does not let it be told.
        """
        try:
            return acquainted(self._store, self._sockets, self.rank, self.world)
        except (RuntimeError, msgspec.MsgspecError) as error:
            raise CollectiveError(f"the members of the group do not show themselves: {error}") from error

    def gather(self, payload: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(payload) for _ in range(self.world)]
        options = AllgatherOptions()
        options.timeout = self._timeout
        try:
            self._live().allgather([parts], [payload], options).wait()  # type: ignore[attr-defined]
        except RuntimeError as error:
            self.close()
            raise CollectiveError(str(error)) from error
        return parts

    def scatter(self, parts: list[Tensor], receives: list[int]) -> list[Tensor]:
        # The base form, because the list form refuses parts of different sizes.
        sizes, options = [part.numel() for part in parts], AllToAllOptions()
        options.timeout = self._timeout
        here = torch.empty(sum(receives), dtype=torch.uint8)
        try:
            self._live().alltoall_base(here, torch.cat(parts), receives, sizes, options).wait()  # type: ignore[attr-defined]
        except RuntimeError as error:
            self.close()
            raise CollectiveError(str(error)) from error
        return list(torch.split(here, receives))

    def broadcast(self, values: Tensor, root: int = 0) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.timeout = root, self._timeout
        try:
            self._live().broadcast([values], options).wait()  # type: ignore[attr-defined]
        except RuntimeError as error:
            self.close()
            raise CollectiveError(str(error)) from error

    @property
    def severed(self) -> bool:
        return self._group is not None and self._sockets.severed

    def interrupt(self) -> None:
        self._sockets.shut_down()

    def close(self) -> None:
        # Dropping the object closes its sockets, which frees peers that wait on them at once.
        self._group = None

    def _live(self) -> dist.ProcessGroupGloo:
        if self._group is None:
            raise CollectiveError("the group is closed")
        return self._group


class SingleGroup:
    """A group of one member."""

    rank = 0
    world = 1
    severed = False

    def gather(self, payload: Tensor) -> list[Tensor]:
        return [payload]

    def scatter(self, parts: list[Tensor], receives: list[int]) -> list[Tensor]:
        del receives
        return parts

    def broadcast(self, values: Tensor, root: int = 0) -> None:
        del values, root  # the donor's already

    def interrupt(self) -> None:
        return None

    def close(self) -> None:
        return None
