"""The workers of a torchrun agent: forked before the agent begins, each waits for what torchrun wants to start.

Afterwards would be too late: an agent has exit functions, open files and handlers that are its own.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from .become import MAX, Order, become, run
from .forked import Forked


class Spare:
    """A process that will become a worker; it ends when the agent does.

    Args:
        others: The agent's ends of the lines to those that were forked before.
    """

    def __init__(self, others: Sequence[socket.socket]) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            for each in (self.line, *others):
                each.close()
            _wait(theirs)
        theirs.close()

    def begin(self, argv: Sequence[str], env: dict[str, str]) -> Forked:
        """Let it run this.

        Raises:
            OSError: it has ended.
        """
        mask = [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        limits = [*resource.getrlimit(resource.RLIMIT_NOFILE)]
        order = Order(list(argv), env, str(Path.cwd()), os.getpid(), mask, [], limits)
        with self.line as line:
            line.send(order.packed())
        return Forked(self._pid, argv)


def _wait(line: socket.socket) -> NoReturn:
    """Wait for the order; without one there is nothing to do."""
    os.setsid()
    message = line.recv(MAX)
    if not message:
        os._exit(0)
    line.close()
    order = Order.read(message)
    become(order, [])
    run(order)


def lend(count: int) -> None:
    """Fork so many workers now; torchrun, which this process is about to be, starts those first.

    Returns in the agent alone.
    """
    spares: list[Spare] = []
    for _ in range(count):
        spares.append(Spare([each.line for each in spares]))
    if not spares:
        return
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    usual = SubprocessHandler._popen

    def popen(handler: Any, args: tuple[str, ...], env: dict[str, str]) -> Any:
        """Like torch's own, which starts a new interpreter."""
        if spares and forkable(args) and handler._stdout is None and handler._stderr is None:
            with suppress(OSError):
                return spares.pop(0).begin(args, env)
        return usual(handler, args, env)

    SubprocessHandler._popen = popen  # type: ignore[method-assign,assignment]


def forkable(argv: Sequence[str]) -> bool:
    """Return whether a fork can run it: `PYTHON [-u] -m MODULE ...` of this interpreter."""
    return argv[0] == sys.executable and next((each for each in argv[1:] if each != "-u"), "") == "-m"
