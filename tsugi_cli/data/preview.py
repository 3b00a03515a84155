"""The first samples of a user's data as a model would be trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .kitchen import Kitchen
from .pairs import PAIR
from .report import pieces_of
from .rows import Row, RowError
from .work import Shard


def preview(shards: Sequence[Shard], kitchen: Kitchen, rows: int) -> dict[str, Any]:
    """Samples of the first rows; what is wrong with a row stands in its place.

    Args:
        shards: Where the rows come from. No more are read than are shown.
        kitchen: What makes samples of them.
        rows: How many.
    """
    found: list[dict[str, Any]] = []
    for row in _first(shards, rows):
        place = f"{row.file}:{row.line}"
        if not isinstance(row, Row):
            found.append({"place": place, "refused": row.reason})
            continue
        try:
            made = kitchen.samples(row)
            for sample in made.samples:
                kitchen.limits.check(sample)
        except RowError as error:
            found.append({"place": place, "refused": str(error)})
            continue
        found += [{"place": place, "dropped": reason} for reason in made.counts if not made.samples]
        sides = [{"side": name} for name in PAIR] if row.rejected else [{}] * len(made.samples)
        for sample, side in zip(made.samples, sides, strict=False):
            pieces = [list(piece) for piece in pieces_of(sample.ids, sample.spans, kitchen.decode)]
            counts = {"tokens": len(sample.ids), "supervised_tokens": sample.tokens}
            found.append({"place": place, **side, **counts, "changed": dict(made.counts), "pieces": pieces})
    return {"notes": list(kitchen.notes), "samples": found}


def _first(shards: Sequence[Shard], rows: int) -> Iterator[Any]:
    for shard in shards:
        for row in shard:
            if rows == 0:
                return
            rows -= 1
            yield row
