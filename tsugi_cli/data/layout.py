"""From prepared samples to the rows that a run's positions count: mixed by weights, packed, or as they are.

Decided once, when data are prepared: leases, resumes and every replica speak of the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugi_cli.config.spec import Data

from .mixture import mixture, shares
from .packing import pack
from .tables import Writer, batches

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "rows"
"""The table of rows; an entry whose rows are its samples has none."""
BATCH = 10_000


@dataclass(frozen=True)
class Layout:
    """The rows of train."""

    rows: int
    digest: bytes
    """Of which samples stand in which row; empty where every sample is a row."""
    report: dict[str, Any]
    """What a user should know of it; nothing where every sample is a row."""


def lay_out(made: Path, data: Data, capacity: int, mixed: Sequence[int], weights: Sequence[float]) -> Layout:
    """Write down which samples of train make which row.

    Args:
        made: The entry's folder, with the table of train in it.
        data: The user's settings.
        capacity: Tokens of a packed row.
        mixed: For each sample, which of `data.mix` it comes from.
        weights: Of `data.mix`; none: no mixture.
    """
    if not (data.packing or weights):
        return Layout(len(mixed), b"", {})
    each = samples_of_a_row(data)
    lengths = [sum(some) for some in batched(_lengths(made / "train.arrow"), each)]
    chosen = _chosen(mixed, weights, data.seed) if weights else list(range(len(mixed)))
    rows = [[chosen[at] for at in row] for row in _rows([lengths[at] for at in chosen], data, capacity)]
    tokens = sum(lengths[at] for at in chosen)
    said: dict[str, Any] = {"rows": len(rows), "samples": len(chosen)}
    said |= {"capacity": capacity, "filled": round(tokens / (len(rows) * capacity), 4)} if data.packing else {}
    said |= {"mix": _mix(data, mixed, weights)} if weights else {}
    members = [[one for unit in row for one in range(unit * each, (unit + 1) * each)] for row in rows]
    return Layout(len(rows), _write(made / f"{NAME}.arrow", members), said)


def samples_of_a_row(data: Data) -> int:
    """How many samples a user's row is at least: a preference pair is two, side by side in the table."""
    return 2 if data.format == "preference" else 1


def batched(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Pieces of this size."""
    return (values[at : at + size] for at in range(0, len(values), size))


def _rows(lengths: Sequence[int], data: Data, capacity: int) -> list[list[int]]:
    return pack(lengths, capacity, data.seed) if data.packing else [[each] for each in range(len(lengths))]


def _chosen(mixed: Sequence[int], weights: Sequence[float], seed: int) -> list[int]:
    """The samples of a pass, some of them several times."""
    of_source: list[list[int]] = [[] for _ in weights]
    for sample, source in enumerate(mixed):
        of_source[source].append(sample)
    return [of_source[source][row] for source, row in mixture([len(each) for each in of_source], weights, seed)]


def _mix(data: Data, mixed: Sequence[int], weights: Sequence[float]) -> list[dict[str, Any]]:
    sizes = [mixed.count(source) for source in range(len(weights))]
    return [
        {"source": named.rpartition(":")[0], "there": there, "trained": trained}
        for named, there, trained in zip(data.mix, sizes, shares(sizes, weights), strict=True)
    ]


def _lengths(table: Path) -> list[int]:
    """Tokens of each sample."""
    import pyarrow.compute as pc

    return [length for batch in batches(table) for length in pc.list_value_length(batch.column("ids")).to_pylist()]


def _write(table: Path, rows: list[list[int]]) -> bytes:
    digest = hashlib.sha256()
    with Writer(table, row_schema()) as writer:
        for start in range(0, len(rows), BATCH):
            members = rows[start : start + BATCH]
            digest.update(repr(members).encode())
            writer.batch({"members": members})
    return digest.digest()


def row_schema() -> pa.Schema:
    """A row: the numbers of its samples in train."""
    import pyarrow as pa

    return pa.schema([("members", pa.list_(pa.int32()))])


def lines(report: dict[str, Any]) -> list[str]:
    """A layout's report in words."""
    said = [
        f"mix: {each['trained']:,} samples a pass from {each['source']}, which has {each['there']:,}"
        for each in report.get("mix", ())
    ]
    if "filled" in report:
        said.append(
            f"packing: {report['samples']:,} samples share {report['rows']:,} rows of {report['capacity']:,} tokens, "
            f"{report['filled']:.0%} full; train.micro_batch and the run's samples count rows"
        )
    return said
