"""What replicas send each other, sealed: AES-256-GCM around a group's collectives.

Gloo encrypts nothing and asks nobody who they are. So every member seals what it sends, with a key of its own for
this generation. All these keys come from one that the hub's order brings over the encrypted sideband. Who reads along
learns lengths and times; what was altered, sent twice or put in another's place does not open.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from .collective import CollectiveError, Group

INCARNATION_BYTES = 16
TAG_BYTES = 16
CHUNK_BYTES = 1 << 22
"""A part is sealed in chunks of this size: AESGCM takes 2 GiB at once at most, and other threads run in between."""
ALL = 0xFFFFFFFF
"""Stands for the receiver of what goes to all members."""
_HEAD = struct.Struct(f"!Q{INCARNATION_BYTES}s")
_ABOUT = struct.Struct("!4sQIIII")
T = TypeVar("T")


class Nonces:
    """The counter of all that one process seals. It never goes back, whatever group or attempt it is used in."""

    def __init__(self) -> None:
        self.incarnation = secrets.token_bytes(INCARNATION_BYTES)
        """Of this process: its keys are those of no other, even where all else is equal."""
        self._next = 1

    def take(self, count: int) -> int:
        """Return the first of `count` numbers that nobody has had before."""
        first, self._next = self._next, self._next + count
        return first


class Seal:
    """Seals and opens the parts of one generation. Of the aggregator's thread.

    Args:
        key: The generation's, from the hub's order.
        generation: Its number.
        members: By rank, the replicas in it.
        rank: Our place among them.
        nonces: This process's.
    """

    def __init__(self, key: bytes, generation: int, members: Sequence[int], rank: int, nonces: Nonces) -> None:
        self._key, self._generation, self._members, self._rank = key, generation, members, rank
        self._nonces = nonces
        self._own = self._cipher(members[rank], nonces.incarnation)
        self._others: dict[int, tuple[bytes, AESGCM]] = {}
        """By rank, the incarnation and the key of a sender that has been heard in this generation."""
        self._seen: dict[int, int] = {}
        """By rank, the newest number that has been opened: none is opened twice."""

    def seal(self, part: Tensor, kind: bytes, number: int, to: int = ALL) -> Tensor:
        """Return a part as it travels.

        Args:
            part: Contiguous, on the CPU.
            kind: Name of the collective, 4 bytes.
            number: Of the collective in its group: no part can stand for one of another collective.
            to: Rank of the receiver.
        """
        plain = _bytes(part)
        chunks = _chunks(len(plain))
        first = self._nonces.take(chunks)
        sealed = torch.empty(sealed_bytes(len(plain)), dtype=torch.uint8)
        room = _bytes(sealed)
        room[: _HEAD.size] = _HEAD.pack(first, self._nonces.incarnation)
        at = _HEAD.size
        for chunk in range(chunks):
            about = _ABOUT.pack(kind, number, self._rank, to, chunk, chunks)
            data = plain[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            end = at + len(data) + TAG_BYTES
            room[at:end] = self._own.encrypt(_nonce(first + chunk), data, about)
            at = end
        return sealed

    def open(self, sealed: Tensor, into: Tensor, kind: bytes, number: int, sender: int, to: int = ALL) -> None:
        """Write a sender's part into `into`, which has its size and type.

        Raises:
            CollectiveError: it does not open: it names the sender.
        """
        room = _bytes(into)
        parcel = _bytes(sealed)
        first, incarnation = _HEAD.unpack_from(parcel)
        chunks = _chunks(len(room))
        if first <= self._seen.get(sender, 0):
            raise self._refused(sender, "it was sent before")
        cipher, at = self._of(sender, incarnation), _HEAD.size
        for chunk in range(chunks):
            about = _ABOUT.pack(kind, number, sender, to, chunk, chunks)
            data = room[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            end = at + len(data) + TAG_BYTES
            try:
                data[:] = cipher.decrypt(_nonce(first + chunk), parcel[at:end], about)
            except InvalidTag as error:
                raise self._refused(sender, "it was altered on the way, or is another collective's") from error
            at = end
        self._others[sender] = (incarnation, cipher)
        self._seen[sender] = first + chunks - 1

    def _of(self, sender: int, incarnation: bytes) -> AESGCM:
        """Return the key of a sender. In one generation it is one process."""
        known = self._others.get(sender)
        if known is None:
            return self._cipher(self._members[sender], incarnation)
        if known[0] != incarnation:
            raise self._refused(sender, "it is another process's")
        return known[1]

    def _cipher(self, replica: int, incarnation: bytes) -> AESGCM:
        about = struct.pack("!QI", self._generation, replica) + incarnation
        return AESGCM(HKDF(SHA256(), 32, salt=None, info=b"tsugi group" + about).derive(self._key))

    def _refused(self, sender: int, why: str) -> CollectiveError:
        return CollectiveError(f"what came as replica {self._members[sender]}'s part does not open: {why}")


class SealedGroup:
    """A group whose members seal what they send. Its numbers are those of the group that it wraps.

    Args:
        group: Carries what is sealed.
        seal: The generation's.
    """

    def __init__(self, group: Group, seal: Seal) -> None:
        self._group, self._seal = group, seal
        self.rank, self.world = group.rank, group.world
        self._number = 0
        """Collectives of this group so far. All members call the same ones in the same order."""

    def gather(self, payload: Tensor) -> list[Tensor]:
        number = self._count()
        sealed = self._group.gather(self._seal.seal(payload, b"gath", number))
        return self._or_close(lambda: [self._opened(each, payload, rank, number) for rank, each in enumerate(sealed)])

    def scatter(self, parts: list[Tensor], receives: list[int]) -> list[Tensor]:
        number = self._count()
        sent = [self._seal.seal(part, b"scat", number, to) for to, part in enumerate(parts)]
        came = self._group.scatter(sent, [sealed_bytes(size) for size in receives])

        def ours(sender: int) -> Tensor:
            if sender == self.rank:
                return parts[sender]
            part = torch.empty(receives[sender], dtype=torch.uint8)
            self._seal.open(came[sender], part, b"scat", number, sender, self.rank)
            return part

        return self._or_close(lambda: [ours(sender) for sender in range(self.world)])

    def broadcast(self, values: Tensor, root: int = 0) -> None:
        number, bytes_of = self._count(), values.numel() * values.element_size()
        if self.rank == root:
            self._group.broadcast(self._seal.seal(values, b"cast", number), root)
            return
        sealed = torch.empty(sealed_bytes(bytes_of), dtype=torch.uint8)
        self._group.broadcast(sealed, root)
        self._or_close(lambda: self._seal.open(sealed, values, b"cast", number, root))

    @property
    def severed(self) -> bool:
        return self._group.severed

    def interrupt(self) -> None:
        self._group.interrupt()

    def close(self) -> None:
        self._group.close()

    def _opened(self, sealed: Tensor, payload: Tensor, rank: int, number: int) -> Tensor:
        if rank == self.rank:
            return payload
        part = torch.empty_like(payload)
        self._seal.open(sealed, part, b"gath", number, rank)
        return part

    def _count(self) -> int:
        self._number += 1
        return self._number

    def _or_close(self, open_all: Callable[[], T]) -> T:
        """Open what has come. If something does not open the group is closed, as after any collective that failed."""
        try:
            return open_all()
        except CollectiveError:
            self.close()
            raise


def sealed_bytes(plain_bytes: int) -> int:
    """Return the size of a sealed part."""
    return _HEAD.size + plain_bytes + TAG_BYTES * _chunks(plain_bytes)


def _bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's own memory."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _chunks(plain_bytes: int) -> int:
    return max(1, -(-plain_bytes // CHUNK_BYTES))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
