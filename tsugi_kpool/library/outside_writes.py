"""Whether anybody but a torch optimizer or the pool has written into the LoRA: an update of the loop's own, or values
that it has loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsugi_kpool.engine.shards import local

LOOKED_AT = 1024
"""Numbers of a matrix that are compared. A write through `.data` leaves no other trace."""
MATRICES = 2


class OutsideWrites:
    """Compares the pool with what it was at the last `remember`.

    Args:
        pool: The pool's parameters.
    """

    def __init__(self, pool: list[nn.Parameter]) -> None:
        self._pool = pool
        self.remember()

    def remember(self) -> None:
        """What is there now is right."""
        self._version, self._values = self._newest_version(), self._look()

    def seen(self, closely: bool) -> bool:
        """Whether there were any since.

        Args:
            closely: Compare some values, too, which waits for the device.
        """
        if self._newest_version() != self._version:
            return True
        return closely and not all(map(_equal, self._values, self._look()))

    def _newest_version(self) -> int:
        return sum(each._version for each in self._pool)

    def _look(self) -> list[Tensor]:
        return [local(each.detach()).reshape(-1)[:LOOKED_AT].clone() for each in self._pool[:MATRICES]]


def _equal(before: Tensor, now: Tensor) -> bool:
    """The model may have been moved to another device since."""
    return torch.equal(before.to(now.device), now)
