"""Builds a modelled fleet from settings: its plan, speeds, links and deaths; and lock-step on the same replicas."""

from __future__ import annotations

import random
import warnings
from itertools import islice
from typing import cast

from tsugi_cli.config import data_plane, faults
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune import model as models
from tsugi_cli.finetune.lora import add_pool, unchanged
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.sim import Far, FaultyFleet, Fleet, LinkModel, Slow, Speeds, churn

from .request import Simulation

MBIT = 1e6 / 8
"""Bytes of a megabit."""
LOCKSTEP_DRAWS = 400_000
"""Steps drawn to find the duration of a lock-step step."""


def fleet(simulation: Simulation, spec: RunSpec, replicas: int, values: int, samples: int = 0) -> Fleet:
    """Return a fleet of this size that has not begun.

    Args:
        simulation: What is modelled.
        spec: The run's settings, as `tsugi finetune` has them.
        replicas: The size.
        values: Numbers in one adapter.
        samples: Data; 0: more than it can use up.
    """
    seconds = simulation.minutes * 60.0
    lasting = int(replicas * seconds / simulation.device_step_s * 2 + 1000) * spec.train.step_samples
    hub = plan(spec, replicas, samples or lasting)
    deaths = churn(
        replicas, simulation.churn, seconds, simulation.back_s, random.Random(f"{spec.seed}:churn:{replicas}")
    )
    moves = speeds(simulation, spec, replicas), link(simulation, spec, values)
    if deaths:
        return FaultyFleet(hub, *moves, spec.seed, deaths, keep_alive=False)
    return Fleet(hub, *moves, spec.seed)


def plan(spec: RunSpec, replicas: int, samples: int) -> HubPlan:
    """Return the plan that `tsugi finetune` would give its hub. The launcher reports deaths, so there is no timeout
    of silence."""
    return HubPlan(
        run="simulated",
        config_hash="",
        replicas=replicas,
        kpool=spec.kpool,
        samples=samples,
        micro_batch=spec.train.step_samples,
        lease_samples=spec.train.lease_steps * spec.train.step_samples,
        start_timeout_s=60.0,
        min_replicas=min(spec.topology.min_replicas, replicas),
        quorum_timeout_s=spec.topology.quorum_timeout_s,
        lease_ahead_s=spec.train.lease_ahead_s,
        exchange="simulated" if data_plane.data_plane(spec) == data_plane.EXCHANGE else "",
    )


def speeds(simulation: Simulation, spec: RunSpec, replicas: int) -> Speeds:
    """Return the speeds of the emulated device, the scenario's slow replicas, and those of `fault.slow` and
    `fault.step_s`."""
    scenario, step_s = simulation.scenario, simulation.device_step_s
    slow = [Slow(each, scenario.slow) for each in slow_replicas(simulation, replicas) if scenario.slow > 1]
    for entries, unit in ((spec.fault.slow, 1.0), (spec.fault.step_s, step_s)):
        found = (faults.parse(entry) for entry in entries)
        slow += [Slow(each.replica, each.value / unit, each.after_s) for each in found if each is not None]
    return Speeds((step_s,), spec.fault.jitter or scenario.jitter, tuple(slow))


def slow_replicas(simulation: Simulation, replicas: int) -> range:
    """Return the slow replicas: the last one, or one in so many."""
    if not simulation.slow_share:
        return range(replicas - 1, replicas)
    return range(0, replicas, max(1, round(1 / simulation.slow_share)))


def link(simulation: Simulation, spec: RunSpec, values: int) -> LinkModel:
    """Return the links between any two replicas, and between two halves."""
    scenario, coded = simulation.scenario, coded_bytes(values, spec)
    combine_s = simulation.combine_ns * 1e-9 * values / coded
    near_s, near = simulation.rtt_ms / 2000.0, simulation.mbit_s * MBIT
    delay_s = (scenario.delay_ms + scenario.delay_jitter_ms / 2) / 1000.0
    far_s, rate = near_s + delay_s, scenario.mbit_s * MBIT
    if scenario.link == "each":
        each = min(near, rate)
        return LinkModel(far_s + delay_s, each, coded, combine_s_per_byte=combine_s, hub_bytes_per_s=each)
    far = Far(far_s, rate) if scenario.link == "racks" else None
    return LinkModel(near_s, near, coded, combine_s_per_byte=combine_s, far=far, hub_bytes_per_s=near)


def step_s(moves: Speeds, replicas: int) -> list[float]:
    """Return the seconds of each replica's step at the beginning, without later changes."""
    factors = {each.replica: each.factor for each in moves.slow if not each.from_s}
    return [moves.base_s(replica) * factors.get(replica, 1.0) for replica in range(replicas)]


def own_rate(moves: Speeds, replicas: int) -> float:
    """Return the steps a second of a fleet in which nobody waits or dies."""
    return sum(1 / seconds for seconds in step_s(moves, replicas))


def lockstep(moves: Speeds, replicas: int, seed: int) -> float:
    """Return the share of `own_rate` that is left when every step takes as long as the slowest replica's.

    This flatters lock-step: communication and deaths cost it nothing.
    """
    base, steps = step_s(moves, replicas), max(10, LOCKSTEP_DRAWS // replicas)
    if not moves.jitter:
        return replicas / max(base) / own_rate(moves, replicas)
    drawn = [list(islice(faults.jitters(moves.jitter, seed, each), steps)) for each in range(replicas)]
    slowest = [max(map(float.__mul__, base, factors)) for factors in zip(*drawn, strict=True)]
    return replicas / (sum(slowest) / steps) / own_rate(moves, replicas)


def adapter_values(simulation: Simulation, spec: RunSpec) -> int:
    """Return the numbers in one adapter: as given, or counted on the model without its weights.

    Raises:
        MachineError: the model cannot be had.
    """
    if simulation.adapter_values != "auto":
        return simulation.adapter_values
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.prepare(spec.model))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about itself
        pool = add_pool(AutoModelForCausalLM.from_config(config), unchanged(spec.lora))
    whole = sum(parameter.numel() for name, parameter in pool.named_parameters() if "lora_" in name)
    return cast(int, whole // spec.kpool.n)


def coded_bytes(values: int, spec: RunSpec) -> int:
    """Return the bytes of one adapter of so many numbers on the wire, with its header."""
    from tsugi_kpool.codec import coding, header

    return coding.coded_bytes(values, spec.kpool.payload) + header.header_bytes(1)
