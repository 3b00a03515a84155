"""How peers are scored: by the time to an eval loss, each at the learning rate that its first seed chose. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tsugi_cli.bench.compare.statistics import Point, crossing

TARGET = 2.8
"""Eval loss that is raced for. The base model begins at 5.4; the slowest arm has to get there within a run."""
Record = dict[str, Any]


def time_to(curve: list[list[float]], target: float) -> float | None:
    """Seconds until the eval loss has first fallen to the target, on a straight line between snapshots."""
    found = crossing([Point(at_s, 0.0, loss) for at_s, loss in curve], target)
    return None if found is None else found.at_s


def best_scale(tried: list[Record], target: float = TARGET) -> float | None:
    """Of runs on one seed: the rate that is soonest at the target; where none gets there, that of the lowest loss."""
    good = [run for run in tried if run["failure"] is None]

    def rank(run: Record) -> tuple[float, float]:
        at_s = time_to(run["curve"], target)
        return (float("inf") if at_s is None else at_s, run["curve"][-1][1])

    return min(good, key=rank)["lr_scale"] if good else None


def summarise(runs: list[Record], peers: Iterable[str], scenarios: Iterable[str]) -> list[Record]:
    """For each scenario and peer: the rate that its first seed chose, times to the target and losses at the end."""
    rows = []
    for scenario in scenarios:
        for name in peers:
            mine = [run for run in runs if (run["scenario"], run["peer"]) == (scenario, name)]
            if not mine:
                continue
            first = min(run["seed"] for run in mine)
            scale = best_scale([run for run in mine if run["seed"] == first])
            rows.append(
                {
                    "scenario": scenario,
                    "peer": name,
                    "tried": sorted({run["lr_scale"] for run in mine}),
                    **_cell(mine, mine[0]["lr_scale"] if scale is None else scale),
                }
            )
    return rows


def _cell(runs: list[Record], scale: float) -> Record:
    done = [run for run in runs if run["lr_scale"] == scale]
    good = [run for run in done if run["failure"] is None]
    times = [time_to(run["curve"], TARGET) for run in good]
    return {
        "lr_scale": scale,
        "seeds": [run["seed"] for run in good],
        "to_target_s": [each for each in times if each is not None],
        "missed": sum(each is None for each in times),
        "failed": len(done) - len(good),
        "final_loss": [run["curve"][-1][1] for run in good],
        "steps": [sum(run["steps"]) for run in good],
        "compute_s": [run["compute_s"]["median"] for run in good],
    }


def compared(runs: list[Record], target: float, ours: str, tuned_in: str, healthy: str) -> list[Record]:
    """Peers in several scenarios, in pairs of a seed: each against itself on a healthy fleet, and against ours.

    Args:
        runs: Of all peers, scenarios, seeds and learning rates.
        target: Eval loss that is raced for.
        ours: The peer that others are compared with.
        tuned_in: The scenario whose first seed has chosen the rate.
        healthy: The scenario in which nobody is slow.
    """
    names = list(dict.fromkeys(run["peer"] for run in runs))
    rates = {}
    for name in names:
        mine = [run for run in runs if (run["peer"], run["scenario"]) == (name, tuned_in)]
        first = min((run["seed"] for run in mine), default=None)
        rates[name] = best_scale([run for run in mine if run["seed"] == first], target)
    kept = [run for run in runs if run["lr_scale"] == rates[run["peer"]]]
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for run in kept:
        found.setdefault((run["scenario"], run["peer"]), {})[run["seed"]] = run
    tried = {name: sorted({run["lr_scale"] for run in runs if run["peer"] == name}) for name in names}

    def ratios(seeds: dict[int, Record], others: dict[int, Record]) -> list[float]:
        """Of times to the target, where both get there."""
        both = [(_time(seeds[seed], target), _time(others[seed], target)) for seed in seeds if seed in others]
        return [own / other for own, other in both if own is not None and other]

    rows = []
    for (scenario, name), seeds in found.items():
        good = [run for _, run in sorted(seeds.items()) if run["failure"] is None]
        times = [_time(run, target) for run in good]
        rows.append(
            {
                "scenario": scenario,
                "peer": name,
                "lr_scale": rates[name],
                "tried": tried[name],
                "seeds": sorted(seeds),
                "to_target_s": [each for each in times if each is not None],
                "missed": sum(each is None for each in times),
                "failed": len(seeds) - len(good),
                "own_healthy": ratios(seeds, found.get((healthy, name), {})),
                "ours": ratios(seeds, found.get((scenario, ours), {})),
                "final_loss": [run["curve"][-1][1] for run in good],
                "steps": [sum(run["steps"]) for run in good],
                "sent_bytes": [each for run in good if (each := run["notes"].get("sent_bytes")) is not None],
                "load": [run["load"] for run in good],
            }
        )
    return rows


def _time(run: Record, target: float) -> float | None:
    return None if run["failure"] is not None else time_to(run["curve"], target)
