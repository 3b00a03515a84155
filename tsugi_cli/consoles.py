"""Which console a stream gets."""

from __future__ import annotations

import os
from typing import TextIO

from .console import Console
from .live import LiveConsole
from .plain import PlainConsole
from .terminal import draws_blocks, is_terminal


def choose(stream: TextIO, plain: bool) -> Console:
    """The live console on a terminal that can draw it, else the plain one."""
    capable = is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveConsole(stream) if capable and not plain and draws_blocks(stream) else PlainConsole(stream)
