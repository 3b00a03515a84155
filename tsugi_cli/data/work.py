"""The two passes over a user's rows, on all cores: what do rows say (hashes), and what do they become (samples).

Rows are dealt out in blocks of a fixed size, and what comes of a block stands where the block stood: neither how many
cores there are nor which is quicker changes the result.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .processes import Progress
from .render import Rendered as Made
from .report import Tally
from .rows import Row, RowError, Sample
from .split import Part, content_hash
from .tables import TABLES, Columns, Question, Writer, schema_of

BLOCK = 256
"""Rows."""
PROGRESS_ROWS = 64
DROPPED, NOTHING = "dropped: ", "nothing in it is trained on"
"""How the reason begins for which nothing is left of a row; and the reason where none is given."""
T = TypeVar("T")


class Shard(Protocol):
    """A part of the user's rows that one process reads; may be sent to it."""

    @property
    def part(self) -> str:
        """The name of the `Part` where its user wants its rows; "open": they are to be split."""

    @property
    def mixed(self) -> int:
        """Which of `data.mix` it is; 0 without."""

    def __iter__(self) -> Iterator[Any]:
        """Rows in the file's order, and for those that cannot be read something with `file`, `line` and `reason`."""


class Renders(Protocol):
    """Turns a row into samples."""

    def samples(self, row: Row) -> Made:
        """Raises RowError."""

    def question(self, row: Row) -> Question | None:
        """For generation; None where there is nothing to ask. Raises RowError."""


@dataclass(frozen=True)
class Task:
    """Every `turns`-th block of a shard."""

    shard: Shard
    turn: int = 0
    turns: int = 1

    def blocks(self) -> Iterator[tuple[int, list[Any]]]:
        """(number of the block in its shard, rows)."""
        rows, number = iter(self.shard), 0
        while block := list(islice(rows, BLOCK)):
            if number % self.turns == self.turn:
                yield number, block
            number += 1


@dataclass
class Read:
    """What a block says."""

    hashes: bytes = b""
    """16 bytes for each row that could be read."""
    tally: Tally = field(default_factory=Tally)


@dataclass
class Cooked:
    """What has become of a block; its samples are in the task's tables."""

    digests: dict[str, bytes] = field(default_factory=dict)
    """Part -> 16 bytes for each sample."""
    tally: Tally = field(default_factory=Tally)


def tasks_of(shards: Sequence[Shard], processes: int) -> list[Task]:
    """Shards in turns, where there are fewer than processes."""
    turns = max(1, -(-processes // max(1, len(shards))))
    return [Task(shard, turn, turns) for shard in shards for turn in range(turns)]


def in_order(tasks: Sequence[Task], found: Sequence[list[T]]) -> Iterator[tuple[int, int, T]]:
    """What came of all blocks, in the order of the rows: (task, number of the block in its shard, what)."""
    at = 0
    while at < len(tasks):
        turns = tasks[at].turns
        number = 0
        while number // turns < len(found[at + number % turns]):
            yield at + number % turns, number, found[at + number % turns][number // turns]
            number += 1
        at += turns


def read_task(task: Task, seed: int, progress: Progress) -> list[Read]:
    """First pass: hashes of rows, and what cannot be read."""
    found = []
    for _, block in task.blocks():
        read = Read()
        hashes = []
        for row in block:
            read.tally.read += 1
            if isinstance(row, Row):
                hashes.append(content_hash(row, seed))
            else:
                read.tally.bad_row(f"{row.file}:{row.line}", row.reason)
        read.hashes = b"".join(hashes)
        found.append(read)
        progress(len(block))
    return found


@dataclass(frozen=True)
class Making:
    """What the second pass needs besides a task."""

    render: Renders
    check: Callable[[Sample], None]
    """Raises RowError for a sample that the model cannot take."""
    vocabulary: int
    """Rows of the model's embedding."""
    parts: Any
    """`Part` of every row that could be read, in order."""
    starts: Sequence[dict[int, int]]
    """For each task: number of a block -> position of its first row in `parts`."""
    folder: Path


def table_of(folder: Path, index: int, name: str) -> Path:
    """A task's part of a table."""
    return folder / f"{index}.{name}.arrow"


def render_task(index: int, task: Task, making: Making, progress: Progress) -> list[Cooked]:
    """Second pass: samples of rows, written to tables of this task's own, one batch for each block."""
    found = []
    with ExitStack() as opened:
        tables = {
            name: opened.enter_context(
                Writer(table_of(making.folder, index, name), schema_of(name, making.vocabulary))
            )
            for name in TABLES
        }
        for number, block in task.blocks():
            start = making.starts[index][number]
            maker = _Block(making)
            for at, row in enumerate(row for row in block if isinstance(row, Row)):
                maker.add(row, Part(int(making.parts[start + at])))
                if at % PROGRESS_ROWS == PROGRESS_ROWS - 1:
                    progress(PROGRESS_ROWS)
            for name in ("train", "eval"):
                tables[name].columns(maker.columns[name])
            for name in ("eval_questions", "test_questions"):
                tables[name].questions(maker.questions[name])
            found.append(maker.done())
            progress(len(block) % PROGRESS_ROWS)
    return found


class _Block:
    """The samples of a block."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self._tally = Tally()
        self._digests: dict[str, list[bytes]] = {name: [] for name in TABLES}
        self.columns = {name: Columns() for name in ("train", "eval")}
        self.questions: dict[str, list[Question]] = {"eval_questions": [], "test_questions": []}

    def add(self, row: Row, part: Part) -> None:
        """A row, which is counted as refused when it is."""
        if part is Part.LEFT_OUT:
            return
        try:
            self._test(row) if part is Part.TEST else self._samples(row, part.name.lower())
        except RowError as error:
            self._tally.bad_row(row.place, str(error))

    def _samples(self, row: Row, part: str) -> None:
        made = self._making.render.samples(row)
        for sample in made.samples:
            self._making.check(sample)
        question = self._making.render.question(row) if part == "eval" and made.samples else None
        if not made.samples:
            self._tally.drop(next((each for each in made.counts if each.startswith(DROPPED)), NOTHING))
            return
        self._tally.changed.update(made.counts)
        self._tally.kept += 1
        for sample in made.samples:
            self.columns[part].add(row, sample)
            self._digests[part].append(_digest(sample.ids, sample.spans))
        # A pair counts as one, with the tokens of both of its answers.
        for counted in [made.samples] if row.rejected else [[each] for each in made.samples]:
            length, supervised = sum(len(each.ids) for each in counted), sum(each.tokens for each in counted)
            self._tally.sample(part, length, supervised)
        if question is not None:
            self._ask("eval_questions", question)

    def _test(self, row: Row) -> None:
        question = self._making.render.question(row)
        if question is None:
            self._tally.drop("a test row without an answer")
            return
        self._tally.kept += 1
        self._tally.samples["test"] += 1
        self._ask("test_questions", question)

    def _ask(self, table: str, question: Question) -> None:
        self.questions[table].append(question)
        self._digests[table].append(_digest(question.prompt, question.expected))

    def done(self) -> Cooked:
        """What there is to say about it."""
        return Cooked({name: b"".join(each) for name, each in self._digests.items()}, self._tally)


def _digest(ids: Sequence[int], rest: object) -> bytes:
    return hashlib.blake2b(array("I", ids).tobytes() + repr(rest).encode(), digest_size=16).digest()
