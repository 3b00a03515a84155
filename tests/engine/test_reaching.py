"""Who does not reach whom is named while a group forms: pair, address and port, and why. Over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.support import await_true
from tsugi_kpool.core.messages import Generation, Unreached
from tsugi_kpool.core.replica import reach
from tsugi_kpool.engine import reaching
from tsugi_kpool.engine.group_sockets import Sockets, mark, option_of
from tsugi_kpool.engine.reaching import Reaching, dialled

pytestmark = pytest.mark.timeout(200)
KEY = b"k" * 32


class Store:
    """The hub's rendezvous store, and what members report."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.reported: list[Unreached] = []

    def store_put(self, key: str, value: bytes) -> None:
        self.values.setdefault(key, value)

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        return self.values.get(key)

    def report(self, message: Unreached) -> None:
        self.reported.append(message)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def trials(store: Store) -> Iterator[list[Reaching]]:
    made = [Reaching(store, replica, "127.0.0.1") for replica in range(2)]
    yield made
    for each in made:
        each.stop()


def order(key: bytes = KEY, members: tuple[int, ...] = (0, 1)) -> Generation:
    return Generation(3, members, 0, group_key=key)


def test_members_that_reach_each_other_say_nothing(store: Store, trials: list[Reaching], monkeypatch) -> None:
    found: list[str] = []

    async def told(*words: object) -> str:
        found.append(await dialled(*words))
        return found[-1]

    monkeypatch.setattr(reaching, "dialled", told)
    for each in trials:
        each.begin(order())
    await_true(lambda: len(found) == 2, "both have dialled")
    assert (found, store.reported) == (["", ""], [])


def test_a_group_that_forms_meanwhile_does_not_take_these_sockets_for_its_own(
    store: Store, trials: list[Reaching], monkeypatch
) -> None:
    """It would count as severed as soon as they close: a group of four 40 ms apart never lasted."""
    found: list[str] = []
    held = asyncio.Event()

    async def held_open(*words: object) -> str:
        found.append("connected")
        await held.wait()
        return ""

    monkeypatch.setattr(reaching, "_said", held_open)
    group = Sockets()
    for each in trials:
        each.begin(order())
    await_true(lambda: len(found) == 2, "both are connected")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        group.keep_new()
        for each in trials:
            each.stop()
        assert not group.severed
        ours.close()
        assert group.severed


def test_where_nobody_answers_pair_address_and_port_are_told(store: Store, trials: list[Reaching]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store.store_put(reach.key_of(3, 1), f"127.0.0.1 {port}".encode())
    trials[0].begin(order())
    await_true(lambda: store.reported, "a report")
    assert store.reported == [Unreached(0, 0, "", 3, 1, f"127.0.0.1:{port}", reach.REFUSED)]


def test_who_has_another_key_is_no_member(store: Store, trials: list[Reaching]) -> None:
    trials[0].begin(order(b"another key"))
    trials[1].begin(order())
    await_true(lambda: len(store.reported) == 2, "both say so")
    assert {each.reason for each in store.reported} == {reach.NO_WORD}


@contextlib.contextmanager
def answering(reply: bytes, swallows: bool = True) -> Iterator[int]:
    """A machine that answers a hello with this and says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as other:
                said = other.recv(reach.HELLO_BYTES, socket.MSG_WAITALL)
                other.sendall(reply or reach.expected(KEY, said))
                while swallows and other.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
    thread.join(60)


@pytest.mark.parametrize(
    ("reply", "swallows", "why"),
    [(b"", True, reach.TOO_LARGE), (b"x" * 32, True, reach.STRANGER), (b"x", False, reach.NO_WORD)],
)
def test_why_is_told_apart(reply: bytes, swallows: bool, why: str, monkeypatch) -> None:
    monkeypatch.setattr(reaching, "SAY_S", 1.0)
    with answering(reply, swallows) as port:
        assert asyncio.run(dialled("127.0.0.1", port, KEY, (3, 0, 1))) == why


def test_a_hello_for_somebody_else_or_another_generation_is_not_answered() -> None:
    said = reach.hello(KEY, 3, 0, 1, b"n" * 16)
    assert reach.answer(KEY, 3, 1, said) == reach.expected(KEY, said)
    assert reach.answer(KEY, 4, 1, said) is None
    assert reach.answer(KEY, 3, 2, said) is None
    assert reach.answer(b"another", 3, 1, said) is None


@pytest.mark.parametrize(
    ("names", "found"),
    [({"TCP_KEEPIDLE": 4, "TCP_KEEPALIVE": 9}, 4), ({"TCP_KEEPALIVE": 16}, 16), ({}, None)],
)
def test_the_mark_has_another_name_on_macos(names: dict[str, int], found: int | None) -> None:
    assert option_of(SimpleNamespace(**names)) == found


def test_a_marked_socket_and_what_it_accepts_are_not_the_groups_here() -> None:
    sockets = Sockets()
    with socket.socket() as listening, socket.socket() as dialling:
        for each in (listening, dialling):
            mark(each)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        dialling.connect(listening.getsockname())
        with listening.accept()[0]:
            sockets.keep_new()
            assert sockets.connections() is None
