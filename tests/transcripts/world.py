"""A hub, its replicas, and what lies between them, one line for each thing that happens.

Messages arrive at once and in the order in which they were sent. Nothing takes time, and nothing is random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import groupby
from textwrap import wrap

from tests.support import hub_plan, kpool
from tsugi_kpool.core.effects import ASKER, HubPlan, Send
from tsugi_kpool.core.messages import Fire, Generation, Message, Vitals
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.settings import Trigger
from tsugi_kpool.sim.collective import Collective

from .hub_side import HubSide, is_sign_of_life
from .replica_side import Process
from .wording import message_words

TICKS_PER_S = 10
"""The hub looks around this often while time passes."""
BEAT_S, VITALS_S = 0.5, 1.0
WHO = 12
"""Characters for who speaks to whom."""
WIDTH = 118
"""Of a line; what is longer goes on in the next one."""


class World:
    """What happens by itself; what is done to it stands in `driver`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.replicas: dict[int, Process] = {}
        """The present process of each."""
        self.ends: dict[bytes, Process] = {}
        """Connection -> the process that has made it."""
        self.collective: Collective | None = None
        """Of the newest round: it can end once all members have joined."""
        self._mail: deque[Callable[[], None]] = deque()
        self._ticks = 0
        self._stamped: int | None = None
        """The tick whose time stands above the lines since, while time passes."""
        self.begin(hub_plan(kpool=kpool(trigger=Trigger.COUNT)))

    @property
    def now_s(self) -> float:
        return self._ticks / TICKS_PER_S

    def begin(self, plan: HubPlan) -> None:
        """The hub of this run starts."""
        self.plan = plan
        self.hub = HubSide(plan, self._say, self._post)

    def pass_time(self, seconds: float) -> None:
        """Who trains trains on, heartbeats go out, what is unanswered is said again, and the hub looks around."""
        self._stamped = self._ticks
        for _ in range(round(seconds * TICKS_PER_S)):
            self._ticks += 1
            for process in self.replicas.values():
                if not process.dead:
                    self._live(process)
            self.settle()
            if not self.hub.down:
                self.hub.perform(self.hub.hub.tick(self.now_s), self.now_s)
            self.settle()
        self._stamped = None

    def settle(self) -> None:
        """Deliver everything that is under way."""
        while self._mail:
            self._mail.popleft()()

    def flush(self, process: Process) -> None:
        """Send what its outbox says is due."""
        for message in process.outbox.due(self.now_s):
            self._to_hub(process, message)

    def beat(self, process: Process, silent: bool = False) -> None:
        """Tell the hub how far this replica is."""
        process.news, process.beat_s = False, self.now_s
        self._to_hub(process, process.replica.beat(), silent)

    def _live(self, process: Process) -> None:
        """A tenth of a second of a process."""
        while process.pace_s and process.next_step_s <= self.now_s and not process.replica.drained:
            process.next_step_s += process.pace_s
            process.train(bool(self.plan.samples), process.pace_s)
        if process.news or self.now_s >= process.beat_s + BEAT_S:
            self.beat(process, silent=True)
        if process.machine is not None and self.now_s >= process.vitals_s + VITALS_S:
            process.vitals_s = self.now_s
            vitals = Vitals(process.number, process.replica.incarnation, self.now_s, process.machine)
            self._to_hub(process, vitals, silent=True)
        self.flush(process)

    def _to_hub(self, process: Process, message: Message, silent: bool = False) -> None:
        lost = process.cut or self.hub.down
        if not silent:
            self._say(f"{process.number} -> hub", message_words(message) + " (lost)" * lost)
        if not lost:
            self._mail.append(lambda: self.hub.hear(message, process.route, self.now_s))

    def _post(self, sends: list[tuple[bytes | None, Send]]) -> None:
        """What the hub sends in one turn: the same order to several replicas is one line."""
        letters = [(send, self._end(route)) for route, send in sends]
        told = [each for each in letters if not is_sign_of_life(each[0].message)]
        for words, same in groupby(told, lambda each: message_words(each[0].message)):
            heard: dict[bool, list[str]] = {True: [], False: []}
            for send, process in same:
                heard[process is not None].append("asker" if send.replica == ASKER else str(send.replica))
            for is_heard, names in heard.items():
                if names:
                    self._say(f"hub -> {','.join(names)}", words if is_heard else f"{words} (lost)")
        for send, process in letters:
            if process is not None:
                self._mail.append(partial(self._receive, process, send.message))

    def _end(self, route: bytes | None) -> Process | None:
        """Who is at the other end of this connection; None when nobody hears what goes there."""
        process = self.ends.get(route or b"")
        return process if process and process.route == route and not process.dead and not process.cut else None

    def _receive(self, process: Process, message: Message) -> None:
        """A message of the hub has arrived. What follows from an order is told in one line with the beat after it."""
        before, had_news = process.replica.stage, process.news
        if isinstance(message, Generation) and process.number in message.newcomers and not process.replica.generation:
            process.replica.adopt(tuple(self.replicas[message.donor].replica.anchor), message.version)
        done = process.take(message)
        news = process.news and not had_news
        if done:
            self._say(str(process.number), done + "; beats" * news)
        if isinstance(message, Fire) and process.replica.stage is Stage.IN_FLIGHT and before is not Stage.IN_FLIGHT:
            self._join(process, message)
        if not process.dead:
            self.flush(process)
        if news:
            self.beat(process, silent=bool(done))

    def _join(self, process: Process, fire: Fire) -> None:
        if self.collective is None or self.collective.fire.round != fire.round:
            self.collective = Collective(fire, self.now_s)
        part = process.replica.in_flight[0]  # type: ignore[index]
        self.collective.join(process.number, part, self.now_s)

    def _say(self, who: str, what: str) -> None:
        if self._stamped is not None and self._stamped != self._ticks:
            self._stamped = self._ticks
            self.lines.append(f"  at {self.now_s:g} s")
        first, rest = f"  {who:<{WHO}} ", " " * (WHO + 5)
        self.lines += wrap(what, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
