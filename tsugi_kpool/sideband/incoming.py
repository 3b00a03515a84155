"""Input from a hub: one whole message with possible values, or nothing. For replicas and observers."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.messages import BadFrame, Message, decode
from tsugi_kpool.core.messages.bounds import sound

MOST_IN_A_ROW = 1000
"""Frames read in a row before anything else is done: a hub that floods us cannot stop us."""

MOST_WORDS = 500
"""Longest reason of a hub that is shown, in characters."""


def one_line(reason: str) -> str:
    """Return a hub's text as one line of limited length. Nothing in it reaches a terminal as a command."""
    words = "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(reason.split()))
    return words if len(words) <= MOST_WORDS else f"{words[:MOST_WORDS]}..."


def read(parts: Sequence[bytes]) -> Message | None:
    """Return the message in these parts, if all of its values are possible."""
    message = decoded(parts)
    return message if message is not None and sound(message) else None


def decoded(parts: Sequence[bytes]) -> Message | None:
    """Return the message in these parts, whatever its values. A hub of ours sends one part."""
    try:
        return decode(parts[0]) if len(parts) == 1 else None
    except BadFrame:
        return None
