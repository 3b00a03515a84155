"""The hub of a transcript: the real decisions, guard and journal, one turn for everything that it hears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tsugi_kpool.core.effects import CheckpointOrdered, CheckpointPart, Effect, HubPlan, Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.hub import BEAT_ACK, Hub
from tsugi_kpool.core.hub.outgoing import Answer, writing
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.replay import replay
from tsugi_kpool.core.messages import Message, Stamps
from tsugi_kpool.sim.disk import Disk
from tsugi_kpool.sim.dispatcher import Dispatcher

from .wording import event_words, record_words

Post = Callable[[list[tuple[bytes | None, Send]]], None]


class HubSide:
    """One hub after another, over one journal.

    Args:
        plan: The run's plan.
        say: Adds a line: who, and what.
        post: Carries what a turn sends, each with the connection that it goes to (None: nobody has been heard there).
    """

    def __init__(self, plan: HubPlan, say: Callable[[str, str], None], post: Post) -> None:
        self._plan, self._say, self._post = plan, say, post
        self._disk = Disk(plan, ())
        self._noted: list[str] = []
        self.dies_after = ""
        """The record that is the last one of the present hub: it dies before it sends what follows."""
        self.down = False
        self._begin(Hub(plan, 0.0))

    def hear(self, message: Message, route: bytes, now_s: float) -> None:
        """A message has arrived over this connection; nobody hears it while there is no hub."""
        if self.down:
            return
        before = self._refused.copy()
        answers = self._dispatcher.hear(route, message, now_s)
        for kind, _ in self._refused - before:
            self._say("hub", f"does not take it in: {kind}")
        self._carry_out(answers, now_s)

    def perform(self, effects: Sequence[Effect], now_s: float) -> None:
        """What was decided without a message: time has passed, or the run's owner wants something."""
        self._carry_out([(each, None) for each in effects], now_s)

    def restart(self, now_s: float) -> None:
        """Another process, which knows the journal and nothing else."""
        entries = self._disk.reopen()
        self._begin(replay(self._plan, entries, now_s))
        self.down = False
        rounds = self.hub.rounds
        flight = (
            f"round {rounds.number} in flight, reduced on {rounds.reduced_on}"
            if rounds.in_flight
            else "no round in flight"
        )
        self._say(
            "hub",
            f"replays {len(entries) - 1} records: "
            f"generation {self.hub.generation}, version {rounds.version}, {flight}",
        )

    def die(self) -> None:
        """Its process is killed: what it has noted and not flushed is lost with it."""
        lost = f", and loses {', '.join(self._noted)}" if self._noted else ""
        self._noted.clear()
        self.down, self.dies_after = True, ""
        self._say("hub", f"dies{lost}")

    def _begin(self, hub: Hub) -> None:
        self.hub = hub
        self._refused: Counter[tuple[Kind, type]] = Counter()
        self._dispatcher = Dispatcher(hub, self._refused)

    def _carry_out(self, answers: Sequence[Answer], now_s: float) -> None:
        """As sideband.hub.egress: nothing is sent before what `writing` says is on the medium."""
        records, flush = writing(answers, self._disk.waiting)
        self._disk.note(records, now_s - self.hub.started_s)
        self._noted += map(record_words, records)
        if flush:
            self._disk.flush()
            self._say("hub", f"writes {', '.join(self._noted)}")
            self._noted.clear()
            if self.dies_after and any(type(each).__name__ == self.dies_after for each in records):
                self.die()
                return
        elif records:
            self._say("hub", f"notes {', '.join(map(record_words, records))}")
        self._show_events(answers)
        sends = [(effect, route) for effect, route in answers if isinstance(effect, Send)]
        self._post([(route or self._dispatcher.route_of.get(send.replica), send) for send, route in sends])

    def _show_events(self, answers: Sequence[Answer]) -> None:
        for effect, _ in answers:
            if (
                isinstance(effect, Event | CheckpointOrdered | CheckpointPart)
                and (words := event_words(effect)) is not None
            ):
                self._say("hub", f"event {words}")


def is_sign_of_life(message: Message) -> bool:
    """Answers that say no more than that the hub lives."""
    return message is BEAT_ACK or isinstance(message, Stamps)
