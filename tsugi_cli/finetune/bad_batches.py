"""Micro-batches whose loss is no number: is it the sample, or the model? A sample is left out and named.

A model whose weights are no numbers is at fault at once. One whose weights are numbers may have diverged all the
same, and one loss cannot tell. So it is the sample when a micro-batch after it has a finite loss, and the model when
several in a row have none: then what is buffered is thrown away, as for any broken step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .objectives import SUPERVISED, Objective
from .step import StepBatches, Taken
from .tokens import Batch

IN_A_ROW = 3
"""So many micro-batches without a finite loss are the model's fault: rare samples hardly ever stand side by side."""


class Ears(Protocol):
    """Who is told."""

    def skipped(self, reason: str, tokens: int, batches: int) -> None:
        """Micro-batches were left out of a step."""


@dataclass(frozen=True)
class _Left:
    """A micro-batch that was left out."""

    position: int
    names: str
    tokens: int


class BadBatches:
    """Judges a replica's steps.

    Args:
        model: What a micro-batch is tried on, sample by sample, to find the one that is bad.
        names: Gives for a position of the data order what stands there, as `file:line`.
        ears: Are told of what was left out.
        objective: What a loss is.
    """

    def __init__(
        self, model: Any, names: Callable[[int], Sequence[str]], ears: Ears, objective: Objective = SUPERVISED
    ) -> None:
        self._model, self._names, self._ears, self._objective = model, names, ears, objective
        self._suspects: list[_Left] = []
        """In a row, up to now."""
        self._patience = IN_A_ROW
        """As many make the model the suspect: after it has begun again one, until a loss was finite."""

    def judge(self, step: StepBatches, taken: Taken) -> str | None:
        """Why what is buffered must be thrown away, if it must: then nothing of this step may be kept either."""
        if taken.bad and not taken.as_one and not self._sound():
            # Before the sample is suspected: the next round may set the model right, and a finite loss after it would
            # put the blame on the data.
            self._suspects, self._patience = [], 1
            return (
                f"its own weights are no numbers at sample {step.position}: lower train.lr, or look at this machine"
            )
        if taken.as_one:
            self._suspects.append(self._left(step.batches, range(step.places[0].start, step.places[-1].stop)))
        else:
            self._look(step, taken)
        if len(self._suspects) < self._patience:
            return None
        first, count = self._suspects[0], len(self._suspects)
        self._suspects, self._patience = [], 1
        return (
            f"no finite loss for {count} micro-batches in a row, from sample {first.position} on ({first.names}): "
            "lower train.lr, or look at that sample"
        )

    def _sound(self) -> bool:
        """Whether all trained weights are numbers."""
        return all(bool(torch.isfinite(each).all()) for each in self._model.parameters() if each.requires_grad)

    def _look(self, step: StepBatches, taken: Taken) -> None:
        for number, positions in enumerate(step.places):
            if number in taken.bad:
                self._suspects.append(self._left(step.batches[number : number + 1], positions))
            else:
                self.clear()
                self._patience = IN_A_ROW

    def clear(self) -> None:
        """The model is sound, or there are no more data: what was left out was left out for good."""
        for each in self._suspects:
            self._ears.skipped(f"{each.names} (sample {each.position})", each.tokens, 1)
        self._suspects = []

    def _left(self, batches: Sequence[Batch], positions: range) -> _Left:
        found = [positions[each] for each in self._culprits(batches[0], len(positions))] or list(positions)
        names = dict.fromkeys(name for position in found for name in self._names(position))
        return _Left(found[0], ", ".join(names), sum(batch.tokens for batch in batches))

    def _culprits(self, batch: Batch, samples: int) -> list[int]:
        """Of a micro-batch that is all ours: whose loss alone is no number."""
        each = batch.ids.shape[0] // samples  # a preference pair has two rows
        if samples == 1 or each * samples != batch.ids.shape[0] or not isinstance(batch.mask, Tensor):
            return []
        with torch.no_grad():
            losses = [float(self._objective.loss(self._model, _one(batch, at, each))) for at in range(samples)]
        return [at for at, loss in enumerate(losses) if not math.isfinite(loss)]


def _one(batch: Batch, at: int, each: int) -> Batch:
    here = slice(at * each, (at + 1) * each)
    mask = batch.mask[here] if isinstance(batch.mask, Tensor) else batch.mask
    return replace(batch, ids=batch.ids[here], mask=mask, labels=batch.labels[here])
