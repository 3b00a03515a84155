"""bench.html: one file with everything in it, readable without a network. A pure text."""

from __future__ import annotations

import shlex
from typing import Any

from tsugi_cli.bench.tables import machine
from tsugi_cli.console.format import size
from tsugi_cli.pages.figures import legend
from tsugi_cli.pages.html import document, shown, table

from .analysis import ComparisonReport, Row
from .plots import Line, bars, colours, curves
from .results import Told, cells, summary
from .statistics import Estimate


def page(told: Told) -> str:
    """Return the report of a benchmark."""
    bench, found = told.bench, told.report
    title = f"tsugi bench: {bench.name}, {told.replicas} replicas"
    parts = [
        f"<h1>{shown(title)}</h1><p class='soft'>{shown(bench.scenario.about)}</p>",
        *(f"<p>{shown(line)}</p>" for line in summary(found)),
        f"<pre>{shown(shlex.join(found.paste))}</pre>" if found.paste else "",
        "<h2>Comparison</h2>",
        table(cells(found)),
        "<p class='soft'>In brackets: the 95 % interval over seeds; ratios and differences are of pairs with the "
        "same seed. docs/bench.md says what each column means.</p>",
        legend(colours([row.arm for row in found.rows])),
        f"<div class='plots'>{_curves(told)}{_bars(found)}</div>",
        "<h2>Scenario and machine</h2>",
        table([("what", "value"), *_facts(told)]),
        "<h2>All runs</h2>",
        table(_runs(told)),
    ]
    return document(title, parts)


def _curves(told: Told) -> str:
    found, outcomes = told.report, told.outcomes
    lines = []
    for row in found.rows:
        own = [run for run in told.runs if run.arm.name == row.arm and run.lr_scale == row.lr_scale]
        emulated = [run for run in own if run.emulated] or own
        lines.append(Line(row.arm, [outcomes[run.key].curve for run in emulated]))
    by_time = curves(lines, "at_s", "seconds of training", found.target)
    return by_time + curves(lines, "tokens", "supervised tokens in the agreed adapters", found.target)


def _bars(found: ComparisonReport) -> str:
    def figure(title: str, value: Any, text: Any, mark: float | None = None) -> str:
        return bars([(row.arm, value(row), text(row)) for row in found.rows], title, mark)

    return "".join(
        (
            figure("time to the target, s", lambda row: row.time_s, _reached),
            figure(
                f"times as soon as {found.baseline}{', the limit dashed' if found.limit else ''}",
                lambda row: Estimate(1.0, None, None) if row.arm == found.baseline else row.speedup,
                lambda row: "1" if row.arm == found.baseline else _speed(row),
                found.limit,
            ),
            figure("goodput", lambda row: Estimate(row.goodput, None, None), lambda row: f"{row.goodput:.2f}", 1.0),
            figure(
                "bytes sent for a token",
                lambda row: Estimate(row.bytes_per_token, None, None),
                lambda row: size(row.bytes_per_token),
            ),
        )
    )


def _reached(row: Row) -> str:
    return f"{row.time_s.mean:.1f}" if row.time_s else f"reached by {row.reached} of {row.seeds} seeds"


def _speed(row: Row) -> str:
    return f"{row.speedup.mean:.2f}" if row.speedup else "–"


def _facts(told: Told) -> list[tuple[str, str]]:
    bench, scenario = told.bench, told.bench.scenario
    device = f"{bench.device_step_s:g} s" if scenario.emulate else "not emulated"
    facts = {
        "overrides": " ".join(told.base),
        "replicas": told.replicas,
        "a step of the emulated device": device,
        "the last replica is slower by": f"{scenario.slow:g}",
        "jitter (sigma of a lognormal)": f"{scenario.jitter:g}",
        "seeds": ", ".join(map(str, bench.seeds)),
        "learning rates tried, times train.lr": ", ".join(f"{each:g}" for each in bench.lr_scales),
        "steps between averages (local_sgd, diloco)": bench.sync_every,
        **{f"link: {name}": value for name, value in told.links.items()},
        **machine(),
    }
    return [(name, str(value)) for name, value in facts.items()]


def _runs(told: Told) -> list[tuple[str, ...]]:
    titles = ("run", "final loss", "seconds", "steps of each replica", "sent by replica 0", "late")
    rows = []
    for run in told.runs:
        each = told.outcomes[run.key]
        steps = ", ".join(str(share.steps) for share in each.replicas)
        late = str(sum(share.late for share in each.replicas))
        rows.append((run.key, f"{each.final:.4f}", f"{each.wall_s:.1f}", steps, size(each.sent_bytes), late))
    return [titles, *rows]
