"""Prepared samples on the disk: Arrow tables that `datasets` maps into memory, written batch by batch.

A row's nested values stay JSON text: Arrow would give all rows the same keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .rows import Row, Sample

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Question:
    """A held-out row as generation needs it."""

    prompt: list[int]
    """Token ids, up to where the last answer begins."""
    asked: str
    """The last thing that was asked, for people."""
    expected: str
    """The last answer."""
    row: str
    """The whole row as JSON, for scorers: messages and tools."""


@dataclass
class Columns:
    """Rows of a table to be, column by column."""

    ids: list[list[int]] = field(default_factory=list)
    spans: list[list[int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    file: list[str] = field(default_factory=list)
    line: list[int] = field(default_factory=list)

    def add(self, row: Row, sample: Sample) -> None:
        """One more sample."""
        self.ids.append(sample.ids)
        self.spans.append([position for span in sample.spans for position in span])
        self.tokens.append(sample.tokens)
        self.file.append(row.file)
        self.line.append(row.line)


TABLES = ("train", "eval", "eval_questions", "test_questions")
"""Of an entry: samples of train and eval, and what generation needs of eval and test."""
SHORT = 1 << 16


def schema_of(table: str, vocabulary: int) -> pa.Schema:
    """What the columns of a table hold.

    Token ids of samples take two bytes each where the vocabulary allows: every worker maps the samples, so their size
    is what it holds of them. Those of a question take four, because nothing has compared them with the vocabulary.

    Args:
        table: One of `TABLES`.
        vocabulary: Rows of the model's embedding; every id of a sample is less.
    """
    import pyarrow as pa

    text = pa.string()
    if table.endswith("questions"):
        return pa.schema({"prompt": pa.list_(pa.int32()), "asked": text, "expected": text, "row": text}.items())
    ids = pa.list_(pa.uint16() if vocabulary <= SHORT else pa.int32())
    spans = pa.list_(pa.int32())
    return pa.schema({"ids": ids, "spans": spans, "tokens": pa.int32(), "file": text, "line": pa.int64()}.items())


class Writer:
    """A table's file, for as long as the block lasts."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._schema = schema
        self._sink = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, schema)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._sink.close()

    def columns(self, columns: Columns) -> None:
        """Samples, as one batch, even when there are none."""
        self.batch({name: getattr(columns, name) for name in self._schema.names})

    def questions(self, questions: Sequence[Question]) -> None:
        """Questions, as one batch, even when there are none."""
        self.batch({name: [getattr(each, name) for each in questions] for name in self._schema.names})

    def batch(self, columns: dict[str, list[Any]]) -> None:
        import pyarrow as pa

        self.copy(pa.RecordBatch.from_pydict(columns, schema=self._schema))

    def copy(self, batch: pa.RecordBatch) -> None:
        """A batch of another table."""
        self._stream.write_batch(batch)


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Those of a table's file, one after another, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        yield from stream
