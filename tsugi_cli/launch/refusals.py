"""A hub's refusal, or its silence: what it is for the shell, and which of them `--wait` waits out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tsugi_kpool.core.hub import slots
from tsugi_kpool.errors import ExitCode, LaunchError, SidebandError, TsugiError
from tsugi_kpool.sideband.observer import REFUSED

T = TypeVar("T")
PAUSE_S = 2.0
"""Pause between two questions of a `--wait`."""
REFUSALS = {slots.ENDED: ExitCode.OVER, slots.TOO_EARLY: ExitCode.TOO_EARLY, slots.NONE_MISSING: ExitCode.FULL}
"""How a hub's refusal begins -> what it is for the shell; hubs of another version may have other words."""


def patiently(ask: Callable[[], T], waited_for: Sequence[ExitCode], say: Callable[[str], object]) -> T:
    """Return what `ask` returns, however often it fails with one of these exit codes; says once why it waits.

    Raises:
        TsugiError: it fails with another one.
    """
    said = ""
    while True:
        try:
            return ask()
        except (SidebandError, LaunchError) as error:
            error.exit_code = code = exit_code_of(error)
            if code not in waited_for:
                raise
            if said != str(error):
                said = str(error)
                say(f"{said}\nwaiting; Ctrl-C ends it\n")
        time.sleep(PAUSE_S)


def exit_code_of(error: TsugiError) -> ExitCode:
    """Return what a hub's refusal, or its silence, is for the shell."""
    reason = str(error).partition(REFUSED)[2]
    return next((code for words, code in REFUSALS.items() if reason.startswith(words)), error.exit_code)
