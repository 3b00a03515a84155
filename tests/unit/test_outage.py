"""A hub that goes away and comes back, over real sockets: links reconnect by themselves, and nothing is lost."""

from __future__ import annotations

import select
import socket
import threading
import time
from dataclasses import replace

import msgspec
import pytest
import zmq

from tests.support import free_port, hub_plan, keeps_events
from tests.unit.test_messages import BEAT
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.messages import MAX_FRAME_BYTES, Evaluated, Hello, encode
from tsugi_kpool.errors import SidebandError
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link
from tsugi_kpool.sideband.sockets import link_socket

WAIT_S = 60.0


def await_true(condition) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "did not come about in time"
        time.sleep(0.01)


class Hubs:
    """One hub after another, at one port, with one key pair and one journal."""

    def __init__(self, journal) -> None:
        # Not one that the system hands out: others would get it while there is no hub.
        self._journal, self._keys, self._port = journal, RunKeys.generate(), free_port()
        self.events: list[Event] = []
        self.server: HubServer | None = None

    def start(self) -> RunKeys:
        plan = hub_plan(replicas=1)
        self.server = HubServer(plan, self._keys, keeps_events(self.events), self._journal)
        return self.server.start("127.0.0.1", self._port)

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def ask(self, question):
        return self.server.ask(question)


class Cable:
    """A way to the hub that a test may cut (connections break) or silence (nothing passes, and nobody is told)."""

    def __init__(self, port: int) -> None:
        self._port, self._stopping = port, threading.Event()
        self.whole, self.silent, self.resting = True, False, False
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(WAIT_S)
        self._door.close()

    def _carry(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        while not self._stopping.is_set():
            if not self.whole or self.silent:
                if not self.whole:
                    self._drop(other)
                self.resting = True
                time.sleep(0.01)
                continue
            for ready in select.select([self._door, *other], [], [], 0.02)[0]:
                if ready is self._door:
                    near, far = self._door.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                    other |= {near: far, far: near}
                    continue
                data = received(ready) if ready in other else b""
                if not data or not sent(other[ready], data):
                    self._drop({each: other.pop(each) for each in (ready, other.get(ready)) if each in other})
        self._drop(other)

    def _drop(self, other: dict[socket.socket, socket.socket]) -> None:
        for end in list(other):
            end.close()
        other.clear()


def received(end: socket.socket) -> bytes:
    """Nothing from a side that has gone, whichever way it went."""
    try:
        return end.recv(65536)
    except ConnectionResetError:
        return b""


def sent(end: socket.socket, data: bytes) -> bool:
    """Whether that side is still there."""
    try:
        end.sendall(data)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("fault", ["cut", "silence"])
def test_a_link_that_was_cut_or_silent_loses_nothing(hubs, make_link, fault):
    keys = hubs.start()
    cable = Cable(int(keys.address.rpartition(":")[2]))
    link = make_link(replace(keys, address=f"tcp://127.0.0.1:{cable.port}"))
    first = link.lease()
    cable.whole, cable.silent = fault != "cut", fault == "silence"
    await_true(lambda: cable.resting)
    link.report(Evaluated(0, 0, "", "base", {"loss_sum": 1.0}, ()))
    link.next_order(0.5)  # the Generation, or nothing; it raises nothing
    assert not hubs.ask(lambda hub: hub.evaluations)
    cable.whole, cable.silent = True, False
    await_true(lambda: hubs.ask(lambda hub: ("base", 0) in hub.evaluations))
    assert link.lease().start == first.stop
    link.stop(timeout_s=1.0)
    cable.close()


@pytest.fixture
def hubs(tmp_path):
    hubs = Hubs(tmp_path / "hub.journal")
    yield hubs
    hubs.stop()


def probe(incarnation: str):
    return msgspec.structs.replace(
        BEAT, replica=0, incarnation=incarnation, pooled=(0,) * 4, generation=0, version=0, reduced=0
    )


@pytest.fixture
def make_link():
    links = []

    def make(keys, hub_timeout_s=60.0, hub_lives=lambda: False):
        identity = Identity(0, "h", 1, "c0ffee", "l")
        link = Link(keys, identity, probe, 0.05, hub_timeout_s, hub_lives=hub_lives)
        links.append(link)
        link.start()
        return link

    yield make
    for link in links:
        link.stop(timeout_s=1.0)


def test_what_is_said_while_there_is_no_hub_reaches_the_next_one(hubs, make_link):
    link = make_link(hubs.start())
    await_true(lambda: hubs.ask(lambda hub: 0 in hub.members))
    first = link.lease()
    hubs.stop()
    link.report(Evaluated(0, 0, "", "base", {"loss_sum": 1.0}, ()))
    hubs.start()
    await_true(lambda: hubs.ask(lambda hub: ("base", 0) in hub.evaluations))
    second = link.lease()
    assert second.start == first.stop, "the next hub knows what the first one had granted"
    assert [event.name for event in hubs.events].count("joined") == 1
    assert "resumed" in [event.name for event in hubs.events]


def test_a_link_may_begin_before_its_hub(hubs, make_link):
    keys = hubs.start()
    hubs.stop()
    make_link(keys)
    hubs.start()
    await_true(lambda: hubs.ask(lambda hub: 0 in hub.members))


def test_beats_of_the_time_without_a_hub_are_not_delivered_later(hubs):
    """A thousand links that queued ten a second would bury the next hub."""
    keys = hubs.start()
    context = zmq.Context()
    dealer = link_socket(context, keys, immediate=True)
    assert dealer.poll(WAIT_S * 1000, zmq.POLLOUT)
    hubs.stop()
    await_true(lambda: not dealer.poll(0, zmq.POLLOUT))
    hubs.start()
    assert dealer.poll(WAIT_S * 1000, zmq.POLLOUT)
    dealer.send(encode(Hello(1, 0, "i", "h", 1, "c0ffee", "l", seat_key(keys.hub_secret, 0))))
    assert dealer.poll(WAIT_S * 1000)
    context.destroy(linger=0)


def test_a_message_that_fits_no_frame_does_not_end_the_link(hubs, make_link):
    link = make_link(hubs.start())
    link.report(Evaluated(0, 0, "", "base", {}, (("x" * MAX_FRAME_BYTES, "", ""),)))
    await_true(lambda: link.unsendable == 1)
    assert link.lease().stop > 0


def test_a_hub_that_is_only_stopped_is_waited_for(hubs, make_link):
    """As after Ctrl-Z: its process is there. One that is gone is waited for no longer than `hub_timeout_s`."""
    keys, asked, lives = hubs.start(), [0], [True]
    hubs.stop()

    def hub_lives() -> bool:
        asked[0] += 1
        return lives[0]

    link = make_link(keys, 0.1, hub_lives)
    await_true(lambda: asked[0] >= 3)
    assert link.next_order(0.0) is None
    lives[0], before = False, asked[0]
    await_true(lambda: asked[0] >= before + 3)
    with pytest.raises(SidebandError, match="has been silent"):
        link.next_order(0.0)
