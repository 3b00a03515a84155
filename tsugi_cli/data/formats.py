"""From a record of a file to a Row: which format it has, what its keys mean, and that none is lost in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from tsugi_cli.config.spec import Columns, Data

from .messages import checked_tools, conversation, system_turn, text_of
from .rows import Message, Row, RowError

_OF_NO_USE = """
    id idx index uuid uid row_id prompt_id conversation_id hash source dataset split lang language category tag tags
    url license timestamp created_at model num_turns meta metadata
"""
HARMLESS = frozenset(_OF_NO_USE.split())
"""Keys that say something about a row and nothing to a model."""
PREFERENCES = ("chosen", "rejected")
USUAL = (("question", "answer"), ("query", "response"), ("input", "output"), ("instruction", "response"))
"""Names that others give to a prompt and its completion."""
MOST_SHOWN = 5


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


def reader_of(data: Data) -> Reader:
    """The reader that these settings ask for."""
    return Reader(data.format, data.columns, frozenset(data.ignore))


@dataclass(frozen=True)
class Reader:
    """Turns records into rows.

    Attributes:
        format: One format's name, or auto.
        columns: Other names of keys.
        ignore: Keys that may be dropped.
    """

    format: str
    columns: Columns
    ignore: frozenset[str]

    def row(self, record: Any, file: str, line: int) -> Row:
        """One record as a row.

        Raises:
            RowError: what is wrong with it, or what of it would be lost.
        """
        found = self._renamed(record)
        chosen = self._format(found)
        self._check_all_used(found, chosen)
        made = chosen.read(found)
        try:
            json.dumps([made.messages, made.tools, made.text], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise RowError(f"{half} is half of a character (a lone surrogate), which no text can have") from error
        except RecursionError as error:
            raise RowError("lists or objects inside each other, too deep to be read") from error
        return Row(file, line, made.messages, made.trained, made.tools, made.text, made.plain)

    def words(self, record: Any) -> str:
        """What this record is, for a line that says so.

        Raises:
            RowError: it cannot be said.
        """
        return self._format(self._renamed(record)).words

    def _renamed(self, record: Any) -> dict[str, Any]:
        """The record under the usual names, without what is empty or ignored."""
        if not isinstance(record, dict):
            raise RowError(f"expected an object, found {type(record).__name__}")
        found = {key: self._kept(value) for key, value in record.items() if value is not None}
        found = {key: value for key, value in found.items() if key not in self.ignore}
        for each in fields(self.columns):
            theirs = getattr(self.columns, each.name)
            if theirs is None:
                continue
            if theirs not in record:
                near = get_close_matches(theirs, list(record), n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; it has {_shown(record)}"
                raise RowError(f"data.columns.{each.name}={theirs}: the row has no such key{hint}")
            if theirs in found:
                found[each.name] = found.pop(theirs)
        return found

    def _kept(self, value: Any) -> Any:
        """Messages without the keys that may be left out."""
        if not self.ignore or not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            return value
        return [{key: each[key] for key in each if key not in self.ignore} for each in value]

    def _format(self, record: Mapping[str, Any]) -> Format:
        if self.format != "auto":
            chosen = next(each for each in FORMATS if each.name == self.format)
            lacks = [key for key in chosen.needs if key not in record]
            if lacks:
                raise RowError(f"data.format={self.format} needs {_quoted(lacks)}; found {_shown(record)}")
            return chosen
        fits = [each for each in FORMATS if all(key in record for key in each.needs)]
        if len(fits) > 1:
            names = " or ".join(f"data.format={each.name}" for each in fits)
            raise RowError(f"it could be read in more than one way ({_shown(record)}): say {names}")
        if not fits:
            raise RowError(_unknown(record))
        return fits[0]

    def _check_all_used(self, record: Mapping[str, Any], chosen: Format) -> None:
        used = {*chosen.needs, *chosen.may, *HARMLESS}
        left = [key for key in record if key not in used and not _repeats(key, record)]
        if left:
            names = ",".join(left[:MOST_SHOWN])
            raise RowError(
                f"{_quoted(left)} would be lost: {chosen.words} has no use for it; leave it out with "
                f"data.ignore=[{names}], or name what it is with data.columns"
            )


def _repeats(key: str, record: Mapping[str, Any]) -> bool:
    """Whether a prompt beside messages is what they say anyway."""
    if key != "prompt" or "messages" not in record or not isinstance(record["messages"], list):
        return False
    said = [each.get("content") for each in record["messages"] if isinstance(each, dict)]
    return record["prompt"] in said


def _messages(record: Mapping[str, Any]) -> Row:
    messages, trained = conversation(record["messages"], '"messages"')
    return _with_system(messages, trained, record)


def _sharegpt(record: Mapping[str, Any]) -> Row:
    messages, trained = conversation(record["conversations"], '"conversations"')
    return _with_system(messages, trained, record)


def _pair(record: Mapping[str, Any]) -> Row:
    """Texts, or lists of messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        asked, said = _turn("user", prompt), _turn("assistant", completion)
        messages, trained = conversation([asked, said], '"completion"')
        row = _with_system(messages, trained, record)
        return row if row.tools or len(row.messages) > 2 else _plain(row)
    for key, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, list):
            raise RowError(f'"{key}" must be a text, or a list of messages as the other one is')
    messages, trained = conversation([*prompt, *completion], '"prompt" and "completion"')
    # Answers in a prompt are context: what is trained on is the completion.
    trained = tuple(mark if at >= len(prompt) else mark or False for at, mark in enumerate(trained))
    return _with_system(messages, trained, record)


def _alpaca(record: Mapping[str, Any]) -> Row:
    asked = text_of(record["instruction"], '"instruction"')
    if more := text_of(record.get("input", ""), '"input"'):
        asked = f"{asked}\n\n{more}"
    said = text_of(record["output"], '"output"')
    messages, trained = conversation([_turn("user", asked), _turn("assistant", said)], '"output"')
    return _with_system(messages, trained, record)


def _text(record: Mapping[str, Any]) -> Row:
    text = text_of(record["text"], '"text"')
    if not text.strip():
        raise RowError('"text" is empty')
    return Row("", 0, text=text)


def _with_system(messages: tuple[Message, ...], trained: tuple[bool | None, ...], record: Mapping[str, Any]) -> Row:
    if record.get("system"):
        messages, trained = system_turn(record["system"], messages), (None, *trained)
    tools = checked_tools(record.get("tools"), record.get("functions"))
    return Row("", 0, messages, trained, tools)


def _plain(row: Row) -> Row:
    return Row(row.file, row.line, row.messages, row.trained, row.tools, plain=True)


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


_BESIDE = ("system", "tools", "functions")
FORMATS = (
    Format("messages", ("messages",), _BESIDE, '"messages"', _messages),
    Format("sharegpt", ("conversations",), _BESIDE, '"conversations" (ShareGPT)', _sharegpt),
    Format("prompt_completion", ("prompt", "completion"), _BESIDE, '"prompt" and "completion"', _pair),
    Format("alpaca", ("instruction", "output"), ("input", "system"), '"instruction" and "output" (alpaca)', _alpaca),
    Format("text", ("text",), (), '"text" (continued pretraining)', _text),
)


def _unknown(record: Mapping[str, Any]) -> str:
    """What a record of no format may have meant, with the answer to paste."""
    if any(key in record for key in PREFERENCES):
        return 'preference pairs ("chosen", "rejected") are not offered: give "messages" of what is to be learnt'
    for prompt, completion in USUAL:
        if prompt in record and completion in record:
            return (
                f'no known format; "{prompt}" and "{completion}" may be a prompt and its completion: say '
                f"data.columns.prompt={prompt} data.columns.completion={completion}"
            )
    known = "; ".join(each.words for each in FORMATS)
    return f"no known format: found {_shown(record)}; known are {known}; or name yours with data.columns"


def _shown(record: Mapping[str, Any]) -> str:
    text = ", ".join(list(record)[: 2 * MOST_SHOWN]) or "nothing"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[:200])


def _quoted(keys: list[str]) -> str:
    named = ", ".join(f'"{_shown({key: 0})}"' for key in keys[:MOST_SHOWN])
    return f"{named} and {len(keys) - MOST_SHOWN} more" if len(keys) > MOST_SHOWN else named
