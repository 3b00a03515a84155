"""Settings of a run that an earlier version has written: what has come since, or gone, takes its default."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from tsugi_kpool.core.settings import WITHDRAWN, withdrawn

from . import overrides as typed
from .renamed import renewed

LATER = frozenset(("eval", "test", "mix", "format", "columns", "split", "subset", "revision"))
"""Of the keys of `data` that say what is read: a run from before them had none, which is their default."""
NEVER = frozenset(f"{group}.{name}" for group, names in typed.NAMED.items() for name in {*names} - LATER)
"""Which model and which data a run had, no default can say."""


def completed(tree: Any) -> tuple[Any, list[str]]:
    """A copy of a run's tree by the names of now, with conf/'s values for all keys that it lacks; and those keys.

    Values that have gone are replaced, too: `resume=` still names each, because it composes the run's own file again,
    but whoever gives another value can go on from the run's checkpoints.
    """
    whole = copy.deepcopy(tree)
    if not isinstance(whole, dict):
        return whole, []
    renewed(whole)
    usual = defaults()
    lacking = _fill(whole, usual, "")
    _replace_withdrawn(whole, usual)
    return whole, lacking


def defaults() -> dict[str, Any]:
    """conf/config.yaml with the options that it chooses."""
    tree = _load("config")
    chosen = [pair for entry in tree.pop("defaults") if isinstance(entry, dict) for pair in entry.items()]
    return tree | {group: _load(f"{group}/{option}") for group, option in chosen}


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((typed.conf_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def _fill(node: dict[str, Any], defaults: dict[str, Any], prefix: str) -> list[str]:
    lacking = []
    for name, value in defaults.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            inside = node.setdefault(name, {})
            lacking += _fill(inside, value, f"{key}.") if isinstance(inside, dict) else []
        elif name not in node and key not in NEVER:
            node[name] = value
            lacking.append(key)
    return lacking


def _replace_withdrawn(whole: dict[str, Any], defaults: dict[str, Any]) -> None:
    for key in WITHDRAWN:
        group, _, name = key.partition(".")
        section = whole[group]
        if isinstance(section, dict) and withdrawn(key, section[name]):
            section[name] = defaults[group][name]
