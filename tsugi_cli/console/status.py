"""`tsugi sideband status`: ask the hub of a run, once or every second, and show the same table as the console."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from tsugi_cli.record.answer import Answer
from tsugi_cli.record.meant import NoRun, meant, unheard
from tsugi_cli.record.status_log import last_status
from tsugi_cli.signals import interruptible
from tsugi_kpool.core.hub.health import Health
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.core.renamed import renewed
from tsugi_kpool.errors import ConfigError, ExitCode, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.observer import ask_status

from .format import BAD, safe
from .table import page
from .terminal import Quiet, is_terminal, terminal

WATCH_S = 1.0
"""Period of --watch."""
_CODES = {Health.HEALTHY: ExitCode.OK, Health.DEGRADED: ExitCode.DEGRADED, Health.NO_QUORUM: ExitCode.QUORUM}


@dataclass(frozen=True)
class Question:
    """Whom to ask (a run of this machine, or an address with a token), and the timeout of the answer."""

    run: Path | None
    timeout_s: float
    addr: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if (self.addr is None) != (self.token is None):
            raise ConfigError(["--addr and --token go together: a hub elsewhere is asked with both"])
        if self.addr is not None and self.run is not None:
            raise ConfigError(["--run and --addr exclude each other"])

    def ask(self) -> Reply:
        """Return the fleet's status from its hub or, once a run of this machine has ended, from its directory.

        Raises:
            NoRun: there is none.
            SidebandError: its hub does not answer.
            ConfigError: the token or the address is none.
        """
        if self.addr is not None and self.token is not None:
            return Reply(ask_status(token.read(self.token, self.addr)[0], self.timeout_s))
        paths = meant(self.run)
        if status := last_status(paths):
            return Reply(status, paths.root)
        if not paths.keys.exists():
            raise unheard(paths)
        try:
            return Reply(ask_status(sideband_keys.load(paths.keys), self.timeout_s))
        except SidebandError as error:
            ended = "; the run has ended" if paths.summary.exists() else ""
            raise SidebandError(f"{error}{ended}; run directory: {paths.root}") from error


@dataclass(frozen=True)
class Reply:
    """A fleet's status, and the run directory that it was read from when no hub was asked."""

    status: FleetStatus
    ended: Path | None = None

    def page(self, lines: int | None = None) -> RenderableType:
        """Return it for people, in at most so many lines."""
        shown = page(self.status, datetime.now(), lines if lines is None or self.ended is None else lines - 1)
        note = Text("the run has ended, and this is its last status; tsugi report shows all of it")
        return shown if self.ended is None else Group(shown, note)


def exit_code(status: FleetStatus) -> ExitCode:
    """Return the exit code for the fleet's health; an unknown verdict of a newer version counts as degraded."""
    known = status.health in list(Health)
    return _CODES[Health(status.health)] if known else ExitCode.DEGRADED


def show(question: Question, out: Answer) -> int:
    """Print the status once; returns the exit code of the fleet's health.

    Raises:
        TsugiError: there is no run, or its hub does not answer.
    """
    reply = question.ask()
    if out.json:
        out.put(in_json(reply.status))
    else:
        terminal(out.people).print(reply.page())
    return exit_code(reply.status)


def watch(question: Question, out: Answer) -> int:
    """Print the status every second until the run has ended, or Ctrl-C; returns the exit code of the last answer.

    A hub that does not answer is reported and asked again: it may be restarting, or not have started yet. So is a run
    that is not there. Without a name the newest run is meant: one that had ended before is shown, and the next one is
    waited for.
    """
    code, over, watched = ExitCode.UNREACHABLE, False, question.run is not None
    with suppress(KeyboardInterrupt), interruptible(), _Pane(out) as pane:
        while not over:
            asked_s = time.monotonic()
            try:
                reply = question.ask()
            except (SidebandError, NoRun) as error:
                code = error.exit_code
                pane.unreachable(str(error))
            else:
                code = exit_code(reply.status)
                pane.show(reply)
                watched |= reply.ended is None
                over = watched and reply.ended is not None
            time.sleep(0.0 if over else max(0.0, asked_s + WATCH_S - time.monotonic()))
    return code


def in_json(status: FleetStatus) -> dict[str, Any]:
    """Return a status under the names of status.jsonl; on the wire some are older ones."""
    return dict(renewed(msgspec.to_builtins(status)))


class _Pane:
    """The output of `watch`: redrawn in place on a terminal, one table after the other on a pipe, or JSON lines."""

    def __init__(self, out: Answer) -> None:
        self._out = out
        self._terminal = terminal(out.people)
        on_terminal = is_terminal(out.people) and not self._terminal.is_dumb_terminal
        self._live = Live(console=self._terminal, auto_refresh=False) if on_terminal and not out.json else None
        self._quiet = Quiet(out.people)

    def __enter__(self) -> _Pane:
        if self._live is not None:
            self._quiet.begin()
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._quiet.end()
            self._live.stop()

    def show(self, reply: Reply) -> None:
        """Show the newest answer."""
        self._put(lambda: in_json(reply.status), reply.page(self._lines()))

    def unreachable(self, error: str) -> None:
        """Show that there was no answer, and why."""
        self._put(
            lambda: {"health": "unreachable", "error": error}, Text.assemble(("unreachable  ", BAD), safe(error))
        )

    def _lines(self) -> int | None:
        """Return how many lines fit the window, without the cursor's; None on a pipe."""
        return self._terminal.height - 1 if self._live is not None else None

    def _put(self, fields: Callable[[], dict[str, Any]], picture: RenderableType) -> None:
        if self._out.json:
            self._out.put(fields())
        elif self._live is not None:
            self._live.update(picture, refresh=True)
        else:
            self._terminal.print(picture)
            self._terminal.print()
            self._out.people.flush()
