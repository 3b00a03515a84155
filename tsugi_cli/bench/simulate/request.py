"""The request for `tsugi bench --simulate`: settings of modelled fleets, checked. Values are in conf/bench/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tsugi_cli.bench.spec import PREFIX, Scenario, beyond, described, scenario_problems
from tsugi_cli.config import faults
from tsugi_cli.config.compose import compose
from tsugi_cli.config.overrides import group_options
from tsugi_cli.config.schema import did_you_mean, leaf_types
from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.errors import ConfigError

SETTINGS = "simulate"
MOST_STEPS = 1_000_000_000
"""Upper limit of steps: more take days of this machine's time."""
MOST = {
    "minutes": 1_000_000, "back_s": 10_000_000, "mbit_s": 1_000_000_000, "rtt_ms": 1_000_000,
    "adapter_values": 10**12, "combine_ns": 1_000_000_000, "hub_us_per_frame": 1_000_000_000,
}  # fmt: skip
MOST_SIZES = 100
MOST_REPLICAS = 100_000
"""Upper limit of replicas: this process has no memory for more."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Fleets of several sizes in virtual time, all under one scenario."""

    name: str
    """Name of the scenario."""
    scenario: Scenario
    replicas: list[int]
    """Sizes of fleets; empty: topology.replicas."""
    minutes: float
    """Virtual time of each fleet."""
    device_step_s: float
    """Seconds of a step of a replica that is not slow."""
    slow_share: float
    """Share of the replicas that are slow; 0: the last one."""
    churn: float
    """Share of the replicas that die in a minute."""
    back_s: float
    """Seconds from a death until a new process comes."""
    mbit_s: float
    """Bandwidth of every replica, where the scenario sets none."""
    rtt_ms: float
    """Round trip between any two replicas; of two halves, inside each."""
    adapter_values: int | Literal["auto"]
    """Numbers in one adapter of the pool."""
    combine_ns: float
    """Processor time of a replica to combine one number of one member in a round."""
    hub_us_per_frame: float
    """Processor time of the hub for each frame that comes in, its answers included."""


@dataclass(frozen=True)
class Asked:
    """A simulation that has been checked and not begun."""

    simulation: Simulation
    spec: RunSpec
    """The run's settings, from the other words."""
    base: tuple[str, ...]


def read(tokens: Sequence[str]) -> Asked:
    """Read what a user has typed.

    Raises:
        ConfigError: with all mistakes.
    """
    own, base, problems = _sort(tokens)
    simulation: Simulation | None = None
    spec: RunSpec | None = None
    try:
        simulation = described(Simulation, SETTINGS, own, _broken)
    except ConfigError as error:
        problems += error.problems
    if simulation is not None and simulation.replicas:
        base.append(f"topology.replicas={max(simulation.replicas)}")  # faults may name any of them
    try:
        spec = compose(base)
    except ConfigError as error:
        problems += error.problems
    if spec is not None:
        problems += _not_simulated(spec)
    if problems or simulation is None or spec is None:
        raise ConfigError(problems)
    sizes = simulation.replicas or [spec.topology.replicas]
    return Asked(replace(simulation, replicas=sizes), spec, tuple(base))


def _sort(tokens: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return (the simulation's words, its runs' words, mistakes). `replicas=9` is short for `bench.replicas=9`."""
    names = [field.name for field in fields(Simulation) if field.name not in ("name", "scenario")]
    own, base, problems = [], [], []
    for token in tokens:
        key, equals, _ = token.partition("=")
        if key in names or key == "scenario":
            own.append(f"{PREFIX}{token}")
        elif key.startswith(PREFIX):
            own.append(token)
        elif equals and "." not in key and key not in _of_runs():
            near = did_you_mean(key, [*names, "scenario", *_of_runs()])
            problems.append(f"{key}: no such key{near or '; a simulation has ' + ', '.join(names)}")
        else:
            base.append(token)
    return own, base, problems


def _of_runs() -> list[str]:
    return [*group_options(), *(key for key in leaf_types() if "." not in key), "recipe"]


def _broken(values: dict[str, Any], scenario: dict[str, Any]) -> list[str]:
    """Return a text for every rule that well-formed values break."""
    found = [
        f"bench.replicas: a fleet has 2 to {MOST_REPLICAS} replicas, found {size}"
        for size in values["replicas"]
        if not 2 <= size <= MOST_REPLICAS
    ]
    if len(values["replicas"]) > MOST_SIZES:
        found = [f"bench.replicas must name at most {MOST_SIZES} sizes, found {len(values['replicas'])}"]
    for key in ("minutes", "device_step_s", "mbit_s", "hub_us_per_frame"):
        if values[key] <= 0:
            found.append(f"bench.{key} must be positive, found {values[key]}")
    found += [
        f"bench.{key} must be at least 0, found {values[key]}"
        for key in ("back_s", "rtt_ms", "combine_ns")
        if values[key] < 0
    ]
    for key in ("slow_share", "churn"):
        if not 0 <= values[key] <= 1:
            found.append(f"bench.{key} is a share: 0 to 1, found {values[key]}")
    if values["adapter_values"] != "auto" and values["adapter_values"] < 1:
        found.append(f"bench.adapter_values must be auto or at least 1, found {values['adapter_values']}")
    found += beyond(MOST, values)
    found = found or _too_long(values)
    return found + scenario_problems(values, scenario)


def _too_long(values: dict[str, Any]) -> list[str]:
    steps = max(values["replicas"], default=2) * values["minutes"] * 60 / values["device_step_s"]
    if steps <= MOST_STEPS:
        return []
    asked = f"bench.minutes={values['minutes']:g} and bench.device_step_s={values['device_step_s']:g}"
    return [f"{asked} are {steps:.1g} steps of the largest fleet, more than {MOST_STEPS:,}"]


def _not_simulated(spec: RunSpec) -> list[str]:
    """Return texts for faults that a modelled fleet does not know."""
    found = [
        f"fault.{key}={getattr(spec.fault, key)}: not simulated"
        for key in ("data_wait", "nan", "flip")
        if getattr(spec.fault, key)
    ]
    for key in ("slow", "step_s"):
        for entry in getattr(spec.fault, key):
            fault = faults.parse(entry)
            if fault is not None and fault.after_steps:
                found.append(f"fault.{key}={entry}: a simulation knows moments in seconds only, such as @20s")
    return found
