"""A member's part in the check of an owner: all send to the checkers what they sent to the owner, who sum again."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsugi_kpool.codec import coding, header
from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import Header
from tsugi_kpool.codec.owner import is_right
from tsugi_kpool.codec.promises import root_of

from .frames import Frames
from .ways import Place, ToEach


@dataclass(frozen=True)
class Evidence:
    """What a member keeps of a round until its Commit, so that an owner can be checked."""

    frames: Frames
    sent: list[Bytes]
    """Our frame to each owner."""
    headers: Header
    """[members, ROWS, K]."""
    roots: list[bytes]
    """Of each member, the root of its promises."""
    answers: list[Bytes]
    """Each owner's frame to all."""
    bounds: list[Floats]
    """Of each owner, how large its residuals can be: [K, blocks]."""

    def shown(self) -> tuple[bytes, bytes]:
        """Return what we have got of each member: the digest of what it tells all alike, and its signature."""
        told = [head.tobytes() + root for head, root in zip(self.headers, self.roots, strict=True)]
        digests = map(self.frames.digest, told, self.answers)
        return b"".join(digests), b"".join(map(self.frames.signature, self.answers))


Checking = Generator[ToEach, list[Tensor], tuple[int, ...]]


def checking(place: Place, evidence: Evidence, owner: int, checkers: tuple[int, ...]) -> Checking:
    """Take part in the check of an owner.

    Args:
        place: Where we stand.
        evidence: Of the round.
        owner: The owner's rank.
        checkers: Those of the checkers.

    Returns:
        The ranks that are wrong; empty where we do not check.
    """
    ours, nothing = torch.from_numpy(evidence.sent[owner]), torch.empty(0, dtype=torch.uint8)
    here = evidence.frames.part_bytes(owner) if place.rank in checkers else 0
    parts = [ours if rank in checkers else nothing for rank in range(place.members)]
    got = yield ToEach(parts, [here] * place.members)
    return _wrong(place, evidence, owner, [each.numpy() for each in got]) if here else ()


def _wrong(place: Place, evidence: Evidence, owner: int, parts: list[Bytes]) -> tuple[int, ...]:
    frames, headers = evidence.frames, evidence.headers
    codes = [frames.codes(each) for each in parts]
    # Who sends something else now than it has bound itself to, which the owner had accepted, wants to hide a lie or
    # to make one.
    if broken := [rank for rank, part in enumerate(parts) if not _same(evidence, owner, rank, part)]:
        return tuple(broken)
    size = frames.cut.width(owner)
    shape = (frames.adapters, size)
    bad = header.unusable(headers, [coding.finite(code, frames.adapters * size, place.payload) for code in codes])
    if list(bad) != frames.verdict(evidence.answers[owner]):
        return (owner,)
    if bad:
        return ()
    shares = place.update.shares(headers)
    out, bounds = frames.mean(evidence.answers[owner], owner), evidence.bounds[owner]
    return () if is_right(out, codes, shares, bounds, shape, place.payload) else (owner,)


def _same(evidence: Evidence, owner: int, rank: int, part: Bytes) -> bool:
    """Whether a member sends what it had promised, with the header that it had sent to us."""
    frames = evidence.frames
    header_too = np.array_equal(frames.header(part), evidence.headers[rank], equal_nan=True)
    return header_too and root_of(frames.promise(part)) == evidence.roots[rank] and frames.kept(part, owner)
