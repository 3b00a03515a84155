"""YAML that somebody else may have written: how deep it goes and what it unfolds to is known before it is built."""

from __future__ import annotations

from typing import Any

import yaml

from tsugi_kpool.errors import ConfigError

MOST_BYTES = 1 << 20
"""A run's config.yaml has some 4 kB."""
DEEPEST = 32
"""The settings go three levels deep; parsers and printers recurse."""
MOST_NODES = 100_000
"""With every alias counted as what it stands for: nine lines of aliases unfold to a billion values."""

UNBUILT = (ValueError, OverflowError, TypeError, LookupError, AttributeError)
"""What PyYAML lets out of a value that is not what its tag says: a number, a date, `!!int` of nothing."""


def load(text: str, where: str) -> Any:
    """The plain tree that a YAML text stands for.

    Raises:
        ConfigError: it is no YAML, or beyond the bounds; names line and reason.
    """
    check(text, where)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"{where}: {reason(error)}"]) from error
    except UNBUILT as error:
        raise ConfigError(
            [f"{where}: a value cannot be built ({type(error).__name__}: {str(error)[:200]})"]
        ) from error


def check(text: str, where: str) -> None:
    """Refuse a text that is no YAML, goes too deep, or unfolds to too much.

    Raises:
        ConfigError: names line and reason.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError([f"{where}: longer than {MOST_BYTES} characters"])
    try:
        line = _beyond(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"{where}: {reason(error)}"]) from error
    if line is not None:
        raise ConfigError([f"{where}: line {line}: more than {DEEPEST} levels deep, or over {MOST_NODES} values"])


def reason(error: yaml.YAMLError) -> str:
    """What is wrong, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _beyond(text: str) -> int | None:
    """The line at which the text goes beyond a bound; None when it stays inside. Events come without recursion."""
    open_: list[tuple[str | None, int]] = []  # (anchor, nodes before it) of the collections around this event
    sizes: dict[str, int] = {}
    nodes, endless = 0, False
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            endless = any(anchor == event.anchor for anchor, _ in open_)  # it stands inside of what it stands for
            nodes += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = nodes - before
        if endless or nodes > MOST_NODES or len(open_) > DEEPEST:
            return event.start_mark.line + 1 if event.start_mark else 1
    return None
