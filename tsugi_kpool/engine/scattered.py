"""Two-stage rounds (`kpool.reduce=scatter`): a reduce-scatter of codes, then an all-gather of the coded mean.

Both are sent straight to those who need them: a round takes the link's latency twice, whatever the number of members.

Every adapter is cut into as many shards as there are members. A member sends shard j of its part to member j, the
shard's owner, who sums, adds what coding its earlier means has lost, codes the mean and sends it to all. So a member
sends 2 (R-1)/R payloads instead of R-1, and decodes two instead of R.

    1. to each owner:  header | promise | codes of its shard
    2. to all:         verdict | squared norms | coded mean of our shard | signature

A *promise* binds a member to what it sends to all owners (`codec.promises`): the check of an owner relies on it
(`scatter_check`). The *verdict* of an owner names the members whose parts are unusable, because it alone has seen
them. The *signature* is of all that a member tells the others alike, in both stages: who tells one of them something
else has signed two things, or has given it no signature. Nobody checks it before members differ (`Evidence.shown`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tsugi_kpool.codec import coding, header
from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import Header
from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.codec.owner import average
from tsugi_kpool.codec.promises import root_of
from tsugi_kpool.codec.shards import Cut
from tsugi_kpool.core.rounds.statements import UNSIGNED

from .collective import CollectiveError
from .frames import Frames
from .rounds import Contribution, UnusableRound, header_of, measured, result_of
from .scatter_check import Evidence
from .update import Owned
from .ways import Place, ToEach, Way

Sign = Callable[[bytes], bytes]
"""Signs the digest of what we tell all members alike in one round."""


def unsigned(digest: bytes) -> bytes:
    """Sign nothing: for fleets without a hub that could check it."""
    del digest
    return UNSIGNED


def scattered(
    place: Place,
    keeper: Keeper,
    cut: Cut,
    contribution: Contribution,
    kept: list[Evidence],
    sign: Sign = unsigned,
) -> Way:
    """Sum a round in two stages.

    Args:
        place: Where we stand.
        keeper: Our residuals; they change when the round is committed.
        cut: The generation's shards.
        contribution: Ours.
        kept: Gets the evidence of the round.
        sign: Ours, for this round.
    """
    adapters, shape = contribution.shipment.adapters, contribution.delta.shape
    frames = Frames(cut, len(adapters))
    sent, codes = frames.parts(contribution.delta.numpy(), header_of(contribution))
    tensors = [torch.from_numpy(each) for each in sent]
    got = yield ToEach(tensors, [frames.part_bytes(place.rank)] * place.members)
    parts = [each.numpy() for each in got]
    headers = np.stack([frames.header(each) for each in parts])
    answer, rest = _own(place, keeper.rest(adapters), frames, parts, headers)
    roots = [root_of(frames.promise(each)) for each in parts]
    frames.sign(answer, sign(frames.digest(headers[place.rank].tobytes() + roots[place.rank], answer)))
    sizes = [frames.answer_bytes(owner) for owner in range(place.members)]
    answers = [each.numpy() for each in (yield ToEach([torch.from_numpy(answer)] * place.members, sizes))]
    bounds = [keeper.bounds(adapters, owner) for owner in range(cut.owners)]
    kept[:] = [Evidence(frames, sent, headers, roots, answers, bounds)]
    told = headers.tobytes() + b"".join(roots)
    for owner, each in enumerate(answers):
        if bad := frames.verdict(each):  # one owner's word at a time, so that it can be checked
            return UnusableRound(tuple(bad), place.members, owner, told)
    outs = [frames.mean(each, owner) for owner, each in enumerate(answers)]
    whole = [coding.finite(out, shape[0] * cut.width(owner), place.payload) for owner, out in enumerate(outs)]
    if not all(whole):  # all see it, so that nobody need be asked; one such number would end all anchors
        return UnusableRound(tuple(owner for owner, good in enumerate(whole) if not good), place.members)
    norm2 = np.sum([frames.norm2(each) for each in answers], axis=0) if measured(headers) else None
    own = _whole(cut, codes, shape) if place.error_feedback else contribution.delta
    mean = _whole(cut, outs, shape).numpy()
    return result_of(contribution, place.update, headers, mean, norm2, own, Owned(tuple(outs), rest, told))


def _own(place: Place, rest: Floats, frames: Frames, parts: list[Bytes], headers: Header) -> tuple[Bytes, Floats]:
    """Do the owner's part: return our frame to all, and the new residuals of our shard.

    Raises:
        CollectiveError: what a member has sent is not what it has promised.
    """
    codes = [frames.codes(each) for each in parts]
    for rank, part in enumerate(parts):
        if not frames.kept(part, place.rank):
            raise CollectiveError(f"the part of member {rank} is not what it has promised")
    bad = header.unusable(headers, [coding.finite(code, rest.size, place.payload) for code in codes])
    if bad:
        return frames.answer(place.rank, bad, None, None), rest
    shares, keep = place.update.shares(headers), place.error_feedback
    found = average(codes, shares, rest, place.payload, keep=keep, plain=measured(headers))
    return frames.answer(place.rank, (), found.plain_norm2, found.out), found.rest


def _whole(cut: Cut, codes: Sequence[Bytes], shape: Sequence[int]) -> Tensor:
    """Decode everybody's shards into one tensor of this shape, [K, P]."""
    values = np.empty(tuple(shape), np.float32)
    for owner, code in enumerate(codes):
        width = cut.width(owner)
        cut.put(values, owner, coding.decode(code, shape[0] * width, cut.payload).reshape(shape[0], width))
    return torch.from_numpy(values)
