"""The arithmetic of a round: pack what is buffered, combine all members' parts, and report the result to the hub.

The same bytes give the same bits on every replica: decoding and summing run on the CPU in fp32, elementwise, in the
order of the members.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsugi_kpool.codec import coding, header
from tsugi_kpool.codec.coding import Bytes, Floats
from tsugi_kpool.codec.header import NORM2_SUM, STEPS, TOKENS, Header
from tsugi_kpool.codec.summing import weighted_sum
from tsugi_kpool.core.messages import AdapterFacts, Fire, Reduced
from tsugi_kpool.core.replica.ledger import Shipment
from tsugi_kpool.core.rounds.noise import estimate
from tsugi_kpool.core.rounds.told import told_of
from tsugi_kpool.core.settings import Payload

from .update import Combined, Owned, Pooled, UpdateRule


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
    steps: tuple[int, ...] = ()
    """Steps of each member in it, summed over adapters."""

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
    blamer: int | None = None
    """Rank of the owner that says so, in a two-stage round; None: we have seen it ourselves."""
    told: bytes = b""
    """Headers and promises as we were told them, in a two-stage round."""

    @property
    def digest(self) -> str:
        """Digest of the verdict, which must be equal on all members before anybody is quarantined for it."""
        told = "" if self.blamer is None else f" says {self.blamer} {hashlib.sha256(self.told).hexdigest()}"
        return f"spoilt {self.ranks}{told}"


def header_of(contribution: Contribution) -> Header:
    """Return what the others must know of a contribution, [ROWS, K]."""
    shipment = contribution.shipment
    return header.header(shipment.tokens, shipment.steps, contribution.norm2_sum.tolist(), contribution.lr)


def pack(contribution: Contribution, payload: Payload) -> Tensor:
    """Return one flat uint8 tensor: the header as float64 (counts are exact to 2^53), then the codes."""
    codes = coding.encode(contribution.delta.numpy(), payload)
    return torch.from_numpy(np.concatenate([header_of(contribution).reshape(-1).view(np.uint8), codes]))


def combine(
    parts: list[Tensor],
    rank: int,
    contribution: Contribution,
    update: UpdateRule,
    payload: Payload,
    error_feedback: bool,
) -> RoundResult | UnusableRound:
    """Decode and sum all members' parts, and let the update rule make a result of them; applies nothing.

    Args:
        parts: `pack` of every member, in the order of the members.
        rank: Our place in it.
        contribution: What we packed.
        update: Our anchors and what a round does to them.
        payload: The coding of the parts.
        error_feedback: What quantisation lost of our part stays in our buffer.
    """
    k, size = contribution.delta.shape
    frames = [part.numpy() for part in parts]
    headers = np.stack([header.read(frame, k) for frame in frames])
    codes = [coding.aligned(frame[header.header_bytes(k) :]) for frame in frames]
    # Before anything is summed: one NaN would spoil every mean, and a token count of NaN is no integer.
    if bad := header.unusable(headers, [coding.finite(code, k * size, payload) for code in codes]):
        return UnusableRound(bad, len(parts))
    own = np.empty((k, size), np.float32) if error_feedback else contribution.delta.numpy()
    keep = (rank, own) if error_feedback else None
    summed = weighted_sum(codes, update.shares(headers), (k, size), payload, measured(headers), keep)
    norm2 = None if summed.plain is None else np.square(summed.plain, dtype=np.float64).sum(axis=1)
    return result_of(contribution, update, headers, summed.total, norm2, torch.from_numpy(own))


def sent_of(contribution: Contribution, codes: Bytes, payload: Payload, error_feedback: bool) -> Tensor:
    """Return the part of a contribution that counts as sent: [K, P] fp32.

    Args:
        contribution: Ours.
        codes: As it was coded, in one piece.
        payload: The code.
        error_feedback: What coding has lost stays in our buffer; else all of the contribution counts as sent.
    """
    if not error_feedback:
        return contribution.delta
    shape = contribution.delta.shape
    return torch.from_numpy(coding.decode(codes, contribution.delta.numel(), payload).reshape(shape))


def result_of(
    contribution: Contribution,
    update: UpdateRule,
    headers: Header,
    mean: Floats,
    plain_norm2: Floats | None,
    sent: Tensor,
    owned: Owned | None = None,
    alone: bool | None = None,
) -> RoundResult:
    """Return what a round gives, whatever way its mean was made in.

    Args:
        contribution: Ours.
        update: Our anchors and what a round does to them.
        headers: [members, ROWS, K].
        mean: [K, P] fp32: the weighted sum of the parts.
        plain_norm2: [K] float64: squared norms of the sum without weights; None when it was not measured.
        sent: What counts as sent of our contribution.
        owned: What a two-stage round leaves with its owners.
        alone: Whether we are the only one that applies it; None: we are if the only part is ours.
    """
    pooled = Pooled(
        adapters=contribution.shipment.adapters,
        mean=torch.from_numpy(mean),
        tokens=torch.from_numpy(headers[:, TOKENS].copy()),
        lr=header.agreed_lr(headers),
        shipped=contribution.delta,
        sent=sent,
        owned=owned,
        alone=len(headers) == 1 if alone is None else alone,
    )
    combined = update.combine(pooled)
    steps = headers[:, STEPS].sum(axis=0).tolist()
    facts = [AdapterFacts(int(n), norm) for n, norm in zip(steps, combined.norms, strict=True)]
    each = tuple(map(int, headers[:, STEPS].sum(axis=1)))
    return RoundResult(combined, header.weights_of(headers), _noise(headers, plain_norm2), tuple(facts), each)


def measured(headers: Header) -> bool:
    """Return whether Q was measured: then the sum without weights is wanted, too."""
    return bool(headers[:, NORM2_SUM].sum() > 0)


def _noise(headers: Header, plain_norm2: Floats | None) -> tuple[float, float]:
    """Return |G|^2 and trSigma of the concatenated adapters; (0, 0) when Q was not measured.

    What members say of it need not be numbers. Then nothing was measured: the hub would refuse everybody's report.
    """
    if plain_norm2 is None:
        return 0.0, 0.0
    steps, norm2_sums = headers[:, STEPS].sum(axis=0), headers[:, NORM2_SUM].sum(axis=0)
    each = [estimate(float(s), float(q), int(n)) for s, q, n in zip(plain_norm2, norm2_sums, steps, strict=True)]
    noise = sum(norm2 for norm2, _ in each), sum(trace for _, trace in each)
    return noise if all(map(math.isfinite, noise)) else (0.0, 0.0)


def reduced(
    fire: Fire,
    shipment: Shipment,
    outcome: RoundResult | UnusableRound,
    payload_bytes: int,
    took_s: tuple[float, float],
    first: bool,
    counted: tuple[int, ...] = (),
    durables: tuple[int, ...] = (),
    receipt: str = "",
) -> Reduced:
    """Return the report. Values that are equal on all members are in the first one's report only.

    Args:
        fire: The round's order.
        shipment: Ours.
        outcome: What the round has given.
        payload_bytes: That we have shipped.
        took_s: The whole round, and the collective in it.
        first: Whether we say what all would say alike.
        counted: Over an exchange: whose parts are in it; without one nobody.
        durables: How many of each one's samples are durable with it.
        receipt: Shows that the exchange has said so.
    """
    usable = isinstance(outcome, RoundResult)
    blamer = outcome.blamer if isinstance(outcome, UnusableRound) else None
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
        blamer=None if blamer is None else fire.members[blamer],
        unusable=() if isinstance(outcome, RoundResult) else tuple(fire.members[rank] for rank in outcome.ranks),
        counted=counted if first else (),
        durables=durables if first else (),
        told=told_of(counted, weights, durables) if counted else "",
        receipt=receipt if first and usable else "",
    )
