"""A member that tells one other something else leaves by name: engines and the real hub, with threads for sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from tests.engine.test_overlap import WAIT_S, Uplink
from tests.support import await_true, hub_plan, kpool, tiny_lora
from tsugi_kpool.codec.header import header_bytes
from tsugi_kpool.codec.promises import HASH_BYTES
from tsugi_kpool.core.effects import Send
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import Beat, Hello, Message
from tsugi_kpool.core.rounds.statements import SIGNATURE_BYTES, digest_of, statement
from tsugi_kpool.core.settings import Reduce, Trigger
from tsugi_kpool.engine.aggregator import Aggregator
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.thread_group import ThreadGroup, ThreadRendezvous
from tsugi_kpool.sideband.signing import verified

MEMBERS, LIAR = 4, 1
SETTINGS = kpool(k=4, reduce=Reduce.SCATTER, trigger=Trigger.COUNT, count=2, min_steps=1)
TOLD_BYTES = header_bytes(SETTINGS.n) + HASH_BYTES
"""In front of each part of the first stage: what is the same for all owners."""


class Lying(ThreadGroup):
    """The liar's sockets, which change what it sends to the fleet's present victim: `lie` gets what goes there in
    both stages. Asked when it is sent: groups form in other threads than the test's."""

    def __init__(self, fleet: Fleet, members: tuple[int, ...], rendezvous: ThreadRendezvous) -> None:
        super().__init__(members.index(LIAR), rendezvous)
        self._fleet, self._members, self._first = fleet, members, None

    def scatter(self, parts: list, receives: list[int]) -> list:
        if self._fleet.victim not in self._members:
            return super().scatter(parts, receives)
        given = [part.clone() for part in parts]
        to = given[self._members.index(self._fleet.victim)]
        if self._first is None:
            self._first = to
            self._fleet.lie(to.numpy(), None)
        else:
            self._fleet.lie(self._first.numpy(), to.numpy())
            self._first = None
        return super().scatter(given, receives)


class Fleet:
    """Engines and their hub, which is asked in this thread. Everybody has trained two steps more in each round."""

    def __init__(self) -> None:
        plan = hub_plan(replicas=MEMBERS, kpool=SETTINGS, samples=0)
        self.hub, self.events = Hub(plan, 0.0), []
        self.hub.rounds.verify = verified
        self.now_s, self.seq = 0.0, 0
        self.lie: Callable = lambda part, answer: None
        self.victim: int | None = None
        self.meetings: dict[int, ThreadRendezvous] = {}
        self.lock = threading.Lock()
        self.uplinks = [Uplink() for _ in range(MEMBERS)]
        self.engines = [KPoolEngine(tiny_lora(SETTINGS), SETTINGS, number) for number in range(MEMBERS)]
        for number, engine in enumerate(self.engines):
            engine.start(self.uplinks[number], lambda order, number=number: self.group(order, number))
        for number, uplink in enumerate(self.uplinks):
            hello = Hello(1, number, f"i{number}", "h", 1, "c0ffee", "layout", key=uplink.signer.key)
            self.hear(hello)

    def group(self, order, number: int) -> ThreadGroup:
        with self.lock:
            meeting = self.meetings.setdefault(order.generation, ThreadRendezvous(len(order.members)))
        if number == LIAR:
            return Lying(self, order.members, meeting)
        return ThreadGroup(order.members.index(number), meeting)

    def hear(self, message: Message) -> None:
        """The hub hears this, and its orders go out."""
        for effect in self.hub.receive(message, self.now_s):
            if isinstance(effect, Send):
                self.uplinks[effect.replica].orders.put(effect.message)
            else:
                self.events.append(effect)

    def round(self) -> list:
        """A round is fired, and the hub hears whatever is said until it is settled; returns what it then tells."""
        generation, version = self.hub.generation, self.hub.rounds.version
        before, present = len(self.events), self.hub.present
        for number in present:
            engine = self.engines[number]
            await_there(engine.aggregator, generation, version)
            with engine.buffer.collecting(5):
                engine.pool.add(range(SETTINGS.n), torch.full((SETTINGS.n, engine.pool.size), 0.01 * (number + 1)))
        self.now_s += 1.0
        for number in present:
            self.hear(self.beat(number, generation, version))
        assert self.hub.rounds.in_flight is not None
        while self.hub.generation == generation and self.hub.rounds.version == version:
            for number in present:
                self.seq += 1
                said = self.uplinks[number].reports.get(timeout=WAIT_S)
                self.hear(msgspec.structs.replace(said, seq=self.seq, replica=number, incarnation=f"i{number}"))
        return [each for each in self.events[before:] if isinstance(each, Event)]

    def beat(self, number: int, generation: int, version: int) -> Beat:
        steps = 10 * (version + generation)
        return Beat(
            number, f"i{number}", generation, version, 0, "training", steps, steps, 9 * steps, 1.0, 1.0, 0.3, 1.0,
            1e-3, (3,) * SETTINGS.n, 0, False,
        )  # fmt: skip


def await_there(replica: Aggregator, generation: int, version: int) -> None:
    await_true(lambda: (replica.membership.generation, replica.version) == (generation, version), "it is there")


@pytest.fixture
def fleet():
    made = Fleet()
    yield made
    for engine in made.engines:
        engine.stop()


def sign(fleet: Fleet, part: np.ndarray, answer: np.ndarray) -> None:
    fire, signer = fleet.hub.rounds.in_flight, fleet.uplinks[LIAR].signer
    digest = digest_of((part[:TOLD_BYTES].tobytes(), answer[:-SIGNATURE_BYTES].tobytes()))
    text = statement(fire.generation, fire.round, digest)
    answer[-SIGNATURE_BYTES:] = np.frombuffer(signer._private.sign(text), np.uint8)


def another_mean(part: np.ndarray, answer: np.ndarray | None) -> None:
    if answer is not None:
        answer[-1 - SIGNATURE_BYTES] ^= 64


def no_numbers(part: np.ndarray, answer: np.ndarray | None) -> None:
    if answer is not None:
        answer[1 + 8 * SETTINGS.n : -SIGNATURE_BYTES] = 255


def blame(part: np.ndarray, answer: np.ndarray | None) -> None:
    if answer is not None:
        answer[0] |= 16  # the fourth member


def another_weight(part: np.ndarray, answer: np.ndarray | None) -> None:
    if answer is None:
        part[:8] = np.array([999.0]).view(np.uint8)


def names(events: list) -> list[str]:
    return [each.name for each in events if each.name in ("aborted", "left", "committed")]


@pytest.mark.parametrize("lie", [another_mean, no_numbers, blame, another_weight])
def test_who_signs_what_it_tells_one_member_otherwise_leaves_and_the_others_go_on(fleet, lie):
    def signed(part: np.ndarray, answer: np.ndarray | None) -> None:
        lie(part, answer)
        if answer is not None:
            sign(fleet, part, answer)

    fleet.lie, fleet.victim = signed, 2
    events = fleet.round()
    (left,) = [each.data for each in events if each.name == "left"]
    assert left["replica"] == LIAR
    assert "it has signed two different things in round 1" in left["reason"]
    assert fleet.hub.present == (0, 2, 3)
    assert names(fleet.round()) == ["committed"], "nothing of the lie was applied"


@pytest.mark.parametrize("lie", [another_mean, another_weight])
def test_who_knows_the_rule_and_does_not_sign_it_leaves_when_it_deceives_a_second_member(fleet, lie):
    fleet.lie, fleet.victim = lie, 2
    assert names(fleet.round()) == ["aborted"], "nobody leaves for one word against another"
    assert fleet.hub.present == (0, 1, 2, 3)
    fleet.victim = 3
    events = fleet.round()
    assert [each.data["replica"] for each in events if each.name == "left"] == [LIAR]
    assert names(fleet.round()) == ["committed"]
    anchors = {engine.buffer.update.anchor.numpy().tobytes() for engine in there(fleet)}
    assert len(anchors) == 1


def there(fleet: Fleet) -> list[KPoolEngine]:
    """The engines of those who have stayed, once they have committed what the hub has."""
    found = [fleet.engines[number] for number in fleet.hub.present]
    for engine in found:
        await_there(engine.aggregator, fleet.hub.generation, fleet.hub.rounds.version)
    return found


def test_honest_members_commit_without_a_comparison(fleet):
    for _ in range(2):
        assert names(fleet.round()) == ["committed"]
    assert len(there(fleet)) == MEMBERS
