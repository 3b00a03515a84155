"""The range of every single field that has one: a test of its value, and the words for it; and the most it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Range = tuple[Callable[[Any], bool], str]

_AT_LEAST_0: Range = (lambda value: value >= 0, "must be at least 0")
_AT_LEAST_1: Range = (lambda value: value >= 1, "must be at least 1")
_POSITIVE: Range = (lambda value: value > 0, "must be positive")
_STEPS = "or a whole number of the fleet's steps"


def _part(value: Any) -> bool:
    """A share of the run, or steps."""
    return 0 <= value < 1 or bool(value >= 1 and value % 1 == 0)


_SEED: Range = (lambda value: 0 <= value < 2**32, "must lie in [0, 2**32)")  # what numpy takes, the strictest

RANGES: dict[str, Range] = {
    "seed": _SEED,
    "runs_dir": (lambda value: value != "", "must name a directory"),
    "data.seed": _SEED,
    "data.n_train": _AT_LEAST_0,
    "data.n_eval": (lambda value: value is None or value >= 0, "must be null or at least 0"),
    "data.n_test": _AT_LEAST_0,
    "data.max_tokens": _AT_LEAST_1,
    "data.group_by_length": (lambda value: value is None or 1 <= value <= 1024, "must be null or from 1 to 1024"),
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
    "lora.rank": _AT_LEAST_1,
    "lora.alpha": _POSITIVE,
    "lora.dropout": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "lora.layers": (
        lambda value: value is None or (value != [] and min(value) >= 0),
        "must be null or numbers of layers, from 0 on",
    ),
    "train.epochs": _POSITIVE,
    "train.max_steps": (
        lambda value: value is None or value >= 1,
        "must be null or at least 1; it counts the steps of all replicas together",
    ),
    "train.micro_batch": _AT_LEAST_1,
    "train.accumulate": _AT_LEAST_1,
    "train.batch_tokens": (lambda value: value in (None, "auto") or value >= 1, "must be null, auto or at least 1"),
    "train.lr": _POSITIVE,
    "train.warmup": (_part, f"must be a share of the run in [0, 1), {_STEPS}"),
    "train.decay": (
        lambda value: value is None or (value > 0 and _part(value)),
        f"must be null, a share of the run in (0, 1), {_STEPS}",
    ),
    "train.final_lr": (lambda value: value is None or 0 <= value <= 1, "must lie in [0, 1], or be null"),
    "train.weight_decay": _AT_LEAST_0,
    "train.beta1": (lambda value: value is None or 0 <= value < 1, "must lie in [0, 1), or be null"),
    "train.beta2": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "train.lora_plus_ratio": _POSITIVE,
    "train.embedding_lr": (lambda value: value is None or value > 0, "must be positive, or null"),
    "train.neftune": _AT_LEAST_0,
    "train.label_smoothing": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "train.dpo.beta": _POSITIVE,
    "train.dpo.label_smoothing": (lambda value: 0 <= value < 0.5, "must lie in [0, 0.5)"),
    "train.grad_clip": _AT_LEAST_0,
    "train.max_bad_batches": (
        lambda value: 0 <= value < 1 or value % 1 == 0,
        "must be a share of the run's micro-batches in [0, 1), or a whole number of them",
    ),
    "train.lease_steps": _AT_LEAST_1,
    "train.lease_ahead_s": _AT_LEAST_0,
    "train.grace_s": _POSITIVE,
    "train.checkpoint.every_s": _AT_LEAST_0,
    "train.checkpoint.keep": _AT_LEAST_1,
    "train.stop_early.patience": (lambda value: value is None or value >= 1, "must be null or at least 1"),
    "evaluate.batch": _AT_LEAST_1,
    "evaluate.max_new_tokens": _AT_LEAST_1,
    "evaluate.examples": _AT_LEAST_0,
    "evaluate.snapshots": _AT_LEAST_0,
    "fault.jitter": _AT_LEAST_0,
    "sideband.port": (lambda value: 0 <= value <= 65535, "must lie in [0, 65535]"),
    "sideband.beat_s": (lambda value: value >= 0.01, "must be at least 0.01"),  # the hub takes 200 frames a second
    "sideband.budget_bytes_s": _AT_LEAST_1,
    "sideband.metrics_port": (
        lambda value: value is None or 0 <= value <= 65535,
        "must be null or lie in [0, 65535]",
    ),
    "sideband.hub_timeout_s": _POSITIVE,
}

SECONDS = 1e7
"""Four months: clocks and system calls count further, but no wait of a run does."""
_MEMORY = "every replica holds them in memory"
_PROCESSES = "each is a process of this machine"
_FLEET = "no larger fleet has been simulated"
_SUM = "what all of a run adds up to must stay a number that every message can hold"
_SLEEP = "a longer wait is no wait"

MOST: dict[str, tuple[float, str]] = {
    "data.n_train": (10**8, _MEMORY),
    "data.n_eval": (10**8, _MEMORY),
    "data.n_test": (10**8, _MEMORY),
    "data.max_tokens": (10**7, "no model reads as many"),
    "topology.replicas": (100_000, _FLEET),
    "topology.spare": (100_000, _FLEET),
    "topology.workers": (1024, _PROCESSES),
    "topology.threads_per_worker": (4096, "no machine has as many cores"),
    "topology.max_restarts": (10**6, _SUM),
    "topology.quorum_timeout_s": (SECONDS, _SLEEP),
    "topology.silent_timeout_s": (SECONDS, _SLEEP),
    "topology.start_timeout_s": (SECONDS, _SLEEP),
    "topology.join_timeout_s": (SECONDS, _SLEEP),
    "kpool.n": (1024, "every adapter has books of its own"),
    "lora.rank": (65_536, "no matrix has a higher rank"),
    "lora.alpha": (10**12, "the scaling is alpha / rank"),
    "kpool.count": (10**6, _SUM),
    "kpool.min_steps": (10**6, _SUM),
    "kpool.max_steps": (10**6, _SUM),
    "kpool.max_staleness": (10**9, _SUM),
    "kpool.round_timeout_s": (SECONDS, _SLEEP),
    "train.epochs": (10**6, _SUM),
    "train.max_steps": (10**9, _SUM),
    "train.micro_batch": (10**6, _SUM),
    "train.warmup": (10**9, _SUM),
    "train.decay": (10**9, _SUM),
    "train.accumulate": (10**6, _SUM),
    "train.batch_tokens": (10**9, _MEMORY),
    "train.max_bad_batches": (10**9, _SUM),
    "train.lease_steps": (10**6, _SUM),
    "train.lease_ahead_s": (SECONDS, _SLEEP),
    "train.grace_s": (SECONDS, _SLEEP),
    "train.checkpoint.every_s": (SECONDS, "0 writes one at the end only"),
    "train.checkpoint.keep": (10**6, "no disk holds more"),
    "train.stop_early.patience": (10**6, "no run is evaluated as often"),
    "evaluate.batch": (10**6, _MEMORY),
    "evaluate.max_new_tokens": (10**6, "no model writes as many"),
    "evaluate.examples": (10**6, _MEMORY),
    "evaluate.snapshots": (10**4, "replica 0 holds as many copies of the pool"),
    "fault.jitter": (3, "beyond that a step takes days, sooner or later"),
    "sideband.beat_s": (SECONDS, _SLEEP),
    "sideband.hub_timeout_s": (SECONDS, _SLEEP),
    "sideband.budget_bytes_s": (10**12, _SUM),
}
"""The most that a number may be, and why. Beyond it a run would not end with an error, but not begin at all."""
