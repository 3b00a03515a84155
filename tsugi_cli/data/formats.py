"""The formats of rows: which keys each has, and how it becomes a Row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .messages import conversation, row_of, text_of
from .pairs import PAIR, preference
from .rows import Message, Row, RowError

PREFERENCE = "preference"
"""The format that is read where the run trains on pairs, and never otherwise."""


@dataclass(frozen=True)
class Format:
    """One shape of rows.

    Attributes:
        name: As `data.format` has it.
        needs: Keys that it cannot do without.
        may: Keys that it takes as well.
        words: For the line that says what was found.
        read: Makes messages and marks, or sets a text.
    """

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    words: str
    read: Callable[[Mapping[str, Any]], Row]


def _messages(record: Mapping[str, Any]) -> Row:
    messages, trained = conversation(record["messages"], '"messages"')
    return row_of(messages, trained, record)


def _sharegpt(record: Mapping[str, Any]) -> Row:
    messages, trained = conversation(record["conversations"], '"conversations"')
    return row_of(messages, trained, record)


def _pair(record: Mapping[str, Any]) -> Row:
    """Texts, or lists of messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        asked, said = _turn("user", prompt), _turn("assistant", completion)
        messages, trained = conversation([asked, said], '"completion"')
        row = row_of(messages, trained, record)
        return row if row.tools or len(row.messages) > 2 else replace(row, plain=True)
    for key, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, list):
            raise RowError(f'"{key}" must be a text, or a list of messages as the other one is')
    messages, trained = conversation([*prompt, *completion], '"prompt" and "completion"')
    # Answers in a prompt are context: what is trained on is the completion.
    trained = tuple(mark if at >= len(prompt) else mark or False for at, mark in enumerate(trained))
    return row_of(messages, trained, record)


def _alpaca(record: Mapping[str, Any]) -> Row:
    asked = text_of(record["instruction"], '"instruction"')
    if more := text_of(record.get("input", ""), '"input"'):
        asked = f"{asked}\n\n{more}"
    said = text_of(record["output"], '"output"')
    messages, trained = conversation([_turn("user", asked), _turn("assistant", said)], '"output"')
    return row_of(messages, trained, record)


def _text(record: Mapping[str, Any]) -> Row:
    text = text_of(record["text"], '"text"')
    if not text.strip():
        raise RowError('"text" is empty')
    return Row("", 0, text=text)


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


_BESIDE = ("system", "tools", "functions")
FORMATS = (
    Format("messages", ("messages",), _BESIDE, '"messages"', _messages),
    Format("sharegpt", ("conversations",), _BESIDE, '"conversations" (ShareGPT)', _sharegpt),
    Format("prompt_completion", ("prompt", "completion"), _BESIDE, '"prompt" and "completion"', _pair),
    Format("alpaca", ("instruction", "output"), ("input", "system"), '"instruction" and "output" (alpaca)', _alpaca),
    Format("text", ("text",), (), '"text" (continued pretraining)', _text),
    Format(PREFERENCE, PAIR, ("prompt", *_BESIDE), '"chosen" and "rejected" (preference pairs)', preference),
)
