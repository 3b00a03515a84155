"""Tables of benchmarks/scale.py and benchmarks/calibrate.py, for docs/scale.md."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

from tsugi_cli.bench.simulate.scale import ADDRESS_BYTES, ADDRESS_BYTES_PER_MEMBER, FORM_S, NEARLY
from tsugi_kpool.core.hub.guard import MAX_VALUE_BYTES
from tsugi_kpool.core.hub.round_book import ROUND_GRACE_S

CHURN = 0.01
TIMEOUT_S = 60.0
"""kpool.round_timeout_s as it ships."""
Rows = list[list[str]]
Record = dict[str, Any]
ORDER = ("fast", "churn", "regions", "regions, churn")


def _head(*titles: str) -> Rows:
    return [list(titles), ["---"] * len(titles)]


def calibration(record: Record) -> Rows:
    """Measured against predicted."""
    rows = _head("replicas", "", "measured", "predicted (seeds)", "difference")
    for run in record["runs"]:
        for name, form in (("goodput", ".4f"), ("rounds", ".0f"), ("seconds", ".1f"), ("rounds_per_min", ".2f")):
            low, high = run["predicted_range"][name]
            mean = run["predicted"][name]
            seeds = f"{mean:{form}} ({low:{form}} to {high:{form}})"
            title = name.replace("_", " ").replace("per min", "a minute")
            measured = f"{run['measured'][name]:{form}}"
            rows.append([str(run["replicas"]), title, measured, seeds, f"{run['error'][name]:+.1%}"])
    return rows


def scale(record: Record) -> Rows:
    """Every fleet."""
    rows = _head("scenario", "replicas", "minutes", "goodput", "lock-step", "rounds/min", "broken", "a round",
                 "versions late", "a replica sends", "its sideband", "frames to the hub", "hub's core")  # fmt: skip
    for run in _fleets(record):
        round_ = "–" if run["round_s"] is None else f"{run['round_s']:.3g} s"
        late = "–" if run["staleness"] is None else f"{run['staleness']:.2f}"
        minutes = run["seconds"] / 60
        rows.append([
            run["scenario"], str(run["replicas"]), f"{minutes:.3g}",
            f"{run['goodput']:.1%}", f"{run['lockstep']:.1%}",
            f"{run['rounds'] / minutes:.1f}", str(run["aborted"]), round_, late,
            f"{run['data_bytes_per_s'] / 1e6:.1f} MB/s", f"{run['replica_bytes_per_s'] / 1e3:.2f} kB/s",
            f"{run['frames_up_per_s']:.0f}/s", f"{run['hub_cpu']:.1%}",
        ])  # fmt: skip
    return rows


def groups(record: Record) -> Rows:
    """What forming a group takes, and what a member holds in a round, by size."""
    rows = _head("replicas", "address of a member", "questions to the hub", "its core for one group",
                 "groups a minute with churn", "a member holds in a round")  # fmt: skip
    fleets = _fleets(record)
    for run in (each for each in fleets if each["scenario"] == "fast"):
        dying = [each for each in fleets if each["scenario"] == "churn" and each["replicas"] == run["replicas"]]
        formed = f"{dying[0]['generations'] / dying[0]['seconds'] * 60:.1f}" if dying else ""
        rows.append([
            str(run["replicas"]), f"{run['address_bytes']} bytes", str(run["replicas"] ** 2),
            f"{run['form_cpu_s']:.3g} s", formed, f"{run['combine_bytes'] / 1e9:.3g} GB",
        ])  # fmt: skip
    return rows


def sizes(record: Record) -> Rows:
    """At which size each limit is met, when what was measured or simulated grows on as it does."""
    fleets = {(run["scenario"], run["replicas"]): run for run in _fleets(record)}
    fast, churn, regions = (fleets[name, 1000] for name in ("fast", "churn", "regions"))
    ten = fleets["fast", 10]
    second = fast["form_cpu_s"] / fast["replicas"] ** 2
    """Of the hub's core, for one question."""
    per_min = churn["generations"] / (churn["seconds"] / 60) / 1000
    frames = fast["hub_cpu"] / fast["replicas"]
    late_s = TIMEOUT_S + ROUND_GRACE_S
    found = [
        ((NEARLY * 60 / (per_min * second)) ** (1 / 3), "churn of 1 % a minute",
         f"the hub's core does nothing but help groups to form: {per_min * 1000:.0f} a minute at 1,000"),
        ((MAX_VALUE_BYTES - ADDRESS_BYTES) / ADDRESS_BYTES_PER_MEMBER, "any",
         f"no group forms: gloo's address of a member is longer than the {MAX_VALUE_BYTES} bytes that the hub takes"),
        ((FORM_S / second) ** 0.5, "any",
         f"no group forms within {FORM_S:g} s: every member asks the hub for every member's address"),
        (late_s / (regions["round_s"] / 1000), "regions", f"a round takes longer than {late_s:g} s: the run fails"),
        (NEARLY / frames, "any", f"beats and orders take {NEARLY:.0%} of the hub's core"),
        (60 / (ten["rounds"] / (ten["seconds"] / 60)) / (fast["round_s"] / 1000), "fast",
         "nothing, but a round takes as long as there is between two: from here on they get rarer"),
        ((log(2) * 60 / (CHURN * fast["round_s"] / 1000)) ** 0.5, "churn of 1 % a minute",
         "half of the rounds are broken by a death before they are reduced"),
        (late_s / (fast["round_s"] / 1000), "fast", f"a round takes longer than {late_s:g} s: the run fails"),
    ]  # fmt: skip
    rows = _head("replicas", "where", "what breaks")
    rows += [[f"{size:.0f}", where, what] for size, where, what in sorted(found)]
    return rows


def ways(record: Record) -> Rows:
    """Fleets whose rounds gather beside those whose rounds have two stages."""
    rows = _head("scenario", "replicas", "rounds/min, gathered", "two stages", "a round, gathered", "two stages",
                 "a replica sends, gathered", "two stages", "it holds, gathered", "two stages")  # fmt: skip
    fleets = {(run["scenario"], run["replicas"], run["reduce"]): run for run in _fleets(record)}
    for scenario, replicas in dict.fromkeys((name, size) for name, size, _ in fleets):
        pair = [fleets.get((scenario, replicas, way)) for way in ("gather", "scatter")]
        rows.append([scenario, str(replicas), *(text for column in _WAYS for text in map(column, pair))])
    return rows


def exchange(record: Record) -> Rows:
    """Fleets whose rounds an exchange reduces, while replicas die and come back."""
    rows = _head("scenario", "replicas", "minutes", "deaths", "generations", "rounds fired", "committed", "broken",
                 "a round", "goodput", "versions late", "its sideband", "hub's core",
                 "the exchange holds")  # fmt: skip
    for run in _fleets(record):
        rows.append([
            run["scenario"], str(run["replicas"]), f"{run['seconds'] / 60:.3g}", str(run["deaths"]),
            str(run["generations"]), str(run["fired"]),
            f"{run['rounds']} ({run['rounds'] / max(run['fired'], 1):.0%})", str(run["aborted"]),
            "–" if run["round_s"] is None else f"{run['round_s']:.3g} s", f"{run['goodput']:.1%}",
            f"{run['staleness'] or 0.0:.2f}", f"{run['replica_bytes_per_s'] / 1e3:.2f} kB/s",
            f"{run['hub_cpu']:.1%}", f"{run['exchange_bytes'] / 1e9:.3g} GB",
        ])  # fmt: skip
    return rows


def _column(told: Callable[[Record], str]) -> Callable[[Record | None], str]:
    return lambda run: "" if run is None else told(run)


_WAYS = tuple(
    _column(each)
    for each in (
        lambda run: f"{run['rounds'] * 60 / run['seconds']:.1f}",
        lambda run: "–" if run["round_s"] is None else f"{run['round_s']:.3g} s",
        lambda run: f"{run['data_bytes_per_s'] / 1e6:.1f} MB/s",
        lambda run: f"{run['combine_bytes'] / 1e9:.3g} GB",
    )
)


def parts(record: Record) -> Rows:
    """What was measured here of both."""
    rows = _head("", "members", "")
    for run in record["runs"]:
        if run.get("part") == "rendezvous":
            text = f"{run['questions']} questions, an address of {run['address_bytes']} bytes"
            rows.append(["a gloo group forms", str(run["members"]), text])
        elif run.get("part") == "owned":
            text = f"{run['cpu_s'] * 1e3:.0f} ms, {run['ns_per_number']:.1f} ns for each number of its part"
            rows.append(["a member's part of a two-stage round", str(run["members"]), text])
        elif run.get("part") == "combine":
            text = f"{run['cpu_s'] * 1e3:.0f} ms, {run['ns_per_number']:.1f} ns for each number of each member"
            rows.append(["a round is combined", str(run["members"]), text])
    return rows


def _fleets(record: Record) -> list[Record]:
    fleets = [run for run in record["runs"] if "scenario" in run]
    return sorted(fleets, key=lambda run: (ORDER.index(run["scenario"]), run["replicas"]))


TABLES: dict[str, tuple[str, Callable[[Record], Rows]]] = {
    "calibration": ("simulate_calibration", calibration),
    "scale": ("scale", scale),
    "scale sizes": ("scale", sizes),
    "scale groups": ("scale", groups),
    "scale parts": ("scale", parts),
    "scale exchange": ("scale_exchange", exchange),
    "scale ways": ("scale_ways", ways),
    "scale ways parts": ("scale_ways", parts),
}
