"""Two-stage rounds (`kpool.reduce=scatter`): a reduce-scatter of codes, then an all-gather of the coded mean.

Every adapter is cut into as many shards as there are members. A member sends shard j of its part to member j, the
shard's owner, who sums, adds what coding its earlier means has lost, codes the mean and sends it to all. So a member
sends 2 (R-1)/R payloads instead of R-1, and decodes two instead of R.

    1. to each owner:  header | promises | codes of its shard
    2. to all:         verdict | squared norms | coded mean of our shard

The *promises* are the digests of what a member sends to each owner: they bind it when an owner is checked
(`scatter_check`). The *verdict* of an owner names the members whose parts are unusable, because it alone has seen
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsugi_kpool.codec import coding, header
from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import TOKENS, Header
from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.codec.owner import average
from tsugi_kpool.codec.shards import Cut

from .collective import CollectiveError
from .rounds import Contribution, UnusableRound, header_of, measured, result_of
from .update import Owned
from .ways import Place, ToAll, ToEach, Way

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
        return self.cut.coded_bytes(owner, self.adapters)

    def answer(self, verdict: Sequence[int], norm2: Floats | None, out: Bytes | None) -> Bytes:
        """Return an owner's frame to all, filled up to the widest shard's: all frames of a gather are of one size."""
        bad = np.zeros(self.cut.owners, np.uint8)
        bad[list(verdict)] = 1
        norms = np.zeros(self.adapters) if norm2 is None else np.asarray(norm2, np.float64)
        widest = max(self.mean_bytes(owner) for owner in range(self.cut.owners))
        codes = np.zeros(widest, np.uint8)
        if out is not None:
            codes[: out.size] = out
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


@dataclass(frozen=True)
class Evidence:
    """What a member keeps of a round until its Commit, so that an owner can be checked."""

    frames: Frames
    sent: list[Bytes]
    """Our frame to each owner."""
    promises: list[list[bytes]]
    """Of each member, what it has promised to each owner."""
    answers: list[Bytes]
    """Each owner's frame to all."""
    bounds: list[Floats]
    """Of each owner, how large its residuals can be: [K, blocks]."""


def promise(codes: Bytes) -> bytes:
    """Return the digest that a member is bound by."""
    return hashlib.sha256(codes.data).digest()[:PROMISE_BYTES]


def scattered(place: Place, keeper: Keeper, cut: Cut, contribution: Contribution, kept: list[Evidence]) -> Way:
    """Sum a round in two stages.

    Args:
        place: Where we stand.
        keeper: Our residuals; they change when the round is committed.
        cut: The generation's shards.
        contribution: Ours.
        kept: Gets the evidence of the round.
    """
    adapters, shape = contribution.shipment.adapters, contribution.delta.shape
    frames = Frames(cut, len(adapters))
    sent, codes = frames.parts(contribution.delta.numpy(), header_of(contribution))
    got = yield ToEach([torch.from_numpy(each) for each in sent], frames.part_bytes(place.rank))
    parts = [each.numpy() for each in got]
    headers = np.stack([frames.header(each) for each in parts])
    answer, rest = _own(place, keeper.rest(adapters), frames, parts, headers)
    answers = [each.numpy() for each in (yield ToAll(torch.from_numpy(answer)))]
    bounds = [keeper.bounds(adapters, owner) for owner in range(cut.owners)]
    kept[:] = [Evidence(frames, sent, [frames.promises(each) for each in parts], answers, bounds)]
    if bad := sorted({rank for each in answers for rank in frames.verdict(each)}):
        return UnusableRound(tuple(bad), place.members)
    outs = [frames.mean(each, owner) for owner, each in enumerate(answers)]
    norm2 = np.sum([frames.norm2(each) for each in answers], axis=0) if measured(headers) else None
    own = _whole(cut, codes, shape) if place.error_feedback else contribution.delta
    mean = _whole(cut, outs, shape).numpy()
    return result_of(contribution, place.update, headers, mean, norm2, own, Owned(tuple(outs), rest))


def _own(place: Place, rest: Floats, frames: Frames, parts: list[Bytes], headers: Header) -> tuple[Bytes, Floats]:
    """Do the owner's part: return our frame to all, and the new residuals of our shard.

    Raises:
        CollectiveError: what a member has sent is not what it has promised.
    """
    codes = [frames.codes(each) for each in parts]
    for rank, (part, code) in enumerate(zip(parts, codes, strict=True)):
        if frames.promises(part)[place.rank] != promise(code):
            raise CollectiveError(f"the part of member {rank} is not what it has promised")
    bad = header.unusable(headers, [coding.finite(code, rest.size, place.payload) for code in codes])
    if bad:
        return frames.answer(bad, None, None), rest
    shares, keep = place.update.shares(headers[:, TOKENS]), place.error_feedback
    found = average(codes, shares, rest, place.payload, keep=keep, plain=measured(headers))
    return frames.answer((), found.plain_norm2, found.out), found.rest


def _whole(cut: Cut, codes: Sequence[Bytes], shape: Sequence[int]) -> Tensor:
    """Decode everybody's shards into one tensor of this shape, [K, P]."""
    values = np.empty(tuple(shape), np.float32)
    for owner, code in enumerate(codes):
        width = cut.width(owner)
        cut.put(values, owner, coding.decode(code, shape[0] * width, cut.payload).reshape(shape[0], width))
    return torch.from_numpy(values)
