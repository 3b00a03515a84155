"""The parts of the live picture, each a pure function from the fleet's data to lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tsugi_cli.record.records import number
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.health import Health
from tsugi_kpool.core.messages import FleetStatus

from .charts import CURVE, bar, chart, resample, sparkline
from .format import (
    ACCENT,
    BAD,
    GOOD,
    LABEL,
    NONE,
    WARN,
    clock,
    count,
    fitting,
    fixed,
    one_line,
    percent,
    safe,
    size,
    spread,
    step_time,
)
from .history import History, Round

TITLE = 8
"""Width of the titles before the figures' lines."""
FLYING, REDUCED, ABORTED = "·", "◦", "×"
"""Marks in the strip: a round in flight, one that is reduced on some member, an aborted one."""
STRIP = 24
INSECURE = "NO KEYS"
"""Text at the beginning of the picture when the sideband asks nobody for a key."""
WIDE, WIDER = 78, 98
"""Widths (windows of 80 and of 100 columns) from which lines show more."""


def _titled(title: str, *parts: Text | tuple[str, str] | str) -> Text:
    return one_line((f"{title:<{TITLE}}", LABEL), *parts)


# --- above the table --------------------------------------------------------------------------------------


def waiting(status: FleetStatus) -> str:
    """Return what the run waits for before it trains; else an empty text."""
    if status.stage != FleetStage.GATHERING:
        return ""
    return f"waiting for replicas: {max(status.joined, len(status.replicas))} of {status.expected} joined"


DOING = {
    "joining": "replicas join",
    "loading": "loading the model",
    "evaluating": "evaluating the {} model{}",
    "exporting": "writing the adapter",
}
"""What replicas say of themselves while they do not train -> what the run does then."""


def doing(status: FleetStatus) -> str:
    """Return what a run does that does not train yet, or no more; empty while any replica trains."""
    states = [row.state for row in status.replicas]
    at_work = [state for state in states if state not in ("done", "left", "quarantined", "silent")]
    if not at_work or any(state not in DOING for state in at_work):
        return ""
    first = min(at_work, key=list(DOING).index)
    samples = f", {status.held_out:,} sample{'s' * (status.held_out > 1)}" if status.held_out > 0 else ""
    words = DOING[first].format("trained" if status.version else "base", samples)
    return f"{words}{_part(at_work.count(first), len(at_work))}"


def _part(some: int, of: int) -> str:
    return f" ({some} of {of} replicas)" if some < of else ""


def header(status: FleetStatus, width: int) -> list[Text]:
    """Return the run, its stage, and how it aggregates."""
    name = one_line(("tsugi", f"bold {ACCENT}"), "  ", (safe(status.run), "bold"))
    if status.insecure:
        name = one_line((f"{INSECURE}  ", f"bold {WARN}"), name)
    style = BAD if status.stage == FleetStage.FAILED else ""
    stage = one_line((safe(status.stage), style), (f"  {clock(status.elapsed_s)}", LABEL))
    how = ", ".join(safe(text) for text in (status.pool_text, status.trigger_text) if text)
    return [spread(name, stage, width), one_line((how, LABEL))]


def health(status: FleetStatus) -> Text:
    """Return the reasons against the fleet's health; an empty line when there are none."""
    if status.health == Health.HEALTHY:
        return Text()
    style = BAD if status.health == Health.NO_QUORUM or status.stage == FleetStage.FAILED else WARN
    reasons = "; ".join(safe(reason) for reason in status.health_reasons)
    return one_line((safe(status.health), f"bold {style}"), "  ", (reasons, style))


def progress(status: FleetStatus, width: int) -> Text:
    """Return how much of the data has been used."""
    if words := waiting(status) or doing(status):
        return one_line((words, "bold"))
    done, total = status.samples_done, status.samples_total
    if total <= 0:
        return one_line(f"{done:,} samples")  # replicas that read data of their own: nobody knows how much there is
    share = done / total
    figures = f"  {done:,}/{total:,} samples" if width >= 50 else ""
    eta = f"  eta {clock(status.eta_s)}" if width >= 30 else ""
    text = one_line(figures, (f"  {share:.0%}", "bold"), (eta, LABEL))
    return one_line(bar(share, max(4, width - text.cell_len)), text)


# --- figures below the table ------------------------------------------------------------------------------


def figures(status: FleetStatus, history: History, width: int) -> list[Text]:
    """Return the fleet's figures: the same few lines all the time it trains, so that nothing jumps."""
    if waiting(status):
        return []
    lines = [_fleet(status, width), _loss(status, history, width), _pool(status, width)]
    return [*lines, _rounds(status, history, width), _links(status, width), *_refused(status)]


def _fleet(status: FleetStatus, width: int) -> Text:
    goodput = number(status.goodput)
    style = "" if goodput is None or 0.5 <= goodput < 0.9 else GOOD if goodput >= 0.9 else WARN
    wide = width >= WIDE
    pairs = fitting(
        width - TITLE,
        ("", f"{count(status.tokens_per_s)} tok/s"),
        ("goodput now", percent(status.goodput_now)) if wide else None,
        ("so far" if wide else "goodput", Text(percent(status.goodput), style)),
        ("straggler tax recovered" if width >= WIDER else "tax recovered", percent(status.tax_recovered)),
        ("tokens", count(status.tokens)) if width >= WIDER else None,
    )
    return _titled("fleet", pairs)


def _loss(status: FleetStatus, history: History, width: int) -> Text:
    line = sparkline(history.loss.values, max(0, min(60, width - TITLE - 8)))
    return _titled("loss", (fixed(status.loss, 3), "bold"), f"  {line}" if line else "")


def _pool(status: FleetStatus, width: int) -> Text:
    """Return what is buffered against what fires the next round."""
    target = number(status.target) or 0.0
    share = status.pooled / target if target > 0 else 0.0
    gauge = bar(share, _strip_width(width), GOOD if share >= 1 else ACCENT)
    steps = f"  {count(status.pooled)} of {count(target) if target else NONE} steps"
    if share >= 1:
        steps = f"  ready ({count(status.pooled)}, needs {count(target)})"
    variance = number(status.variance)
    if status.eps is not None:
        known = NONE if variance is None else f"{variance / status.eps:.2f}" if status.eps else NONE
        return _titled("pool", gauge, steps, ("   variance/eps ", LABEL), known)
    noise = one_line(("   variance ", LABEL), f"{variance:.3g}") if variance is not None else Text()
    return _titled("pool", gauge, steps, noise)


def _rounds(status: FleetStatus, history: History, width: int) -> Text:
    """Return the last rounds as columns, the newest one's time, and counts by reason."""
    ended = [r for r in history.rounds if not r.flying and not r.aborted]
    newest = step_time(ended[-1].seconds) if ended else NONE
    most_first = sorted(status.rounds.items(), key=lambda pair: -pair[1])
    fired = ", ".join(f"{n} {safe(reason)}" for reason, n in most_first if n)
    flying = ", ".join(map(str, status.firing)) if len(status.firing) <= 8 else f"all {len(status.firing)}"
    strip = _strip(list(history.rounds), _strip_width(width))
    pairs = fitting(
        width - TITLE - _strip_width(width) - 2,
        ("newest" if width >= WIDE else "", newest),
        ("", fired or "none yet"),
        ("aborted", Text(str(status.aborted), WARN)) if status.aborted else None,
        ("in flight", flying or NONE) if width >= WIDER else None,
    )
    return _titled("rounds", strip, "  ", pairs)


def _strip_width(width: int) -> int:
    return STRIP if width >= WIDE else 8


def _strip(rounds: Sequence[Round], width: int) -> Text:
    """Return one column for each of the newest rounds; its height is the round's duration."""
    shown = rounds[-width:]
    longest = max((r.seconds for r in shown), default=0.0)
    strip = Text()
    for one in shown:
        if one.aborted:
            strip.append(ABORTED, BAD)
        elif one.flying:
            strip.append(REDUCED if one.reduced else FLYING, LABEL)
        else:
            strip.append(sparkline([one.seconds], 1, longest or 1.0), CURVE)
    return strip.append(" " * (width - len(shown)))


def _links(status: FleetStatus, width: int) -> Text:
    """Return the bytes over all replicas' links: of rounds, and of the sideband."""
    up, down = (sum(getattr(row, name) for row in status.replicas) for name in ("sent_bytes", "received_bytes"))
    aside = sum(row.up_bytes + row.down_bytes for row in status.replicas)
    each_s = status.elapsed_s * max(1, len(status.replicas))
    each = " a replica" if width >= WIDE else ""
    rate = f"{size(aside / each_s)}/s{each}" if aside and each_s > 0 else ""
    pairs = fitting(width - TITLE, ("up", size(up)), ("down", size(down)), ("sideband", rate) if rate else None)
    return _titled("links", pairs)


def _refused(status: FleetStatus) -> list[Text]:
    """Return what the sideband has refused; no line when it is nothing."""
    kinds = sorted(((times, safe(kind)) for kind, times in status.refused.items() if times), reverse=True)
    if not kinds:
        return []
    text = ", ".join(f"{count(times)} {kind}" for times, kind in kinds)
    return [_titled("refused", (text, WARN))]


# --- what larger windows have room for --------------------------------------------------------------------


def trend(title: str, values: Sequence[float], width: int, rows: int, digits: int = 3) -> list[Text]:
    """Return a run's curve over several lines, with the ends of its scale."""
    if len(values) < 2 or rows < 2:
        return []
    points = resample(list(values), width - 9)
    labels = [""] * rows
    labels[0], labels[-1] = (fixed(v, digits) if digits else count(v) for v in (max(points), min(points)))
    lines = zip(labels, chart(points, width - 9, rows), strict=True)
    return [one_line((title, LABEL)), *(one_line((f"{label:>7}  ", LABEL), (line, CURVE)) for label, line in lines)]


def round_list(rounds: Sequence[Round], width: int, rows: int) -> list[Text]:
    """Return the newest rounds, one a line: the collective (thick) within the time from fired to committed, reason,
    size."""
    shown = list(rounds)[-max(0, rows - 1) :]
    if not shown or rows < 2:
        return []
    longest = max(r.seconds for r in shown)
    length = max(6, min(40, width - 50))
    title = one_line((f"{'round':>7}  {'━ collective ─ orders':<{length}}", LABEL))
    title.append(f"   took  {'why':<11}   size", LABEL)
    return [title, *(_round_line(one, longest, length) for one in shown)]


def _round_line(one: Round, longest: float, length: int) -> Text:
    begin = one_line((f"{one.number:>7}  ", LABEL))
    if one.flying:
        mark, state = (REDUCED, f"reduced on {one.reduced}") if one.reduced else (FLYING, "in flight")
        return begin.append(f"{mark * 3:<{length}}  {NONE:>5}  {safe(one.reason)[:11]:<11}  {state}", LABEL)
    whole = max(1, round(length * one.seconds / longest)) if longest > 0 else 1
    share = (one.collective_s or 0.0) / one.seconds if one.seconds > 0 else 1.0
    thick = min(whole, round(whole * share))
    style = BAD if one.aborted else ACCENT
    begin.append("━" * thick + "─" * (whole - thick), style).append(" " * (length - whole))
    begin.append(f"  {step_time(one.seconds):>5}  ")
    begin.append(f"{'aborted' if one.aborted else safe(one.reason)[:11] or NONE:<11}", style if one.aborted else "")
    begin.append(f"  {size(one.payload_bytes):>8}" if one.payload_bytes else "", LABEL)
    return begin.append(f"  delayed {step_time(one.delayed_s)}" if one.delayed_s else "", LABEL)


def events(history: History, rows: int) -> list[Text]:
    """Return the newest events under a title; the time is dim."""
    if not history.events or rows < 2:
        return []
    lines = list(history.events)[-(rows - 1) :]
    return [one_line(("events", LABEL)), *(one_line((text[:8], LABEL), text[8:]) for text in lines)]
