"""Analysis of a benchmark's runs: tuned rates, target, rows, recommendation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tsugi_cli.bench.spec import Bench

from .plan import DDP, DROP, KPOOL, Arm, Run, limit, measured
from .statistics import Estimate, Point, crossing, difference, estimate, ratio

SLACK = 1.01
"""The automatic target, relative to the baseline's worst final loss."""


@dataclass(frozen=True)
class Share:
    """One replica's part of a run."""

    steps: int
    busy_s: float
    late: int


@dataclass(frozen=True)
class MethodOutcome:
    """One run, measured and evaluated."""

    curve: tuple[Point, ...]
    wall_s: float
    sent_bytes: int
    """Bytes that replica 0 sent over TCP."""
    replicas: tuple[Share, ...]

    @property
    def final(self) -> float:
        """Eval loss at the end."""
        return self.curve[-1].loss

    @property
    def own_rate(self) -> float:
        """Steps a second that its replicas would do if none ever waited."""
        return sum(each.steps / each.busy_s for each in self.replicas)

    @property
    def rate(self) -> float:
        """Steps a second that they did."""
        return sum(each.steps for each in self.replicas) / self.wall_s


@dataclass(frozen=True)
class Row:
    """Results of one arm."""

    arm: str
    method: str
    overrides: tuple[str, ...]
    replicas: int
    lr_scale: float
    lr: float
    final: Estimate
    final_difference: Estimate | None
    """Final loss minus the baseline's, paired by seed."""
    seeds: int
    reached: int
    """Number of seeds that reached the target."""
    time_s: Estimate | None
    """Seconds to the target; None unless every seed reached it."""
    tokens: Estimate | None
    """Tokens to the target."""
    speedup: Estimate | None
    """How many times sooner than the baseline, paired by seed."""
    goodput: float
    """Steps done, as a share of those of a fleet in which nobody waits."""
    limit_share: float | None
    """The shortest possible time to the target (the baseline's tokens at the fleet's speed) over the time taken."""
    bytes_per_token: float
    late_share: float
    """Share of steps that took longer than the emulated device's."""


@dataclass(frozen=True)
class ComparisonReport:
    """The results of a benchmark."""

    target: float
    baseline: str
    limit: float | None
    """The largest speed-up over lock-step that this scenario allows."""
    rows: tuple[Row, ...]
    advice: tuple[str, ...]
    """Lines for the user."""
    paste: tuple[str, ...]
    """Overrides that are recommended."""


Outcomes = Mapping[str, MethodOutcome]
"""Outcomes by the runs' keys."""


def best_scales(runs: Sequence[Run], outcomes: Outcomes, bench: Bench, every: Sequence[Arm]) -> dict[str, float]:
    """Return each arm's learning rate: the one with the lowest final eval loss, at equal tokens."""
    if not runs:
        return {arm.name: bench.lr_scales[0] for arm in every}
    return {
        arm.name: min((run for run in runs if run.arm == arm), key=lambda run: outcomes[run.key].final).lr_scale
        for arm in every
    }


def report(
    bench: Bench, every: Sequence[Arm], chosen: Mapping[str, float], outcomes: Outcomes, lr: float, replicas: int
) -> ComparisonReport:
    """Return the results of a benchmark's runs.

    Args:
        bench: The benchmark.
        every: Its arms.
        chosen: Each arm's scale of the learning rate.
        outcomes: Of all measured runs.
        lr: What the scales multiply.
        replicas: Of the whole fleet.
    """
    by_arm = {
        arm.name: [outcomes[run.key] for run in measured(bench, dict(chosen), every) if run.arm == arm]
        for arm in every
    }
    baseline = next((arm.name for arm in every if arm.method == DDP), every[0].name)
    target = bench.target if isinstance(bench.target, float | int) else _target(by_arm[baseline])
    whole = [each.own_rate for arm in every if arm.replicas == replicas for each in by_arm[arm.name]]
    fleet = fmean(whole) if whole else None
    rows = tuple(
        _row(arm, by_arm[arm.name], by_arm[baseline], target, (chosen[arm.name], lr), fleet, arm.name == baseline)
        for arm in every
    )
    times = {arm.name: _times(by_arm[arm.name], target) for arm in every}
    advice, paste = recommend(rows, times, replicas)
    return ComparisonReport(target, baseline, limit(bench, replicas), rows, advice, paste)


def _target(baseline: Sequence[MethodOutcome]) -> float:
    return max(each.final for each in baseline) * SLACK


def _times(outcomes: Sequence[MethodOutcome], target: float) -> list[float]:
    """Return the seconds to the target of every seed; nothing if one of them never reached it."""
    found = [crossing(each.curve, target) for each in outcomes]
    return [max(point.at_s, 1e-9) for point in found if point is not None] if all(found) else []


def _row(
    arm: Arm,
    outcomes: Sequence[MethodOutcome],
    baseline: Sequence[MethodOutcome],
    target: float,
    rate: tuple[float, float],
    fleet: float | None,
    is_baseline: bool,
) -> Row:
    points = [crossing(each.curve, target) for each in outcomes]
    times, base_times = _times(outcomes, target), _times(baseline, target)
    tokens = [point.tokens for point in points if point is not None]
    steps = sum(share.steps for each in outcomes for share in each.replicas)
    return Row(
        arm=arm.name,
        method=arm.method,
        overrides=arm.overrides,
        replicas=arm.replicas,
        lr_scale=rate[0],
        lr=rate[0] * rate[1],
        final=estimate([each.final for each in outcomes]),
        final_difference=(
            None if is_baseline else difference([e.final for e in outcomes], [e.final for e in baseline])
        ),
        seeds=len(outcomes),
        reached=len(tokens),
        time_s=estimate(times) if times else None,
        tokens=estimate(tokens) if times else None,
        speedup=ratio(base_times, times) if times and base_times and not is_baseline else None,
        goodput=fmean(each.rate / (fleet or each.own_rate) for each in outcomes),
        limit_share=_limit_share(baseline, target, times, fleet),
        bytes_per_token=fmean(each.sent_bytes * arm.replicas / each.curve[-1].tokens for each in outcomes),
        late_share=sum(share.late for each in outcomes for share in each.replicas) / max(1, steps),
    )


def _limit_share(
    baseline: Sequence[MethodOutcome], target: float, times: Sequence[float], fleet: float | None
) -> float | None:
    """Return the time for the baseline's tokens at the speed of a fleet in which nobody waits, over the time
    taken."""
    points = [crossing(each.curve, target) for each in baseline]
    if not times or fleet is None or not all(points):
        return None
    shares = []
    for outcome, point, time_s in zip(baseline, points, times, strict=True):
        if point is not None:
            last = outcome.curve[-1].tokens
            tokens_per_step = last / sum(each.steps for each in outcome.replicas)
            shares.append(point.tokens / tokens_per_step / fleet / time_s)
    return fmean(shares)


def recommend(
    rows: Sequence[Row], times: Mapping[str, Sequence[float]], replicas: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (lines for the user, overrides to paste): the arm that is soonest at the target on all seeds.

    Among arms of the pool the first one is kept unless another is clearly sooner, that is, its interval lies below.
    """
    arrived = [row for row in rows if times[row.arm]]
    if not arrived:
        return ("no method reached the target on every seed: give a higher bench.target, or more steps",), ()
    best = min(arrived, key=lambda row: fmean(times[row.arm]))
    pools = [row for row in arrived if row.method == KPOOL]
    if best.method == KPOOL:
        first = next((row for row in pools if not _clearly(times[best.arm], times[row.arm])), best)
        return (f"{first.arm}: the target in {_time(first)}",), _paste(first)
    if best.method == DROP:
        said = f"leave the slowest replica out: {replicas - 1} replicas reach the target in {_time(best)}"
        paste = (f"topology.replicas={replicas - 1}", f"train.lr={best.lr:g}")
        return _with_pool(said, best, pools, times), paste
    lines = _with_pool(f"{best.arm} reaches the target soonest, in {_time(best)}", best, pools, times)
    if not pools:
        return lines, ()
    soonest = min(pools, key=lambda row: fmean(times[row.arm]))
    return lines, _paste(soonest)


def _with_pool(line: str, best: Row, pools: Sequence[Row], times: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    if not pools:
        return (line, "K-Pool did not reach it on every seed, or was not among the methods")
    soonest = min(pools, key=lambda row: fmean(times[row.arm]))
    versus = ratio(times[soonest.arm], times[best.arm])
    verdict = "clearly later" if _clearly(times[best.arm], times[soonest.arm]) else "not clearly later"
    return (line, f"{soonest.arm} takes {versus.mean:.2f} times as long, which is {verdict} over these seeds")


def _clearly(times: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether these are sooner, and the interval of the pairs' ratio confirms it."""
    found = ratio(others, times)
    return found.low is not None and found.low > 1.0


def _paste(row: Row) -> tuple[str, ...]:
    return (*row.overrides, f"train.lr={row.lr:g}")


def _time(row: Row) -> str:
    if row.time_s is None:
        return "no time"
    return f"{row.time_s.mean:.1f} s"
