"""Settings that have no effect beside others: who has set one is told. Pure.

What cannot be meant is refused (rules.py). What is only of no use here may stand: a recipe may be for several places,
and a run may be resumed elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tsugi_kpool.core.settings import Mode, Payload, Trigger

from .compat import defaults
from .compose import to_tree
from .data_plane import EXCHANGE, data_plane
from .spec import RunSpec


@dataclass(frozen=True)
class Idle:
    """Settings that do nothing in some runs."""

    keys: tuple[str, ...]
    where: Callable[[RunSpec], bool]
    why: str


def _exchange(spec: RunSpec) -> bool:
    return data_plane(spec) == EXCHANGE


def _elsewhere(spec: RunSpec) -> bool:
    """Whether the run waits for replicas from other machines."""
    return spec.topology.here is not None and spec.topology.here < spec.topology.replicas


IDLE: tuple[Idle, ...] = (
    Idle(
        ("kpool.round_quorum", "kpool.round_grace_s"),
        lambda spec: not _exchange(spec),
        "replicas send to each other (topology.data_plane=group), and a round takes all of them",
    ),
    Idle(("kpool.reduce",), _exchange, "an exchange sums for all"),
    Idle(("kpool.max_staleness",), lambda spec: spec.kpool.mode is Mode.LOCAL, "kpool.mode=local discards nothing"),
    Idle(
        ("kpool.eps",), lambda spec: spec.kpool.trigger is Trigger.COUNT, "kpool.trigger=count fires by kpool.count"
    ),
    Idle(
        ("kpool.error_feedback",),
        lambda spec: spec.kpool.payload is Payload.FP32,
        "kpool.payload=fp32 loses nothing that could be kept",
    ),
    Idle(("kpool.routing",), lambda spec: spec.kpool.k == spec.kpool.n, "each round ships all adapters (kpool.k)"),
    Idle(("topology.inside",), lambda spec: spec.topology.workers == 1, "a replica has one worker"),
    Idle(
        ("topology.ssh", "topology.remote_tsugi"),
        lambda spec: not spec.topology.hosts,
        "topology.hosts names no machine to start replicas on",
    ),
    Idle(("topology.start_timeout_s",), _elsewhere, "replicas join from elsewhere, for topology.join_timeout_s"),
    Idle(
        ("topology.join_timeout_s",),
        lambda spec: not _elsewhere(spec) and spec.topology.hosts == [],
        "all replicas that the run waits for start here",
    ),
    Idle(
        ("sideband.metrics_bind",), lambda spec: spec.sideband.metrics_port is None, "sideband.metrics_port is null"
    ),
    Idle(("fault.jitter",), lambda spec: not spec.fault.step_s, "fault.step_s is empty"),
)


def notes(spec: RunSpec) -> list[str]:
    """Return a note for each setting that is not at its default and has no effect in this run."""
    usual, tree = defaults(), to_tree(spec)
    return [
        f"{key}={_text(_at(tree, key))} has no effect here: {each.why}"
        for each in IDLE
        if each.where(spec)
        for key in each.keys
        if _at(tree, key) != _at(usual, key)
    ]


def _at(tree: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return tree[section][name]


def _text(value: Any) -> str:
    """Return a value as a user writes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
