"""The claim to a place in a run: asked for, kept while the replica trains, given back to the hub otherwise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from tsugi_kpool.about import about
from tsugi_kpool.core.messages import FleetStatus, Slot, SlotRequest, StatusRequest, StopRequest
from tsugi_kpool.errors import ExitCode, TsugiError
from tsugi_kpool.sideband.incoming import one_line
from tsugi_kpool.sideband.observer import Observer

from .fetching import HOLD_S
from .refusals import patiently

ANSWER_S = 10.0
"""Timeout of a hub's answer: it does not know us, or is not there."""
MOST_REASON = 400
"""Characters of what a hub is told when its place is given back."""
GIVEN_BACK_S = 2.0
"""Timeout of giving a place back; after it the hub notices the silence."""


class Claim:
    """A place in a run: asked for, and given back unless `kept` says that its replica has begun."""

    def __init__(self, hub: Observer, ticket: str) -> None:
        self._hub, self._ticket = hub, ticket
        self.kept = self._given = False
        self._held_s = -math.inf

    def ask(self, wait_s: float = ANSWER_S) -> Slot:
        """Return the place of our ticket: the same as before, if the hub has kept it.

        Args:
            wait_s: For a hub that does not answer: it may be started again.

        Raises:
            TsugiError: the hub does not answer, or has none.
        """
        slot = self._hub.ask(SlotRequest(self._ticket, about()), Slot, wait_s)
        self._given = True
        return slot

    def hold(self) -> None:
        """Ask for the place again now and then, while something else is done that takes long. What the hub answers is
        not looked at: `ask` finds out what has become of the place."""
        now_s = time.monotonic()
        if now_s - self._held_s >= HOLD_S:
            self._held_s = now_s
            while self._hub.receive(0.0) is not None:
                pass
            self._hub.send(SlotRequest(self._ticket, about()))

    def ask_first(self, waits: bool, say: Callable[[str], object]) -> Slot:
        """Return a place for the first time.

        Args:
            waits: Ask until a hub is there and the run has begun, however long that takes. A place that may be free
                soon, because nothing is heard of who has it, is waited for in any case, for half a minute.
            say: Told, once for each reason, why it waits.

        Raises:
            TsugiError: the hub does not answer, or has none; its exit code says whether it is too early, the run is
                over, or full.
        """
        return patiently(self.ask, (ExitCode.UNREACHABLE, ExitCode.TOO_EARLY) if waits else (), say)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.kept or not self._given:
            return
        why = one_line(str(error)) if isinstance(error, TsugiError) else ""  # the hub's user is told, too
        self._hub.send(StopRequest(self._ticket, why[:MOST_REASON]))
        with suppress(TsugiError):  # an answer to what was asked after it: it has been heard
            self._hub.ask(StatusRequest(), FleetStatus, GIVEN_BACK_S)
