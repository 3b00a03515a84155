"""The table of docs/bench.md, from results/bench.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tsugi_cli.bench.compare.analysis import ComparisonReport
from tsugi_cli.bench.compare.results import cells


def bench(record: dict[str, Any]) -> list[list[str]]:
    """A row for each method of each benchmark."""
    rows: list[list[str]] = []
    for entry in record["entries"]:
        found = msgspec.convert(entry["report"], ComparisonReport)
        titles, *lines = cells(found)
        if not rows:
            rows = [["scenario", "replicas", *titles, "late"], ["---"] * (len(titles) + 3)]
        fleet = [entry["bench"]["name"], str(entry["replicas"])]
        rows += [[*fleet, *line, f"{row.late_share:.1%}"] for line, row in zip(lines, found.rows, strict=True)]
    return rows


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[list[str]]]]] = {
    "bench": ("bench", bench),
}
