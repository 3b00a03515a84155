"""Codes of a round's numbers that are compared in lock step: what arrives of a vector, and the bits that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK, KEPT = 4096, 64
BLOCK = 64
SMALLEST = 1e-30


@dataclass(frozen=True)
class Code:
    """How numbers go over the wire, and what that takes."""

    apply: Callable[[Tensor], Tensor]
    """What arrives of a flat vector."""
    bits: float
    """Of a number of the adapter."""
    summed: bool
    """Two stages: an owner codes the mean. Else everybody sends its part to all."""

    def sent_bits(self, replicas: int) -> float:
        """What a replica sends in a round, of a number of the adapter."""
        return self.bits * (2 * (replicas - 1) / replicas if self.summed else replicas - 1)


def levels(most: float) -> Callable[[Tensor], Tensor]:
    """Integers up to `most` times a scale for every 64 numbers, as the engine's int4."""

    def apply(values: Tensor) -> Tensor:
        blocks = _blocks(values, BLOCK)
        scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST) / most
        return ((blocks / scale).round() * scale).reshape(-1)[: len(values)]

    return apply


def four_levels(values: Tensor) -> Tensor:
    """Two bits: -3/2, -1/2, 1/2, 3/2 times a block's root mean square: nearly the best for a normal distribution."""
    blocks = _blocks(values, BLOCK)
    scale = blocks.square().mean(dim=1, keepdim=True).sqrt().clamp_min(SMALLEST)
    found = ((blocks / scale - 0.5).round().clamp(-2, 1) + 0.5) * scale
    return found.reshape(-1)[: len(values)]


def sparse(values: Tensor) -> Tensor:
    """The 64 largest of 4,096 numbers, each with its sign and one of two sizes; 12 bits say where it stands."""
    chunks = _blocks(values, CHUNK)
    found = torch.zeros_like(chunks)
    for chunk, out in zip(chunks, found, strict=True):
        at = chunk.abs().topk(KEPT).indices
        size = chunk[at].abs()
        large = size > size.mean()
        low = size[~large].mean() if (~large).any() else size.mean()
        high = size[large].mean() if large.any() else low
        out[at] = chunk[at].sign() * torch.where(large, high, low)
    return found.reshape(-1)[: len(values)]


def _blocks(values: Tensor, size: int) -> Tensor:
    short = -len(values) % size
    return torch.cat([values, values.new_zeros(short)]).reshape(-1, size)


CODES = {
    "mean": Code(lambda values: values, 32.0, True),
    "int4": Code(levels(7.0), 4 + 32 / BLOCK, True),
    "int2": Code(four_levels, 2 + 16 / BLOCK, True),
    "sparse": Code(sparse, KEPT * (12 + 2) / CHUNK + 32 / CHUNK, False),
}
