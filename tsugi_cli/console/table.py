"""The table of `tsugi sideband status`: the fleet in a few lines, without a past."""

from __future__ import annotations

from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from tsugi_cli.record.records import number
from tsugi_cli.record.rows import choose
from tsugi_kpool.core.hub.health import Health
from tsugi_kpool.core.messages import FleetStatus

from .charts import Fitted
from .columns import hidden_text, replica_table
from .format import WARN, count, fixed, labelled, percent, safe
from .panels import INSECURE, health, waiting
from .slow import slow_lines

FRAME = 8
"""Most lines of `table` besides its rows, in a window of 80 columns."""
SLOW_NAMED = 6
"""Slow replicas that get a line of their own; in a narrow window it takes two."""


def page(status: FleetStatus, now: datetime, lines: int | None = None) -> RenderableType:
    """Return the table, and who is slow, since when and why; `lines` limits the rows."""
    slow = slow_lines(status, now)
    named = slow[:SLOW_NAMED] if lines is None else slow[: min(SLOW_NAMED, max(1, (lines - FRAME) // 4))]
    more = [f"and {len(slow) - len(named)} more"] if len(slow) > len(named) else []
    notes = [Text(line, WARN) for line in ("", *named, *more)] if slow else []
    rows = None if lines is None else max(1, lines - FRAME - 2 * len(notes))
    return Group(table(status, rows), *notes)


def table(status: FleetStatus, rows: int | None = None) -> RenderableType:
    """Return the fleet's figures and its replicas, at most `rows` of them; the others are counted."""
    shown, hidden = choose(status.replicas, len(status.replicas) if rows is None else rows)
    unlisted = max(0, status.joined - len(status.replicas))
    return Group(
        Fitted(lambda width: _title(status, width)),
        *([] if waiting(status) else [_figures(status)]),
        *([] if status.health == Health.HEALTHY else [Text().append_text(health(status))]),
        Text(),
        Fitted(lambda width: replica_table(shown, status, width)),
        *([hidden_text(hidden, unlisted)] if hidden or unlisted else []),
    )


def _figures(status: FleetStatus) -> Text:
    pairs = labelled(
        ("loss", fixed(status.loss, 3)),
        ("fleet", f"{count(status.tokens_per_s)} tok/s"),
        ("goodput", percent(status.goodput)),
        ("tax recovered", percent(status.tax_recovered)) if number(status.tax_recovered) is not None else None,
        ("version", str(status.version)),
    )
    return Text().append_text(pairs)  # a new Text: in a narrow window it wraps


def _title(status: FleetStatus, width: int) -> Text:
    """Return the run's name, stage and progress; a long name is cut."""
    of_all = f"/{status.samples_total:,}" if status.samples_total > 0 else ""
    how_far = waiting(status) or f"{status.samples_done:,}{of_all} samples"
    stage = labelled(("", safe(status.stage)), ("", how_far))
    open_to_all = Text(f"{INSECURE}  ", f"bold {WARN}") if status.insecure else Text()
    name = Text(safe(status.run), "bold")
    name.truncate(max(8, width - stage.cell_len - open_to_all.cell_len - 2), overflow="ellipsis")
    return Text.assemble(open_to_all, name, "  ", stage)
