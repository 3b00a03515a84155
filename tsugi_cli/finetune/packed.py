"""Rows of several samples as tensors, for models whose attention keeps samples apart by their position ids.

Without an attention mask transformers takes every restart of the position ids for the start of another sequence. It
builds the block-diagonal mask itself (sdpa, eager, flex), sliding windows included, or hands the sequences' bounds to
a flash kernel, which needs neither mask nor padding. `leaks.py` proves for each model that this is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tsugi_cli.data.packing import PackedSample

from .tokens import IGNORED, Batch, Mask


class Way(Enum):
    """How a model is told where samples begin."""

    FLAT = "flat"
    """Rows become one without padding; a flash kernel goes by its position ids. It knows batches of one row only."""
    POSITIONS = "positions"
    """The model builds its masks from position ids."""
    MASKS = "masks"
    """It builds them without: it gets masks, of the same functions of transformers."""


@dataclass(frozen=True)
class Packer:
    """Makes batches of packed rows for one model."""

    way: Way
    config: Any
    """The model's, of transformers."""
    dtype: torch.dtype
    """What the model computes in."""

    def collate(self, rows: Sequence[PackedSample], pad_id: int) -> Batch:
        """Make a batch; with FLAT all its tensors are [1, tokens].

        Args:
            rows: One for each position of the data order.
            pad_id: Fills rows up to the longest. It is a sequence of its own, which nobody sees.
        """
        flat = self.way is Way.FLAT
        length = max(len(row.ids) for row in rows)
        gaps = [0 if flat else length - len(row.ids) for row in rows]
        ids = [[*row.ids, *[pad_id] * gap] for row, gap in zip(rows, gaps, strict=True)]
        labels = [[*_labels(row), *[IGNORED] * gap] for row, gap in zip(rows, gaps, strict=True)]
        positions = _tensor([_positions([*row.lengths, gap]) for row, gap in zip(rows, gaps, strict=True)], flat)
        return Batch(
            _tensor(ids, flat),
            self._masks(positions) if self.way is Way.MASKS else None,
            _tensor(labels, flat),
            tokens=sum(row.tokens for row in rows),
            samples=len(rows),
            positions=positions,
        )

    def _masks(self, positions: Tensor) -> Mask:
        """One for all layers, or one for each kind of layers."""
        from transformers.masking_utils import create_masks_for_generate

        shape_only = torch.empty((*positions.shape, 0), dtype=self.dtype)
        found: Mask = create_masks_for_generate(self.config, shape_only, None, None, position_ids=positions)
        return found


def _labels(row: PackedSample) -> list[int]:
    labels = [IGNORED] * len(row.ids)
    for start, stop in row.spans:
        labels[start:stop] = row.ids[start:stop]
    return labels


def _positions(lengths: Sequence[int]) -> list[int]:
    return list(chain.from_iterable(range(length) for length in lengths))


def _tensor(rows: list[list[int]], flat: bool) -> Tensor:
    return torch.tensor([list(chain.from_iterable(rows))] if flat else rows)
