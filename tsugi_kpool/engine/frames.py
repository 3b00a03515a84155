"""The frames of two-stage rounds: what goes to an owner, and what an owner sends to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsugi_kpool.codec import coding, header
from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import Header
from tsugi_kpool.codec.promises import kept, leaf, promise_bytes, promises
from tsugi_kpool.codec.shards import Cut
from tsugi_kpool.core.rounds.statements import SIGNATURE_BYTES, UNSIGNED, digest_of

NORM_BYTES = 8


@dataclass(frozen=True)
class Frames:
    """How the frames of a round of K adapters are laid out."""

    cut: Cut
    adapters: int

    @property
    def codes_at(self) -> int:
        """Where the codes begin in a frame to an owner."""
        return header.header_bytes(self.adapters) + promise_bytes(self.cut.owners)

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
        front, bound = head.reshape(-1).view(np.uint8), promises([leaf(each) for each in codes])
        ties = [np.frombuffer(each, np.uint8) for each in bound]
        return [np.concatenate([front, *each]) for each in zip(ties, codes, strict=True)], codes

    def codes(self, frame: Bytes) -> Bytes:
        """Return the codes of a frame to an owner."""
        return coding.aligned(frame[self.codes_at :])

    def header(self, frame: Bytes) -> Header:
        """Return the header of a frame to an owner."""
        return header.read(frame, self.adapters)

    def promise(self, frame: Bytes) -> bytes:
        """Return what the sender of a frame to an owner has promised."""
        return frame[header.header_bytes(self.adapters) : self.codes_at].tobytes()

    def kept(self, frame: Bytes, owner: int) -> bool:
        """Return whether a frame to an owner has the codes that its sender has promised."""
        return kept(self.promise(frame), owner, self.codes(frame))

    def mean_bytes(self, owner: int) -> int:
        """Return the bytes of an owner's coded mean."""
        return self.cut.coded_bytes(owner, self.adapters)

    @property
    def verdict_bytes(self) -> int:
        """Bytes of a verdict: a bit for each member."""
        return -(-self.cut.owners // 8)

    def answer_bytes(self, owner: int) -> int:
        """Return the bytes of an owner's frame to all."""
        return self.verdict_bytes + NORM_BYTES * self.adapters + self.mean_bytes(owner) + SIGNATURE_BYTES

    def answer(self, owner: int, verdict: Sequence[int], norm2: Floats | None, out: Bytes | None) -> Bytes:
        """Return an owner's frame to all, not signed yet; zeros in place of a mean that there is not."""
        bad = np.zeros(self.cut.owners, np.uint8)
        bad[list(verdict)] = 1
        norms = np.zeros(self.adapters) if norm2 is None else np.asarray(norm2, np.float64)
        codes = np.zeros(self.mean_bytes(owner), np.uint8) if out is None else out
        return np.concatenate([np.packbits(bad), norms.view(np.uint8), codes, np.frombuffer(UNSIGNED, np.uint8)])

    def digest(self, told: bytes, answer: Bytes) -> bytes:
        """Return the digest of all that a member tells the others alike: what it signs.

        Args:
            told: Its header and the root of its promises.
            answer: Its frame to all, as an owner.
        """
        return digest_of((told, answer[:-SIGNATURE_BYTES].data))

    def sign(self, answer: Bytes, signature: bytes) -> None:
        """Put a signature into an owner's frame to all."""
        answer[-SIGNATURE_BYTES:] = np.frombuffer(signature, np.uint8)

    def signature(self, answer: Bytes) -> bytes:
        """Return the signature in an owner's frame to all, whether it is one or not."""
        return answer[-SIGNATURE_BYTES:].tobytes()

    def verdict(self, answer: Bytes) -> list[int]:
        """Return whom an owner's frame blames."""
        bits = np.unpackbits(answer[: self.verdict_bytes], count=self.cut.owners)
        return [int(rank) for rank in np.flatnonzero(bits)]

    def norm2(self, answer: Bytes) -> Floats:
        """Return the squared norms in an owner's frame: [K] float64."""
        start = self.verdict_bytes
        return answer[start : start + NORM_BYTES * self.adapters].copy().view(np.float64)

    def mean(self, answer: Bytes, owner: int) -> Bytes:
        """Return the coded mean in an owner's frame."""
        start = self.verdict_bytes + NORM_BYTES * self.adapters
        return coding.aligned(answer[start : start + self.mean_bytes(owner)])
