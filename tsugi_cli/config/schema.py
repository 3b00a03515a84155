"""From a plain tree to a RunSpec: every leaf checked against the dataclasses, every mistake collected."""

from __future__ import annotations

import math
import types
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from tsugi_kpool.core.settings import withdrawn
from tsugi_kpool.errors import ConfigError

from . import names, rules
from .renamed import now_called
from .spec import RunSpec

Leaves = dict[str, Any]
"""Dotted key -> well-formed value; a key that is absent was wrong and has been reported."""

_MISSING = "???"  # OmegaConf's mark for "the user must give this"
_LONGEST_SHOWN = 60
_LONGEST_KEY = 100
"""Nobody has meant one of ours with a longer one, and to compare takes time with the square of its length."""
_MOST_UNKNOWN = 20
"""Unknown keys of a section that are named one by one."""


def build_spec(tree: Any) -> RunSpec:
    """Build a run's spec from a plain tree, such as a loaded config.resolved.yaml. Looks at no file.

    Raises ConfigError with all mistakes.
    """
    leaves, problems = read_tree(tree)
    problems += rules.broken(leaves)
    if problems:
        raise ConfigError(problems)
    return assemble(leaves)


def read_tree(tree: Any) -> tuple[Leaves, list[str]]:
    """All well-formed leaves of the tree, and a text for everything else."""
    leaves: Leaves = {}
    problems: list[str] = []
    _read_section(RunSpec, tree, "", leaves, problems)
    return leaves, problems


def assemble(leaves: Leaves) -> RunSpec:
    """Make the dataclasses; every leaf must be there.

    What a setting takes from another is written down here, once: a resumed run has it from its own file, even where
    the other setting is changed.
    """
    if leaves["data.group_by_length"] is None:
        leaves = {**leaves, "data.group_by_length": leaves["train.micro_batch"]}
    if leaves["train.objective"] == "dpo":
        leaves = {**leaves, "data.format": "preference"}
    return cast(RunSpec, _assemble(RunSpec, "", leaves))


@cache
def leaf_types() -> dict[str, Any]:
    """Dotted key -> type, in the order of the dataclasses."""
    return dict(_walk(RunSpec, ""))


def nearest_keys(key: str, others: tuple[str, ...] = ()) -> list[str]:
    """The keys that somebody who wrote `key` may have meant, best first; none when nothing is near."""
    if len(key) > _LONGEST_KEY:
        return []
    if (parent := key.rpartition(".")[0]) in leaf_types():
        return [parent]
    keys = [*leaf_types(), *others]
    wanted = key.casefold()
    section, _, last = wanted.rpartition(".")
    section = next(iter(get_close_matches(section, _sections(), n=1)), section)
    siblings = {_last(known): known for known in keys if section and known.startswith(f"{section}.")}
    # Letter case first: "K" is as far from "n" as from "k".
    if close := [last] if last in siblings else get_close_matches(last, siblings, n=1):
        return [siblings[close[0]]]
    if same_last := [known for known in keys if _last(known) == last]:
        return same_last
    if not section and (close := get_close_matches(wanted, keys, n=1)):
        return close
    lasts = {_last(known): known for known in keys}
    return [lasts[name] for name in get_close_matches(last, lasts, n=1, cutoff=0.75)]


def no_such_key(key: str, others: tuple[str, ...] = ()) -> str:
    """The text for an unknown key, with what may have been meant."""
    if len(key) > _LONGEST_KEY:
        key = f"{key[: _LONGEST_KEY - 3]}..."
    if renamed := now_called(key):
        return renamed
    if (text := names.ours(key)) is not None:
        return text
    if near := nearest_keys(key, others):
        return f"{key}: no such key; did you mean {' or '.join(near)}?"
    section = key.partition(".")[0]
    if section in _sections():
        inside = [name.removeprefix(f"{section}.") for name in leaf_types() if name.startswith(f"{section}.")]
        return f"{key}: no such key; {section} has {', '.join(inside)}"
    return f"{key}: no such key; there are {', '.join(hints_of(RunSpec))}"


def did_you_mean(wrong: str, known: list[str]) -> str:
    """ "; did you mean X?", or nothing when nothing is near."""
    folded = {name.casefold(): name for name in known}
    # "tyni" is 0.5 from "tiny"
    close = get_close_matches(wrong.casefold(), folded, n=1, cutoff=0.5) if len(wrong) <= _LONGEST_KEY else []
    return f"; did you mean {folded[close[0]]}?" if close else ""


def choices(hint: Any) -> list[str]:
    """The words that this type allows: of an enum or a Literal, also inside a union."""
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return [member.value for member in hint]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for part in _union(hint) for word in choices(part)] if len(_union(hint)) > 1 else []


def takes_text(hint: Any) -> bool:
    """Whether any text at all is a value of this type."""
    return str in _union(hint)


def takes_list(hint: Any) -> bool:
    """Whether a list is a value of this type."""
    return any(get_origin(part) is list for part in _union(hint))


def takes_numbers(hint: Any) -> bool:
    """Whether a list of whole numbers is a value of this type."""
    return any(part == list[int] for part in _union(hint))


def _union(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _sections() -> list[str]:
    return [name for name, hint in hints_of(RunSpec).items() if is_dataclass(hint)]


def hints_of(cls: Any) -> dict[str, Any]:
    """Field -> type, of a dataclass of settings."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _walk(cls: Any, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, hint in hints_of(cls).items():
        key = prefix + name
        found += _walk(hint, f"{key}.") if is_dataclass(hint) else [(key, hint)]
    return found


def _read_section(cls: Any, node: Any, prefix: str, leaves: Leaves, problems: list[str]) -> None:
    hints = hints_of(cls)
    if not isinstance(node, dict):
        where = prefix.rstrip(".") or "the configuration"
        problems.append(f"{where}: expected a section with {', '.join(hints)}; found {_shown(node)}")
        return
    unknown = [f"{prefix}{name}" for name in node if name not in hints]
    problems += [no_such_key(key) for key in unknown[:_MOST_UNKNOWN]]
    if len(unknown) > _MOST_UNKNOWN:
        problems.append(f"... and {len(unknown) - _MOST_UNKNOWN} more keys that there are not")
    for name, hint in hints.items():
        key = prefix + name
        value = node.get(name, _MISSING)
        if value == _MISSING:
            wanted = f"{key}={'.' * 3}" if not is_dataclass(hint) else f"the section {key}"
            problems.append(f"{key} is missing: give {wanted}")
        elif is_dataclass(hint):
            _read_section(hint, value, f"{key}.", leaves, problems)
        else:
            read_leaf(key, hint, value, leaves, problems)


def read_leaf(key: str, hint: Any, value: Any, leaves: Leaves, problems: list[str], typed: bool = True) -> None:
    """Add a well-formed value to the leaves, or a text to the problems.

    Args:
        key: Its whole name.
        hint: The type of its field.
        value: What was found.
        leaves: Where it goes.
        problems: Or why it does not.
        typed: False for text as a user has typed it, which may stand for a number.
    """
    try:
        converted = msgspec.convert(value, hint, strict=typed)
    except (msgspec.ValidationError, RecursionError):
        problems.append(_wrong_entry(key, hint, value, typed) or _wrong(key, hint, value))
        return
    # Infinity and NaN pass every type check, slip through comparisons, and have no JSON form.
    if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(converted)):
        problems.append(_wrong(key, hint, value))
    elif any(isinstance(part, int) and abs(part) >= 2**63 for part in _parts(converted)):
        problems.append(f"{key}: {_shown(value)} does not fit into 64 bits")
    elif any(isinstance(text, str) and "\0" in text for text in _parts(converted)):
        problems.append(f"{key}: {_shown(value)} has a NUL, which no path and no command line can hold")
    else:
        leaves[key] = converted


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _wrong_entry(key: str, hint: Any, value: Any, typed: bool) -> str | None:
    """What is wrong with the first bad entry of a list; None where the list as such is, or where it holds texts."""
    kinds = [get_args(part)[0] for part in _union(hint) if get_origin(part) is list]
    if not isinstance(value, list) or not kinds or kinds[0] is str:
        return None
    for entry in value:
        try:
            msgspec.convert(entry, kinds[0], strict=typed)
        except (msgspec.ValidationError, RecursionError):
            return _wrong(key, kinds[0], entry)
    return None


def _wrong(key: str, hint: Any, value: Any) -> str:
    words = choices(hint)
    hint_text = (
        withdrawn(key, value)
        or names.not_offered(key, value)
        or (did_you_mean(value, words) if isinstance(value, str) else "")
    )
    if words and len(words) == len(_expected(hint)):
        return f"{key}: found {_shown(value)}, allowed: {', '.join(words)}{hint_text}"
    if not hint_text and isinstance(value, int | float) and takes_text(hint):
        hint_text = "; put it in quotes"
    if not hint_text and isinstance(value, list) and list[str] in _union(hint):
        hint_text = '; in YAML, put quotes around each, as in ["1:4.0"]'  # which YAML 1.1 reads as 64.0
    return f"{key}: expected {' or '.join(_expected(hint))}, found {_shown(value)}{hint_text}"


def _expected(hint: Any) -> list[str]:
    parts = _union(hint)
    if len(parts) > 1:
        return [text for part in parts for text in _expected(part)]
    if words := choices(hint):
        return words
    plain = {bool: "true or false", type(None): "null"}
    if get_origin(hint) is list:
        return [f"a list of {' or '.join(_expected(get_args(hint)[0]))}"]
    return [plain.get(hint, hint.__name__)]


def _shown(value: Any) -> str:
    """The value as its writer knows it, shortened."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _assemble(cls: Any, prefix: str, leaves: Leaves) -> Any:
    made = {
        name: _assemble(hint, f"{prefix}{name}.", leaves) if is_dataclass(hint) else leaves[prefix + name]
        for name, hint in hints_of(cls).items()
    }
    return cls(**made)
