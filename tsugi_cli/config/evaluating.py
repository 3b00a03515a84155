"""What the settings of evaluation while training must fulfil together."""

from __future__ import annotations

import re
from collections.abc import Callable

from tsugi_kpool.core.evaluation import Every, parse

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How a function is named."""
Often = int | float | str | None


def every(setting: Often) -> Every | None:
    """`evaluate.every` as the hub takes it; None: nobody evaluates while the run trains.

    Raises:
        ValueError: it says nothing of the kind.
    """
    return None if setting is None else parse(str(setting))


def _every(setting: Often) -> list[str]:
    try:
        every(setting)
    except ValueError:
        ways = "steps of the fleet (200), a share of the run (5% or 0.05), a time (10min, 90s, 1h) or null"
        return [f"evaluate.every must be {ways}, found {setting!r:.60}"]
    return []


def _needs(patience: int | None, best: bool, setting: Often) -> list[str]:
    given = {f"train.stop_early.patience={patience}": patience is not None, "train.checkpoint.best=true": best}
    ways = "which is null: set it, such as evaluate.every=10%"
    return [f"{key} needs evaluate.every, {ways}" for key in given if given[key] and setting is None]


def _split(n_eval: int | None, file: object, builder: str | None, setting: Often) -> list[str]:
    if setting is None or n_eval != 0 or (file and not builder):
        return []
    return [f"evaluate.every={setting} has nothing to measure: data.n_eval is 0, and data.eval names no file"]


def _metric(target: str | None, objective: str, n_eval: int | None, file: object, builder: str | None) -> list[str]:
    if target is None:
        return []
    if not FUNCTION.fullmatch(target):
        return [f'evaluate.metric must be "package.module:function", found {target!r:.60}']
    if objective == "dpo":
        return [f"evaluate.metric={target} is for train.objective=sft; of pairs margin and accuracy are measured"]
    if n_eval == 0 and (builder or not file):
        return [f"evaluate.metric={target} has nothing to measure: data.n_eval is 0, and data.eval names no file"]
    return []


def _shards(workers: int, inside: str, setting: Often) -> list[str]:
    """One worker evaluates; a shard alone computes nothing."""
    if setting is None or workers == 1 or inside != "fsdp2":
        return []
    return [f"evaluate.every={setting} cannot be used with topology.inside=fsdp2: take ddp, or evaluate.every=null"]


def _here(best: bool, here: int | None) -> list[str]:
    if best and here == 0:
        return [
            "train.checkpoint.best=true needs a replica on this machine, which writes checkpoints; topology.here is 0"
        ]
    return []


EVALUATE_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("evaluate.every",), _every),
    (("train.stop_early.patience", "train.checkpoint.best", "evaluate.every"), _needs),
    (("data.n_eval", "data.eval", "data.builder", "evaluate.every"), _split),
    (("evaluate.metric", "train.objective", "data.n_eval", "data.eval", "data.builder"), _metric),
    (("topology.workers", "topology.inside", "evaluate.every"), _shards),
    (("train.checkpoint.best", "topology.here"), _here),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
