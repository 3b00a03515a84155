"""The layout of the live picture: a pure function from the fleet's data to a rich renderable.

No clock, no file, no terminal: `live.py` owns those. Everything from another machine or from the user's files (host
and run names, reasons, generated text) goes through `safe` and into a `Text`, never into a markup string: it is
shown, not interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tsugi_cli.record.rows import choose
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

from . import panels
from .charts import Box
from .columns import hidden_text, replica_table
from .history import History

EVENT_LINES = 3
"""Events that keep their lines when there is no room for all replicas; when there is, one does."""
AIRY = 16
"""Height from which there are empty lines between the parts."""
SIDE_BY_SIDE = 120
"""Width from which charts and rounds are side by side."""
CHART_ROOM = 13
"""Lines below the figures from which there is room for a chart and for events."""


def render(status: FleetStatus, history: History, width: int, height: int) -> RenderableType:
    """Return the picture for a window of width x height: what does not fit is counted."""
    inner = max(1, width - 2)
    airy = height >= AIRY
    above = _above(status, inner, airy)
    figures = [*([Text()] if airy else []), *panels.figures(status, history, inner)]
    spare = height - len(above) - len(figures) - 1  # 1: the table's titles
    shown, hidden, unlisted = _rows(status, max(1, spare - (_kept(status, history, spare) if airy else 0)))
    table: list[RenderableType] = [replica_table(shown, status, width, history.steps)]
    if hidden or unlisted:
        table.append(hidden_text(hidden, unlisted))
    below = _below(history, inner, spare - len(shown) - len(table) + 1)
    return Box(Padding(Group(*above, *table, *figures, *below), (0, 1)), width, height)


def _kept(status: FleetStatus, history: History, spare: int) -> int:
    """Return the lines that are kept for events: an empty one, the title, and some events."""
    if not history.events:
        return 0
    fits = status.joined <= len(status.replicas) <= spare - 3
    return 2 + min(1 if fits else EVENT_LINES, len(history.events))


def _above(status: FleetStatus, width: int, airy: bool) -> list[Text]:
    """Return the lines above the table. The line of the health is kept, empty, when all is well."""
    health = panels.health(status)
    lines = [*panels.header(status, width), *([health] if airy or health.plain else [])]
    return [*lines, panels.progress(status, width), *([Text()] if airy else [])]


def _rows(status: FleetStatus, room: int) -> tuple[list[ReplicaStatus], list[ReplicaStatus], int]:
    """Return (shown, hidden, number of replicas that are not in the status), with a line left for the count."""
    unlisted = max(0, status.joined - len(status.replicas))
    if len(status.replicas) > room or (unlisted and len(status.replicas) == room):
        room = max(1, room - 1)
    return (*choose(status.replicas, room), unlisted)


def _below(history: History, width: int, room: int) -> list[RenderableType]:
    """Return what fills the lines below the figures: charts and rounds if there is room, and the last events."""
    lines: list[RenderableType] = []
    taken = 0
    if room >= CHART_ROOM and width + 2 >= SIDE_BY_SIDE:
        taken = min(24, room * 3 // 5)
        lines = [Text(), _side_by_side(history, width, taken - 1)] if history.rounds or history.loss.values else []
    elif room >= CHART_ROOM and width >= 58:
        chart = panels.trend("loss", history.loss.values, width, min(8, room // 3))
        lines = [Text(), *chart] if chart else []
        taken = len(lines)
    events = panels.events(history, room - (taken if lines else 0) - 1)
    return [*lines, *([Text(), *events] if events else [])]


def _side_by_side(history: History, width: int, rows: int) -> Table:
    """Return curves on the left and rounds on the right, `rows` lines."""
    left = width * 11 // 20
    upper = max(3, (rows - 3) * 3 // 5)
    curves: list[Text] = panels.trend("loss", history.loss.values, left - 3, upper)
    curves += [Text(), *panels.trend("tok/s", history.rate.values, left - 3, rows - upper - 3, 0)]
    rounds: Sequence[Text] = panels.round_list(list(history.rounds), width - left, rows)
    table = Table(box=None, show_header=False, padding=0, pad_edge=False)
    table.add_column(width=left, no_wrap=True)
    table.add_column(width=width - left, no_wrap=True)
    for i in range(rows):
        table.add_row(*(column[i] if i < len(column) else Text() for column in (curves, rounds)))
    return table
