"""The hub's process in virtual time: it carries out what the hub decides, keeps its journal, dies and restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tsugi_kpool.core.effects import CheckpointOrdered, Effect, FleetStage, HubPlan, Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.hub import BEAT_ACK, Hub
from tsugi_kpool.core.hub.outgoing import Answer, writing
from tsugi_kpool.core.hub.priority_queue import Heard, PriorityQueue
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.replay import replay
from tsugi_kpool.core.messages import Beat, Message, Vitals
from tsugi_kpool.core.slow.stragglers import Stragglers

from .disk import Disk
from .dispatcher import Dispatcher
from .kernel import Kernel
from .scenario import HubCrash
from .telling import verify

TICK_S = 0.05
"""Period of the hub's ticks, as in sideband.hub.server."""


class Unwatched(Stragglers):
    """Straggler detection that is switched off: no round or lease depends on its results."""

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
    """Runs one hub after another over one journal, in turns, as sideband.hub.server does.

    Args:
        kernel: Schedules.
        plan: The run's plan.
        send: Carries a message over a connection.
        crashes: When the hub dies, and for how long.
        watched: Whether it draws conclusions about who is slow.
        answers_beats: Whether it sends the answer to a beat, which says that the hub lives.
        turn_s: How long a turn takes: what comes meanwhile waits in the queue for the next one.
    """

    def __init__(
        self,
        kernel: Kernel,
        plan: HubPlan,
        send: Callable[[bytes, Message], None],
        crashes: tuple[HubCrash, ...] = (),
        watched: bool = True,
        answers_beats: bool = True,
        turn_s: float = 0.0,
    ) -> None:
        self._kernel, self._plan, self._send, self._watched = kernel, plan, send, watched
        self._answers_beats, self._turn_s = answers_beats, turn_s
        self.disk = Disk(plan, crashes)
        self.refused: Counter[tuple[Kind, type]] = Counter()
        """Messages that the guard has refused, by (kind, type of the message)."""
        self.crashed = self._replaced = 0
        self.events: list[Event] = []
        """The hub's events, without those of single steps."""
        self.ordered: list[CheckpointOrdered] = []
        """Checkpoints that it has ordered."""
        self._begin(Hub(plan, kernel.now_s))
        self._down = self._busy = self._ticking = False
        self._alarm_s: float | None = None
        self._delays = bool(plan.kpool.fire_delay_s)
        for crash in crashes:
            if crash.at_s is not None:
                kernel.at(crash.at_s, self._crash, crash)
        kernel.after(TICK_S, self._tick)

    @property
    def journal(self) -> bytearray:
        """The journal's present content."""
        return self.disk.journal

    @property
    def replaced_beats(self) -> int:
        """Number of beats that newer beats of the same replicas replaced before a hub had time for them."""
        return self._replaced + self._queue.replaced

    def hear(self, message: Message, route: bytes) -> None:
        """Take a message that has arrived over this connection. It is lost while there is no hub."""
        if self._down:
            return
        if not self._turn_s:  # it is handled before another one can come: the queue would hold nothing else
            answers = self._dispatcher.hear(route, message, self._kernel.now_s)
            if answers or self._delays:
                self._carry_out(answers)
            return
        self._queue.put((Heard(route, message),))
        if not self._busy:
            self._turn()

    def perform(self, effects: list[Effect]) -> None:
        """Carry out what was decided outside a turn."""
        self._carry_out([(each, None) for each in effects])

    def leave(self, replica: int, reason: str) -> None:
        """Tell the hub of a death, as the launcher does, as soon as there is a hub."""
        if self._down:
            self._kernel.after(TICK_S, self.leave, replica, reason)
        else:
            self.perform(self.hub.leave({replica: reason}, self._kernel.now_s))

    # --- turns --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ring()
        self._kernel.after(TICK_S, self._tick)

    def _ring(self) -> None:
        """Let time pass for the hub."""
        self._ticking = True
        if not self._down and not self._busy:
            self._turn()

    def _turn(self) -> None:
        """One turn: take in messages, let time pass if it is time, and carry out the decisions."""
        now_s = self._kernel.now_s
        answers: list[Answer] = []
        for route, message in self._queue.take():
            answers += self._dispatcher.hear(route, message, now_s)
        if self._ticking:
            self._ticking = False
            answers += [(each, None) for each in self.hub.tick(now_s)]
        if answers or self._delays:
            self._carry_out(answers)
        if self._turn_s:
            self._busy = True
            self._kernel.after(self._turn_s, self._next_turn, self.crashed)

    def _next_turn(self, crashed: int) -> None:
        if crashed == self.crashed and not self._down:
            self._busy = False
            if self._queue or self._ticking:
                self._turn()

    def _carry_out(self, answers: Sequence[Answer]) -> None:
        """Carry out decisions as sideband.hub.egress does: nothing is sent before its records are flushed."""
        records, flush = writing(answers, self.disk.waiting)
        if records:
            self.disk.note(records, self._kernel.now_s - self.hub.started_s)
        crash = self.disk.flush() if flush else None
        if crash is not None:
            self._crash(crash)
            return
        for effect, route in answers:
            if type(effect) is Send:
                self._post(effect, route)
            elif isinstance(effect, Event):
                self.events.append(effect)
            elif type(effect) is CheckpointOrdered:
                self.ordered.append(effect)
        if self.hub.stage is FleetStage.FAILED:
            self._kernel.stopped = True
        if self._delays:
            self._set_alarm()

    def _post(self, send: Send, route: bytes | None) -> None:
        route = route if route is not None else self._dispatcher.route_of.get(send.replica)
        if route is not None and (self._answers_beats or send.message is not BEAT_ACK):
            self._send(route, send.message)

    def _set_alarm(self) -> None:
        """Wake at the end of a fire delay, which is earlier than the next tick."""
        until_s = self.hub.held_until_s
        if until_s is not None and until_s != self._alarm_s:
            self._alarm_s = until_s
            self._kernel.at(max(until_s, self._kernel.now_s), self._ring)

    # --- its lives ----------------------------------------------------------------------------------------

    def _begin(self, hub: Hub) -> None:
        """Let this hub run from now on."""
        if not self._watched:
            hub.stragglers = Unwatched()
        hub.rounds.verify = verify
        self.hub, self._dispatcher, self._queue = hub, Dispatcher(hub, self.refused), PriorityQueue()

    def _crash(self, crash: HubCrash) -> None:
        if not self._down:
            self._down = True
            self.crashed += 1
            self._replaced += self._queue.replaced
            self._kernel.after(crash.down_s, self._restart)

    def _restart(self) -> None:
        """Start another hub, which knows nothing but the journal."""
        self._begin(replay(self._plan, self.disk.reopen(), self._kernel.now_s))
        self._down = self._busy = False
