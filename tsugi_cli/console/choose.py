"""Chooses the console for a stream, and for a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from tsugi_cli.record.answer import Answer
from tsugi_cli.signals import Signals

from .console import Console
from .detached import LastingConsole
from .json_lines import JsonConsole
from .live import LiveConsole
from .plain import PlainConsole
from .terminal import draws_blocks, is_terminal


def choose(stream: TextIO, plain: bool) -> Console:
    """Return the live console on a terminal that can draw it, else the plain one."""
    capable = is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveConsole(stream) if capable and not plain and draws_blocks(stream) else PlainConsole(stream)


def answering(answer: Answer, plain: bool) -> Console:
    """Return the console of an answer: as `choose` does, and with `--json` JSON lines beside it."""
    console = choose(answer.people, plain)
    return JsonConsole(console, answer) if answer.json else console


def lasting(answer: Answer, plain: bool, signals: Signals, log: Path) -> Console:
    """Return a console as `answering` does; when its terminal has gone or nobody reads, its lines go to the file
    `log`."""
    console = LastingConsole(choose(answer.people, plain), log, lambda: signals.hung_up)
    return JsonConsole(console, answer) if answer.json else console
