"""Data sets of the Hugging Face hub, and folders in its layout, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tsugi_kpool.errors import DataError

from .cells import of_arrow


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
        _loaded(self)
        return self

    def records(self) -> Iterator[tuple[int, Any]]:
        """Its rows from 1 on. Keys that are null are left out: Arrow gives every object the keys of all others."""
        for number, row in enumerate(_loaded(self), start=1):
            yield number, of_arrow(row)

    def fingerprint(self) -> str:
        """Of its content, as `datasets` knows it."""
        return str(_loaded(self)._fingerprint)


@lru_cache(maxsize=8)
def _loaded(remote: Remote) -> Any:
    """The split, memory-mapped; asked for once, and kept in the user's cache."""
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    try:
        return load_dataset(remote.repository, remote.subset, split=remote.split, revision=remote.revision)
    # What may go wrong with a name, the network and somebody else's repository is of many kinds.
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, NotImplementedError, DatasetsError) as error:
        said = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise DataError(
            f"cannot have the data set {remote.repository}: {said}; data.subset, data.split and data.revision "
            "choose a part of it"
        ) from error
