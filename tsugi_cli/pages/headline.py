"""The first lines of a report: what came out, what must be said with it, and the commands to go on with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tsugi_cli.console.format import clock, count, percent

from .facts import RunFacts

NOT_COMPARABLE = ("model.", "data.")
"""Where settings of these groups differ, runs have other eval losses without one being better."""


def headline(facts: RunFacts) -> str:
    """Return one sentence on a run's result."""
    base, trained = (facts.evaluation.get(stage, {}).get("loss") for stage in ("base", "trained"))
    if base is not None and trained is not None:
        change = f" ({(trained - base) / base:+.0%})" if base > 0 else ""
        what = f"Eval loss {base:.3f} before training, {trained:.3f} after{change}"
    else:
        what = f"{facts.outcome.capitalize()}: there is no eval loss of before and after"
    return f"{what}. {_work(facts)}"


def _work(facts: RunFacts) -> str:
    samples, planned = facts.total("samples"), facts.total("samples_total")
    words = [f"{count(samples)} of {count(planned)} samples" if planned else f"{count(samples)} samples"]
    words.append(f"in {clock(facts.total('wall_s') or facts.seconds)}")
    if (goodput := facts.total("goodput")) is not None:
        words.append(f"with a goodput of {percent(goodput)}")
    return f"{' '.join(words)}."


def caveats(facts: RunFacts) -> list[str]:
    """Return what the result does not say, in sentences."""
    found = []
    if facts.outcome == "unfinished":
        found.append(
            "There is no readable summary: the run goes on, or its launcher has gone. All figures end with its "
            f"last record, {clock(facts.seconds)} after its first."
        )
    elif facts.outcome != "finished":
        found.append(f"The run was {facts.outcome} before its data were used up.")
    if len(facts.evaluation) == 2:
        found.append("This is one run with one seed. Whether a setting is better takes several seeds: tsugi bench.")
    return found + [f"{words}." for words in facts.left_out]


def between(runs: Sequence[RunFacts]) -> list[str]:
    """Return what the comparison of several runs does not say."""
    found = ["Runs of one seed each: a difference as small as that between two seeds says nothing."]
    values: dict[str, set[str]] = {}
    for run in runs:
        for each in run.changed:
            values.setdefault(each.key, set()).add(each.value)
    many = {key: sum(any(c.key == key for c in run.changed) for run in runs) for key in values}
    apart = [
        key
        for key, known in values.items()
        if key.startswith(NOT_COMPARABLE) and (len(known) > 1 or many[key] < len(runs))
    ]
    if apart:
        shortened = ", ".join(apart[:6]) + (f" and {len(apart) - 6} more" if len(apart) > 6 else "")
        found.append(f"The runs differ in {shortened}: their losses need not be of the same samples.")
    return found


def again(facts: RunFacts) -> str:
    """Return the command that runs it again with the same settings."""
    return shlex.join(["tsugi", "finetune", f"recipe={Path(facts.directory) / 'config.yaml'}"])


def commands(runs: Sequence[RunFacts]) -> list[str]:
    """Return the commands to paste: these runs again, on with those that have not finished, and this page."""
    report = shlex.join(["tsugi", "report", *(run.directory for run in runs)])
    on = [f"# {run.go_on}" if not run.go_on.startswith("to go on: ") else run.go_on[10:] for run in runs if run.go_on]
    return [*(again(run) for run in runs if run.settings_known), *on, report]
