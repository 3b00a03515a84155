"""JSON texts that strangers wrote: read as they stand, or a reason in one line. No key is lost."""

from __future__ import annotations

import json
from typing import Any

from .rows import RowError

TOO_DEEP = "lists or objects inside each other, too deep to be read"


class _Doubled(ValueError):
    """An object that has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Doubled(next(key for key in keys if keys.count(key) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parsed(text: bytes | str) -> Any:
    """A whole text as what it says, or the RowError that says why it is no JSON. Bytes are UTF-8."""
    try:
        return _DECODER.decode(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        return no_text(error, "UTF-8")
    except (ValueError, RecursionError) as error:
        return _wrong(error)


def beginning(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends; or a RowError, and where it is wrong."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return _wrong(error), error.pos
    except (ValueError, RecursionError) as error:
        return _wrong(error), at


def _wrong(error: Exception) -> RowError:
    if isinstance(error, json.JSONDecodeError):
        return RowError(f"not JSON ({error.msg} at column {error.colno})")
    if isinstance(error, RecursionError):
        return RowError(TOO_DEEP)
    if isinstance(error, _Doubled):
        return RowError(f"an object has the key {str(error)[:50]!r} twice: one of the two would be lost")
    return RowError(f"not JSON that can be read ({error})")  # a number of thousands of digits


def no_text(error: UnicodeDecodeError, encoding: str) -> RowError:
    """The reason for bytes that are no text, with the way out."""
    said = f"not {encoding.upper()} text ({error.reason} at byte {error.start})"
    return RowError(said if encoding.lower() not in ("utf-8", "utf-8-sig") else f"{said}; {CONVERT}")


CONVERT = "a file of Windows-1252 or Latin-1 becomes UTF-8 with: iconv -f WINDOWS-1252 -t UTF-8"
