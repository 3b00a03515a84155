"""What the parts of this room hand to each other: a row as its user wrote it, a sample as a model is trained on it.

The data's way: `sources` finds files, `lines` reads rows, `formats` makes a Row of each, `render` makes Samples of a
Row, `prepare` writes them down once, and replicas read them through `prepared`. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""As a chat template gets it: "role", "content", and where there are any "reasoning_content", "tool_calls", "name",
"tool_call_id"."""
Span = tuple[int, int]
"""[start, stop) of token positions."""


class RowError(ValueError):
    """What is wrong with one row, in one line without its place: whoever reads the file adds `file:line`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a user's data, whatever its format was.

    Either `messages` or `text` is set.
    """

    file: str
    """As the user named it."""
    line: int
    """From 1 on; in a file without lines, the row's number."""
    messages: tuple[Message, ...] = ()
    trained: tuple[bool | None, ...] = ()
    """For each message, what the user said about training on it (`train`, `weight`); None: nothing."""
    tools: tuple[dict[str, Any], ...] | None = None
    """Schemas of functions, as the template gets them."""
    text: str | None = None
    """Plain text for continued pretraining: all of it is trained on."""
    plain: bool = False
    """Prompt and completion were texts: without a chat template they are put together as they are."""
    rejected: Row | None = None
    """Of a preference pair the other answer, with the same prompt; `messages` end with the chosen one."""

    @property
    def place(self) -> str:
        """`file:line`, for errors."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is trained on as one sequence: token ids, and which of them the model is to produce."""

    ids: list[int]
    spans: tuple[Span, ...]
    """Trained positions, ascending, without overlap. Position 0 is never trained: nothing predicts it."""

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return sum(stop - max(start, 1) for start, stop in self.spans)
