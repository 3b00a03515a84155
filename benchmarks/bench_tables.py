"""The table of docs/bench.md, from results/bench.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TITLES = ["scenario", "replicas", "method", "lr", "s to target", "sooner than DDP", "final loss", "to DDP", "goodput",
          "of the limit", "bytes/token", "late"]  # fmt: skip


def bench(record: dict[str, Any]) -> list[list[str]]:
    """A row for each method of each benchmark."""
    rows = [TITLES, ["---"] * len(TITLES)]
    for entry in record["entries"]:
        rows += [_row(entry, row) for row in entry["report"]["rows"]]
    return rows


def _row(entry: dict[str, Any], row: dict[str, Any]) -> list[str]:
    share = row["limit_share"]
    return [
        entry["bench"]["name"],
        str(entry["replicas"]),
        row["arm"],
        f"{row['lr']:.3g}",
        _text(row["time_s"], ".1f") if row["time_s"] else f"{row['reached']} of {row['seeds']} seeds",
        _text(row["speedup"], ".2f"),
        _text(row["final"], ".3f"),
        _text(row["final_difference"], "+.3f"),
        f"{row['goodput']:.2f}",
        "–" if share is None else f"{share:.2f}",
        f"{row['bytes_per_token']:.3g}",
        f"{row['late_share']:.1%}",
    ]


def _text(value: dict[str, float] | None, form: str) -> str:
    """A mean and its 95 % interval."""
    if value is None:
        return "–"
    if value["low"] is None:
        return f"{value['mean']:{form}}"
    return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[list[str]]]]] = {"bench": ("bench", bench)}
