"""The page of `tsugi report`: one run, or several side by side. A pure text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from tsugi_cli.console.format import clock, count, duration, fixed, percent, size
from tsugi_cli.console.report import LABELS, is_plain

from . import timeline
from .facts import Changed, Curve, Points, Replica, RunFacts
from .figures import COLOURS, Series, colour, legend, lines
from .headline import between, caveats, commands, headline
from .html import document, shown, table

REPLICAS = 16
"""So many replicas of a run are drawn."""
MB = 1e6
STYLE = (
    timeline.STYLE
    + """
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 0 2.5rem; }
.runs > section { min-width: 0; } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.say { font-size: 1.15rem; margin: .6rem 0; } .mark { font-weight: 600; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { border-left: 3px solid var(--line); padding-left: .8rem; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
)


def page(runs: Sequence[RunFacts]) -> str:
    """Return the report of these runs."""
    title = f"tsugi report: {runs[0].run}" if len(runs) == 1 else f"tsugi report: {len(runs)} runs"
    parts = [f"<h1>{shown(title)}</h1>"]
    if len(runs) > 1:
        parts += _together(runs)
    parts += ["<h2>To paste</h2>", f"<pre>{shown(chr(10).join(commands(runs)))}</pre>"]
    parts.append(f"<div class='runs'>{''.join(f'<section>{_run(run)}</section>' for run in runs)}</div>")
    return document(title, parts, STYLE)


# --- several runs --------------------------------------------------------------------------------------------


def _together(runs: Sequence[RunFacts]) -> list[str]:
    names = _names(runs)
    dashed = {name: number >= len(COLOURS) for number, name in enumerate(names)}
    colours = {name: colour(number) for number, name in enumerate(names)}

    def series(points: Sequence[Points]) -> list[Series]:
        return [Series(n, p, colours[n], dashed[n]) for n, p in zip(names, points, strict=True)]

    loss = "training loss, smoothed"
    by_time = lines(series([_over_time(run) for run in runs]), "seconds since a replica joined", loss)
    by_tokens = lines(series([_over_tokens(run) for run in runs]), "supervised tokens", loss)
    return [
        *(f"<p>{shown(words)}</p>" for words in between(runs)),
        "<h2>Side by side</h2>",
        table([("", *names), *(_figures(runs))]),
        legend(colours),
        f"<div class='plots'>{by_time}{by_tokens}</div>",
        "<h2>Settings that differ between them</h2>",
        _differing(runs, names),
    ]


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """Return a name for each run: the directory's, and the whole path where two are called the same."""
    names = [run.run for run in runs]
    return [run.directory if names.count(run.run) > 1 else run.run for run in runs]


def _figures(runs: Sequence[RunFacts]) -> list[tuple[str, ...]]:
    rows = [dict(_facts(run)) for run in runs]
    return [(name, *(row.get(name, "–") for row in rows)) for name in dict.fromkeys(n for row in rows for n in row)]


def _over_time(run: RunFacts) -> Points:
    """Return the loss against the time since the first replica joined: loading a model is no training."""
    return [(at_s - run.begin_s, loss) for at_s, loss in run.loss if at_s >= run.begin_s]


def _over_tokens(run: RunFacts) -> Points:
    """Return the loss against the tokens that the fleet had at that moment, or just before it."""
    times = [at_s for at_s, _ in run.tokens]
    places = [(bisect_right(times, at_s) - 1, loss) for at_s, loss in run.loss]
    return [(run.tokens[place][1], loss) for place, loss in places if place >= 0]


def _differing(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    own = [{each.key: each for each in run.changed} for run in runs]
    usual = {each.key: each.default for run in runs for each in run.changed}
    rows = [(key, default, *(_value(each, key, default) for each in own)) for key, default in usual.items()]
    rows = [row for row in rows if len(set(row[2:])) > 1]
    return table([("setting", "default", *names), *rows]) if rows else "<p>None.</p>"


def _value(own: Mapping[str, Changed], key: str, default: str) -> str:
    return own[key].value if key in own else default


# --- one run -------------------------------------------------------------------------------------------------


def _run(run: RunFacts) -> str:
    drawn = _drawn(run)
    hidden = len(run.replicas) - len(drawn)
    parts = [
        f"<h2>{shown(run.run)}: {shown(run.outcome)}</h2>",
        f"<p class='say'>{shown(headline(run))}</p>",
        *(f"<p>{shown(words)}</p>" for words in caveats(run)),
        table([("what", "value"), *_facts(run)], wraps=True),
        "<h3>Loss, lag, bytes and rounds</h3>" if run.replicas else "",
        legend({**({"fleet": "currentColor"} if run.loss else {}), **_colours(drawn)}),
        f"<p class='soft'>{hidden} more replicas are in --json.</p>" if hidden else "",
        f"<div class='plots'>{_plots(run, drawn)}</div>",
        _section("Fleet timeline", timeline.timeline(run, drawn)),
        _section("Slow replicas", _slow(run)),
        _section("Replicas", _replicas(drawn)),
        _section("Samples before and after", _examples(run)),
        _section("Settings that are not the defaults, by recipe or user", _changed(run)),
        _section("Events", _events(run)),
    ]
    return "".join(parts)


def _section(title: str, inside: str) -> str:
    return f"<h3>{shown(title)}</h3>{inside}" if inside else ""


def _drawn(run: RunFacts) -> list[Replica]:
    """Return the replicas that are drawn, in the order of their ids: those that were slow come before others."""
    slow = {span.replica for span in run.slow}
    ranked = sorted(run.replicas, key=lambda each: (each.replica not in slow, each.replica))
    return sorted(ranked[:REPLICAS], key=lambda each: each.replica)


def _colours(drawn: Sequence[Replica]) -> dict[str, str]:
    return {_name(each): colour(each.replica) for each in drawn}


def _name(own: Replica) -> str:
    return f"replica {own.replica}{' (dashed)' if _dashed(own) else ''}"


def _dashed(own: Replica) -> bool:
    return own.replica % (2 * len(COLOURS)) >= len(COLOURS)


def _facts(run: RunFacts) -> list[tuple[str, str]]:
    known = [
        ("outcome", run.outcome),
        ("began", run.began),
        ("duration", clock(run.total("wall_s") or run.seconds)),
        ("recipe", run.recipe),
        ("model", run.model),
        *_measures(run),
        ("samples", f"{count(run.total('samples'))} of {count(run.total('samples_total'))}"),
        ("trained again", count(run.total("replayed"))),
        ("tokens", count(run.total("tokens"))),
        ("fleet", f"{count(run.total('tokens_per_s'))} tokens/s"),
        ("goodput", percent(run.total("goodput"))),
        ("rounds", f"{count(run.total('rounds'))}, {count(run.total('aborted'))} aborted"),
        ("bytes of the rounds, all replicas", size(sum(each.sent_bytes for each in run.replicas))),
    ]
    return [(name, text) for name, text in known if text]


def _measures(run: RunFacts) -> list[tuple[str, str]]:
    """Return base and trained for each measure; of an unfinished run the losses that were told."""
    told = {stage: {"loss": loss} for stage, _, loss in run.evaluated}
    base, trained = (run.evaluation.get(stage) or told.get(stage, {}) for stage in ("base", "trained"))
    found = []
    for name in dict.fromkeys([*base, *trained]):
        known = (base.get(name), trained.get(name))
        before, after = (fixed(value, 3) if is_plain(name) else percent(value, 1) for value in known)
        found.append((LABELS.get(name, name), f"{before} → {after}"))
    return found


def _plots(run: RunFacts, drawn: Sequence[Replica]) -> str:
    def of(points: str, scale: float = 1.0) -> list[Series]:
        return [
            Series(
                _name(each), [(x, y / scale) for x, y in getattr(each, points)], colour(each.replica), _dashed(each)
            )
            for each in drawn
        ]

    fleet = [Series("fleet", run.loss, "currentColor")]
    evals = [Series(f"eval loss, {stage}", [(at, loss)], "currentColor") for stage, at, loss in run.evaluated]
    rounds = [(each.at_s, each.whole_s) for each in run.rounds if each.whole_s is not None and not each.aborted]
    took = [Series("rounds", thinned(rounds), "currentColor")]
    begin, axis = max(0.0, run.begin_s), "seconds since the first record"
    measured = [
        lines([Series(name, points, "currentColor")], axis, LABELS.get(name, name), begin=begin)
        for name, points in run.measured.items()
    ]
    loss = "loss, nats per token"
    return "".join(
        (
            lines([*of("loss"), *fleet, *evals], f"{axis}; dots: eval loss", loss, begin=begin),
            *measured,
            lines(of("lag_s"), axis, "lag, s", True, begin),
            lines(of("sent", MB), axis, "bytes of rounds sent, MB", True, begin),
            lines(took, axis, "duration of rounds, s", True, begin),
        )
    )


def thinned(points: Points) -> Points:
    """Return a curve in few points."""
    curve = Curve()
    for x, y in points:
        curve.add(x, y)
    return curve.points


def _slow(run: RunFacts) -> str:
    rows = [
        (str(span.replica), clock(span.from_s), "the end" if span.until_s is None else clock(span.until_s), span.why)
        for span in sorted(run.slow, key=lambda span: span.from_s)
    ]
    if not rows:
        return ""
    told = "".join(
        f"<dt>replica {shown(replica)}, from {begun} to {end}</dt><dd>{shown(why)}</dd>"
        for replica, begun, end, why in rows
    )
    return f"<dl>{told}</dl>"


def _replicas(drawn: Sequence[Replica]) -> str:
    titles = (
        "replica",
        "host",
        "steps",
        "samples",
        "tokens",
        "tok/s",
        "computed",
        "waited",
        "in rounds",
        "sent",
        "share",
    )
    rows = [
        (
            *(str(each.replica), each.host, count(each.steps), count(each.samples), count(each.tokens)),
            *(count(each.tokens_per_s), duration(each.computed_s), duration(each.waited_s)),
            *(duration(each.shipped_s), size(each.sent_bytes), percent(each.share)),
        )
        for each in drawn
    ]
    return table([titles, *rows]) if rows else ""


def _examples(run: RunFacts) -> str:
    return "".join(f"<dl>{_example(example)}</dl>" for example in run.examples)


def _example(example: dict[str, str]) -> str:
    right = {
        stage: example.get(stage) == example["expected"] for stage in ("base", "trained") if "expected" in example
    }
    found = []
    for name, text in example.items():
        mark = (
            f" <span class='mark'>{'✓ as expected' if right[name] else '✗ not as expected'}</span>"
            if name in right
            else ""
        )
        found.append(f"<dt>{shown(name)}{mark}</dt><dd>{shown(text.strip()) or '(nothing)'}</dd>")
    return "".join(found)


def _changed(run: RunFacts) -> str:
    rows = [(each.key, each.default, each.value) for each in run.changed]
    return table([("setting", "default", "this run"), *rows], wraps=True) if rows else ""


def _events(run: RunFacts) -> str:
    if not run.events:
        return ""
    before = f"<p class='soft'>{run.events_before} older ones are in events.jsonl.</p>" if run.events_before else ""
    text = shown("\n".join(run.events))
    return f"{before}<details><summary>{len(run.events)} events, rounds left out</summary><pre>{text}</pre></details>"
