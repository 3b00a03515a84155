"""Prepared data as replicas read them: mapped into memory, a sample at a time. Nothing is tokenised here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tsugi_kpool.errors import DataError

from .facts import Facts
from .layout import NAME
from .packing import PackedSample, joined
from .rows import Sample
from .tables import TABLES, Question


class Samples(Sequence[Sample]):
    """The samples of a split."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> list[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | list[Sample]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        found = self._table[at]
        pairs = found["spans"]
        return Sample(found["ids"], tuple(zip(pairs[::2], pairs[1::2], strict=True)))

    def place(self, at: int) -> str:
        """Where the row of a sample stands: `file:line`."""
        found = self._table[at]
        return f"{found['file']}:{found['line']}"

    def tokens(self) -> NDArray[np.int64]:
        """Supervised tokens of each."""
        return self._table.data.column("tokens").to_numpy().astype(np.int64)  # type: ignore[no-any-return]

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each."""
        import pyarrow.compute as pc

        return pc.list_value_length(self._table.data.column("ids")).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


class Rows(Sequence[PackedSample]):
    """The rows of train: what positions of the data order, and so leases, count. And pairs of any split.

    Args:
        samples: Of a split.
        table: Which of them each row has; None: every sample is a row, or every two of them.
        packed: Rows have several samples.
        pairs: Rows are preference pairs: the chosen sample, then the rejected one.
    """

    def __init__(self, samples: Samples, table: Any = None, packed: bool = False, pairs: bool = False) -> None:
        self._samples, self.packed, self.pairs = samples, packed, pairs
        self._members = np.arange(len(samples))
        self._starts = np.arange(0, len(samples) + 1, 2 if pairs else 1)
        if table is not None:
            column = table.data.column("members").combine_chunks()
            self._members = column.flatten().to_numpy()
            self._starts = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, at: int) -> PackedSample: ...
    @overload
    def __getitem__(self, at: slice) -> list[PackedSample]: ...
    def __getitem__(self, at: int | slice) -> PackedSample | list[PackedSample]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        row = range(len(self))[at]
        members = self._members[self._starts[row] : self._starts[row + 1]].tolist()
        return joined([self._samples[each] for each in members], members)

    def places(self, at: int) -> list[str]:
        """`file:line` of each sample in a row."""
        members = self._members[self._starts[at] : self._starts[at + 1]].tolist()
        return list(dict.fromkeys(self._samples.place(each) for each in members))

    def tokens(self) -> list[int]:
        """Supervised tokens of each; of pairs those of the mean pair, so that each weighs the same."""
        found = self._of_rows(np.add, self._samples.tokens())
        return [max(1, round(sum(found) / len(found)))] * len(found) if self.pairs else found

    def lengths(self) -> list[int]:
        """Tokens of each; of pairs with the padding of the shorter side."""
        if self.pairs:
            return [2 * each for each in self._of_rows(np.maximum, self._samples.lengths())]
        return self._of_rows(np.add, self._samples.lengths())

    def _of_rows(self, how: np.ufunc, of_samples: NDArray[np.int64]) -> list[int]:
        return [int(each) for each in how.reduceat(of_samples[self._members], self._starts[:-1])]


class Questions(Sequence[Question]):
    """Held-out rows for generation."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, at: int) -> Question: ...
    @overload
    def __getitem__(self, at: slice) -> list[Question]: ...
    def __getitem__(self, at: int | slice) -> Question | list[Question]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return Question(**self._table[at])

    def __iter__(self) -> Iterator[Question]:
        return (self[at] for at in range(len(self)))


@dataclass(frozen=True)
class Prepared:
    """All that a replica needs of the data."""

    facts: Facts
    train: Rows
    eval: Samples | Rows
    """Rows where these are pairs."""
    eval_questions: Questions
    test: Questions

    def fingerprint(self) -> str:
        """Hash over all prepared tokens: replicas with different data must not train together."""
        return self.facts.fingerprint


def open_entry(entry: Path) -> Prepared:
    """Map an entry of the cache into memory.

    Raises:
        DataError: it is not there any more.
    """
    from datasets import Dataset

    try:
        facts = Facts.read(entry)
        tables = [Dataset.from_file(str(entry / f"{name}.arrow")) for name in TABLES]
        rows = Dataset.from_file(str(entry / f"{NAME}.arrow")) if facts.report["layout"] else None
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"the prepared data in {entry} have gone, or are damaged; start the run again") from error
    train, held, eval_questions, test = tables
    packed, pairs = "filled" in facts.report["layout"], bool(facts.report.get("pairs"))
    of_eval = Rows(Samples(held), pairs=True) if pairs else Samples(held)
    of_train = Rows(Samples(train), rows, packed, pairs)
    return Prepared(facts, of_train, of_eval, Questions(eval_questions), Questions(test))
