"""Prepared data as replicas read them: mapped into memory, a sample at a time. Nothing is tokenised here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from tsugi_kpool.errors import DataError

from .facts import Facts
from .rows import Sample
from .tables import Question

FILES = ("train", "eval", "eval_questions", "test_questions")
"""Tables of an entry: samples of train and eval, and what generation needs of eval and test."""


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

    def tokens(self) -> list[int]:
        """Supervised tokens of each."""
        return [int(each) for column in self._table.data.column("tokens").chunks for each in column.to_numpy()]


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
    train: Samples
    eval: Samples
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
        tables = [Dataset.from_file(str(entry / f"{name}.arrow")) for name in FILES]
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"the prepared data in {entry} have gone, or are damaged; start the run again") from error
    train, held, eval_questions, test = tables
    return Prepared(facts, Samples(train), Samples(held), Questions(eval_questions), Questions(test))
