"""A hub's refusal, or its silence: what it is for the shell, and which are waited out, with `--wait` or without."""

from __future__ import annotations

import math
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
    """Return what `ask` returns, however often it fails with one of these exit codes, or for a while with a refusal
    that may pass; says once why it waits.

    Raises:
        TsugiError: it fails with another one, or for too long.
    """
    said, waited_s = "", 0.0
    while True:
        try:
            return ask()
        except (SidebandError, LaunchError) as error:
            error.exit_code = code = exit_code_of(error)
            most_s = math.inf if code in waited_for else slots.may_pass_s(str(error))
            if waited_s >= most_s:
                raise
            if said != str(error):
                said, how_long = str(error), "" if code in waited_for else f" for up to {most_s:g} s"
                say(f"{said}\nwaiting{how_long}; Ctrl-C ends it\n")
        time.sleep(PAUSE_S)
        waited_s += PAUSE_S


def exit_code_of(error: TsugiError) -> ExitCode:
    """Return what a hub's refusal, or its silence, is for the shell."""
    reason = str(error).partition(REFUSED)[2]
    return next((code for words, code in REFUSALS.items() if reason.startswith(words)), error.exit_code)
