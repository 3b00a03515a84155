"""`evaluate.metric`: a user's function that measures what a model says of tokens that were held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from tsugi_cli.record.measures import METRIC
from tsugi_kpool.errors import ConfigError

from .functions import UserError, import_function, of_user

MOST_NAMES, LONGEST_NAME = 16, 40
"""What the hub takes of an evaluation ends there."""
KEY = "evaluate.metric"


class Metric:
    """Calls the function for batches.

    Args:
        target: "package.module:function" (logits [tokens, vocabulary], targets [tokens]) -> a number, or names with
            numbers: means over these tokens.

    Raises:
        ConfigError: there is no such function.
    """

    def __init__(self, target: str) -> None:
        self._said = f"{KEY}={target}"
        self._alone = target.partition(":")[2]
        self._measure: Callable[[Tensor, Tensor], Any] = import_function(target, KEY)

    def __call__(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Name -> mean over the tokens of a batch.

        Raises:
            ConfigError: it raises, or returns something else.
        """
        try:
            found = of_user(lambda: self._numbers(self._measure(logits, targets)))
        except UserError as error:
            raise ConfigError([f"{self._said} raised {error}"]) from error
        if isinstance(found, str):
            raise ConfigError([f"{self._said} {found}"])
        return {f"{METRIC}{name}": value for name, value in found.items()}

    def _numbers(self, found: Any) -> dict[str, float] | str:
        """What it has returned, or what is wrong with it. It may be an object of the user's, and raise."""
        named = dict(found) if isinstance(found, Mapping) else {self._alone: found}
        if len(named) > MOST_NAMES:
            return f"returned {len(named)} names; at most {MOST_NAMES} are told"
        for name, value in named.items():
            if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
                return f"returned the name {name!r:.60}; it must be a text of at most {LONGEST_NAME} characters"
            if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
                return f"returned {value!r:.60} for {name}, where a number is wanted"
        return {name: float(value) for name, value in named.items()}
