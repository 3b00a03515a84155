"""The only module that calls torch.distributed between replicas: a group of one generation, and a fake of it.

A group is a plain ProcessGroupGloo over the members of a generation. Its rendezvous is a `Store` whose keys travel
over the authenticated sideband, not a TCPStore, which listens on all interfaces and asks nobody who they are.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllToAllOptions

from tsugi_kpool.core.replica.acquaintance import shape
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.errors import ConfigError, TrainingError

from .group_sockets import Sockets
from .members_only import CONNECTIONS, acquainted

Given = TypeVar("Given")
SLICE_S = 0.1
TRUST = "say that they will not (topology.trust_network, trust_network)"
FORM_S = 20.0
"""Deadline for forming a group. After it the hub orders another one."""


class CollectiveError(TrainingError):
    """A collective failed or timed out; the group is of no further use."""


class MeshError(CollectiveError):
    """The members were there but could not connect to each other: somebody else may have been in the way."""


@dataclass(frozen=True)
class Network:
    """Where a replica's group listens, and whether that network is trusted.

    Raises:
        ConfigError: others could be there, and nobody has said that they are friends.
    """

    address: str = "127.0.0.1"
    """Address of this machine at which the other replicas reach it."""
    trusted: bool = False
    """The user trusts everybody who reaches that network not to break or hold up replicas' connections: gloo asks
    nobody for a key. Reading and changing is another matter: what replicas send is sealed (engine.sealed)."""

    def __post_init__(self) -> None:
        if not (self.trusted or self.loopback):
            raise ConfigError(
                [
                    f"replicas would listen to each other at {self.address}, where whoever reaches that network can "
                    f"break or hold up their connections; {TRUST}, or stay on 127.0.0.1"
                ]
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"


LOOPBACK = Network()


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


class SidebandStore(dist.Store):  # type: ignore[name-defined,misc]
    """The rendezvous keys of one group, kept by the hub.

    Gloo uses set, wait and get with one address of about 200 bytes for each rank; nothing else is offered.
    """

    def __init__(
        self, uplink: Uplink, prefix: str, timeout_s: float, overtaken: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self._uplink, self._prefix, self._timeout_s = uplink, prefix, timeout_s
        self._overtaken = overtaken
        self.gave_up = False
        """Whether a value did not come in time, or was malformed: then no stranger has kept the group from forming.
        """
        self._shape: tuple[int, int] | None = None
        """Shape of our own address; all members' have the same. None until gloo has set ours, or where it has another
        form."""

    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        if not key.startswith(CONNECTIONS):
            self._shape = shape(data)
        self._uplink.store_put(self._prefix + key, data)

    def get(self, key: str) -> bytes:
        value = self._await(key, time.monotonic() + self._timeout_s)
        if value is None:
            raise self._given_up(f"no value for {key} within {self._timeout_s:g} s")
        if self._shape is not None and not key.startswith(CONNECTIONS) and shape(value) != self._shape:
            raise self._given_up(f"what a member has put at {key} is no address of gloo's")
        return value

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        deadline_s = time.monotonic() + (timeout.total_seconds() if timeout else self._timeout_s)
        for key in keys:
            if self._await(key, deadline_s) is None:
                raise self._given_up(f"no value for {key} in time")

    def _await(self, key: str, deadline_s: float) -> bytes | None:
        """Wait in slices, because the hub may order another group meanwhile. Returns None at the deadline."""
        while True:
            if self._overtaken():  # also when the value is there: the others have given this group up
                raise self._given_up("the hub has ordered another group")
            left_s = max(0.0, deadline_s - time.monotonic())
            value = self._uplink.store_get(self._prefix + key, min(left_s, SLICE_S))
            if value is not None or left_s <= SLICE_S:
                return value

    def _given_up(self, reason: str) -> Exception:
        """Return the store's error, which torch passes on, and remember that the store gave up."""
        self.gave_up = True
        return dist.DistStoreError(reason)

    def check(self, keys: list[str]) -> bool:
        return all(self._uplink.store_get(self._prefix + key, 0.0) is not None for key in keys)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = timeout.total_seconds()


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
