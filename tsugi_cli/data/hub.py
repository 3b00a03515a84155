"""Data sets of the Hugging Face hub, and folders in its layout, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tsugi_kpool.errors import DataError

from .lines import without_nulls


@dataclass(frozen=True)
class Remote:
    """One split of a data set.

    Attributes:
        repository: Such as HuggingFaceH4/ultrachat_200k.
        subset: Its configuration; None: the only one.
        split: Such as train_sft.
        revision: A branch, tag or commit; None: the newest.
    """

    repository: str
    subset: str | None
    split: str
    revision: str | None

    @property
    def name(self) -> str:
        """For errors."""
        return f"{self.repository}[{self.split}]"

    def checked(self) -> Remote:
        """Itself, once it is there.

        Raises:
            DataError: it cannot be had; says which subsets or splits there are.
        """
        self._load()
        return self

    def records(self) -> Iterator[tuple[int, Any]]:
        """Its rows from 1 on. Keys that are null are left out: Arrow gives every object the keys of all others."""
        for number, row in enumerate(self._load(), start=1):
            yield number, without_nulls(row)

    def fingerprint(self) -> str:
        """Of its content, as `datasets` knows it."""
        return str(self._load()._fingerprint)

    def _load(self) -> Any:
        """The split, memory-mapped; fetched once, and kept in the user's cache."""
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        try:
            return load_dataset(self.repository, self.subset, split=self.split, revision=self.revision)
        # What may go wrong with a name, the network and somebody else's repository is of many kinds.
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
            said = (" ".join(str(error).split()) or type(error).__name__)[:300]
            raise DataError(
                f"cannot have the data set {self.repository}: {said}; data.subset, data.split and data.revision "
                "choose a part of it"
            ) from error
