"""YAML from somebody whom we do not trust: plain values of bounded size and depth, or one line on what is wrong.

A resolved configuration has mappings, lists, texts, numbers, booleans and nulls. It never has anchors, aliases, tags
and merge keys, by which a few bytes become gigabytes or something that is no plain value.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.events import AliasEvent, NodeEvent
from yaml.nodes import MappingNode, Node

MAX_CHARS = 65_536
"""No frame of the sideband holds more."""
MAX_DEPTH = 8
"""The deepest leaf of a run's configuration stands at depth 4, an entry of a list below it at 5."""
MAX_NODES = 1_024
"""Keys and values; a run's configuration has about 250."""
_SHOWN_CHARS = 120
_PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))


class BadYaml(ValueError):
    """This text is not taken in; one line says why and where."""


def load(text: str) -> Any:
    """The plain values in a text.

    Raises:
        BadYaml: it is no YAML, too large, too deep, or says more than plain values.
    """
    if len(text) > MAX_CHARS:
        raise BadYaml(f"{len(text)} characters, at most {MAX_CHARS} are read")
    try:
        loader = _Plain(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise BadYaml(f"{line}{_short(error.problem)}") from error
    except yaml.YAMLError as error:
        raise BadYaml(_short(error)) from error
    # What PyYAML lets out of its own depths: 20 digits after \U, a number of 5,000 digits, and the like.
    except (ValueError, OverflowError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise BadYaml(f"not read as YAML ({type(error).__name__})") from error


class _Plain(yaml.SafeLoader):
    """Refuses before it builds: the depth is known before the recursion that it would take."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """One value and what is below it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            raise _refusal("an anchor or alias (& or *)", event)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _refusal(f"more than {MAX_NODES} values", event)
        if self._depth >= MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH}", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """The plain value of a node."""
        if node.tag not in _PLAIN:
            what = node.tag.rpartition(":")[2]
            raise _refusal(f"a value of kind {what!r}", node)
        value = super().construct_object(node, deep)
        if isinstance(value, str) and not _is_text(value):
            raise _refusal("half of a surrogate pair", node)
        return value

    def flatten_mapping(self, node: MappingNode) -> None:
        """What stands here is what it says: no merge keys, no key twice, and keys are texts."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refusal("a key that is no text", key)
            if key.value in seen:
                raise _refusal(f"the key {key.value[:60]!r} twice", key)
            seen.add(key.value)


def _refusal(problem: str, where: Any) -> yaml.MarkedYAMLError:
    """What is wrong at a node or event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _short(problem: object) -> str:
    return " ".join(str(problem).split())[:_SHOWN_CHARS]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
