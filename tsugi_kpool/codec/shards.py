"""How the numbers of an adapter are divided among the owners of a two-stage round.

Every adapter is cut by itself, at the limits of blocks: who owns a number depends on its place in the adapter and on
the number of owners, never on which adapters a round ships. Codes of a shard are the same whether the adapter or
the shard is coded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsugi_kpool.core.settings import Payload

from .coding import Floats, block_size, coded_bytes


@dataclass(frozen=True)
class Cut:
    """The shards of adapters of `size` numbers among `owners`."""

    size: int
    owners: int
    payload: Payload

    @property
    def block(self) -> int:
        """Numbers that are never divided."""
        return block_size(self.payload)

    @property
    def blocks(self) -> int:
        """Blocks of an adapter; the last one may be filled up with zeros."""
        return -(-self.size // self.block)

    def span(self, owner: int) -> tuple[int, int]:
        """Return where an owner's shard begins and ends in an adapter, in numbers; the end may be beyond `size`."""
        first, end = owner * self.blocks // self.owners, (owner + 1) * self.blocks // self.owners
        return first * self.block, end * self.block

    def width(self, owner: int) -> int:
        """Return the numbers of an owner's shard of one adapter, filled up to whole blocks."""
        start, stop = self.span(owner)
        return stop - start

    @property
    def widest(self) -> int:
        """The numbers of the largest shard."""
        return max(self.width(owner) for owner in range(self.owners))

    def shard(self, values: Floats, owner: int) -> Floats:
        """Return an owner's shard of these adapters: [K, width], zeros beyond their end.

        Args:
            values: [K, size] fp32.
            owner: Whose shard.
        """
        start, stop = self.span(owner)
        if stop <= self.size:
            return values[:, start:stop]
        found = np.zeros((len(values), stop - start), np.float32)
        found[:, : max(0, self.size - start)] = values[:, start:]
        return found

    def put(self, values: Floats, owner: int, shard: Floats) -> None:
        """Write an owner's shard ([K, width]) into its place in `values` ([K, size])."""
        start, stop = self.span(owner)
        values[:, start : min(stop, self.size)] = shard[:, : max(0, self.size - start)]

    def coded_bytes(self, owner: int, adapters: int) -> int:
        """Return the bytes of an owner's shard of so many adapters."""
        return coded_bytes(adapters * self.width(owner), self.payload)
