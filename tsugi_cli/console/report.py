"""The end screen: base and trained compared, each replica's contribution, and how to load the adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tsugi_cli.record.measures import METRIC
from tsugi_cli.record.records import number

from .charts import bar, resample, sparkline
from .format import ACCENT, BAD, GOOD, LABEL, WARN, clock, count, fixed, labelled, one_line, percent, safe

REPORTED_REPLICAS = 16
EXAMPLE_CHARS = 240
CURVE_WIDTH = 32
FALLING = frozenset({"loss", "perplexity"})
"""Measures that are better the smaller they are, and no shares."""
LABELS = {
    "loss": "eval loss",
    "token_accuracy": "token accuracy",
    "margin": "margin of the chosen",
    "accuracy": "chosen preferred",
}


def is_plain(name: str) -> bool:
    """Whether a measure is a number, and no share."""
    return name in FALLING or name == "margin" or name.startswith(METRIC)


def _grid(*titles: tuple[str, Literal["left", "right"]]) -> Table:
    grid = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style=LABEL)
    for title, justify in titles:
        grid.add_column(Text(title), justify=justify)
    return grid


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _change(name: str, base: float | None, trained: float | None) -> Text:
    """Return an arrow and the change: of a loss or a perplexity in per cent, of a share in points."""
    if base is None or trained is None:
        return Text("")
    if base == trained:
        return Text("= unchanged", LABEL)
    falls = name in FALLING
    better = (trained < base) == falls
    # Which way a user's metric should go nobody has said.
    style = LABEL if name.startswith(METRIC) else GOOD if better else WARN
    arrow = "▲" if trained > base else "▼"
    points = f"{abs(trained - base) * 100:.1f} points"
    amount = f"{abs(trained - base) / base:.0%}" if falls and base > 0 else points
    amount = f"{abs(trained - base):.3f}" if is_plain(name) and not falls else amount
    return Text(f"{arrow} {amount}", style)


def _evaluation(summary: Mapping[str, Any]) -> Table | None:
    """Return base and trained side by side, one line for each metric, the loss first."""
    evaluation = _mapping(summary.get("evaluation"))
    base, trained = _mapping(evaluation.get("base")), _mapping(evaluation.get("trained"))
    names = [n for n in dict.fromkeys([*base, *trained]) if number(base.get(n, trained.get(n))) is not None]
    if not names:
        return None
    grid = _grid(("", "left"), ("base", "right"), ("trained", "right"), ("", "left"))
    for name in sorted(names, key=lambda n: n != "loss"):
        before, after = number(base.get(name)), number(trained.get(name))
        cells = [fixed(v, 3) if is_plain(name) else percent(v, 1) for v in (before, after)]
        label = LABELS.get(name) or safe(name)
        grid.add_row(Text(label), Text(cells[0], LABEL), Text(cells[1], "bold"), _change(name, before, after))
    return grid


def _while_training(summary: Mapping[str, Any]) -> Table | None:
    """Return the loss of each version that was evaluated while training, as a curve, and the best of them."""
    found = [_mapping(row) for row in summary.get("evaluations") or ()]
    points = [(row.get("version"), loss) for row in found if (loss := number(row.get("loss"))) is not None]
    if not points:
        return None
    version, lowest = min(points, key=lambda point: point[1])
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    ended = ", stopped early" if summary.get("stopped_early") else ""
    curve = sparkline(resample([loss for _, loss in points], CURVE_WIDTH), min(CURVE_WIDTH, len(points)))
    times = "1 evaluation" if len(points) == 1 else f"{len(points)} evaluations"
    best = f"lowest {fixed(lowest, 3)} at version {safe(version)}, {times}{ended}"
    grid.add_row(Text("while training", LABEL), Text(curve, ACCENT), Text(best))
    for name in _curves(found):
        values = [value for row in found if (value := number(row.get(name))) is not None]
        drawn = sparkline(resample(values, CURVE_WIDTH), min(CURVE_WIDTH, len(values)))
        ends = " → ".join((fixed if is_plain(name) else percent)(value, 3) for value in (values[0], values[-1]))
        grid.add_row(Text(LABELS.get(name) or safe(name), LABEL), Text(drawn, ACCENT), Text(ends))
    return grid


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the measures that have a curve of their own: a user's metrics, and those of pairs."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name.startswith(METRIC) or name in ("margin", "accuracy")]


def _clip(text: object) -> str:
    """Return an example's text, cut to a length: base models may go on for ever."""
    shown = safe(text, keep="\n").strip()
    return shown if len(shown) <= EXAMPLE_CHARS else f"{shown[:EXAMPLE_CHARS].rstrip()} …"


def _example(example: Mapping[str, Any]) -> Table:
    """Return one example. Answers are below each other, so that they can be compared by character."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    for name, style in {"request": "bold", "expected": "", "base": LABEL, "trained": ""}.items():
        if example.get(name) is not None:
            exact = name in ("base", "trained") and example[name] == example.get("expected")
            text = Text(_clip(example[name]) or "(nothing)", GOOD if exact else style)
            grid.add_row(Text(name, LABEL), text.append("  = expected", LABEL) if exact else text)
    return grid


def _examples(summary: Mapping[str, Any]) -> list[RenderableType]:
    found = [_mapping(e) for e in summary.get("examples") or () if _mapping(e)]
    return [part for example in found for part in (_example(example), Text())]


def _totals(summary: Mapping[str, Any]) -> Text | None:
    rounds = summary.get("rounds")
    rounds = sum(rounds.values()) if isinstance(rounds, Mapping) else rounds
    skipped = summary.get("skipped")
    left_out = (len(skipped) or None) if isinstance(skipped, list) else None
    known: list[tuple[str, object, str]] = [
        ("wall time", summary.get("wall_s"), clock(summary.get("wall_s"))),
        ("samples", summary.get("samples"), count(summary.get("samples"))),
        ("trained again", summary.get("replayed") or None, count(summary.get("replayed"))),
        ("left out", left_out, f"{count(left_out)} without a finite loss"),
        ("tokens", summary.get("tokens"), count(summary.get("tokens"))),
        ("rounds", rounds, count(rounds)),
        ("fleet", summary.get("tokens_per_s"), f"{count(summary.get('tokens_per_s'))} tok/s"),
        ("goodput", summary.get("goodput"), percent(summary.get("goodput"))),
    ]
    pairs = [(label, text) for label, value, text in known if number(value) is not None]
    return Text().append_text(labelled(*pairs)) if pairs else None  # a new Text: this line may wrap


def _contributions(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Return each replica's contribution; of many, the slowest."""
    rows = [_mapping(row) for row in summary.get("replicas") or () if _mapping(row)]
    if not rows:
        return []
    slowest = sorted(rows, key=lambda row: number(row.get("tokens_per_s")) or 0.0)[:REPORTED_REPLICAS]
    shown = [row for row in rows if any(row is one for one in slowest)]
    titles = ("replica", "samples", "tokens", "tok/s", "share")
    grid = _grid(*((title, "right") for title in titles), ("", "left"))
    for row in shown:
        cells = [safe(row.get("replica", "?"))]
        cells += [count(row.get(key)) for key in ("samples", "tokens", "tokens_per_s")]
        grid.add_row(*map(Text, cells), Text(percent(row.get("share"))), bar(row.get("share"), 20))
    more = len(rows) - len(shown)
    return [grid, *([Text(f"and {more} faster ones", LABEL)] if more else []), Text()]


def _code(summary: Mapping[str, Any]) -> Text:
    """Return Python code that loads the adapter. It never wraps and begins at the margin, because it will be
    copied."""
    lines = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({str(summary['model'])!r})",
        f"model = PeftModel.from_pretrained(base, {str(summary['adapter'])!r})",
    )
    return Text("".join(f"{safe(line)}\n" for line in lines), ACCENT, no_wrap=True, overflow="ignore")


def _go_on(summary: Mapping[str, Any]) -> list[Text]:
    """Return how to continue a run that ended early; like the code, it never wraps."""
    text = summary.get("go_on")
    return [Text(safe(text), WARN, no_wrap=True, overflow="ignore")] if text else []


def _no_adapter(summary: Mapping[str, Any]) -> Text:
    """Return the line that says that this machine has no adapter, and who has one."""
    named = [safe(each) for each in summary.get("adapter_at") or ()]
    shown = ", ".join(named[:REPORTED_REPLICAS])
    more = f" and {len(named) - REPORTED_REPLICAS} more" if len(named) > REPORTED_REPLICAS else ""
    where = f"{shown}{more}: it lies in the run directory there" if named else "no replica has ended with one"
    return Text.assemble(("no adapter on this machine  ", WARN), where, overflow="fold")


def report(summary: Mapping[str, Any]) -> RenderableType:
    """Return the end screen; parts whose keys are missing are left out. Print it with crop=False: paths may be
    long."""
    outcome = safe(summary.get("outcome") or "ended")
    style = GOOD if outcome == "finished" else WARN if outcome in ("interrupted", "ended") else BAD
    name = safe(summary.get("run") or "")
    title = one_line(("tsugi", f"bold {ACCENT}"), "  ", (f"{name}  " if name else "", "bold"), (outcome, style))
    parts: list[RenderableType] = [title, Text()]
    examples = _examples(summary)
    for part in (
        _evaluation(summary),
        _while_training(summary),
        Group(*examples[:-1]) if examples else None,
        _totals(summary),
    ):
        parts += [part, Text()] if part is not None else []
    parts += _contributions(summary)
    end = _go_on(summary)
    if not summary.get("adapter"):
        parts.append(_no_adapter(summary))
        return Group(Padding(Group(*parts), 1), *end)
    of_best = f"  of the best version, {safe(best['version'])}" if (best := _mapping(summary.get("best"))) else ""
    adapter = (safe(summary["adapter"]), "bold")
    parts.append(Text.assemble(("adapter  ", LABEL), adapter, (of_best, LABEL), overflow="fold"))
    where = Padding(Group(*parts), 1)
    return Group(where, *([_code(summary)] if summary.get("model") else []), *end)
