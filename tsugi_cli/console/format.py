"""Formatting: figures in few characters, foreign text made safe, and lines made of both."""

from __future__ import annotations

import math

from rich.text import Text

from tsugi_cli.record.records import number
from tsugi_kpool.core.diagnosis import seconds_text

ACCENT = "cyan"
GOOD = "green"
WARN = "yellow"
BAD = "red"
LABEL = "dim"
NONE = "–"
"""Stands for an unknown value."""
PROGRESS_WIDTH = 30


def safe(text: object, keep: str = "") -> str:
    """Replace characters that a terminal could obey (controls, escapes, bidi, zero-width) by visible escapes."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))


def fixed(value: object, digits: int) -> str:
    """Return a number with so many decimals."""
    known = number(value)
    return NONE if known is None else f"{known:.{digits}f}"


def count(value: object) -> str:
    """Return a number in at most five characters: 3.4, 231, 58.1k, 1.2M."""
    known = number(value)
    if known is None:
        return NONE
    if abs(known) < 9999.5:
        return f"{known:.1f}" if 0 < abs(known) < 9.95 and not known.is_integer() else f"{known:.0f}"
    if abs(known) > 9.9e15:
        return f"{known:.0e}"
    power = min(4, int(math.log10(abs(known) * 1.0005)) // 3)
    scaled = known / 1000**power
    return f"{scaled:.{int(abs(scaled) < 99.95)}f}{'kMGT'[power - 1]}"


def size(value: object) -> str:
    """Return a number of bytes: 512 B, 1.2 MB."""
    known = number(value)
    if known is None:
        return NONE
    if known < 1000:
        return f"{known:.0f} B"
    power = min(4, int(math.log10(known * 1.0005)) // 3)
    return f"{known / 1000**power:.1f} {'kMGT'[power - 1]}B"


def percent(value: object, digits: int = 0) -> str:
    """Return a share as a percentage."""
    known = number(value)
    return NONE if known is None else f"{known:.{digits}%}"


def clock(value: object) -> str:
    """Return seconds as 0:07, 1:02:03 or 2d 3:04:05."""
    known = number(value)
    if known is None:
        return NONE
    minutes, second = divmod(max(0, round(known)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return f"{f'{days}d ' if days else ''}{hour}:{minute:02}:{second:02}"


def duration(value: object) -> str:
    """Return seconds in at most five characters: 0.4s, 123s, 59m, 3.4h."""
    known = number(value)
    if known is None:
        return NONE
    if known < 99.95:
        return f"{known:.1f}s"
    if known < 599.5:
        return f"{known:.0f}s"
    return f"{known / 60:.0f}m" if known < 5970 else f"{known / 3600:.1f}h"


def step_time(value: float) -> str:
    """Return a step's duration, in milliseconds where tenths of a second are too coarse."""
    known = number(value)
    if not known:
        return NONE
    return seconds_text(known).replace(" ", "") if known < 9.995 else duration(known)


# --- lines ------------------------------------------------------------------------------------------------


def one_line(*parts: tuple[str, str] | Text | str) -> Text:
    """Return parts of text as one line that never wraps."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def labelled(*pairs: tuple[str, str | Text] | None) -> Text:
    """Return pairs of dim labels and values, with three blanks between pairs; None is left out."""
    line = one_line()
    for label, value in filter(None, pairs):
        line.append("   " if line.plain else "")
        line.append(f"{label} " if label else "", LABEL)
        line.append(value)
    return line


def fitting(width: int, *pairs: tuple[str, str | Text] | None) -> Text:
    """Return pairs as `labelled` does, without those at the end that do not fit."""
    kept = [pair for pair in pairs if pair is not None]
    while len(kept) > 1 and labelled(*kept).cell_len > width:
        kept.pop()
    return labelled(*kept)


def spread(left: Text, right: Text, width: int) -> Text:
    """Return one line: left, a gap, right; the left part is cut if necessary."""
    left = left.copy()
    left.truncate(max(0, width - right.cell_len - 2), overflow="ellipsis")
    return one_line(left, " " * max(2, width - left.cell_len - right.cell_len), right)


def progress_line(what: str, done: int, total: int) -> str:
    """Return the progress of a preparation in ASCII: what it does, a bar where its end is known, and rows."""
    if not done:
        return f"{what} ..."
    if not total:
        return f"{what}: {done:,} rows"
    filled = round(PROGRESS_WIDTH * min(1.0, done / total))
    return f"{what} [{'#' * filled}{'.' * (PROGRESS_WIDTH - filled)}] {done / total:.0%} of {total:,} rows"
