"""What well-formed values must also fulfil: ranges of single fields, and the rules across fields of every group.

A rule runs when all fields that it reads are well-formed, so one typo never hides or invents another mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields
from typing import Any

from tsugi_kpool.core.settings import KPool

from .data import DATA_RULES
from .evaluating import EVALUATE_RULES
from .faults import FAULT_RULES
from .model import MODEL_RULES
from .network import NETWORK_RULES
from .ranges import MOST, RANGES
from .training import TRAIN_RULES

Leaves = Mapping[str, Any]
Rule = Callable[..., list[str]]

_NAME_BYTES = 100  # of the 255 that file systems allow; the run directory adds a time stamp


def broken(leaves: Leaves, unsure: AbstractSet[str] = frozenset()) -> list[str]:
    """A text for every rule that these values break.

    `unsure` names sections in which the user's words were not understood: rules across fields would judge
    values there that nobody asked for, so they stay silent.
    """
    found = [
        f"{key} {words}, found {leaves[key]!r}"
        for key, (holds, words) in RANGES.items()
        if key in leaves and not holds(leaves[key])
    ]
    found += [
        f"{key} must not exceed {most:,.0f} ({reason}), found {leaves[key]!r:.40}"
        for key, (most, reason) in MOST.items()
        if isinstance(leaves.get(key), int | float) and leaves[key] > most
    ]
    for keys, rule in RULES:
        if all(key in leaves and key.partition(".")[0] not in unsure for key in keys):
            found += rule(*(leaves[key] for key in keys))
    return found


def _name(name: str) -> list[str]:
    if re.fullmatch(r"\w[\w.+-]*", name) and len(name.encode()) <= _NAME_BYTES:
        return []
    allowed = f"letters, digits and . _ + - only, not a sign first, at most {_NAME_BYTES} bytes"
    return [f"name becomes part of a directory's name: {allowed}; found {name[:_NAME_BYTES]!r}"]


def _replicas(replicas: int, min_replicas: int) -> list[str]:
    if min_replicas > replicas >= 1:
        found = f"found {min_replicas} with {replicas} replicas"
        return [f"topology.min_replicas must not exceed topology.replicas, {found}"]
    return []


def _here(here: int | None, replicas: int) -> list[str]:
    if here is not None and not 0 <= here <= replicas:
        return [f"topology.here must lie in [0, topology.replicas] = [0, {replicas}], or be null, found {here}"]
    return []


def _workers(workers: int, micro_batch: int) -> list[str]:
    if workers > micro_batch >= 1:
        found = f"found {micro_batch} samples for {workers} workers"
        return [f"train.micro_batch is shared by a replica's workers and must not be below topology.workers, {found}"]
    return []


def _shards(workers: int, inside: str, select_at: str) -> list[str]:
    if workers > 1 and inside == "fsdp2" and select_at == "train":
        return ["kpool.select_at=train cannot be used with topology.inside=fsdp2, which cuts adapters into shards"]
    return []


_KPOOL = tuple(field.name for field in fields(KPool))

RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("name",), _name),
    *MODEL_RULES,
    *DATA_RULES,
    (("topology.replicas", "topology.min_replicas"), _replicas),
    (("topology.workers", "train.micro_batch"), _workers),
    (("topology.workers", "topology.inside", "kpool.select_at"), _shards),
    (
        tuple(f"kpool.{name}" for name in _KPOOL),
        lambda *values: KPool(**dict(zip(_KPOOL, values, strict=True))).problems(),
    ),
    *TRAIN_RULES,
    *EVALUATE_RULES,
    (("topology.here", "topology.replicas"), _here),
    *NETWORK_RULES,
    *FAULT_RULES,
)
