"""How a round sums its parts: which of the two ways `kpool.reduce=auto` means."""

from __future__ import annotations

from tsugi_kpool.core.settings import KPool, Mode, Reduce

SCATTER_FROM = 4
"""Members from which on two stages are better: with two they send the same bytes, with three three quarters, and each
stage costs the link's latency once more."""


def reduction(kpool: KPool, members: int) -> Reduce:
    """Return the way that a generation of so many members takes: `gather` or `scatter`."""
    if members == 1 or kpool.mode is Mode.GRADIENT:
        return Reduce.GATHER
    if kpool.reduce is Reduce.AUTO:
        return Reduce.SCATTER if members >= SCATTER_FROM else Reduce.GATHER
    return kpool.reduce


def sent_payloads(kpool: KPool, members: int) -> float:
    """Return how many payloads a member sends in a round, headers apart."""
    if reduction(kpool, members) is Reduce.SCATTER:
        return 2.0 * (members - 1) / members
    return float(members - 1)
