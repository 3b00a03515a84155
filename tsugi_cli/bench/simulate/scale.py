"""The figures of a simulated fleet: goodput, rounds, bytes, the hub's load, and which limits it exceeds. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.format import NONE, fixed, percent, size
from tsugi_kpool.core.events import Committed, Name
from tsugi_kpool.core.hub.guard import MAX_VALUE_BYTES
from tsugi_kpool.core.hub.outgoing import thin
from tsugi_kpool.core.messages import MAX_FRAME_BYTES, BadFrame, Beat, Message, encode
from tsugi_kpool.core.rounds.reduction import reduction
from tsugi_kpool.core.settings import KPool, Reduce
from tsugi_kpool.sim import FaultyFleet, Fleet, SimulationReport
from tsugi_kpool.sim.faults import FORM_S

from . import modelled
from .request import Simulation

WIRE_OVERHEAD_BYTES = 87
"""Overhead of one frame: CURVE, ZMTP, TCP and IP headers (benchmarks/sideband/hub.py)."""
VITALS_BYTES, STAMPS_BYTES = 200, 60
"""Bytes once a second in each direction (benchmarks/sideband/hub.py, docs/protocol.md), which the simulated link
lacks."""
ADDRESS_BYTES, ADDRESS_BYTES_PER_MEMBER = 154, 8
"""Size of one member's rendezvous value of gloo: 170, 186, 218, 282, 410 bytes for 2, 4, 8, 16, 32 members (torch
2.13)."""
ACK_BYTES = 8
LONGEST = 160
"""Longest text of a failure that is shown, in characters."""
DOWN = frozenset(
    {
        "Ack",
        "Stamps",
        "Refused",
        "NotTaken",
        "Generation",
        "Fire",
        "Commit",
        "Abort",
        "Lease",
        "Drain",
        "Refill",
        "Finish",
    }
)
"""Messages that the hub sends; all others are sent to it."""
COLUMNS = ("replicas", "goodput", "lock-step", "rounds/min", "broken", "a round", "late by", "data", "sideband",
           "frames to the hub", "hub's core", "to form a group")  # fmt: skip
COPIES = 4 * 4
"""Bytes for each number of a part that a round holds as fp32: shipped, sum, one decoded part, new anchors."""
NEARLY = 0.9
"""A hub that needs this share of a core is too slow for its fleet."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The figures of one fleet. Rates are means over virtual time; times are virtual, except `cpu_s`."""

    replicas: int
    seconds: float
    cpu_s: float
    """Processor time that the simulation took."""
    events: int
    goodput: float
    """Steps that count, as a share of those of a fleet in which nobody waits or dies."""
    lockstep: float
    """The same share in lock-step, when communication costs nothing."""
    rounds: int
    aborted: int
    round_s: float | None
    """Median duration of a round: from its order until all have reduced it, by its slowest member's report."""
    staleness: float | None
    """Mean versions between a step's parameters and the version that it went into."""
    deaths: int
    generations: int
    trained_again: int
    """Samples that were trained again."""
    data_bytes_per_s: float
    """Bytes a second that a replica sends in rounds."""
    frames_up_per_s: float
    """Frames a second to the hub: simulated messages, plus the most idle beats and vitals, which the simulator leaves
    out."""
    frames_down_per_s: float
    hub_bytes_per_s: float
    """Bytes a second of the hub's sideband, both ways, headers included."""
    replica_bytes_per_s: float
    """Bytes a second of a replica's sideband, both ways."""
    hub_cpu: float
    """Share of one core that the hub needs, without forming groups."""
    form_cpu_s: float
    """Processor time of the hub for forming one group: every member asks it for every member's address."""
    address_bytes: int
    """Bytes of one member's rendezvous value."""
    combine_bytes: int
    """Bytes that a member holds while it combines a round: codes, and a few copies of its part as fp32."""
    fired: int
    """Rounds that the hub has ordered."""
    exchange_bytes: int | None
    """Bytes that an exchange holds in a round; None where replicas form groups."""
    too_large: tuple[str, ...]
    """Kinds of messages that do not fit into a frame."""
    failure: str | None


def measure(
    fleet: Fleet, report: SimulationReport, simulation: Simulation, spec: RunSpec, values: int, cpu_s: float
) -> Scale:
    """Return the figures of a fleet that has run."""
    replicas, seconds = fleet.plan.replicas, max(report.seconds, 1e-9)
    moves = modelled.speeds(simulation, spec, replicas)
    past = [each.replica for each in fleet.past] if isinstance(fleet, FaultyFleet) else []
    everybody = [*past, *fleet.there]
    again = fleet.hub.leases.replayed
    useful = (sum(each.progress.samples for each in everybody) - again) / spec.train.step_samples
    names = Counter(event.name for event in fleet.events)
    round_s = [event.seconds for event in fleet.events if isinstance(event, Committed)]
    sideband = _sideband(fleet, seconds, spec.sideband.beat_s)
    shipped = spec.kpool.k if isinstance(spec.kpool.k, int) else spec.kpool.n
    return Scale(
        replicas=replicas,
        seconds=report.seconds,
        cpu_s=cpu_s,
        events=fleet.kernel.handled,
        goodput=useful / (modelled.own_rate(moves, replicas) * seconds),
        lockstep=modelled.lockstep(moves, replicas, spec.seed),
        rounds=report.versions,
        aborted=names[Name.ABORTED],
        round_s=statistics.median(round_s) if round_s else None,
        staleness=report.staleness,
        deaths=len(past),
        generations=names[Name.GENERATION],
        trained_again=again,
        data_bytes_per_s=sum(each.sent_bytes for each in everybody) / replicas / seconds,
        hub_cpu=sideband["frames_up_per_s"] * simulation.hub_us_per_frame / 1e6,
        form_cpu_s=replicas * replicas * simulation.hub_us_per_frame / 1e6,
        address_bytes=ADDRESS_BYTES + ADDRESS_BYTES_PER_MEMBER * replicas,
        combine_bytes=_held_bytes(spec.kpool, replicas, shipped * fleet.link.adapter_bytes, shipped * values),
        fired=sum(report.rounds.values()),
        exchange_bytes=_collected_bytes(fleet, shipped, values),
        failure=_short(report.failure) if report.failure else None,
        **sideband,
    )


def _held_bytes(kpool: KPool, replicas: int, payload_bytes: int, values: int) -> int:
    """Return what a member holds in a round: everybody's codes, or its own, those of its shard and all means."""
    payloads = 3 if reduction(kpool, replicas) is Reduce.SCATTER else replicas + 1
    return payloads * payload_bytes + COPIES * values


def _collected_bytes(fleet: Fleet, shipped: int, values: int) -> int | None:
    """Return what an exchange holds in a round: everybody's part, and a few copies of one as fp32."""
    if fleet.exchange is None:
        return None
    return fleet.plan.replicas * shipped * fleet.link.adapter_bytes + COPIES * shipped * values


def limits(scale: Scale, spec: RunSpec) -> list[str]:
    """Return the limits that a fleet of this size exceeds, and that a simulation does not stop at."""
    found = [] if scale.exchange_bytes is not None else _unformed(scale)
    if scale.failure:
        found.append(f"the run failed after {scale.seconds:.0f} s: {scale.failure}")
    elif not scale.rounds:
        found.append("no round has been reduced")
    forming = scale.form_cpu_s * scale.generations / scale.seconds if scale.exchange_bytes is None else 0.0
    if scale.hub_cpu + forming > NEARLY:
        needs = f"{scale.hub_cpu:.0%} of a core for its frames and {forming:.0%} for {scale.generations} groups"
        found.append(f"the hub needs {needs}")
    if scale.round_s is not None and scale.round_s > spec.kpool.round_timeout_s / 2:
        found.append(f"rounds take {scale.round_s:.0f} s, kpool.round_timeout_s is {spec.kpool.round_timeout_s:g}")
    if scale.replica_bytes_per_s > spec.sideband.budget_bytes_s:
        found.append(
            f"a replica's sideband takes {size(scale.replica_bytes_per_s)}/s of {size(spec.sideband.budget_bytes_s)}"
        )
    found += [f"a {kind} does not fit into {MAX_FRAME_BYTES} bytes" for kind in scale.too_large]
    return found


def _unformed(scale: Scale) -> list[str]:
    """Return why no group of this size forms."""
    found = []
    if scale.address_bytes > MAX_VALUE_BYTES:
        found.append(
            f"no group forms: gloo's address of a member takes {scale.address_bytes} bytes, "
            f"the hub takes {MAX_VALUE_BYTES}"
        )
    if scale.form_cpu_s > FORM_S:
        found.append(
            f"no group forms in time: {scale.replicas} x {scale.replicas} questions for addresses take "
            f"{scale.form_cpu_s:.0f} s of the hub's core, members wait {FORM_S:g} s"
        )
    return found


def cells(scale: Scale) -> tuple[str, ...]:
    """Return a line of the table, by COLUMNS."""
    return (
        str(scale.replicas),
        percent(scale.goodput, 1),
        percent(scale.lockstep, 1),
        fixed(scale.rounds * 60 / scale.seconds, 1),
        str(scale.aborted),
        NONE if scale.round_s is None else f"{scale.round_s:.2g} s",
        fixed(scale.staleness, 2),
        f"{size(scale.data_bytes_per_s)}/s",
        f"{size(scale.replica_bytes_per_s)}/s",
        f"{scale.frames_up_per_s:.0f}/s",
        percent(scale.hub_cpu, 1),
        f"{scale.form_cpu_s:.2g} s",
    )


def _short(failure: str) -> str:
    """Cut a failure, which may name thousands of replicas."""
    return failure if len(failure) <= LONGEST else f"{failure[: LONGEST // 2]} ... {failure[-LONGEST // 2 :]}"


def _sideband(fleet: Fleet, seconds: float, beat_s: float) -> dict[str, Any]:
    """Return frames and bytes a second through the hub. Forming groups is counted apart: a simulated group forms at
    once."""
    replicas, channel = fleet.plan.replicas, fleet.channel
    frames = {True: 0.0, False: 0.0}
    carried = replicas * (VITALS_BYTES + STAMPS_BYTES + ACK_BYTES + 3 * WIRE_OVERHEAD_BYTES) * 1.0
    for kind, sent in channel.kinds.items():
        frames[kind.__name__ in DOWN] += sent / seconds
        carried += sent / seconds * _frame_bytes(channel.newest[kind])
    idle = replicas / beat_s
    carried += idle * _frame_bytes(channel.newest[Beat]) if Beat in channel.newest else 0.0
    return {
        "frames_up_per_s": frames[False] + idle + replicas,  # idle beats; vitals once a second
        "frames_down_per_s": frames[True] + 2 * replicas,  # the answers to those; a sign of life once a second
        "hub_bytes_per_s": carried,
        "replica_bytes_per_s": carried / replicas,
        "too_large": fleet.too_large,
    }


def _frame_bytes(message: Message) -> int:
    """Return a message's bytes on the wire; the most that there can be if it is too large."""
    try:
        return len(encode(thin(message))) + WIRE_OVERHEAD_BYTES
    except BadFrame:
        return MAX_FRAME_BYTES
