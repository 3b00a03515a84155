"""What the reports of all benchmarks share: a table of texts as lines, and the machine that it was measured on."""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import psutil
from rich.table import Table

from tsugi_cli.console.terminal import terminal

WHOLE = 10_000
"""Columns that no table needs."""
SHORT = 12
"""Names of this length stay whole: all methods have it, arms of the pool may be longer."""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("tsugi", "torch", "peft", "accelerate")},
    }


def grid(table: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table, the titles first: each row in one, or with blank lines between rows in at most `width`."""
    drawn = Table(box=None, padding=(0, 2, 0, 0) if width is None else (0, 1, 1, 0))
    names, *titles = table[0]
    drawn.add_column(names, overflow="fold", no_wrap=all(len(line[0]) <= SHORT for line in table))
    for title in titles:
        drawn.add_column(title, overflow="fold")
    for line in table[1:]:
        drawn.add_row(*line)
    console = terminal(io.StringIO(), width or WHOLE)
    with console.capture() as capture:
        console.print(drawn)
    return [line.rstrip() for line in capture.get().rstrip().splitlines()]
