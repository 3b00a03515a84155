"""From a user's rows to an entry of the cache: read, split, rendered, checked, written down, reported.

Everything that can be known about the data is known here, before any process trains. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tsugi_cli.config.spec import Data
from tsugi_kpool.errors import DataError

from . import report as reports
from . import work
from .facts import Facts, Watch
from .kitchen import Kitchen
from .layout import lay_out, samples_of_a_row
from .processes import run_all
from .report import First, Tally
from .split import HASH, Part, Split, split
from .tables import TABLES, Writer, batches, schema_of
from .work import Cooked, Making, Read, Shard, Task, in_order, table_of, tasks_of

HALF = 0.5


class Source(Protocol):
    """A user's rows."""

    @property
    def detected(self) -> Sequence[str]:
        """What was found, in words."""

    @property
    def weights(self) -> Sequence[float]:
        """Of `data.mix`; empty without."""

    def shards(self, processes: int, /) -> Sequence[Shard]:
        """The rows in parts, in the order of the files."""


def _named(data: Data) -> str:
    """The data as their user named them."""
    return data.builder or ", ".join([data.path] if isinstance(data.path, str) else data.path or data.mix)


@dataclass(frozen=True)
class Rows:
    """The user's rows after the first pass."""

    tasks: list[Task]
    tally: Tally
    split: Split
    starts: list[dict[int, int]]
    """For each task: number of a block -> position of its first row among those that could be read."""
    shards_parts: Any
    """`Part` that its shard says, of every row."""


def read_rows(source: Source, data: Data, processes: int, watch: Watch, users_own: bool) -> Rows:
    """First pass: what the rows say, and where each of them goes.

    Args:
        source: The rows.
        data: The user's settings.
        processes: That read at once.
        watch: Is told how far it is.
        users_own: The user's code has made the splits.

    Raises:
        DataError: rows cannot be read and `data.on_bad_row` is not "skip", or nothing is left to train on.
    """
    tasks = tasks_of(source.shards(processes), processes)
    found = run_all(
        lambda index, told: work.read_task(tasks[index], data.seed, told),
        len(tasks),
        processes,
        lambda done: watch("reading", done, 0),
    )
    tally, starts, hashes, given = _gathered(tasks, found)
    refuse(tally, data)
    cut = split(hashes, given, data.n_train, data.n_eval, data.n_test, users_own)
    _something_left(cut, data, len(hashes))
    return Rows(tasks, tally, cut, starts, given)


def _gathered(tasks: list[Task], found: list[list[Read]]) -> tuple[Tally, list[dict[int, int]], Any, Any]:
    """(counts, starts of blocks, hashes of all rows, what their shards say)."""
    tally, starts = Tally(), [dict[int, int]() for _ in tasks]
    hashes: list[bytes] = []
    given: list[Any] = []
    at = 0
    for index, number, read in in_order(tasks, found):
        starts[index][number] = at
        rows = len(read.hashes) // HASH.itemsize
        tally.add(read.tally)
        hashes.append(read.hashes)
        given.append(np.full(rows, Part[tasks[index].shard.part.upper()], dtype=np.uint8))
        at += rows
    empty = np.empty(0, dtype=np.uint8)
    return tally, starts, np.frombuffer(b"".join(hashes), dtype=HASH), np.concatenate([empty, *given])


def refuse(tally: Tally, data: Data) -> None:
    """Say what is wrong with rows, unless they are to be skipped.

    Raises:
        DataError: the first ones, and how many more.
    """
    if tally.bad and data.on_bad_row != "skip":
        raise DataError(reports.refusal(tally))


def _something_left(cut: Split, data: Data, rows: int) -> None:
    if not rows:
        raise DataError(f"{_named(data)} has no rows")
    if (cut.parts == Part.TRAIN).any():
        return
    if cut.held_elsewhere:
        raise DataError("nothing is left to train on: all rows of train are in eval or test, too")
    raise DataError(
        f"{_named(data)} has {rows} samples, but data.n_eval={data.n_eval} and "
        f"data.n_test={data.n_test} leave none to train on"
    )


def make(rows: Rows, kitchen: Kitchen, data: Data, source: Source, processes: int, watch: Watch, into: Path) -> Facts:
    """Second pass: write the tables of an entry into the folder `into`.

    Raises:
        DataError: rows cannot be trained on and `data.on_bad_row` is not "skip", or none is left.
    """
    parts, made = into / "parts", into / "entry"
    parts.mkdir()
    made.mkdir()
    order = _rendered(rows, kitchen, processes, watch, parts)
    tally, fingerprint = replace(rows.tally, kept=0), hashlib.sha256()
    for _, _, each in order:
        tally.add(each.tally)
    refuse(tally, data)
    for name in TABLES:
        fingerprint.update(name.encode())
        for _, _, each in order:
            fingerprint.update(each.digests[name])
        _gather(parts, made, name, schema_of(name, kitchen.limits.vocabulary), [index for index, _, _ in order])
    if not tally.samples["train"]:
        raise DataError(f"nothing is left to train on: {_why(tally)}")
    n = {name: tally.samples[name] for name in ("train", "eval", "test")}
    watch("laying out rows", 0, 0)
    layout = lay_out(made, data, kitchen.max_tokens, _mixed(rows, order), source.weights)
    together = samples_of_a_row(data)
    fingerprint.update(layout.digest + (b"pairs" if together > 1 else b""))
    return Facts(
        entry="",
        fingerprint=fingerprint.hexdigest(),
        n_train=layout.rows,
        n_eval=n["eval"],
        n_test=n["test"],
        max_tokens=kitchen.max_tokens,
        report=reports.report(
            tally,
            detected=source.detected,
            repeated=rows.split.repeated,
            held_elsewhere=rows.split.held_elsewhere,
            shared=rows.split.shared,
            left_out=int((rows.split.parts == Part.LEFT_OUT).sum()) - rows.split.held_elsewhere,
            notes=[*kitchen.notes, *_warnings(tally, rows, data)],
            first=_first(made / "train.arrow", kitchen.decode, together),
            n=n,
            layout=layout.report,
            pairs=together > 1,
        ),
    )


def _rendered(
    rows: Rows, kitchen: Kitchen, processes: int, watch: Watch, parts: Path
) -> list[tuple[int, int, Cooked]]:
    """Return (task, number, what it gave) of all blocks in the order of the rows; their tables lie in `parts`."""
    making = Making(kitchen, kitchen.limits.check, kitchen.limits.vocabulary, rows.split.parts, rows.starts, parts)
    total = len(rows.split.parts)
    found = run_all(
        lambda index, told: work.render_task(index, rows.tasks[index], making, told),
        len(rows.tasks),
        processes,
        lambda done: watch("tokenising", min(done, total), total),
    )
    return list(in_order(rows.tasks, found))


def _mixed(rows: Rows, order: Sequence[tuple[int, int, Cooked]]) -> list[int]:
    """For each sample of train, which of `data.mix` it comes from."""
    return [rows.tasks[index].shard.mixed for index, _, each in order for _ in range(each.tally.samples["train"])]


def _why(tally: Tally) -> str:
    reasons = [f"{count} rows: {reason}" for reason, count in tally.dropped.most_common(3)]
    return "; ".join(reasons) or f"{tally.bad} rows were skipped; the first: {tally.bad_rows[0]}"


def _gather(parts: Path, made: Path, name: str, schema: Any, order: Sequence[int]) -> None:
    """Put the tasks' batches together in the order of the rows."""
    streams = {index: batches(table_of(parts, index, name)) for index in set(order)}
    with Writer(made / f"{name}.arrow", schema) as table:
        for index in order:
            batch = next(streams[index])
            if batch.num_rows:
                table.copy(batch)


def _warnings(tally: Tally, rows: Rows, data: Data) -> list[str]:
    """What would surprise whoever has not counted."""
    wanted = int((rows.split.parts == Part.TRAIN).sum())
    open_rows = int((rows.shards_parts == Part.OPEN).sum())
    found = []
    held = int(((rows.split.parts == Part.EVAL) | (rows.split.parts == Part.TEST)).sum())
    if open_rows and held < (data.n_eval or 0) + data.n_test:
        found.append(f"the rows say few different things: {held} are held out instead of those that were asked for")
    lost = tally.bad + sum(tally.dropped.values())
    if open_rows and wanted + rows.split.held_elsewhere < HALF * open_rows:
        found.append(
            f"only {wanted} of {open_rows} rows are trained on; data.n_eval, data.n_test or n_train take the rest"
        )
    if lost > HALF * max(1, tally.read):
        found.append(f"less than half of the rows are left to train on: {_why(tally)}")
    return found


def _first(table: Path, decode: Callable[[Sequence[int]], str], each: int) -> First | None:
    """The first sample of a table, or the first pair."""
    for batch in batches(table):
        rows = batch.slice(0, each).to_pylist()
        spans = [row["spans"] for row in rows]
        pieces = [
            reports.pieces_of(row["ids"], zip(of_row[::2], of_row[1::2], strict=True), decode)
            for row, of_row in zip(rows, spans, strict=True)
        ]
        return First(f"{rows[0]['file']}:{rows[0]['line']}", *pieces)
    return None
