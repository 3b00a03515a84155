"""Turns records of a file into rows: finds their format, renames their keys, and drops no key without saying so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from tsugi_cli.config.spec import Columns, Data

from .formats import FORMATS, PREFERENCE, Format
from .jsontext import TOO_DEEP, parsed
from .messages import is_empty
from .pairs import PAIR
from .rows import Row, RowError

_OF_NO_USE = """
    id idx index uuid uid row_id prompt_id conversation_id hash source dataset split lang language category tag tags
    url license timestamp created_at model num_turns meta metadata __index_level_0__
"""
HARMLESS = frozenset((*_OF_NO_USE.split(), "", "Unnamed: 0"))
"""Keys that say something about a row and nothing to a model; the last three are pandas' numbers of rows."""
TALKS = ("messages", "conversations", "prompt", "completion", *PAIR)
"""Keys that may hold messages."""
OPTIONAL = ("system", "tools")
"""Columns that a row may do without."""
USUAL = (("question", "answer"), ("query", "response"), ("input", "output"), ("instruction", "response"))
"""Names that others give to a prompt and its completion."""
MOST_SHOWN, MOST_PASTED = 5, 40


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
            other = made.rejected.messages if made.rejected else ()
            json.dumps([made.messages, made.tools, made.text, other], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise RowError(f"{half} is half of a character (a lone surrogate), which no text can have") from error
        except RecursionError as error:
            raise RowError(TOO_DEEP) from error
        except TypeError as error:  # a date or bytes in a table
            raise RowError(f"{error}: write it as a text".replace("Object of type", "a value of type")) from error
        return replace(made, file=file, line=line)

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
        usual = {theirs: ours for ours, theirs in self._columns() if self._has(record, ours, theirs)}
        found: dict[str, Any] = {}
        for key, value in record.items():
            if value is None or key in self.ignore:
                continue
            name = str(usual.get(key, key))
            if name in found:
                theirs = next(each for each in usual if usual[each] == name)
                raise RowError(f'"{name}" stands beside "{theirs}", which data.columns.{name} names: leave it out '
                               f"with data.ignore=[{name}]")  # fmt: skip
            found[name] = self._kept(name, value)
        return found

    def _columns(self) -> list[tuple[str, str]]:
        """(our name, theirs) of what has another name."""
        pairs = [(each.name, getattr(self.columns, each.name)) for each in fields(self.columns)]
        return [(ours, theirs) for ours, theirs in pairs if theirs is not None]

    def _has(self, record: Mapping[str, Any], ours: str, theirs: str) -> bool:
        """Whether a record has a column.

        Raises:
            RowError: it should.
        """
        if theirs in record:
            return True
        near = get_close_matches(theirs, list(record), n=1)
        if ours in OPTIONAL and not near:
            return False
        hint = f"; did you mean {near[0]}?" if near else f"; it has {_shown(record)}"
        raise RowError(f"data.columns.{ours}={theirs}: the row has no such key{hint}")

    def _kept(self, name: str, value: Any) -> Any:
        """Messages and their calls without the keys that may be left out."""
        if not self.ignore or name not in TALKS:
            return value
        items = parsed(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        if isinstance(items, dict) and name in PAIR:
            return self._without(items)
        if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            return value
        return [self._without(each) for each in items]

    def _without(self, item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        found = {key: each for key, each in item.items() if key not in self.ignore}
        if isinstance(found.get("function"), dict):
            found["function"] = self._without(found["function"])
        if isinstance(found.get("tool_calls"), list):
            found["tool_calls"] = [self._without(each) for each in found["tool_calls"]]
        return found

    def _format(self, record: Mapping[str, Any]) -> Format:
        if self.format != "auto":
            chosen = next(each for each in FORMATS if each.name == self.format)
            lacks = [key for key in chosen.needs if key not in record]
            if lacks and self.format == PREFERENCE:
                raise RowError(_no_pair(record))
            if lacks:
                raise RowError(f"data.format={self.format} needs {_quoted(lacks)}; found {_shown(record)}")
            return chosen
        usual = (each for each in FORMATS if each.name != PREFERENCE)
        fits = [each for each in usual if all(key in record for key in each.needs)]
        if len(fits) > 1:
            names = " or ".join(self._asked(record, each) for each in fits)
            raise RowError(f"it could be read in more than one way ({_shown(record)}): say {names}")
        if not fits:
            raise RowError(_unknown(record))
        return fits[0]

    def _asked(self, record: Mapping[str, Any], chosen: Format) -> str:
        """The words that read it in one of several ways, to paste."""
        left = _left(record, chosen)
        return f"data.format={chosen.name}" + (f" data.ignore=[{self._pasted(left)}]" if left else "")

    def _pasted(self, left: list[str]) -> str:
        """These keys beside those that are left out already."""
        return ",".join(_shown({key: 0}) for key in [*sorted(self.ignore), *left][:MOST_PASTED])

    def _check_all_used(self, record: Mapping[str, Any], chosen: Format) -> None:
        left = _left(record, chosen)
        if left:
            names = self._pasted(left)
            raise RowError(
                f"{_quoted(left)} would be lost: {chosen.words} has no use for it; leave it out with "
                f"data.ignore=[{names}], or name what it is with data.columns"
            )


def _left(record: Mapping[str, Any], chosen: Format) -> list[str]:
    """Keys of which nothing would be seen."""
    used = {*chosen.needs, *chosen.may, *HARMLESS}
    return [key for key in record if key not in used and not is_empty(record[key]) and not _repeats(key, record)]


def _repeats(key: str, record: Mapping[str, Any]) -> bool:
    """Whether a prompt beside messages is what they say anyway."""
    if key == "messages" and all(side in record for side in PAIR):
        return bool(record[key] == record[PAIR[0]])
    if key != "prompt" or "messages" not in record or not isinstance(record["messages"], list):
        return False
    said = [each.get("content") for each in record["messages"] if isinstance(each, dict)]
    return record["prompt"] in said


def _unknown(record: Mapping[str, Any]) -> str:
    """What a record of no format may have meant, with the answer to paste."""
    if any(key in record for key in PAIR):
        return 'preference pairs ("chosen", "rejected") are trained on with train.objective=dpo'
    for prompt, completion in USUAL:
        if prompt in record and completion in record:
            return (
                f'no known format; "{prompt}" and "{completion}" may be a prompt and its completion: say '
                f"data.columns.prompt={prompt} data.columns.completion={completion}"
            )
    if len(record) == 1 and isinstance(next(iter(record.values())), list):
        return (
            f"no known format: found {_shown(record)}; rows inside another object are not read: write the list alone"
        )
    known = "; ".join(each.words for each in FORMATS if each.name != PREFERENCE)
    return f"no known format: found {_shown(record)}; known are {known}; or name yours with data.columns"


def _no_pair(record: Mapping[str, Any]) -> str:
    """What a record lacks of a pair, with the words to name it."""
    if "label" in record and "completion" in record:
        return (
            'answers that are marked one by one ("completion", "label": KTO) are not offered: train.objective=dpo '
            'compares "chosen" with "rejected"'
        )
    return (
        f'train.objective=dpo trains on preference pairs, "chosen" and "rejected"; found {_shown(record)}; other '
        "names are said with data.columns.chosen=... data.columns.rejected=..."
    )


def _shown(record: Mapping[str, Any]) -> str:
    text = ", ".join(list(record)[: 2 * MOST_SHOWN]) or "nothing"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[:200])


def _quoted(keys: list[str]) -> str:
    named = ", ".join(f'"{_shown({key: 0})}"' for key in keys[:MOST_SHOWN])
    return f"{named} and {len(keys) - MOST_SHOWN} more" if len(keys) > MOST_SHOWN else named
