"""What the settings of `data.*` must fulfil together: rows come from one place, and each split has its own."""

from __future__ import annotations

import re
from collections.abc import Callable

from .evaluating import FUNCTION

_MIXED = re.compile(r".+:\d+(\.\d+)?")


def _data(builder: str | None, path: object, mix: list[str], scorer: str | None) -> list[str]:
    found = []
    given = [name for name, value in (("path", path), ("builder", builder), ("mix", mix)) if value]
    if not given:
        found.append("data needs data.path (files, folders or a hub name), data.mix or data.builder; found none")
    if len(given) > 1:
        names = " and ".join(f"data.{name}" for name in given)
        found.append(
            f"data takes one of data.path, data.mix and data.builder, found {names}; for a file of your own "
            "write data=FILE"
        )
    for name, text in (("builder", builder), ("scorer", scorer)):
        if text is not None and not FUNCTION.fullmatch(text):
            found.append(f'data.{name} must be "package.module:function", found {text!r}')
    return found


def _held_out(builder: str | None, held: object, test: object, n_eval: int | None, n_test: int) -> list[str]:
    """Who makes the splits: a builder, files of their own, or a cut."""
    if builder is not None:
        named = [name for name, value in (("eval", held), ("test", test)) if value]
        found = [f"data.{name} cannot be given with data.builder, which makes the splits" for name in named]
        return found + (["data.n_eval must be a number with a builder"] if n_eval is None else [])
    both = [("eval", held, n_eval), ("test", test, n_test)]
    return [
        f"data.{name} is a file of its own, but data.n_{name}={n} rows are to be held out as well; give one of them"
        for name, value, n in both
        if value and n
    ]


def _mix(mix: list[str]) -> list[str]:
    bad = [each for each in mix if not _MIXED.fullmatch(each) or float(each.rpartition(":")[2]) <= 0]
    return [f'data.mix: {each!r} is not "FILE:weight" with a positive weight, such as a.jsonl:0.7' for each in bad]


def _n_train(builder: str | None, n_train: int) -> list[str]:
    if builder is not None and n_train == 0:
        return ["data.n_train must be at least 1 with a builder (0 means 'all the rest' for data.path only)"]
    return []


DATA_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("data.builder", "data.path", "data.mix", "data.scorer"), _data),
    (("data.builder", "data.eval", "data.test", "data.n_eval", "data.n_test"), _held_out),
    (("data.mix",), _mix),
    (("data.builder", "data.n_train"), _n_train),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
