"""`data.builder`: a user's function that makes the splits; its rows are read as those of a file are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tsugi_cli.config.spec import Data
from tsugi_cli.data.sources import Part
from tsugi_kpool.errors import ConfigError, DataError

from .functions import UserError, import_function, of_user

SPLITS: tuple[Part, ...] = ("train", "eval", "test")


def built(data: Data, target: str) -> dict[str, list[Any]]:
    """What the builder makes: for each split a list of conversations, or of records of any format.

    Raises:
        ConfigError: it cannot be imported or called.
        DataError: it raises, or makes something else.
    """
    build, wanted = import_function(target, "data.builder"), (data.seed, data.n_train, data.n_eval or 0, data.n_test)
    _check_takes(build, wanted, target)
    try:
        made = of_user(lambda: _as_lists(build(*wanted)))
    except UserError as error:
        raise DataError(f"data.builder={target} raised {error}") from error
    if made is None:
        raise DataError(f'data.builder={target}: expected a dict with lists "train", "eval" and "test"')
    return made


def _as_lists(built: Any) -> dict[str, list[Any]] | None:
    """The three splits, or None when this is something else. It may be an object of the user's, and raise."""
    if not isinstance(built, Mapping) or any(not isinstance(built.get(name), list | tuple) for name in SPLITS):
        return None
    return {name: list(built[name]) for name in SPLITS}


def _check_takes(build: Callable[..., Any], wanted: tuple[int, ...], target: str) -> None:
    try:
        signature = inspect.signature(build)
        signature.bind(*wanted)
    except TypeError as error:
        problem = f"data.builder={target} takes {signature}, but is called with (seed, n_train, n_eval, n_test)"
        raise ConfigError([problem]) from error
    except ValueError:  # a function of C that does not say what it takes
        return
