"""Every setting of a run with its type, default, range and meaning, from where each of these is written down."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from tsugi_kpool.core.settings import Level

from . import compat, schema
from . import overrides as typed
from .ranges import MOST, RANGES
from .spec import RunSpec

UNKNOWN = "?"
"""A key that conf/ has no value for."""
COMMENT = re.compile(r"^\s*(\w+):[^#]*?\s#\s+(.*)$")


@dataclass(frozen=True)
class Setting:
    """One key.

    Attributes:
        key: Dotted, such as "train.lr".
        kind: What a value is: "int", "bfloat16 | float32", "a list of str".
        default: As YAML; of the default recipe's groups, before the recipe changes it.
        allowed: The range in words; empty where every value of the kind is.
        about: What it does.
        basic: One of those that somebody sets who knows the model, the data and the machines.
    """

    key: str
    kind: str
    default: str
    allowed: str
    about: str
    basic: bool


@cache
def settings() -> tuple[Setting, ...]:
    """All settings, in the order of the specification."""
    defaults, comments = compat.defaults(), _comments()
    return tuple(
        Setting(
            key=key,
            kind=_kind(hint),
            default=_default(defaults, key),
            allowed=_allowed(key),
            about=about or comments.get(key, ""),
            basic=basic,
        )
        for key, hint, about, basic in _walk(RunSpec, "")
    )


def search(word: str) -> list[Setting]:
    """The settings whose key has this word in it, else those whose text has."""
    wanted = word.casefold()
    found = [each for each in settings() if wanted in each.key.casefold()]
    return found or [each for each in settings() if wanted in f"{each.about} {each.kind}".casefold()]


def lines(found: Sequence[Setting]) -> Iterator[str]:
    """Settings as a person reads them: two lines for each."""
    for each in found:
        bounds = f"; {each.allowed}" if each.allowed else ""
        yield f"{each.key} = {each.default}   ({each.kind}{bounds})"
        yield f"    {each.about}"


def nothing(word: str) -> str:
    """What to say of a word that is in no setting."""
    near = schema.nearest_keys(word)
    return f"{word}: no setting has this word{f'; did you mean {near[0]}?' if near else ''}"


def _walk(cls: Any, prefix: str) -> Iterator[tuple[str, Any, str, bool]]:
    hints, texts = get_type_hints(cls, include_extras=True), _texts(cls)
    for field in fields(cls):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint):
            yield from _walk(hint, f"{key}.")
        else:
            plain, *marks = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
            yield key, plain, texts.get(field.name, ""), Level.BASIC in marks


def _texts(cls: Any) -> dict[str, str]:
    """Field -> the docstring under it."""
    (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    found: dict[str, str] = {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _comments() -> dict[str, str]:
    """Key -> the comment behind its value in conf/, for settings that say no more than their name."""
    found: dict[str, str] = {}
    for path in sorted(typed.conf_dir().glob("**/*.yaml"), reverse=True):
        section = "" if path.parent == typed.conf_dir() else f"{path.parent.name}."
        inner = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                inner = f"{line.partition(':')[0]}." if line.rstrip().endswith(":") else ""
            if match := COMMENT.match(line):
                found[f"{section}{inner}{match[1]}"] = match[2].rstrip(". ")
    return found


def _kind(hint: Any) -> str:
    if get_origin(hint) is list:
        return "a list of str"
    if words := schema.choices(hint):
        rest = [part for part in get_args(hint) if not schema.choices(part) and part not in words]
        return " | ".join([*words, *(_kind(part) for part in rest)])
    if parts := get_args(hint):
        return " | ".join(_kind(part) for part in parts)
    return {bool: "true | false", type(None): "null"}.get(hint, str(hint.__name__))


def _default(defaults: dict[str, Any], key: str) -> str:
    node: Any = defaults
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return UNKNOWN
        node = node[name]
    return json.dumps(node, ensure_ascii=False) if not isinstance(node, str) else node or '""'


def _allowed(key: str) -> str:
    words = (
        [RANGES[key][1].removeprefix("must be ").removeprefix("must ").replace("lie in", "in")]
        if key in RANGES
        else []
    )
    if key in MOST:
        words.append(f"at most {MOST[key][0]:,.0f}")
    return ", ".join(words)
