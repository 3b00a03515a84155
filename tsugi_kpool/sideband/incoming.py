"""What replicas and observers take in from a hub: one whole message whose numbers can be, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.hub.guard import sound
from tsugi_kpool.core.messages import BadFrame, Message, decode

MOST_IN_A_ROW = 1000
"""Frames that are read without looking at anything else: a hub that floods us keeps us from nothing."""

MOST_WORDS = 500
"""Characters of a hub's reason that are shown."""


def one_line(reason: str) -> str:
    """A hub's words as a part of one line, however many it has sent."""
    words = " ".join(reason.split())
    return words if len(words) <= MOST_WORDS else f"{words[:MOST_WORDS]}..."


def read(parts: Sequence[bytes]) -> Message | None:
    """The message in these parts, if all of its numbers can be."""
    message = decoded(parts)
    return message if message is not None and sound(message) else None


def decoded(parts: Sequence[bytes]) -> Message | None:
    """The message in these parts, whatever it says. A hub of ours sends one part."""
    try:
        return decode(parts[0]) if len(parts) == 1 else None
    except BadFrame:
        return None
