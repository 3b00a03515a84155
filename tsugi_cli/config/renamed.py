"""Settings of earlier versions that have another name now, or none: runs are read by them, who types one is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

RENAMED = {
    "bench.micro_steps": "bench.steps",
    "fault.micro_step_s": "fault.step_s",
    "kpool.hold_s": "kpool.fire_delay_s",
    "kpool.lora_alpha": "lora.alpha",
    "kpool.max_micro": "kpool.max_steps",
    "kpool.min_micro": "kpool.min_steps",
    "kpool.r": "lora.rank",
    "kpool.target_modules": "lora.target_modules",
    "train.lease_micro_steps": "train.lease_steps",
    "train.max_micro_steps": "train.max_steps",
}
"""Old key -> the key that means the same now (docs/decisions/0039)."""

SCALE_LR = "train.scale_lr"
GONE = {
    SCALE_LR: (
        f"{SCALE_LR} has gone: train.optimizer=auto takes train.lr as the rate of synchronous steps, whatever the "
        "number of replicas; with train.optimizer=adamw multiply train.lr by sqrt(replicas) yourself"
    )
}
"""Old key -> what a user is told who has written it."""

BY_ADAPTER = frozenset(("kpool.r", "kpool.lora_alpha"))
"""Numbers of one adapter of the pool. Now they are those of the whole LoRA: kpool.n times as much."""

N = "kpool.n"


def now_called(key: str) -> str:
    """What a user is told who has written this old key; empty for every other one."""
    if key in GONE:
        return GONE[key]
    new = RENAMED.get(key)
    means = f"of the whole LoRA: {N} times as much" if key in BY_ADAPTER else "which means the same"
    return f"{key} has another name: write {new}, {means}" if new else ""


UNSAID = {"data.group_by_length": 1, "train.optimizer": "adamw", "kpool.reduce": "gather"}
"""What earlier versions did, where the default is something else now and would make it another training."""


def renewed(tree: MutableMapping[str, Any]) -> None:
    """Give the old keys of a run's own tree their new names, in place. Where both stand there, the new one counts.

    A setting of `UNSAID` that is younger than the run gets the value that the run had without saying so, and the rate
    of one with `train.scale_lr=true` is the one that it had.
    """
    _without_scale_lr(tree)
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        inside = tree.get(section)
        if isinstance(inside, MutableMapping) and name in inside:
            value, (home, _, now) = inside.pop(name), new.partition(".")
            there = tree.setdefault(home, {})
            if isinstance(there, MutableMapping):
                tree[home].setdefault(now, _of_the_whole(value, inside.get("n")) if old in BY_ADAPTER else value)
    for key, value in UNSAID.items():
        section, _, name = key.partition(".")
        inside = tree.get(section)
        if isinstance(inside, MutableMapping):
            inside.setdefault(name, value)


def _without_scale_lr(tree: MutableMapping[str, Any]) -> None:
    """Take the setting out; true: local mode took sqrt(replicas) times `train.lr`."""
    train, pool, fleet = (tree.get(section) for section in ("train", "kpool", "topology"))
    if not isinstance(train, MutableMapping) or train.pop(SCALE_LR.partition(".")[2], False) is not True:
        return
    local = isinstance(pool, Mapping) and pool.get("mode") == "local"
    replicas = fleet.get("replicas") if isinstance(fleet, Mapping) else None
    lr = train.get("lr")
    if local and isinstance(replicas, int) and isinstance(lr, int | float) and replicas > 0:
        train["lr"] = lr * math.sqrt(replicas)


def _of_the_whole(value: Any, n: Any) -> Any:
    """One adapter's number as that of all. What is no number stays, and is told as one that is wrong."""
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (value, n))
    return value * n if numbers else value


def renewed_tokens(tokens: Sequence[str], n: Callable[[list[str]], int]) -> list[str]:
    """What was once typed for a benchmark, with the names that its keys have now; none of those that have gone, which
    had no effect there.

    Args:
        tokens: key=value, each.
        n: Size of the pool of a run that is described by these tokens. Asked only where it matters.
    """
    pairs = [token.partition("=") for token in tokens]
    plain = [
        f"{RENAMED.get(key, key)}{equals}{value}"
        for key, equals, value in pairs
        if key not in BY_ADAPTER and key not in GONE
    ]
    numbers = [(RENAMED[key], value) for key, _, value in pairs if key in BY_ADAPTER]
    said = dict(token.split("=", 1) for token in plain if token.startswith(f"{N}="))
    return plain + [f"{key}={float(value) * int(said.get(N) or n(plain)):g}" for key, value in numbers]


def old_keys(tree: Any) -> list[str]:
    """The old keys that stand in a tree, such as a user's recipe."""
    if not isinstance(tree, Mapping):
        return []
    sections = {name: inside for name, inside in tree.items() if isinstance(inside, Mapping)}
    return [old for old in (*RENAMED, *GONE) if old.partition(".")[2] in sections.get(old.partition(".")[0], {})]
