"""When a run is evaluated while it trains, which version is the best, and when it stops early. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .messages import Evaluated

_EVERY = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(%|steps?|min|m|h|s)?", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
MOST = 1e9
_STAGE = re.compile(r"v(\d{6,18})", re.ASCII)


class Unit(StrEnum):
    """How far a run has come, counted in one of these."""

    STEPS = "steps"
    """Steps of the whole fleet."""
    SECONDS = "seconds"
    SHARE = "share"
    """Of the run's samples."""


@dataclass(frozen=True)
class Every:
    """An evaluation is due each time that a run has come so much further."""

    amount: float
    unit: Unit


def parse(text: str) -> Every:
    """Read `evaluate.every`: "200" steps, "10min" or "5%" of the run; a number below 1 is a share, too.

    Raises:
        ValueError: it is none of these.
    """
    found = _EVERY.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    amount, unit = float(found[1]), found[2] or ""
    if unit == "%" or (not unit and amount < 1):
        every = Every(amount / 100 if unit else amount, Unit.SHARE)
    elif unit in _SECONDS:
        every = Every(amount * _SECONDS[unit], Unit.SECONDS)
    else:
        every = Every(amount, Unit.STEPS)
    if not 0 < every.amount <= (1 if every.unit is Unit.SHARE else MOST):
        raise ValueError(text)
    return every


def due(every: Every, at: float, newest: float) -> bool:
    """Whether a run that stands `at` and was last evaluated at `newest` has passed another multiple of `every`."""
    return math.floor(at / every.amount) > math.floor(newest / every.amount)


def slowest(seconds_per_token: Mapping[int, float]) -> int | None:
    """Return the replica whose tokens take longest: its steps are missed least. Of equals the last one."""
    return max(seconds_per_token, key=lambda replica: (seconds_per_token[replica], replica), default=None)


def stage_of(version: int) -> str:
    """The stage of an evaluation while training: the version that was measured."""
    return f"v{version:06d}"


def version_in(stage: str) -> int | None:
    """The version of such a stage; None for the stages before and after training."""
    found = _STAGE.fullmatch(stage)
    return int(found[1]) if found else None


def loss_of(sums: Mapping[str, float]) -> float:
    """Loss per supervised token; infinite where nothing was measured, or no number came out."""
    tokens = sums.get("loss_tokens", 0.0)
    loss = sums.get("loss_sum", math.nan) / tokens if tokens > 0 else math.nan
    return loss if math.isfinite(loss) else math.inf


def finite_loss(sums: Mapping[str, float]) -> float | None:
    """The same as an event has it: None where it is no number."""
    loss = loss_of(sums)
    return loss if math.isfinite(loss) else None


def losses(evaluations: Mapping[tuple[str, int], Evaluated]) -> dict[int, float]:
    """Loss of each version that was evaluated while training, in the order of the versions.

    Args:
        evaluations: By stage and replica.
    """
    known = {
        version: loss_of(each.sums)
        for (stage, _), each in evaluations.items()
        if (version := version_in(stage)) is not None
    }
    return dict(sorted(known.items()))


def best(losses: Mapping[int, float]) -> int | None:
    """Return the version with the lowest loss, the first of equals; None before any has one."""
    known = {version: loss for version, loss in losses.items() if loss < math.inf}
    return min(known, key=lambda version: (known[version], version), default=None)


def worse_since(losses: Sequence[float]) -> int:
    """How many evaluations in a row, up to the newest, have found no lower loss than the best before them."""
    if not losses:
        return 0
    return len(losses) - 1 - losses.index(min(losses))
