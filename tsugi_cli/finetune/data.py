"""How many samples a run trains on, and in which order. No torch here."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import pairwise

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.packing import by_length


def total_samples(spec: RunSpec, n_train: int) -> int:
    """Samples that the fleet trains on in this run."""
    if spec.train.max_steps is not None:
        return spec.train.max_steps * spec.train.step_samples
    return max(1, round(spec.train.epochs * n_train))


def group_of(spec: RunSpec) -> int:
    """Rows of similar lengths that stand side by side."""
    return 1 if spec.data.packing else spec.data.group_by_length or spec.train.micro_batch


def micro_batches(positions: range, lengths: Sequence[int], size: int, most: int | None, workers: int) -> list[range]:
    """Cut a step: into so many samples, or by tokens.

    Args:
        positions: The step's, in the data order.
        lengths: Tokens of the sample at each of them.
        size: Samples in one, where nobody counts tokens.
        most: Tokens, padding included, that a worker computes at once; a sample that is longer is alone.
        workers: Who share each of them.
    """
    if most is None:
        return [positions[i : i + size] for i in range(0, len(positions), size)]
    cuts, longest = [0], 0
    for at, length in enumerate(lengths):
        longest = max(longest, length)
        if at > cuts[-1] and -(-(at + 1 - cuts[-1]) // workers) * longest > most:
            cuts, longest = [*cuts, at], length
    return [positions[start:stop] for start, stop in pairwise([*cuts, len(positions)])]


def noise_seed(seed: int, position: int, worker: int) -> int:
    """Seed of dropout and noise in a step: another one for every step of the fleet and every worker.

    It goes by the data, and by nothing that a replica has done before: so no two replicas have the same noise, and a
    step that is taken again, as after a resume, has the same.

    Args:
        seed: The run's.
        position: Of the step's first sample in the data order.
        worker: Of its replica.
    """
    digest = hashlib.blake2b(f"{seed}:{position}:{worker}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # what torch takes on all devices


class DataOrder:
    """Position in the run -> index of the training row: a new permutation for every epoch.

    Args:
        seed: Of all permutations.
        n_train: Rows.
        lengths: Tokens of each.
        group: So many rows of similar lengths stand side by side; 1: rows stand where chance puts them.
    """

    def __init__(self, seed: int, n_train: int, lengths: Sequence[int] = (), group: int = 1) -> None:
        self._seed, self._n, self._lengths, self._group = seed, n_train, lengths, group
        self._epochs: dict[int, list[int]] = {}

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self._n)
        if epoch not in self._epochs:
            permutation = list(range(self._n))
            chance = random.Random(f"{self._seed}:{epoch}")
            chance.shuffle(permutation)
            if self._group > 1:
                permutation = by_length(permutation, self._lengths, self._group, chance)
            self._epochs = {epoch: permutation}
        return self._epochs[epoch][offset]
