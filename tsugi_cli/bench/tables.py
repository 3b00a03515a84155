"""Parts of all benchmarks' reports: tables of texts as lines, and the machine of the measurement."""

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
"""A width that every table fits into."""
SHORT = 12
"""Names up to this length are not cut: those of all methods; arms of the pool may be longer."""


def machine() -> dict[str, Any]:
    """Return facts of the machine that the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("tsugi", "torch", "peft", "accelerate")},
    }


def grid(table: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return the lines of a table, titles first. With `width`, rows take several lines and have blank lines between
    them."""
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
