"""Settings that had another name in earlier versions: a run's own file is read by them, and who types one is told."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

RENAMED = {
    "bench.micro_steps": "bench.steps",
    "fault.micro_step_s": "fault.step_s",
    "kpool.hold_s": "kpool.fire_delay_s",
    "kpool.max_micro": "kpool.max_steps",
    "kpool.min_micro": "kpool.min_steps",
    "train.lease_micro_steps": "train.lease_steps",
    "train.max_micro_steps": "train.max_steps",
}
"""Old key -> the key that means the same now (docs/decisions/0039)."""


def now_called(key: str) -> str:
    """What a user is told who has written this old key; empty for every other one."""
    new = RENAMED.get(key)
    return f"{key} has another name: write {new}, which means the same" if new else ""


UNSAID = {"data.group_by_length": 1}
"""What earlier versions did, where the default is something else now and would make it another training."""


def renewed(tree: MutableMapping[str, Any]) -> None:
    """Give the old keys of a run's own tree their new names, in place. Where both stand there, the new one counts.

    A setting of `UNSAID` that is younger than the run gets the value that the run had without saying so.
    """
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        inside = tree.get(section)
        if isinstance(inside, MutableMapping) and name in inside:
            value = inside.pop(name)
            inside.setdefault(new.partition(".")[2], value)
    for key, value in UNSAID.items():
        section, _, name = key.partition(".")
        inside = tree.get(section)
        if isinstance(inside, MutableMapping):
            inside.setdefault(name, value)


def old_keys(tree: Any) -> list[str]:
    """The old keys that stand in a tree, such as a user's recipe."""
    if not isinstance(tree, Mapping):
        return []
    sections = {name: inside for name, inside in tree.items() if isinstance(inside, Mapping)}
    return [old for old in RENAMED if old.partition(".")[2] in sections.get(old.partition(".")[0], {})]
