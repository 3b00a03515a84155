"""Bounds of what any message may say: numbers are finite and not absurdly large, words are short. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from .from_replica import Beat, Evaluated

LARGEST = 2**53
"""No count, size or sequence number of ours comes near it."""
LONGEST_S = 1e9
"""Thirty years: nobody has trained for longer."""
MAX_WORD = 255
"""Characters of a host's name, or of an activity."""
MAX_REASON = 2000
"""Characters of why something failed, left or was thrown away."""
MAX_SUMS = 100
"""Measures of an evaluation."""
MANY = 16
"""With more values than this a look at all their types at once pays."""
_WITHOUT_NUMBERS = frozenset({str, bool, bytes, type(None)})


def measured(message: Evaluated) -> bool:
    """As `sound`, for the one message whose numbers may be none: a model that has come apart measures no number, and
    a user's metric may be any. A loss that is no number is never the best; a finite one is no larger than a count can
    be.
    """
    sums = message.sums
    return (
        sound((message.seq, message.replica))
        and len(sums) <= MAX_SUMS
        and all(len(name) <= MAX_WORD for name in sums)
        and all(abs(value) <= LARGEST for value in sums.values() if math.isfinite(value))
    )


def sound(value: Any) -> bool:
    """Whether all numbers in a message are finite, and all whole ones within [0, LARGEST]. Asked of every frame."""
    kind = type(value)
    if kind is int:
        return bool(0 <= value <= LARGEST)
    if kind is float:
        return math.isfinite(value)
    if kind in _WITHOUT_NUMBERS:
        return True
    if kind is tuple:
        return _all_sound(value)
    return _all_sound(tuple(value.values()) if kind is dict else msgspec.structs.astuple(value))


def _all_sound(values: tuple[Any, ...]) -> bool:
    """As `sound`, without a call for each of a frame's fields or a thousand counts in a row."""
    if len(values) > MANY and set(map(type, values)) == {int}:
        return bool(min(values) >= 0 and max(values) <= LARGEST)
    for value in values:
        kind = type(value)
        if kind is int:
            if not 0 <= value <= LARGEST:
                return False
        elif kind is float:
            if not math.isfinite(value):
                return False
        elif kind not in _WITHOUT_NUMBERS and not sound(value):
            return False
    return True


def sound_beat(beat: Beat) -> bool:
    """As `sound`, with a tenth of its calls, and no duration below 0 or beyond what anybody has trained."""
    counts = (
        beat.replica, beat.generation, beat.version, beat.reduced, beat.steps, beat.samples, beat.tokens, beat.joined,
        beat.sent_bytes, beat.received_bytes, beat.worked, beat.ticket, *beat.pooled,
    )  # fmt: skip
    seconds = (beat.busy_s, beat.trained_s, beat.step_s, beat.wait_s, beat.sync_wait_s, beat.stepped_s)
    return (
        min(counts) >= 0
        and max(counts) <= LARGEST
        and min(seconds) >= 0.0
        and max(seconds) <= LONGEST_S
        and math.isfinite(sum(seconds) + beat.loss + beat.lr)  # what is no number makes a sum none
    )
