"""The settings of a run that are not the defaults, by its recipe or its user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tsugi_cli.config import compat, documents
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.foreign import read_plain

from .facts import Changed

TITLES = frozenset(("name", "about"))
"""Keys that say nothing of how a run trains."""


def changed(paths: RunPaths) -> list[Changed]:
    """Return them in the order of config.yaml.

    Raises:
        ConfigError: there is no configuration, or it cannot be read.
    """
    try:
        text = read_plain(paths.config, documents.MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigError([f"{paths.config.name}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{paths.config.name}: no UTF-8"]) from error
    return differing(documents.load(text, paths.config.name))


def differing(tree: Any) -> list[Changed]:
    """Return what differs in a run's tree; keys that an earlier version lacked have their default."""
    if not isinstance(tree, dict):
        raise ConfigError(["config.yaml: no mapping"])
    usual = dict(_leaves(compat.defaults()))
    try:
        whole, _ = compat.completed(tree)
    except (TypeError, KeyError, AttributeError) as error:  # a tree of another shape than any version has written
        raise ConfigError([f"config.yaml: not a run's configuration ({type(error).__name__})"]) from error
    return [
        Changed(key, _words(usual[key]) if key in usual else "none", _words(value))
        for key, value in _leaves(whole)
        if key not in TITLES and (key not in usual or usual[key] != value)
    ]


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False, default=str)
