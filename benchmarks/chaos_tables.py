"""Rows of the tables of docs/faults.md: what a fleet survives against its budgets, and the same faults elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Rows = list[list[str]]
Read = Callable[[dict[str, Any]], Sequence[float]]


def budgets(record: dict[str, Any]) -> Rows:
    """One row for each budget whose part has been measured."""
    parts, rows = (
        record["parts"],
        [["fault", "figure", "budget", "n", "median", "worst", "held", "load"], ["---"] * 8],
    )
    for name, what, figure, budget, found in _figures(parts):
        held = "yes" if max(found) <= budget else f"{sum(each <= budget for each in found)} of {len(found)}"
        numbers = [_number(budget), str(len(found)), _number(statistics.median(found)), _number(max(found))]
        rows.append([what, figure, *numbers, held, str(parts[name]["load"])])
    return rows


def _figures(parts: dict[str, Any]) -> list[tuple[str, str, str, float, Sequence[float]]]:
    found: list[tuple[str, str, str, float, Sequence[float]]] = []

    def add(
        part: str, what: str, figure: str, budget: float, of: Callable[[dict[str, Any]], Sequence[float]]
    ) -> None:
        if part in parts and (values := of(parts[part])):
            found.append((part, what, figure, budget, values))

    add("killed", "SIGKILL in a round", "noticed, s", 1.0, _column("noticed_s"))
    add("killed", "", "next commit, s", 3.0, _column("commit_s"))
    add("frozen", "SIGSTOP, SIGCONT after 10 s", "commit without it, s", 6.0, _column("commit_s"))
    add("frozen", "", "stale commits after it woke", 0.0, _column("stale_commits"))
    add(
        "without_hub",
        "hub killed, started again after 2 s",
        "commit after its start, s",
        10.0,
        _column("commit_after_start_s"),
    )
    for part, way in (("cut", "both ways"), ("cut_one_way", "one way")):
        seconds = sorted({each["seconds"] for each in parts.get(part, {}).get("trials", ())})
        for length in seconds:
            of = _where(length)
            what = f"cut off, {way}, {length:g} s"
            add(part, what, "longest gap of the majority, s", 6.0, of("longest_gap_of_the_majority_s"))
            add(part, "", "commits of the minority", 0.0, of("minority_commits"))
            add(part, "", "a member again after healing, s", 15.0, of("healed_after_s"))
    add("frames", "hostile frames", "crashes, changes of state", 0.0, lambda part: [float(not part["unchanged"])])
    add("simulated", "protocol in virtual time", "seeds that broke a rule", 0.0, lambda part: [len(part["failed"])])
    add("soak", "kills every 0.5 to 2 s", "longest gap between commits, s", 60.0, _soak)
    add("formed_again", "groups formed again", "file descriptors more", 0.0, _more("more_fds"))
    add("formed_again", "", "threads more", 0.0, _more("more_threads"))
    return found


def _column(name: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda part: [each[name] for each in part["trials"]]


def _where(length: float) -> Callable[[str], Callable[[dict[str, Any]], list[float]]]:
    return lambda name: lambda part: [each[name] for each in part["trials"] if each["seconds"] == length]


def _more(name: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda part: [each[name] for each in part["processes"]]


def _soak(part: dict[str, Any]) -> list[float]:
    return [part["disturbed"]["longest_gap_s"]]


def _number(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.2f}"


def peers(record: dict[str, Any]) -> Rows:
    """One row for each peer and fault."""
    rows = [
        ["peer", "fault", "a joint step takes", "longest pause of the two others", "joint steps in the 60 s after"]
    ]
    rows.append(["---"] * 5)
    for run in record["runs"]:
        if "error" in run:
            rows.append([run["peer"], run["fault"], "did not run here", "", ""])
            continue
        pauses = [each["longest_pause_s"] for each in run["survivors"]]
        steps = [each["joint_steps_after"] for each in run["survivors"]]
        pause = "no joint step any more" if not max(steps) else f"{max(pauses):.1f} s"
        rows.append([run["peer"], run["fault"], f"{run['usual_s']:.2f} s", pause, str(min(steps))])
    return rows


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Rows]]] = {
    "chaos": ("chaos", budgets),
    "chaos_peers": ("chaos_peers", peers),
}
"""Name of the block to its results' file and its rows."""
