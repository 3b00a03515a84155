"""Where the turns of a long conversation stand, in time that grows with its length and not with its square.

The conversation is rendered twice: as it is, and with a mark before and behind the text of every message. The marks
show where each message stands. What a template writes around an answer is then the same for all answers of a kind,
so that one of each kind has to be rendered by itself, as inference would have it. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Message, Span

BEFORE, BEHIND, CLOSE = "\ue200", "\ue201", "\ue202"
"""Characters for private use. A mark is one of the first two, the message's number, and the third."""
_MARK = re.compile(f"([{BEFORE}{BEHIND}])([0-9]+){CLOSE}")
_SPACE = re.compile(r"(\s*)(.*\S)(\s*)", re.DOTALL)
Kind = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Around:
    """What a template writes around an answer of a kind."""

    head: str
    """From the end of the message before to where the model begins to write."""
    tail: str
    """From the last characters that the model writes to the text of the message behind."""
    written: int
    """Characters of `tail` that the model writes."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the messages of a rendered conversation stand."""

    text: str
    begins: dict[int, int]
    """Message -> where its first marked text begins."""
    ends: dict[int, int]
    """Message -> where its last text ends; without those that end with a call."""

    def answer(self, at: int, around: Around) -> Span | None:
        """Where an answer stands if this is written around it; None when something else is."""
        start, stop = self.ends.get(at - 1), self.begins.get(at + 1)
        if start is None or stop is None or not self.text.startswith(around.head, start):
            return None
        if not self.text.endswith(around.tail, 0, stop):
            return None
        found = start + len(around.head), stop - len(around.tail) + around.written
        return found if found[0] <= found[1] else None

    def around(self, at: int, answer: Span, specials: tuple[str, ...]) -> Around | None:
        """What is written around an answer whose place is known."""
        before, behind = self.ends.get(at - 1), self.begins.get(at + 1)
        if before is None or behind is None or not before <= answer[0] <= answer[1] <= behind:
            return None
        written = max((len(text) for text in specials if self.text.endswith(text, 0, answer[1])), default=0)
        return Around(self.text[before : answer[0]], self.text[answer[1] - written : behind], written)


def kind_of(messages: Sequence[Message], at: int) -> Kind:
    """Answers of one kind have the same around them: by what it, the message before and the one behind consist of."""
    return tuple(_parts(each) for each in messages[at - 1 : at + 2])


def places_of(messages: Sequence[Message], whole: str, render: Callable[[list[Message]], str]) -> Places | None:
    """Find the messages in their rendering.

    Args:
        messages: The conversation.
        whole: Its rendering.
        render: Renders messages.

    Returns:
        None when marks would change what the template writes.
    """
    if any(mark in whole for mark in (BEFORE, BEHIND, CLOSE)):
        return None
    marked = render([_with_marks(message, number) for number, message in enumerate(messages)])
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    removed = 0
    for found in _MARK.finditer(marked):
        number, place = int(found[2]), found.start() - removed
        removed += len(found[0])
        if found[1] == BEFORE:
            begins.setdefault(number, place)
        else:
            ends[number] = place
    if _MARK.sub("", marked) != whole or list(begins.values()) != sorted(begins.values()):
        return None
    return Places(whole, begins, {at: end for at, end in ends.items() if not messages[at].get("tool_calls")})


def _parts(message: Message) -> tuple[Any, ...]:
    fields = tuple(sorted(key for key, value in message.items() if value and key != "tool_call_id"))
    return message["role"], fields, "</think>" in str(message.get("content")), len(message.get("tool_calls") or ())


def _with_marks(message: Message, number: int) -> Message:
    """Marks stand inside the white space around a text: templates trim."""
    before, behind = f"{BEFORE}{number}{CLOSE}", f"{BEHIND}{number}{CLOSE}"
    made = dict(message)
    for key in ("reasoning_content", "content"):
        parts = _SPACE.fullmatch(message[key]) if isinstance(message.get(key), str) else None
        if parts is not None:
            made[key] = parts[1] + before + parts[2] + (behind if key == "content" else "") + parts[3]
    if calls := message.get("tool_calls"):
        function = calls[0].get("function", {})
        named = {**calls[0], "function": {**function, "name": before + str(function.get("name", ""))}}
        made["tool_calls"] = [named, *calls[1:]]
    return made
