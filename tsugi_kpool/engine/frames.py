"""The frames of two-stage rounds: what goes to an owner, and what an owner sends to all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsugi_kpool.codec import coding, header
from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import Header
from tsugi_kpool.codec.shards import Cut

PROMISE_BYTES = 16
NORM_BYTES = 8


@dataclass(frozen=True)
class Frames:
    """How the frames of a round of K adapters are laid out."""

    cut: Cut
    adapters: int

    @property
    def codes_at(self) -> int:
        """Where the codes begin in a frame to an owner."""
        return header.header_bytes(self.adapters) + PROMISE_BYTES * self.cut.owners

    def part_bytes(self, owner: int) -> int:
        """Return the bytes of a frame to an owner."""
        return self.codes_at + self.cut.coded_bytes(owner, self.adapters)

    def parts(self, delta: Floats, head: Header) -> tuple[list[Bytes], list[Bytes]]:
        """Return what we send to each owner, and the codes in it.

        Args:
            delta: [K, P] fp32.
            head: Our header.
        """
        owners = range(self.cut.owners)
        codes = [coding.encode(self.cut.shard(delta, owner), self.cut.payload) for owner in owners]
        front = [head.reshape(-1).view(np.uint8), *(np.frombuffer(promise(each), np.uint8) for each in codes)]
        return [np.concatenate([*front, each]) for each in codes], codes

    def codes(self, frame: Bytes) -> Bytes:
        """Return the codes of a frame to an owner."""
        return coding.aligned(frame[self.codes_at :])

    def header(self, frame: Bytes) -> Header:
        """Return the header of a frame to an owner."""
        return header.read(frame, self.adapters)

    def promises(self, frame: Bytes) -> list[bytes]:
        """Return what the sender of a frame to an owner has promised to each of them."""
        front = frame[header.header_bytes(self.adapters) : self.codes_at].tobytes()
        return [front[at : at + PROMISE_BYTES] for at in range(0, len(front), PROMISE_BYTES)]

    def mean_bytes(self, owner: int) -> int:
        """Return the bytes of an owner's coded mean."""
        return self.cut.coded_bytes(owner, self.adapters)

    def answer_bytes(self, owner: int) -> int:
        """Return the bytes of an owner's frame to all."""
        return self.cut.owners + NORM_BYTES * self.adapters + self.mean_bytes(owner)

    def answer(self, owner: int, verdict: Sequence[int], norm2: Floats | None, out: Bytes | None) -> Bytes:
        """Return an owner's frame to all; zeros in place of a mean that there is not."""
        bad = np.zeros(self.cut.owners, np.uint8)
        bad[list(verdict)] = 1
        norms = np.zeros(self.adapters) if norm2 is None else np.asarray(norm2, np.float64)
        codes = np.zeros(self.mean_bytes(owner), np.uint8) if out is None else out
        return np.concatenate([bad, norms.view(np.uint8), codes])

    def verdict(self, answer: Bytes) -> list[int]:
        """Return whom an owner's frame blames."""
        return [int(rank) for rank in np.flatnonzero(answer[: self.cut.owners])]

    def norm2(self, answer: Bytes) -> Floats:
        """Return the squared norms in an owner's frame: [K] float64."""
        start = self.cut.owners
        return answer[start : start + NORM_BYTES * self.adapters].copy().view(np.float64)

    def mean(self, answer: Bytes, owner: int) -> Bytes:
        """Return the coded mean in an owner's frame."""
        start = self.cut.owners + NORM_BYTES * self.adapters
        return coding.aligned(answer[start : start + self.mean_bytes(owner)])


def promise(codes: Bytes) -> bytes:
    """Return the digest that a member is bound by."""
    return hashlib.sha256(codes.data).digest()[:PROMISE_BYTES]
