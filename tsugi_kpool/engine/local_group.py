"""Broadcasts between the workers of one replica at a boundary between two steps, and their pool.

Worker 0, the leader, broadcasts a `StepMessage`; the others receive it. What its rounds have changed in the adapters
follows as values, so that all workers add or write the same bits. Nothing is unpickled: messages are MessagePack with
a schema.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from tsugi_kpool.core.messages import MAX_FRAME_BYTES, Evaluated, Lease, decode, encode
from tsugi_kpool.errors import TrainingError, TsugiError

from .inside import Inside
from .pool import AdapterPool
from .shards import Shards
from .state import Tensors

FRAME_BYTES = 1024
"""A message of up to this size takes one broadcast, a longer one two."""
HEAD_BYTES = 8
AFTER_LEADER_S = 3.0
"""A worker whose leader has failed waits this long before it fails, too: torchrun ends it first, and shows the
leader's own error."""


class AdapterChange(msgspec.Struct, frozen=True):
    """A change of some adapters; its values follow the message."""

    adapters: tuple[int, ...]
    added: bool
    """Whether the values are added to what is there (else they replace it)."""


class StepMessage(msgspec.Struct, frozen=True):
    """From the leader to its replica's other workers, at every boundary. Never lost: all of them wait for it."""

    waiting: bool = False
    """Nothing has happened yet: another message follows at this boundary."""
    failed: str | None = None
    """The leader has failed with this reason."""
    draining: bool = False
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""
    version: int = 0
    members: int = 0
    """Replicas of the newest generation; 0: none has been formed."""
    changes: tuple[AdapterChange, ...] = ()
    lease: Lease | None = None
    evaluate: bool = False
    first: int = 0
    """Lowest remaining replica."""
    anew: bool = False
    """What was buffered has been thrown away: the loop's optimizer begins again, too."""
    saving: bool = False
    """A checkpoint wants this replica's moments: all workers gather them now."""
    moments_bytes: int = 0
    """Bytes of a donor's moments that follow the changes; every worker's optimizer goes on with them."""


@dataclass(frozen=True)
class Whole:
    """Totals of a step over the replica's workers."""

    tokens: int
    """Supervised tokens."""
    samples: int
    loss: float
    """Mean over the tokens."""
    worked: int
    """Tokens computed on."""
    weight: float
    """Factor for a worker's own mean loss. DDP and FSDP average gradients over workers as equals; with this factor
    the average is the gradient of the mean over all the replica's tokens, however they are spread."""


def whole(inside: Inside, tokens: int, samples: int, loss: float, worked: int = 0) -> Whole:
    """Return the totals of a step over all workers. One without samples takes part with zeros."""
    if inside.workers == 1:
        return Whole(tokens, samples, loss, worked, 1.0)
    mine = [tokens, samples, loss * tokens if tokens else 0.0, worked]
    all_tokens, all_samples, loss_sum, all_worked = inside.sum(mine)
    mean = loss_sum / all_tokens if all_tokens else 0.0
    weight = inside.workers * tokens / all_tokens if all_tokens else 0.0
    return Whole(int(all_tokens), int(all_samples), mean, int(all_worked), weight)


class LocalGroupPool(AdapterPool):
    """A pool whose live values are on all workers of a replica: all of them on each (DDP), or some rows on each
    (FSDP2).

    Made by all workers at the same point. On worker 0 it is an `AdapterPool` like any other, which keeps its changes
    for the others until `send`.
    """

    def __init__(self, model: nn.Module, n: int, adapter_name: str, inside: Inside) -> None:
        self._inside, self._shards = inside, Shards(inside)
        self._unsent: list[tuple[AdapterChange, Tensor]] = []
        super().__init__(model, n, adapter_name, self._shards.full_copy)
        self.sharded = bool(self._shards)
        self.gather()
        self.fill()
        self.transfers.changed()

    def add(self, adapters: Sequence[int], change: Tensor) -> None:
        super().add(adapters, change)
        self._unsent.append((AdapterChange(tuple(adapters), added=True), change))

    def write(self, values: Tensor, adapters: Sequence[int] | None = None) -> None:
        super().write(values, adapters)
        names = range(self.n) if adapters is None else adapters
        self._unsent.append((AdapterChange(tuple(names), added=False), values.clone()))

    def gather(self, gradients: bool = False) -> None:
        """Gather the shards (or their gradients) on worker 0 after a step. A collective; does nothing without
        shards."""
        if self.sharded:
            self._shards.gather(gradients)

    def fill(self, gradients: bool = False) -> None:
        """Write what has been gathered into the copies."""
        if self.sharded:
            self._shards.fill(gradients)

    def gradients(self) -> Tensor:
        found = super().gradients()
        self._shards.forget_gradients()
        return found

    def unsent(self) -> tuple[AdapterChange, ...]:
        """Return the changes that the other workers have not received."""
        return tuple(change for change, _ in self._unsent)

    def send(self, changes: Sequence[AdapterChange]) -> None:
        """Worker 0: send the values of these changes, the first unsent ones, which a message has just named."""
        for _ in changes:
            self._inside.share(self._unsent.pop(0)[1])
        if changes and self.sharded:
            self._shards.give()

    def receive(self, changes: Sequence[AdapterChange]) -> None:
        """The others: apply the same changes."""
        if changes and self.sharded:
            self._shards.take()
        for change in changes:
            values = torch.empty(len(change.adapters), self.size)
            self._inside.share(values)
            if change.added:
                super().add(change.adapters, values)
            else:
                self.put(values, change.adapters)
        if changes and self.sharded:
            self._shards.give()


class LocalGroup:
    """Broadcasts from the leader to the others. Every call is a collective of the replica's training threads.

    Args:
        inside: The workers.
        pool: Whose changes go along with the words.
    """

    def __init__(self, inside: Inside, pool: AdapterPool) -> None:
        self._inside = inside
        self._pool = pool if isinstance(pool, LocalGroupPool) else None
        self.moments: Tensors = {}
        """A donor's moments that all workers have received and no optimizer has taken yet."""

    @property
    def many(self) -> bool:
        """Whether there are other workers."""
        return self._pool is not None

    def broadcast(self, message: StepMessage, moments: Tensors | None = None) -> None:
        """Worker 0: broadcast a message, and what has changed in the pool since the last one.

        Args:
            message: What the others must know.
            moments: A donor's moments, if there are any.
        """
        if self._pool is None:
            return
        # Only the changes that the message names are sent: the aggregator may add others meanwhile, when it takes
        # over anchors.
        changes = () if message.failed or message.waiting else self._pool.unsent()
        frame = save(moments) if moments else b""
        self._send(msgspec.structs.replace(message, changes=changes, moments_bytes=len(frame)))
        self._pool.send(changes)
        if moments:
            self._inside.share(torch.frombuffer(bytearray(frame), dtype=torch.uint8))
            self.moments = moments

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Wraps work that may fail before the next broadcast: the others, who wait for it, then fail, too."""
        try:
            yield
        except TsugiError as error:
            self.broadcast(StepMessage(failed=str(error)))
            raise

    def receive(self) -> StepMessage:
        """The others: wait for the leader's message, and apply its changes.

        Raises:
            TrainingError: the leader has failed.
        """
        message = StepMessage(waiting=True)
        while message.waiting:
            message = self._receive()
        if message.failed is not None:
            time.sleep(AFTER_LEADER_S)
            raise TrainingError(f"worker 0 of this replica has failed: {message.failed}")
        if self._pool is not None:
            self._pool.receive(message.changes)
        if message.moments_bytes:
            frame = torch.empty(message.moments_bytes, dtype=torch.uint8)
            self._inside.share(frame)
            self.moments = load(frame.numpy().tobytes())
        return message

    def merge(self, message: Evaluated) -> Evaluated:
        """Return the sum of all workers' parts of an evaluation on worker 0, and the own part on the others."""
        frames = self._inside.gather(_padded(encode(message), MAX_FRAME_BYTES + HEAD_BYTES))
        parts = [decode(_unpadded(frame)) for frame in frames]
        return _summed([part for part in parts if isinstance(part, Evaluated)]) if parts else message

    def _send(self, message: StepMessage) -> None:
        data = msgspec.msgpack.encode(message)
        self._inside.share(_padded(data[:FRAME_BYTES], FRAME_BYTES + HEAD_BYTES, len(data)))
        if len(data) > FRAME_BYTES:
            self._inside.share(_padded(data, len(data) + HEAD_BYTES))

    def _receive(self) -> StepMessage:
        frame = torch.empty(FRAME_BYTES + HEAD_BYTES, dtype=torch.uint8)
        self._inside.share(frame)
        size = int(frame[:HEAD_BYTES].view(torch.int64))
        if size > FRAME_BYTES:
            frame = torch.empty(size + HEAD_BYTES, dtype=torch.uint8)
            self._inside.share(frame)
        return msgspec.msgpack.decode(_unpadded(frame), type=StepMessage)


def _padded(data: bytes, size: int, length: int | None = None) -> Tensor:
    """Return `size` bytes: the length as int64, the data, zeros."""
    head = (len(data) if length is None else length).to_bytes(HEAD_BYTES, sys.byteorder)
    return torch.frombuffer(bytearray((head + data).ljust(size, b"\0")), dtype=torch.uint8)


def _unpadded(frame: Tensor) -> bytes:
    size = int(frame[:HEAD_BYTES].view(torch.int64))
    return frame[HEAD_BYTES : HEAD_BYTES + size].numpy().tobytes()


def _summed(parts: list[Evaluated]) -> Evaluated:
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return msgspec.structs.replace(parts[0], sums=sums, examples=parts[0].examples)


def open_pool(model: nn.Module, n: int, adapter_name: str, inside: Inside) -> AdapterPool:
    """Return the pool of a replica's worker. With several workers a collective: all make theirs at the same point."""
    if inside.workers == 1:
        return AdapterPool(model, n, adapter_name)
    return LocalGroupPool(model, n, adapter_name, inside)
