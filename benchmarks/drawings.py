"""The pictures of docs/measurements.md, drawn from results/*.json as SVG files that follow light and dark mode.

They are as wide as a telephone, so that letters keep their size there. `figures.py` writes them and says whether
they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from statistics import median
from typing import Any

import msgspec

from tsugi_cli.bench.compare.analysis import ComparisonReport, Row
from tsugi_cli.bench.compare.plots import colours
from tsugi_cli.bench.compare.statistics import Estimate
from tsugi_cli.pages.figures import COLOURS, WIDTH, Scale, text, ticks

STYLE = (
    "svg{--paper:#fff;--soft:#57606a;--line:#d8dee4}"
    "@media(prefers-color-scheme:dark){svg{--paper:#14171c;--soft:#b3bcc7;--line:#3b434d}}"
    "text{font:12px system-ui,sans-serif;fill:var(--soft);paint-order:stroke;"
    "stroke:var(--paper);stroke-width:4px}.paper{fill:var(--paper)}"
    ".axis{stroke:var(--soft);fill:none}.grid{stroke:var(--line);fill:none}"
    ".rule{stroke:var(--soft);stroke-dasharray:4 4;fill:none}"
)
LEFT, RIGHT, TOP = 12, 90, 14
ROW = 44
"""Height of a name and its bar below."""
METHODS = {"ddp": "DDP", "local_sgd": "LocalSGD", "diloco": "DiLoCo", "drop_slowest": "leaving the slowest out",
           "kpool": "K-Pool"}  # fmt: skip
FAULTS = {"SIGKILL": "killed", "SIGSTOP": "frozen"}


@dataclass(frozen=True)
class Bar:
    """A row: its name, the value with its interval, and the words behind it."""

    name: str
    value: Estimate | None
    words: str
    colour: str


def picture(parts: Sequence[str], height: float, title: str) -> str:
    """A file's whole text."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">'
        f'<title>{title}</title><style>{STYLE}</style><rect class="paper" width="100%" height="100%" rx="6"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def bars(rows: Sequence[Bar], title: str, mark: tuple[float, str] | None = None) -> str:
    """A bar for each row. Its whisker is the 95 % interval; `mark` is a line across all, with its words."""
    top = max(row.value.high or row.value.mean for row in rows if row.value)
    across = Scale(min(0.0, *(row.value.low or 0.0 for row in rows if row.value)), top, LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows)
    parts = [f'<path class="axis" d="M{across(0.0):.1f} {TOP}V{bottom}"/>']
    if mark is not None:  # first, so that it lies behind all words
        x = across(mark[0])
        parts += [f'<path class="rule" d="M{x:.1f} {TOP}V{bottom}"/>', text(x + 4, bottom + 12, mark[1], "start")]
    for number, row in enumerate(rows):
        parts += _bar(row, across, TOP + ROW * number)
    parts.append(text(WIDTH / 2, bottom + 34, title, "middle"))
    return picture(parts, bottom + 44, title)


def _bar(row: Bar, across: Scale, y: float) -> list[str]:
    parts = [text(LEFT + 4, y + 13, row.name, "start")]
    if row.value is None:
        return [*parts, text(LEFT + 4, y + 32, row.words, "start")]
    zero, end = across(0.0), across(row.value.mean)
    x, width = min(zero, end), max(1.0, abs(end - zero))
    parts.append(f'<rect x="{x:.1f}" y="{y + 20}" width="{width:.1f}" height="16" fill="{row.colour}"/>')
    after = max(zero, end)
    if row.value.low is not None and row.value.high is not None:
        low, high, middle = across(row.value.low), across(row.value.high), y + 28
        parts.append(
            f'<path class="axis" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {y + 24}v8M{high:.1f} {y + 24}v8"/>'
        )
        after = max(after, high)
    return [*parts, text(after + 6, y + 32, row.words, "start")]


def _entry(record: dict[str, Any], scenario: str) -> tuple[ComparisonReport, list[Row], dict[str, str]]:
    """The report of four replicas under a scenario, its rows with one setting of the pool, and their colours."""
    (found,) = [e for e in record["entries"] if e["bench"]["name"] == scenario and e["replicas"] == 4]
    report = msgspec.convert(found["report"], ComparisonReport)
    rows = [row for row in report.rows if row.arm == row.method]
    return report, rows, colours([row.method for row in rows])


def time(scenario: str, title: str) -> Callable[[dict[str, Any]], str]:
    """Seconds to the target, with the time of a fleet in which nobody waits."""

    def draw(record: dict[str, Any]) -> str:
        report, rows, colour = _entry(record, scenario)
        told = [
            Bar(METHODS[row.method], row.time_s, f"{row.time_s.mean:.1f} s" if row.time_s else
                f"{row.reached} of {row.seeds} runs get there", colour[row.method])
            for row in rows
        ]  # fmt: skip
        ddp = rows[0].time_s
        mark = None if ddp is None else (ddp.mean / report.limit, f"limit: {ddp.mean / report.limit:.1f} s")
        return bars(told, title, mark)

    return draw


def goodput(record: dict[str, Any]) -> str:
    """Work done, as a share of what the fleet could do."""
    _, rows, colour = _entry(record, "straggler4x")
    told = [
        Bar(METHODS[row.method], Estimate(row.goodput, None, None), f"{row.goodput:.0%}", colour[row.method])
        for row in rows
    ]
    return bars(told, "goodput, one of four replicas 4x slower", (1.0, "100 %"))


def loss(record: dict[str, Any]) -> str:
    """Loss at equal tokens, less DDP's."""
    _, rows, colour = _entry(record, "straggler4x")
    told = [
        Bar(METHODS[row.method], row.final_difference, f"{row.final_difference.mean:+.3f}", colour[row.method])
        for row in rows
        if row.final_difference is not None
    ]
    return bars(told, "final loss less DDP's, after equal tokens (left is better)")


def recovery(record: dict[str, Any], own: dict[str, Any]) -> str:
    """How long the others pause when one is killed or frozen; of Tsugi the median of its trials."""
    told = []
    for run in (each for each in record["runs"] if "error" not in each):
        steps = max(each["joint_steps_after"] for each in run["survivors"])
        pause = max(each["longest_pause_s"] for each in run["survivors"])
        value = Estimate(pause, None, None) if steps else None
        words = f"{pause:.1f} s" if steps else "no joint step any more"
        told.append(Bar(f"{run['peer']}, {FAULTS[run['fault']]}", value, words, COLOURS[0]))
    for fault in FAULTS.values():
        pause = median(each["commit_s"] for each in own["parts"][fault]["trials"])
        told.append(Bar(f"Tsugi, {fault}", Estimate(pause, None, None), f"{pause:.1f} s", COLOURS[4]))
    return bars(told, "seconds until the others' next joint update counts")


def scale(record: dict[str, Any]) -> str:
    """Goodput of simulated fleets, by size."""
    fleets = sorted((r for r in record["runs"] if r.get("scenario") == "fast"), key=lambda run: run["replicas"])
    height, left, bottom = 230, 50, 180
    across = Scale(log10(fleets[0]["replicas"]), log10(fleets[-1]["replicas"]), left, WIDTH - 24)
    down = Scale(1.0, 0.0, TOP, bottom)
    parts = [f'<path class="axis" d="M{left} {TOP}V{bottom}H{WIDTH - 24}"/>']
    for share in ticks(0.0, 1.0, 5):
        y = down(share)
        parts += [
            f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - 24}"/>',
            text(left - 6, y + 4, f"{share:.0%}", "end"),
        ]
    for run in fleets:
        parts.append(text(across(log10(run["replicas"])), bottom + 16, f"{run['replicas']:,}", "middle"))
    for name, words, colour in (("goodput", "K-Pool", COLOURS[4]), ("lockstep", "lock-step", COLOURS[0])):
        points = [(across(log10(run["replicas"])), down(run[name])) for run in fleets]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(text(points[-1][0], points[-1][1] + 18, words, "end"))
    parts.append(text(WIDTH / 2, bottom + 38, "goodput by replicas, one in ten 4x slower (simulated)", "middle"))
    return picture(parts, height, "goodput of simulated fleets by size")


DRAWINGS: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "figure-time": (("bench",), time("straggler4x", "seconds to DDP's loss, one of four replicas 4x slower")),
    "figure-time-slow-link": (("bench",), time("slow_link", "seconds to DDP's loss, the same on 4 Mbit/s links")),
    "figure-goodput": (("bench",), goodput),
    "figure-loss": (("bench",), loss),
    "figure-recovery": (("chaos_peers", "chaos"), recovery),
    "figure-scale": (("scale",), scale),
}
"""Name of the picture in docs/pictures to its results' files and how it is drawn of them."""
