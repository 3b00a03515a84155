"""Prepared samples as tensors: labels where a token is trained, padding, micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tsugi_cli.data import rows
from tsugi_cli.data.packing import PackedSample

IGNORED = -100
"""Label of a token that is not trained on."""
Mask = Tensor | dict[str, Tensor] | None
"""For all layers, or for each kind of layers."""


@dataclass(frozen=True)
class Sample:
    """One conversation as token ids, with IGNORED for all that is not the assistant's."""

    ids: list[int]
    labels: list[int]

    @property
    def tokens(self) -> int:
        """Supervised tokens: those that are predicted from the ones before."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right. All tensors int64 [rows, length]."""

    ids: Tensor
    mask: Mask
    """1 where a row has a token. Of packed rows None, or what the model cannot make of `positions` itself."""
    labels: Tensor
    tokens: int
    """Supervised tokens: what a contribution is weighted with. A preference pair counts those of the mean pair."""
    samples: int
    """Positions of the data order that this is; 0 for what does not count."""
    positions: Tensor | None = None
    """Position ids that restart with every sample of a packed row."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model is called with, labels aside."""
        if self.positions is None:
            return {"input_ids": self.ids, "attention_mask": self.mask}
        # transformers looks for packed rows only where there is neither a mask nor a cache.
        given = {"input_ids": self.ids, "position_ids": self.positions, "use_cache": False}
        return given if self.mask is None else {**given, "attention_mask": self.mask}

    @property
    def worked(self) -> int:
        """Tokens computed on, prompts and padding included."""
        return self.ids.numel()

    def weightless(self) -> Batch:
        """The same for a worker that takes part in a step without samples of its own."""
        return replace(self, tokens=0, samples=0)

    def to(self, device: torch.device) -> Batch:
        """A copy on this device."""
        return replace(self, **{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def labelled(sample: rows.Sample | PackedSample) -> Sample:
    """A prepared sample with a label for every token."""
    labels = [IGNORED] * len(sample.ids)
    for start, stop in sample.spans:
        labels[start:stop] = sample.ids[start:stop]
    return Sample(sample.ids, labels)


def collate_pairs(rows: Sequence[PackedSample], pad_id: int, tokens: int = 1) -> Batch:
    """Preference pairs: every second row of the batch is a rejected answer, the one before it the chosen one.

    Args:
        rows: Pairs, as two samples each.
        pad_id: Fills rows up to the longest.
        tokens: What one pair counts.
    """
    sides = [side for row in rows for side in _sides(labelled(row), row.lengths[0])]
    return replace(collate(sides, pad_id), tokens=tokens * len(rows), samples=len(rows))


def _sides(both: Sample, cut: int) -> tuple[Sample, Sample]:
    return Sample(both.ids[:cut], both.labels[:cut]), Sample(both.ids[cut:], both.labels[cut:])


def collate(samples: list[Sample], pad_id: int) -> Batch:
    """Pad to the longest sample."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id)
    labels = torch.full((len(samples), length), IGNORED)
    mask = torch.zeros((len(samples), length), dtype=torch.long)
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        ids[row, :size] = torch.tensor(sample.ids)
        labels[row, :size] = torch.tensor(sample.labels)
        mask[row, :size] = 1
    tokens = int((labels[:, 1:] != IGNORED).sum())
    return Batch(ids, mask, labels, tokens, samples=len(samples) if tokens else 0)
