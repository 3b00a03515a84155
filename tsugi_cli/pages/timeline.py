"""The fleet's timeline: when each replica computed, waited, shipped and was slow. Bars stretch, texts do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tsugi_cli.console.format import clock

from .facts import Replica, Round, RunFacts
from .figures import colour
from .html import shown

WIDE, SLOW, STEPS, SHIPS = 1000.0, (0, 4), (5, 24), (25, 30)
"""Of a row's drawing: its width, and from where to where its three lanes are."""
PIECES = 500
"""Rounds that lie closer together than this part of the width are drawn as one."""
STYLE = """
.lanes { display: grid; grid-template-columns: fit-content(9rem) 1fr; gap: .2rem .6rem; align-items: center; }
.lanes svg { height: 32px; display: block; } .lanes b { font-weight: 400; overflow-wrap: anywhere; }
.wait { fill: var(--line); } .ship { fill: var(--soft); } .slow { fill: #e5533d; }
.axisline { display: flex; justify-content: space-between; }
"""


def timeline(facts: RunFacts, replicas: Sequence[Replica]) -> str:
    """Return the timeline of these replicas; empty where nothing is known of any."""
    if facts.seconds <= max(0.0, facts.begin_s) or not any(
        each.busy or each.joined_s is not None for each in replicas
    ):
        return ""
    rows = "".join(_row(facts, each) for each in replicas)
    middle = clock((facts.begin_s + facts.seconds) / 2)
    ends = f"<span>{clock(facts.begin_s)}</span><span>{middle}</span><span>{clock(facts.seconds)}</span>"
    return (
        f"<div class='lanes'>{rows}<b></b><div class='axisline soft'>{ends}</div></div>"
        "<p class='soft'>From the first replica to the last record. Each replica has three lanes. On top, red: slow, "
        "with its reason below. In the middle: the higher a bar, the more of that time went into steps; the pale "
        "rest is waiting. At the bottom: rounds in flight, which ship while the next steps are computed.</p>"
    )


def _row(facts: RunFacts, own: Replica) -> str:
    name = f"{own.replica} {own.host}"
    parts = [*_present(facts, own), *_steps(facts, own), *_slow(facts, own)]
    parts += [_rect(facts, a, b, SHIPS, "ship") for a, b in _flights(facts, own.replica)]
    drawing = (
        f'<svg viewBox="0 0 {WIDE:.0f} 32" preserveAspectRatio="none" role="img" '
        f'aria-label="replica {shown(name)}">{"".join(parts)}</svg>'
    )
    return f"<b>{shown(name)}</b>{drawing}"


def _present(facts: RunFacts, own: Replica) -> Iterator[str]:
    begun = own.joined_s if own.joined_s is not None else own.busy[0][0] if own.busy else None
    if begun is not None:
        end = facts.seconds if own.left_s is None else own.left_s
        yield _rect(facts, begun, end, STEPS, "wait")


def _steps(facts: RunFacts, own: Replica) -> Iterator[str]:
    top, bottom = STEPS
    for begun, end, busy in own.busy:
        high = (bottom - top) * busy / (end - begun)
        lane = (bottom - high, bottom)
        yield _rect(facts, begun, end, lane, "", f' fill="{colour(own.replica)}"')


def _slow(facts: RunFacts, own: Replica) -> Iterator[str]:
    for span in facts.slow:
        if span.replica == own.replica:
            end = facts.seconds if span.until_s is None else span.until_s
            yield _rect(facts, span.from_s, end, SLOW, "slow", "", span.why)


def _flights(facts: RunFacts, replica: int) -> Iterator[tuple[float, float]]:
    """Yield (from, until) of the rounds that this replica took part in; close ones are one."""
    close_s, open_ = facts.seconds / PIECES, None
    for each in facts.rounds:
        if replica not in facts.generations.get(each.generation, (replica,)):
            continue
        begun, end = each.at_s, _end(facts, each)
        if open_ is not None and begun - open_[1] < close_s:
            open_ = (open_[0], max(end, open_[1]))
            continue
        if open_ is not None:
            yield open_
        open_ = (begun, end)
    if open_ is not None:
        yield open_


def _end(facts: RunFacts, each: Round) -> float:
    return facts.seconds if each.whole_s is None else each.at_s + each.whole_s


def _rect(
    facts: RunFacts,
    begun: float,
    end: float,
    lane: tuple[float, float],
    kind: str,
    more: str = "",
    title: str = "",
) -> str:
    first_s = facts.begin_s
    per_s = WIDE / (facts.seconds - first_s)
    x = (min(max(first_s, begun), facts.seconds) - first_s) * per_s
    width = max(1.5, (min(end, facts.seconds) - first_s) * per_s - x)
    top, bottom = lane
    kind = f' class="{kind}"' if kind else ""
    inside = f"<title>{shown(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}"{kind}{more}>{inside}</rect>'
    )
