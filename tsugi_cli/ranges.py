"""The range of every single field that has one: a test of its value, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Range = tuple[Callable[[Any], bool], str]

_AT_LEAST_0: Range = (lambda value: value >= 0, "must be at least 0")
_AT_LEAST_1: Range = (lambda value: value >= 1, "must be at least 1")
_POSITIVE: Range = (lambda value: value > 0, "must be positive")
_SEED: Range = (lambda value: 0 <= value < 2**32, "must lie in [0, 2**32)")  # what numpy takes, the strictest

RANGES: dict[str, Range] = {
    "seed": _SEED,
    "runs_dir": (lambda value: value != "", "must name a directory"),
    "data.seed": _SEED,
    "data.n_train": _AT_LEAST_0,
    "data.n_eval": _AT_LEAST_0,
    "data.n_test": _AT_LEAST_0,
    "data.max_tokens": _AT_LEAST_1,
    "topology.replicas": _AT_LEAST_1,
    "topology.workers": _AT_LEAST_1,
    "topology.threads_per_worker": _AT_LEAST_1,
    "topology.min_replicas": _AT_LEAST_1,
    "topology.quorum_timeout_s": _AT_LEAST_0,
    "topology.silent_timeout_s": _POSITIVE,
    "topology.max_restarts": _AT_LEAST_0,
    "topology.spare": _AT_LEAST_0,
    "topology.start_timeout_s": _POSITIVE,
    "topology.join_timeout_s": _POSITIVE,
    "train.epochs": _POSITIVE,
    "train.max_micro_steps": (lambda value: value is None or value >= 1, "must be null or at least 1"),
    "train.micro_batch": _AT_LEAST_1,
    "train.lr": _POSITIVE,
    "train.warmup": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "train.final_lr": (lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
    "train.weight_decay": _AT_LEAST_0,
    "train.beta2": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "train.grad_clip": _AT_LEAST_0,
    "train.lease_micro_steps": _AT_LEAST_1,
    "train.lease_ahead_s": _AT_LEAST_0,
    "train.grace_s": _POSITIVE,
    "train.checkpoint.every_s": _AT_LEAST_0,
    "train.checkpoint.keep": _AT_LEAST_1,
    "evaluate.batch": _AT_LEAST_1,
    "evaluate.max_new_tokens": _AT_LEAST_1,
    "evaluate.examples": _AT_LEAST_0,
    "evaluate.snapshots": _AT_LEAST_0,
    "fault.jitter": _AT_LEAST_0,
    "sideband.port": (lambda value: 0 <= value <= 65535, "must lie in [0, 65535]"),
    "sideband.beat_s": _POSITIVE,
    "sideband.budget_bytes_s": _POSITIVE,
    "sideband.metrics_port": (
        lambda value: value is None or 0 <= value <= 65535,
        "must be null or lie in [0, 65535]",
    ),
    "sideband.hub_timeout_s": _POSITIVE,
}
