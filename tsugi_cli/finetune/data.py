"""How many samples a run trains on, and in which order. No torch here."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.packing import by_length


def total_samples(spec: RunSpec, n_train: int) -> int:
    """Samples that the fleet trains on in this run."""
    if spec.train.max_steps is not None:
        return spec.train.max_steps * spec.train.step_samples
    return max(1, round(spec.train.epochs * n_train))


class DataOrder:
    """Position in the run -> index of the training row: a new permutation for every epoch.

    Args:
        seed: Of all permutations.
        n_train: Rows.
        lengths: Tokens of each; rows of similar lengths stand side by side then. None: they need not.
    """

    def __init__(self, seed: int, n_train: int, lengths: Sequence[int] | None = None) -> None:
        self._seed, self._n, self._lengths = seed, n_train, lengths
        self._epochs: dict[int, list[int]] = {}

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self._n)
        if epoch not in self._epochs:
            permutation = list(range(self._n))
            chance = random.Random(f"{self._seed}:{epoch}")
            chance.shuffle(permutation)
            if self._lengths is not None:
                permutation = by_length(permutation, self._lengths, chance)
            self._epochs = {epoch: permutation}
        return self._epochs[epoch][offset]
