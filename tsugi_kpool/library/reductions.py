"""Means of metrics over the replicas of a fleet, over the sideband: nobody's training waits for anything else."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from tsugi_kpool.core.messages import Figures
from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.errors import ConfigError, TrainingError

from .fitting import check_seconds
from .session import Session

MOST = 30
"""Metrics in one reduction."""
CHARS = 100
"""Of a metric's name."""
SLICE_S = 0.2
SUM, WEIGHT, NOT_FINITE = "sum.", "weight.", "nan."
"""Before a metric's name: what is added up over the replicas."""


def parts_of(metrics: Mapping[str, float], weight: float) -> dict[str, float]:
    """What one replica adds.

    Raises:
        ConfigError: these are no metrics, or it is no weight.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError([f"metrics must be a mapping of names to numbers, found {metrics!r}"])
    found = [_wrong(name, value) for name, value in metrics.items() if not _is_metric(name, value)]
    if len(metrics) > MOST:
        found.append(f"at most {MOST} metrics can be reduced at once, found {len(metrics)}")
    if not _is_number(weight) or not 0 <= float(weight) < math.inf:
        found.append(f"weight must be a number of at least 0, found {weight!r}")
    if found:
        raise ConfigError(found)
    parts = {}
    for name, value in metrics.items():
        finite = math.isfinite(float(value))
        parts[SUM + name] = float(value) * float(weight) if finite else 0.0
        parts[WEIGHT + name] = float(weight)
        parts[NOT_FINITE + name] = float(not finite)
    return parts


def means_of(sums: Mapping[str, float]) -> dict[str, float]:
    """The weighted mean of every metric; no number where one of them was none, or none had a weight."""
    names = [name.removeprefix(SUM) for name in sums if name.startswith(SUM)]
    return {name: _mean(sums, name) for name in sorted(names)}


def reduce(
    session: Session, inside: Inside, number: int, parts: dict[str, float], timeout_s: float
) -> dict[str, float]:
    """The sums over all replicas. A call of all workers, and of all replicas.

    Raises:
        ConfigError: a replica's workers have other metrics than worker 0.
        TsugiError: the run has failed, or not all replicas have come in time.
    """
    check_seconds("timeout_s", timeout_s)
    names = sorted(parts)
    inner = dict(zip(names, inside.sum([parts[name] for name in names]), strict=True))
    if inside.workers == 1:
        return _everywhere(session, number, inner, timeout_s)
    totals = _everywhere(session, number, inner, timeout_s) if inside.worker == 0 else inner
    values = torch.tensor([totals[name] for name in names], dtype=torch.float64)
    inside.share(values)
    return dict(zip(names, values.tolist(), strict=True))


def _everywhere(session: Session, number: int, sums: dict[str, float], timeout_s: float) -> dict[str, float]:
    deadline_s = time.monotonic() + timeout_s
    session.report(Figures(0, 0, "", number, sums))
    while time.monotonic() < deadline_s:
        session.check()
        found = session.totals(number, SLICE_S)
        if found is not None:
            return found.sums
    raise TrainingError(f"not every replica has called reduce within {timeout_s:g} s: all must, equally often")


def _mean(sums: Mapping[str, float], name: str) -> float:
    weight = sums[WEIGHT + name]
    return sums[SUM + name] / weight if weight > 0 and not sums[NOT_FINITE + name] else math.nan


def _is_metric(name: object, value: object) -> bool:
    return isinstance(name, str) and len(name) <= CHARS and _is_number(value)


def _is_number(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) or hasattr(value, "__float__")


def _wrong(name: object, value: object) -> str:
    return f"a metric has a name of at most {CHARS} characters and a number, found {str(name)[:CHARS]!r}: {value!r}"
