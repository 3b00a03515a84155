"""The arithmetic of one round: pack what is buffered, combine what everybody packed.

The same bytes give the same bits on every replica: decoding and summing run on the CPU in fp32, elementwise, in the
order of the members.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugi_kpool.core.ledger import Shipment
from tsugi_kpool.core.noise import estimate
from tsugi_kpool.core.settings import Payload

from . import wire
from .update import Landing


@dataclass(frozen=True)
class Contribution:
    """What one replica puts into a round."""

    shipment: Shipment
    delta: Tensor
    """[K, P] fp32: the buffered change."""
    norm2_sum: Tensor
    """[K] float64: Q of the convergence trigger; zeros when it is not measured."""


@dataclass(frozen=True)
class Outcome:
    """A landed round: what to apply on Commit, and what the hub is told."""

    landing: Landing
    digest: str
    weights: tuple[int, ...]
    noise: tuple[float, float]


def pack(contribution: Contribution, payload: Payload) -> Tensor:
    """One flat uint8 tensor: tokens, micro-steps and Q of each adapter as float64 (exact to 2^53), then codes."""
    shipment = contribution.shipment
    header = torch.tensor([shipment.tokens, shipment.micro_steps], dtype=torch.float64)
    header = torch.cat([header, contribution.norm2_sum[None].double()])
    return torch.cat([header.view(-1).view(torch.uint8), wire.encode(contribution.delta, payload)])


def combine(
    parts: list[Tensor],
    rank: int,
    contribution: Contribution,
    anchor: Tensor,
    payload: Payload,
    error_feedback: bool,
) -> Outcome:
    """Average everybody's change, weighted by supervised tokens.

    Args:
        parts: `pack` of every member, in the order of the members.
        rank: Our place in it.
        contribution: What we packed.
        anchor: The adapters' present anchors, [K, P] fp32.
        payload: The coding of the parts.
        error_feedback: What quantisation lost of our part stays in our buffer.
    """
    k, size = contribution.delta.shape
    header_bytes = 3 * k * 8
    headers = torch.stack([part[:header_bytes].clone().view(torch.float64).view(3, k) for part in parts])
    deltas = [wire.decode(part[header_bytes:], (k, size), payload) for part in parts]
    tokens = headers[:, 0]
    shares = (tokens / tokens.sum(dim=0).clamp_min(1.0)).float()
    mean = torch.zeros(k, size)
    scratch = torch.empty(k, size)
    for share, delta in zip(shares, deltas, strict=True):
        # Two steps, never a fused multiply-add: machines that have it would round differently.
        mean += torch.mul(delta, share[:, None], out=scratch)
    sent = deltas[rank] if error_feedback else contribution.delta
    landing = Landing(contribution.shipment.adapters, anchor + mean, torch.sub(mean, sent, out=scratch))
    return Outcome(landing, _digest(landing.anchor), _weights(tokens), _noise(headers, deltas))


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().data).hexdigest()


def _weights(tokens: Tensor) -> tuple[int, ...]:
    """Each member's tokens, summed over the adapters."""
    return tuple(int(total) for total in tokens.sum(dim=1))


def _noise(headers: Tensor, deltas: list[Tensor]) -> tuple[float, float]:
    """|G|^2 and trSigma of the concatenated adapters; (0, 0) when Q was not measured."""
    if not bool(headers[:, 2].sum() > 0):
        return 0.0, 0.0
    pooled = torch.stack(deltas).sum(dim=0).double().square().sum(dim=1)
    steps, norm2_sums = headers[:, 1].sum(dim=0), headers[:, 2].sum(dim=0)
    each = [estimate(float(s), float(q), int(n)) for s, q, n in zip(pooled, norm2_sums, steps, strict=True)]
    return sum(norm2 for norm2, _ in each), sum(trace for _, trace in each)
