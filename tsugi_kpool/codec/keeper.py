"""What a member of two-stage rounds keeps between them: the residuals of its shard, and the bounds of everybody's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsugi_kpool.core.settings import Payload

from .coding import Bytes, Floats, block_size
from .owner import quanta
from .shards import Cut


class Keeper:
    """The residuals that we own, and how large those of other owners can be.

    Args:
        adapters: N.
        size: P, numbers of an adapter.
        payload: The code of the means.
    """

    def __init__(self, adapters: int, size: int, payload: Payload) -> None:
        self._cut: Cut | None = None
        self._owner, self._owners = 0, 1
        self._size = size
        self._rest = np.zeros((adapters, 0), np.float32)
        self._restored: Floats | None = None
        # Nobody has any at the beginning of a run. Where we have missed means they are infinite (`forget`), so that
        # nobody is accused of what we cannot know.
        self._quanta = np.zeros((adapters, Cut(size, 1, payload).blocks), np.float32)

    def begin(self, cut: Cut | None, owner: int = 0) -> Floats | None:
        """Begin a generation whose shards are cut so; None: one without owners.

        Returns:
            [N, size]: what we must add to our own changes, for residuals of ours that another member owns from now
            on. It is taken times the owners that there were, because one member's change counts for its share only.
            None when there are none.
        """
        if cut == self._cut and owner == self._owner and self._restored is None:
            return None
        before = self.residuals()
        self._cut, self._owner, self._restored = cut, owner, None
        self._rest = np.zeros((len(self._quanta), 0), np.float32)
        if cut is not None and before is not None:
            self._rest = np.ascontiguousarray(cut.shard(before, owner))
            cut.put(before, owner, np.zeros_like(self._rest))
        elif cut is not None:
            self._rest = np.zeros((len(self._quanta), cut.width(owner)), np.float32)
        moved = None if before is None or not before.any() else before * np.float32(self._owners)
        self._owners = cut.owners if cut is not None else 1
        return moved

    def rest(self, adapters: Sequence[int]) -> Floats:
        """Return a copy of the residuals of our shard of these adapters: [K, width]."""
        return self._rest[list(adapters)]

    def bounds(self, adapters: Sequence[int], owner: int) -> Floats:
        """Return how much an owner's residuals of these adapters can be: [K, blocks of its shard]."""
        first, stop = self._blocks(owner)
        return self._quanta[list(adapters), first:stop]

    def commit(self, adapters: Sequence[int], weighted: Sequence[bool], outs: Sequence[Bytes], rest: Floats) -> None:
        """A round counts.

        Args:
            adapters: K of them.
            weighted: Which of them anybody had tokens for: the others have not moved.
            outs: Every owner's coded mean.
            rest: [K, width]: our new residuals.
        """
        if self._cut is None:
            return
        rows = [row for row, moved in enumerate(weighted) if moved]
        moved = [adapters[row] for row in rows]
        self._rest[moved] = rest[rows]
        for owner, out in enumerate(outs):
            first, stop = self._blocks(owner)
            shape = (len(adapters), self._cut.width(owner))
            self._quanta[moved, first:stop] = quanta(out, shape, self._cut.payload)[rows]

    def forget(self) -> None:
        """Our anchors are others' from now on: nothing is known of their residuals, and nothing of them is ours."""
        self._rest[:] = 0.0
        self._restored = None
        self._quanta[:] = np.inf

    def residuals(self) -> Floats | None:
        """Return our residuals at their places: [N, size], or None when all are zero."""
        if self._restored is not None:
            return self._restored.copy()
        if self._cut is None or not self._rest.any():
            return None
        found = np.zeros((len(self._rest), self._size), np.float32)
        self._cut.put(found, self._owner, self._rest)
        return found

    @property
    def owners(self) -> int:
        """Owners that the residuals were cut for."""
        return self._owners

    def restore(self, residuals: Floats, owners: int) -> None:
        """Take over residuals of a checkpoint ([N, size]); the next `begin` divides them."""
        self._restored, self._owners = residuals.copy(), owners

    def _blocks(self, owner: int) -> tuple[int, int]:
        if self._cut is None:
            raise RuntimeError("no shards in a generation without owners")
        start, stop = self._cut.span(owner)
        return start // block_size(self._cut.payload), stop // block_size(self._cut.payload)
