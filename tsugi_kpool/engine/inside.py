"""The collectives inside a replica: small ones between its workers, over the replica's default group.

Worker 0 leads: only it has the link, the aggregator and the ledger. Training inside a replica is synchronous, so all
workers can meet at every boundary between two steps (docs/decisions/0009).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from tsugi_kpool import world
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.world import WorkerRank

from .collective import CollectiveError
from .group_sockets import Sockets
from .members_only import acquainted, members_only
from .rendezvous import file_store

KEPT = 8
"""How many finished collectives are kept alive. They are small, and a thread of the group is never so far behind."""
TIMEOUT_S = 1800.0
"""Timeout of a worker that waits for another one of its replica."""
SPANS = (
    "the default process group spans replicas (workers of each: {counts}): start one torchrun agent for each "
    "replica, so that the group is the replica's own"
)


class Inside(Protocol):
    """The workers of one replica, seen from one of them."""

    worker: int
    workers: int

    def share(self, values: Tensor) -> None:
        """Overwrite `values` with worker 0's."""

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return on worker 0 everybody's `values` (of equal shape), in the order of workers; nothing on the
        others."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over all workers: float64, equal on all."""

    def is_made_of(self, group: dist.ProcessGroup) -> bool:
        """Return whether a group has these workers and no others."""


class Alone:
    """A replica of one worker."""

    worker = 0
    workers = 1

    def share(self, values: Tensor) -> None:
        del values

    def gather(self, values: Tensor) -> list[Tensor]:
        return [values]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def is_made_of(self, group: dist.ProcessGroup) -> bool:
        return group.size() == 1


ALONE = Alone()


class Workers:
    """The workers of torch.distributed's default process group.

    Raises:
        CollectiveError: from every method, when another worker has gone.
    """

    def __init__(self) -> None:
        self.worker, self.workers = dist.get_rank(), dist.get_world_size()
        self._devices = _devices()
        self._kept: deque[dist.Work] = deque(maxlen=KEPT)

    def share(self, values: Tensor) -> None:
        here = self._reachable(values)
        self._end(dist.broadcast(here, src=0, async_op=True))
        if here is not values:
            values.copy_(here)

    def gather(self, values: Tensor) -> list[Tensor]:
        here = self._reachable(values)
        parts = [torch.empty_like(here) for _ in range(self.workers)] if self.worker == 0 else None
        self._end(dist.gather(here, parts, dst=0, async_op=True))
        return [part.to(values.device) for part in parts or []]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        here = torch.tensor(list(numbers), dtype=torch.float64, device=self._devices[0])
        self._end(dist.all_reduce(here, async_op=True))
        return here.tolist()

    def is_made_of(self, group: dist.ProcessGroup) -> bool:
        return dist.get_process_group_ranks(group) == list(range(self.workers))

    def _end(self, work: dist.Work | None) -> None:
        """Wait for a collective, and keep the object for a while: whoever drops it last needs the GIL to free its
        tensors.

        If the group's thread is the last, it waits for the GIL in vain in two cases: DDP's reducer frees the group
        while it holds the GIL, or the interpreter ends, which aborts the process (pytorch/pytorch issues 56297 and
        190489). Gloo has two threads, so one may still hold a collective when the other has ended the next.
        """
        if work is not None:
            with _translated():
                work.wait()
            self._kept.append(work)

    def _reachable(self, values: Tensor) -> Tensor:
        """Return `values`, or a copy on a device that the group's backend can use."""
        types = [device.type for device in self._devices]
        return (values if values.device.type in types else values.to(self._devices[0])).contiguous()


@contextmanager
def opened(seat: WorkerRank, on_gpu: bool) -> Iterator[Inside]:
    """Form the default group of the processes that our torchrun agent has started, for the duration of the block.

    Raises:
        CollectiveError: another worker does not come.
        MachineError: the agent's rendezvous is not ours.
    """
    if seat.workers == 1:
        yield ALONE
        return
    # Small messages are made on the host: they need not go through the GPU.
    init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield Workers()
    finally:
        dist.destroy_process_group()


def init_process_group(backend: str, timeout_s: float = TIMEOUT_S) -> None:
    """Do what torch.distributed.init_process_group does, for workers started by `torchrun --rdzv-backend=tsugi`.

    They find each other in a private file instead of a TCPStore, which listens on all interfaces. When gloo's group
    has formed, they check that nobody else is in it, and form it again if somebody is.

    Args:
        backend: As torch names it: gloo, nccl, or cpu:gloo,cuda:nccl.
        timeout_s: Deadline of every collective.

    Raises:
        CollectiveError: another worker does not come.
        MachineError: the agent's rendezvous is not ours.
    """
    seat = world.worker_rank()
    default_group(backend, lambda: file_store(seat), seat.worker, seat.workers, timeout_s)


def default_group(
    backend: str, store: Callable[[], Store], rank: int, workers: int, timeout_s: float = TIMEOUT_S
) -> None:
    """Form the default group as `init_process_group` does, for a caller that knows its rank.

    Args:
        backend: As torch names it.
        store: Opens where the workers meet; nobody but their user can.
        rank: This worker's number.
        workers: How many there are.
        timeout_s: Deadline of every collective.
    """
    timeout = timedelta(seconds=timeout_s)

    def place(attempt: int) -> Store:
        found = store()
        found.set_timeout(timeout)
        return PrefixStore(f"{attempt}", found)

    def form(attempt: int) -> Sockets:
        sockets = Sockets()
        dist.init_process_group(backend, store=place(attempt), rank=rank, world_size=workers, timeout=timeout)
        sockets.keep_new()
        return sockets

    def check(sockets: Sockets, attempt: int) -> str | None:
        if "gloo" not in backend or workers == 1:
            return None  # NCCL connects when it is first used; a magic number of its job guards its ports
        return acquainted(place(attempt), sockets, rank, workers)

    with _translated():
        members_only(form, check, lambda _: dist.destroy_process_group())


def found(replica: int, replicas: int) -> Inside:
    """Return the workers of our replica, if there is a default group of them. A collective of that group.

    If every process of the group is a replica of its own, we are alone.

    Raises:
        ConfigError: it holds workers of several replicas.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    workers = Workers()
    counts = workers.sum([float(each == replica) for each in range(replicas)])
    if counts[replica] == workers.workers:
        return workers
    if max(counts) == 1:
        return ALONE
    raise ConfigError([SPANS.format(counts=[int(count) for count in counts])])


def _devices() -> list[torch.device]:
    """Return the devices that the default group's collectives can use, the host first."""
    group = dist.group.WORLD
    types = sorted(device.type for device in group._device_types) if group is not None else []
    return [
        torch.device(each) if each == "cpu" else torch.device(each, torch.cuda.current_device())
        for each in types
        if each == "cpu" or torch.cuda.is_available()
    ]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, msgspec.MsgspecError) as error:
        raise CollectiveError(f"a worker of this replica does not answer: {error}") from error
