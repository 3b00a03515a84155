"""Where a command answers: words for people on stdout or, with `--json`, JSON lines there and words on stderr.

The only place that writes JSON for programs. Every line of stdout is then one object in ASCII, so that no terminal,
locale or line break in a text changes what is read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import msgspec


def line(fields: object) -> str:
    """Return one JSON object as a line. What JSON lacks (NaN, infinity) is null, a path its text."""
    return json.dumps(_plain(msgspec.to_builtins(fields, enc_hook=str)), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


class Answer:
    """The answer of a command.

    Args:
        people: Takes words.
        lines: Takes JSON lines; None without `--json`.
    """

    def __init__(self, people: TextIO, lines: TextIO | None = None) -> None:
        self.people, self.lines = people, lines

    @classmethod
    def of(cls, json: bool) -> Answer:
        """Return the answer on this process's streams."""
        return cls(sys.stderr, sys.stdout) if json else cls(sys.stdout)

    @property
    def json(self) -> bool:
        """Whether a program reads it."""
        return self.lines is not None

    def put(self, fields: object) -> None:
        """Write a JSON line; nothing without `--json`.

        Raises:
            OSError: nobody reads any more.
        """
        if self.lines is not None:
            self.lines.write(line(fields))
            self.lines.flush()

    def tell(self, fields: Mapping[str, Any] | object, words: str | Iterable[str] = ()) -> None:
        """Write a JSON line or, without `--json`, these lines of words.

        Raises:
            OSError: nobody reads any more.
        """
        if self.lines is not None:
            self.put(fields)
            return
        for each in [words] if isinstance(words, str) else words:
            self.people.write(f"{each}\n")
        self.people.flush()
