"""Which rows are trained on, which are held out: decided by what a row says, so that no held-out row is trained on.

A pure function of hashes. Where a file stands, how many cores read it and how its rows are ordered changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .rows import Row

HASH = np.dtype([("high", ">u8"), ("low", ">u8")])
"""16 bytes, in an order that numpy sorts by."""
MOST_HELD = 64
HELD_SHARE = 0.1
"""Of a user's own data, at most so much is held out for eval unless they say otherwise."""
Hashes = NDArray[np.void]
Codes = NDArray[np.uint8]


class Part(IntEnum):
    """Where a row goes; as `given`, OPEN says that its file is still to be split."""

    OPEN = 0
    TRAIN = 1
    EVAL = 2
    TEST = 3
    LEFT_OUT = 4


@dataclass(frozen=True)
class Split:
    """Of every row its part, and what there is to say about it."""

    parts: Codes
    """One `Part` for each row."""
    repeated: int
    """Rows that say what an earlier row has said."""
    held_elsewhere: int
    """Rows that were left out of train because eval or test has the same."""
    shared: int
    """Rows of train that eval or test has too: only where the user has made the splits."""


def content_hash(row: Row, seed: int) -> bytes:
    """16 bytes of all that is trained on in a row. The seed makes another order of the same rows."""
    said = [row.messages, row.trained, row.tools, row.text, row.plain]
    content = msgspec.json.encode(said if row.rejected is None else [*said, row.rejected.messages])
    return hashlib.blake2b(content, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()


def hashes_of(hashes: Sequence[bytes]) -> Hashes:
    """As an array."""
    return np.frombuffer(b"".join(hashes), dtype=HASH)


def held_out(asked: int | None, distinct: int) -> int:
    """Rows that are held out for eval."""
    return min(MOST_HELD, int(distinct * HELD_SHARE)) if asked is None else asked


def split(
    hashes: Hashes, given: Codes, n_train: int, n_eval: int | None, n_test: int, users_own: bool = False
) -> Split:
    """Give every row its part.

    Open rows are cut by their hashes, whose order is one by chance: first eval, then test, the rest is train.
    Repeated rows stay together, and what is held out is held out once. Where rows repeat so few things that all would
    be held out, it is half of them.

    Args:
        hashes: Of all rows.
        given: The `Part` of each row, where its user has said so.
        n_train: At most so many rows are trained on; 0: all.
        n_eval: Of the open rows; None: a tenth, at most 64.
        n_test: Of the open rows.
        users_own: The user has made the splits in code of their own: what is in two of them stays, and is counted.
    """
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    parts = given.copy()
    held = np.zeros(len(first), dtype=bool)
    held[which[(given == Part.EVAL) | (given == Part.TEST)]] = True
    open_ones = np.unique(which[given == Part.OPEN])
    free = open_ones[~held[open_ones]]
    n_eval = held_out(n_eval, len(free))
    if len(free) < (given == Part.OPEN).sum() and n_eval + n_test >= len(free):  # few rows, again and again
        n_eval = min(n_eval, len(free) // 2)
        n_test = min(n_test, len(free) // 2 - n_eval)
    parts[given == Part.OPEN] = Part.TRAIN
    first_open = _first_open(which, given, len(first))
    parts[first_open[free[:n_eval]]] = Part.EVAL
    parts[first_open[free[n_eval : n_eval + n_test]]] = Part.TEST
    held[free[: n_eval + n_test]] = True
    both = (parts == Part.TRAIN) & held[which]
    if not users_own:
        parts[both] = Part.LEFT_OUT
    _keep_some(parts, which, n_train)
    return Split(parts, len(hashes) - len(first), 0 if users_own else int(both.sum()), int(both.sum()) * users_own)


def _first_open(which: NDArray[np.intp], given: Codes, distinct: int) -> NDArray[np.intp]:
    """Of every content the first open row."""
    found = np.zeros(distinct, dtype=np.intp)
    rows = np.flatnonzero(given == Part.OPEN)[::-1]
    found[which[rows]] = rows  # the last one written is the first in the file
    return found


def _keep_some(parts: Codes, which: NDArray[np.intp], n_train: int) -> None:
    """Leave out what is more than is wanted, by chance."""
    rows = np.flatnonzero(parts == Part.TRAIN)
    if n_train and len(rows) > n_train:
        by_hash = rows[np.argsort(which[rows], kind="stable")]
        parts[by_hash[n_train:]] = Part.LEFT_OUT


def counts(parts: Codes) -> dict[str, Any]:
    """Rows of each part."""
    return {part.name.lower(): int((parts == part).sum()) for part in Part if part is not Part.OPEN}
