"""The pool's rank and alpha, as numbers that remember one adapter's.

Every copy of a config (dataclasses.replace, deepcopy, pickle) then gives the same pool again, whatever else it
changes: a plain number is one adapter's, a remembering one is the pool's. dataclasses.asdict gives plain values, for
JSON and YAML. They hold `made_of`, by which a config that is made of them knows that `r` and `lora_alpha` are the
pool's.
"""

from __future__ import annotations

import json
from typing import Any


class PoolInt(int):
    """A whole number of the pool that remembers one adapter's. A copy of the number alone is a plain one."""

    one: float

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)


class PoolFloat(float):
    """The same of any number."""

    one: float

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float(self)


class MadeHere(str):
    """A `made_of` whose config is in this process: the numbers beside it remember by themselves."""

    def __deepcopy__(self, memo: dict[int, Any]) -> str:
        return str(self)


def pooled(value: float, one: float) -> Any:
    """The pool's number, with one adapter's. Any, because PEFT says that alpha is whole, which it need not be."""
    found: PoolInt | PoolFloat = PoolInt(value) if isinstance(value, int) else PoolFloat(value)
    found.one = one
    return found


def one(value: Any) -> Any:
    """One adapter's number, of a plain one or of the pool's."""
    return value.one if isinstance(value, PoolInt | PoolFloat) else value


def made_of(r: int, alpha: float, pool_r: int, pool_alpha: float) -> str:
    """What a config writes down for who reads it back."""
    return MadeHere(json.dumps([r, alpha, pool_r, pool_alpha]))


def read_back(written: str, r: Any, alpha: Any) -> tuple[list[str], Any, Any]:
    """What is wrong, then r and alpha: the pool's, if they were written down and have not been changed since."""
    if not written or isinstance(written, MadeHere):
        return [], r, alpha
    try:
        one_r, one_alpha, pool_r, pool_alpha = json.loads(written)
    except (TypeError, ValueError):
        return [f"made_of is written by the config itself, found {written!r}: leave it out"], r, alpha
    return (
        [],
        pooled(pool_r, one_r) if r == pool_r else r,
        pooled(pool_alpha, one_alpha) if alpha == pool_alpha else alpha,
    )
