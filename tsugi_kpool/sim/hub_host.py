"""The hub's machine in virtual time: it performs what the hub decides, keeps its journal, dies and comes back."""

from __future__ import annotations

from collections.abc import Callable

from tsugi_kpool.core.effects import Effect, Event, FleetStage, HubPlan, Keep, Progress, Send
from tsugi_kpool.core.hub import BEAT_ACK, Hub
from tsugi_kpool.core.messages import Beat, Message, Vitals
from tsugi_kpool.core.phase import PhaseBook
from tsugi_kpool.core.records import Entry, encode_entries, encode_entry, parse
from tsugi_kpool.core.replay import began, replay

from .kernel import Kernel
from .scenario import HubCrash

TICK_S = 0.05
"""The hub's ticks (as sideband.server)."""


class Unwatched(PhaseBook):
    """Takes nothing in and concludes nothing: no round, lease or landing depends on who is called slow, or why."""

    def beat(self, beat: Beat, now_s: float) -> None:
        """Ignored."""

    def vitals(self, vitals: Vitals, now_s: float) -> None:
        """Ignored."""

    def round(self, transfer_s: float, now_s: float) -> None:
        """Ignored."""

    def due(self, now_s: float) -> bool:  # noqa: ARG002
        """Never."""
        return False


class HubHost:
    """Runs one hub after another over one journal.

    Args:
        kernel: Schedules.
        plan: The run's plan.
        send: Carries a message to a replica.
        crashes: When the hub dies, and for how long.
        watched: Whether it draws conclusions about who is slow.
    """

    def __init__(
        self,
        kernel: Kernel,
        plan: HubPlan,
        send: Callable[[int, Message], None],
        crashes: tuple[HubCrash, ...] = (),
        watched: bool = True,
    ) -> None:
        self._kernel, self._plan, self._send, self._watched = kernel, plan, send, watched
        self.hub = self._as_asked(Hub(plan, kernel.now_s))
        begun, self._chain = encode_entry(began(plan))
        self._journal = bytearray(begun)
        self._unwritten: list[Entry] = []
        self.records = 0
        """Records written so far, but for the first one."""
        self.crashed = 0
        self.events: list[Event] = []
        """What the hub wants recorded, but for the single micro-steps."""
        self._down = False
        self._alarm_s: float | None = None
        self._holds = bool(plan.kpool.hold_s)
        self._after_record = {crash.after_record: crash for crash in crashes if crash.after_record is not None}
        for crash in crashes:
            if crash.at_s is not None:
                kernel.at(crash.at_s, self._crash, crash)
        kernel.after(TICK_S, self._tick)

    @property
    def journal(self) -> bytearray:
        """The file as it is now. Its lines are encoded when somebody reads them, which is after a crash."""
        lines, self._chain = encode_entries(self._unwritten, self._chain)
        self._journal += lines
        self._unwritten.clear()
        return self._journal

    def hear(self, message: Message) -> None:
        """A message has arrived; nobody hears it while there is no hub."""
        if not self._down:
            effects = self.hub.receive(message, self._kernel.now_s)
            if effects or self._holds:
                self.perform(effects)

    def perform(self, effects: list[Effect]) -> None:
        """In their order, as far as the hub lives."""
        for effect in effects:
            if type(effect) is Progress:
                continue
            if isinstance(effect, Send):
                if effect.message is not BEAT_ACK:  # which says that the hub lives: nobody here gives it up
                    self._send(effect.replica, effect.message)
            elif isinstance(effect, Keep):
                self._write(effect)
            elif isinstance(effect, Event):
                self.events.append(effect)
            if self._down:
                return
        if self.hub.stage is FleetStage.FAILED:
            self._kernel.stopped = True
        if self._holds:
            self._set_alarm()

    def leave(self, replica: int, reason: str) -> None:
        """The launcher tells the hub of a death, as soon as there is a hub."""
        if self._down:
            self._kernel.after(TICK_S, self.leave, replica, reason)
        else:
            self.perform(self.hub.leave({replica: reason}, self._kernel.now_s))

    def _tick(self) -> None:
        if not self._down:
            self.perform(self.hub.tick(self._kernel.now_s))
        self._kernel.after(TICK_S, self._tick)

    def _set_alarm(self) -> None:
        """A round that is held fires at the end of its hold, not at the next tick."""
        until_s = self.hub.held_until_s
        if until_s is not None and until_s != self._alarm_s:
            self._alarm_s = until_s
            self._kernel.at(max(until_s, self._kernel.now_s), self._ring)

    def _ring(self) -> None:
        if not self._down:
            self.perform(self.hub.tick(self._kernel.now_s))

    def _write(self, effect: Keep) -> None:
        self.records += 1
        entry = Entry(self._kernel.now_s - self.hub.started_s, effect.record)
        crash = self._after_record.pop(self.records, None)
        if crash is not None and crash.torn:
            journal = self.journal
            line, _ = encode_entry(entry, self._chain)
            journal.extend(line[: len(line) // 2])
        else:
            self._unwritten.append(entry)
        if crash is not None:
            self._crash(crash)

    def _crash(self, crash: HubCrash) -> None:
        if not self._down:
            self._down = True
            self.crashed += 1
            self._kernel.after(crash.down_s, self._restart)

    def _restart(self) -> None:
        """Another hub, which knows nothing but the journal."""
        parsed = parse(bytes(self.journal))
        del self._journal[parsed.whole_bytes :]
        self._chain = parsed.chain
        self.hub = self._as_asked(replay(self._plan, parsed.entries, self._kernel.now_s))
        self._down = False

    def _as_asked(self, hub: Hub) -> Hub:
        if not self._watched:
            hub.phase = Unwatched()
        return hub
