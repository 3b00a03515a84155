"""How a round sums its parts: which of the two ways `kpool.reduce=auto` means."""

from __future__ import annotations

from tsugi_kpool.core.settings import KPool, Mode, Reduce

SCATTER_FROM = 4
"""Members from which on two stages are better. With two they send the same bytes and take the latency once more. With
three they send two thirds, but of three a majority that checks an owner is all of the others."""

CHECK_SHARE = 0.25
"""Share of the two-stage rounds in which an owner is checked. A check costs one member another payload, which is
half of such a round's time; an owner that lies in every round is found within 4 R rounds in the mean."""


def reduction(kpool: KPool, members: int) -> Reduce:
    """Return the way that a generation of so many members takes: `gather` or `scatter`."""
    if members == 1 or kpool.mode is Mode.GRADIENT:
        return Reduce.GATHER
    if kpool.reduce is Reduce.AUTO:
        return Reduce.SCATTER if members >= SCATTER_FROM else Reduce.GATHER
    return kpool.reduce


def sent_payloads(kpool: KPool, members: int) -> float:
    """Return how many payloads a member sends in a round in the mean, headers apart; with the checks of owners."""
    if reduction(kpool, members) is Reduce.SCATTER:
        return (2.0 + CHECK_SHARE / members) * (members - 1) / members
    return float(members - 1)
