"""Functions that a user names: imported, called, and what they raise told in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tsugi_kpool.errors import ConfigError

T = TypeVar("T")
LONGEST_SHOWN = 200
"""Of a text that comes from a user's function."""


def import_function(target: str, key: str) -> Callable[..., Any]:
    """Turn "package.module:function" into the function.

    Raises:
        ConfigError: there is no such thing.
    """
    module, _, name = target.partition(":")
    look_here()
    try:
        found = of_user(lambda: getattr(importlib.import_module(module), name))
    except UserError as error:
        problem = f'{key}={target}: cannot be imported ({error}); write "package.module:function"'
        raise ConfigError([problem]) from error
    if not callable(found):
        raise ConfigError([f"{key}={target}: is not a function"])
    return found  # type: ignore[no-any-return]


def look_here() -> None:
    """Look for modules in the current folder first, as workers do (`python -m`); the `tsugi` script does not."""
    try:
        here = str(Path.cwd())
    except OSError:
        return  # the folder is gone: nothing can be imported from it
    if not sys.flags.safe_path and sys.path[:1] not in ([""], [here]):
        sys.path.insert(0, here)


class UserError(Exception):
    """What a function of the user's has raised, in one line with its place."""


def of_user(act: Callable[[], T]) -> T:
    """Run code that a user has named: whatever it raises is the user's to mend, and no mistake of ours.

    Raises:
        UserError: it has raised something, or wanted to end the process.
    """
    try:
        return act()
    except (Exception, SystemExit) as error:  # a user's own code
        frames = traceback.extract_tb(error.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames and frames[-1].filename != __file__ else ""
        said = " ".join(str(error).split())[:LONGEST_SHOWN]
        raise UserError(f"{type(error).__name__}{': ' if said else ''}{said}{at}") from error
