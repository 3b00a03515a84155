"""The arithmetic of a round: pack what is buffered, combine all members' parts, and report the result to the hub.

The same bytes give the same bits on every replica: decoding and summing run on the CPU in fp32, elementwise, in the
order of the members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugi_kpool.core.messages import AdapterFacts, Fire, Reduced
from tsugi_kpool.core.replica.ledger import Shipment
from tsugi_kpool.core.replica.magnitude_check import possible_weights
from tsugi_kpool.core.rounds.noise import estimate
from tsugi_kpool.core.settings import Payload

from . import wire
from .update import Combined, Pooled, UpdateRule

HEADER_ROWS = 4
"""float64 numbers in front of each adapter's codes: tokens, steps, Q, learning rate."""


@dataclass(frozen=True)
class Contribution:
    """One replica's part of a round."""

    shipment: Shipment
    delta: Tensor
    """[K, P] fp32: what is buffered, changes (local mode) or gradient sums (gradient mode)."""
    norm2_sum: Tensor
    """[K] float64: Q of the convergence trigger; zeros when it is not measured."""
    lr: float
    """Learning rate of the newest step."""


@dataclass(frozen=True)
class RoundResult:
    """A reduced round: what to apply on Commit, and what the hub is told."""

    combined: Combined
    weights: tuple[int, ...]
    noise: tuple[float, float]
    adapters: tuple[AdapterFacts, ...]
    """Facts about each adapter, for the hub's routing."""

    @property
    def digest(self) -> str:
        """Digest of the result, which must be equal on all members before the round is committed."""
        return self.combined.digest


@dataclass(frozen=True)
class UnusableRound:
    """A reduced round that cannot be applied."""

    ranks: tuple[int, ...]
    """Ranks of the members whose parts are unusable."""
    members: int

    @property
    def digest(self) -> str:
        """Digest of the verdict, which must be equal on all members before anybody is quarantined for it."""
        return f"spoilt {self.ranks}"


def pack(contribution: Contribution, payload: Payload) -> Tensor:
    """Return one flat uint8 tensor: the header as float64 (counts are exact to 2^53), then the codes."""
    shipment = contribution.shipment
    header = torch.tensor([shipment.tokens, shipment.steps], dtype=torch.float64)
    lr = torch.full((1, len(shipment.adapters)), contribution.lr, dtype=torch.float64)
    header = torch.cat([header, contribution.norm2_sum[None].double(), lr])
    return torch.cat([header.view(-1).view(torch.uint8), wire.encode(contribution.delta, payload)])


def combine(
    parts: list[Tensor],
    rank: int,
    contribution: Contribution,
    update: UpdateRule,
    payload: Payload,
    error_feedback: bool,
) -> RoundResult | UnusableRound:
    """Decode all members' parts and let the update rule combine them; applies nothing.

    Args:
        parts: `pack` of every member, in the order of the members.
        rank: Our place in it.
        contribution: What we packed.
        update: Our anchors and what a round does to them.
        payload: The coding of the parts.
        error_feedback: What quantisation lost of our part stays in our buffer.
    """
    k, size = contribution.delta.shape
    header_bytes = HEADER_ROWS * k * 8
    headers = torch.stack([part[:header_bytes].clone().view(torch.float64).view(HEADER_ROWS, k) for part in parts])
    decoded = [wire.decode(part[header_bytes:], (k, size), payload) for part in parts]
    tokens = headers[:, 0]
    # Before anything is summed: one NaN would spoil every mean, and a token count of NaN is no integer.
    if unusable := _unusable(headers, decoded):
        return UnusableRound(unusable, len(parts))
    weights = _weights(tokens)
    sent = decoded[rank] if error_feedback else contribution.delta
    noise = _noise(headers, decoded)
    pooled = Pooled(
        adapters=contribution.shipment.adapters,
        parts=decoded,
        tokens=tokens,
        lr=_agreed_lr(weights, headers[:, 3, 0].tolist()),
        shipped=contribution.delta,
        sent=sent,
    )
    combined = update.combine(pooled)
    steps = headers[:, 1].sum(dim=0).tolist()
    facts = [AdapterFacts(int(n), norm) for n, norm in zip(steps, combined.norms, strict=True)]
    return RoundResult(combined, weights, noise, tuple(facts))


def _unusable(headers: Tensor, parts: list[Tensor]) -> tuple[int, ...]:
    """Return the ranks whose parts are unusable. Every member comes to the same verdict, because all have the same
    bytes.

    Args:
        headers: [members, HEADER_ROWS, K] float64: tokens, steps, ...
        parts: [K, P] fp32 of each member.
    """
    # amax, not a norm: it is exact, so that no machine sees an overflow that another one does not.
    finite = [bool(torch.isfinite(part.abs().amax())) for part in parts]
    possible = [possible_weights(header[0].tolist(), header[1].tolist()) for header in headers]
    lr = torch.isfinite(headers[:, 3]).all(dim=1).tolist()
    return tuple(rank for rank, good in enumerate(zip(finite, possible, lr, strict=True)) if not all(good))


def _agreed_lr(weights: tuple[int, ...], rates: list[float]) -> float:
    """Return the mean of the members' learning rates, weighted by tokens; 0 when nobody has any weight.

    It is computed in float64, in the order of the members. They are at different places of the schedule, but all must
    step with one rate, or their anchors would differ.
    """
    total = sum(weights)
    return sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / total if total else 0.0


def _weights(tokens: Tensor) -> tuple[int, ...]:
    """Return each member's tokens, summed over the adapters."""
    return tuple(int(total) for total in tokens.sum(dim=1))


def _noise(headers: Tensor, parts: list[Tensor]) -> tuple[float, float]:
    """Return |G|^2 and trSigma of the concatenated adapters; (0, 0) when Q was not measured."""
    if not bool(headers[:, 2].sum() > 0):
        return 0.0, 0.0
    pooled = torch.stack(parts).sum(dim=0).double().square().sum(dim=1)
    steps, norm2_sums = headers[:, 1].sum(dim=0), headers[:, 2].sum(dim=0)
    each = [estimate(float(s), float(q), int(n)) for s, q, n in zip(pooled, norm2_sums, steps, strict=True)]
    return sum(norm2 for norm2, _ in each), sum(trace for _, trace in each)


def reduced(
    fire: Fire,
    shipment: Shipment,
    outcome: RoundResult | UnusableRound,
    payload_bytes: int,
    took_s: tuple[float, float],
    first: bool,
) -> Reduced:
    """Return the report. Values that are equal on all members are in the first one's report only.

    Args:
        fire: The round's order.
        shipment: Ours.
        outcome: What the round has given.
        payload_bytes: That we have shipped.
        took_s: The whole round, and the collective in it.
        first: Whether we are the round's first member.
    """
    usable = isinstance(outcome, RoundResult)
    norm2, trace = outcome.noise if isinstance(outcome, RoundResult) else (0.0, 0.0)
    weights = outcome.weights if isinstance(outcome, RoundResult) else (0,) * outcome.members
    return Reduced(
        seq=0,
        replica=0,
        incarnation="",
        generation=fire.generation,
        round=fire.round,
        digest=outcome.digest,
        seconds=took_s[0],
        payload_bytes=payload_bytes,
        weights=weights if first else (),
        noise_norm2=norm2,
        noise_trace=trace,
        gather_s=took_s[1],
        adapters=outcome.adapters if first and isinstance(outcome, RoundResult) else (),
        durable=shipment.durable if usable else 0,
        weight=sum(shipment.tokens),
        unusable=() if isinstance(outcome, RoundResult) else tuple(fire.members[rank] for rank in outcome.ranks),
    )
