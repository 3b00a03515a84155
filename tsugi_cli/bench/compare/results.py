"""The output of a benchmark: bench.json, a Markdown table, and lines for the terminal. Pure texts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from tsugi_cli.bench.spec import Bench
from tsugi_cli.bench.tables import grid, machine
from tsugi_cli.console.format import count

from .analysis import ComparisonReport, MethodOutcome, Row
from .plan import Run
from .statistics import Estimate

COLUMNS = ("method", "lr", "time to target", "sooner than {0}", "final loss", "to {0}", "goodput", "of the limit",
           "bytes per token")  # fmt: skip


@dataclass(frozen=True)
class Told:
    """All facts of a finished benchmark."""

    bench: Bench
    base: tuple[str, ...]
    """Overrides that all runs share."""
    replicas: int
    report: ComparisonReport
    runs: tuple[Run, ...]
    outcomes: Mapping[str, MethodOutcome]
    links: Mapping[str, Any]
    """Measurements of the scenario's links; empty where it has none."""


def as_json(told: Told) -> dict[str, Any]:
    """Return the content of bench.json: all that is needed to repeat the benchmark, every run, and the results."""
    return {
        "bench": msgspec.to_builtins(told.bench),
        "overrides": list(told.base),
        "replicas": told.replicas,
        "machine": machine(),
        "links": dict(told.links),
        "report": asdict(told.report),
        "runs": [
            {
                "key": run.key,
                "arm": run.arm.name,
                "lr_scale": run.lr_scale,
                "seed": run.seed,
                "emulated": run.emulated,
                **asdict(told.outcomes[run.key]),
            }
            for run in told.runs
        ],
    }


def link_line(links: Mapping[str, Any]) -> list[str]:
    """Return what the links were measured to do, beside what was asked for, where they are shaped."""
    if not links:
        return []
    said = [
        f"{links['mbit_s_measured']:.3g} Mbit/s of {links['mbit_s_set']:g}",
        f"round trip {links['rtt_ms_measured']:.3g} ms (delays: {links['rtt_ms_set']:g} ms)",
        f"{links['loss_measured']:.2%} of packets lost ({links['loss_set']:.2%})",
        f"between {links['between']}",
        f"made as {links['made_as']}",
    ]
    if "packets_lost" in links:
        packets = links["packets_carried"] + links["packets_lost"]
        said.append(f"{links['packets_lost']} of {packets} lost in all runs")
    return [f"links: {', '.join(said)}"]


def as_table(found: ComparisonReport, links: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown, and below it the links."""
    lines = [cells(found)[0], tuple("---" for _ in COLUMNS), *cells(found)[1:]]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n{line}\n" for line in link_line(links))


def cells(found: ComparisonReport) -> list[tuple[str, ...]]:
    """Return the table: titles, then a line for each arm."""
    titles = tuple(title.format(found.baseline) for title in COLUMNS)
    return [titles, *(_cells(row) for row in found.rows)]


def screen(found: ComparisonReport, links: Mapping[str, Any], page: Path, width: int | None = None) -> str:
    """Return what the terminal shows at the end; in a window of `width` columns the table's cells take several
    lines."""
    lines = grid(cells(found))
    if width is not None and max(map(len, lines)) > width:
        lines = grid(cells(found), width)
    paste = [f"  {shlex.join(found.paste)}"] if found.paste else []
    return "\n".join(["", *lines, "", *link_line(links), *summary(found), *paste, f"page: {page}", ""])


def summary(found: ComparisonReport) -> list[str]:
    """Return what the table does not say, in a few lines."""
    lines = [f"target: eval loss {found.target:.3f}"]
    if found.limit is not None:
        lines.append(f"limit: no method can be more than {found.limit:.2f} times as fast as lock-step here")
    late = max(row.late_share for row in found.rows)
    if late > 0.01:
        lines.append(
            f"note: up to {late:.0%} of steps took longer than the emulated device's: "
            "this machine is too busy for bench.device_step_s"
        )
    first, *more = found.advice
    return [*lines, f"recommended: {first}" if found.paste else first, *more]


def _cells(row: Row) -> tuple[str, ...]:
    time = _text(row.time_s, "{:.1f} s") if row.time_s else f"{row.reached} of {row.seeds} seeds"
    return (
        row.arm,
        f"{row.lr:.3g}",
        time,
        _text(row.speedup, "{:.2f} x"),
        _text(row.final, "{:.3f}"),
        _text(row.final_difference, "{:+.3f}"),
        f"{row.goodput:.2f}",
        "–" if row.limit_share is None else f"{row.limit_share:.2f}",
        count(row.bytes_per_token),
    )


def _text(value: Estimate | None, form: str) -> str:
    """Return a mean and its interval as text."""
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return form.format(value.mean)
    plain = form.partition("}")[0] + "}"
    return f"{form.format(value.mean)} ({plain.format(value.low)} to {plain.format(value.high)})"
