"""Whoever is not let in, and whoever is and misbehaves: dropped, counted, and nobody's round notices."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.exchange.support import (
    MEMBERS,
    TICKETS,
    Running,
    body,
    delta,
    donate,
    mean_of,
    member,
    part,
    round_of,
    running,
)
from tests.support import await_true
from tsugi_kpool.core.hub.refusals import Kind as Why
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.exchange import doorkeeper, server
from tsugi_kpool.exchange.certificates import member_context, member_credentials, server_credentials
from tsugi_kpool.exchange.client import ExchangeError
from tsugi_kpool.exchange.frames import HEADER, MOST_MAP, PROTOCOL, Hello, Kind, Piece, Verdict, encode
from tsugi_kpool.exchange.server import NOT_ORDERED
from tsugi_kpool.exchange.states import STATE_COPIES, STATE_MORE

from .support import ADAPTERS, HUB, SIZE

DONOR = TICKETS.of_donor(1, 0)
pytestmark = pytest.mark.timeout(120)


def plain(exchange: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", exchange.port), timeout=60)


def insider(exchange: Running) -> ssl.SSLSocket:
    """A connection with a member's certificate, which has shown no place yet."""
    context = member_context(member_credentials(MEMBERS), server_credentials(HUB).certificate)
    return context.wrap_socket(plain(exchange))


def is_dropped(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        return True
    return True


def refused(exchange: Running, why: Why, times: int) -> None:
    counts = exchange.exchange.refused
    await_true(lambda: counts[why] >= times, f"{times} of {why}")
    assert counts[why] == times, counts


def test_garbage_another_protocol_and_silence_are_handshakes_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "HANDSHAKE_S", 0.5)
    with running(tmp_path) as exchange, ExitStack() as opened:
        spoken = (os.urandom(3000), b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f" + bytes(54), b"")
        for words in spoken:
            connection = opened.enter_context(plain(exchange))
            connection.sendall(words)
            assert is_dropped(connection)
        refused(exchange, Why.HANDSHAKE, len(spoken))


def test_without_a_members_certificate_nothing_is_read(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
        other = member_context(member_credentials("another run's"), server_credentials(HUB).certificate)
        for context in (bare, other):
            with context.wrap_socket(plain(exchange)) as connection:
                assert is_dropped(connection)
        refused(exchange, Why.KEY, 2)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            old.wrap_socket(plain(exchange))


def test_a_member_without_a_place_or_of_another_ones_is_dropped(tmp_path: Path) -> None:
    greetings = (
        Hello(0, seat_key(HUB, 1)),
        Hello(3, seat_key(HUB, 3)),
        Hello(-1, seat_key(HUB, -1)),
        Hello(1, seat_key(HUB, 1, "a ticket")),
        Hello(0, seat_key(HUB, 0), protocol=PROTOCOL - 1),
    )
    with running(tmp_path) as exchange:
        for hello in greetings:
            with insider(exchange) as connection:
                connection.sendall(encode(Kind.HELLO, hello))
                assert is_dropped(connection)
        refused(exchange, Why.IDENTITY, len(greetings))


def test_bad_frames_end_their_connection(tmp_path: Path) -> None:
    greeting = encode(Kind.HELLO, Hello(0, seat_key(HUB, 0)))
    half = part(1, adapters=())
    words = (
        HEADER.pack(99, 1, 0),
        HEADER.pack(Kind.HELLO, 5000, 0),
        HEADER.pack(Kind.HELLO, 3, 0) + b"abc",
        encode(Kind.WANT, Piece(1)),
        greeting + greeting,
        greeting + encode(Kind.STANDS, Verdict(1, 1)),
        greeting + HEADER.pack(Kind.PART, MOST_MAP + 1, 0),
        greeting + HEADER.pack(Kind.WANT, 5, 1 << 30),
        greeting + HEADER.pack(Kind.PART, 5, 1 << 60),
        greeting + encode(Kind.PART, half, 10),
        greeting + encode(Kind.PART, part(1, payload="int3"), 10),
        greeting + encode(Kind.PART, part(1, members=(0, 0)), 10),
        greeting + encode(Kind.PART, part(-1), 10),
        greeting + encode(Kind.OFFER, Piece(1, 5, 9, DONOR), 4) + b"four",
        greeting + encode(Kind.OFFER, Piece(1, 0, 2, DONOR), 4) + b"four",
    )
    with running(tmp_path) as exchange:
        for spoken in words:
            with insider(exchange) as connection:
                connection.sendall(spoken)
                assert is_dropped(connection), spoken
        refused(exchange, Why.MALFORMED, len(words))


def test_a_place_that_is_not_shown_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_S", 0.2)
    with running(tmp_path) as exchange, insider(exchange) as silent:
        assert is_dropped(silent)
        refused(exchange, Why.MALFORMED, 1)


def test_a_flood_of_strangers_is_bounded_and_an_honest_round_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as exchange, ExitStack() as opened:
        for _ in range(3 * doorkeeper.MOST_HANDSHAKES):
            opened.enter_context(plain(exchange))
        clients = [member(exchange.port, replica) for replica in range(3)]
        results = round_of(clients, 1)
        assert mean_of(part(1), results[0]).shape == (2, SIZE)
        assert len(exchange.exchange._door._handshakes) <= doorkeeper.MOST_HANDSHAKES
        assert exchange.exchange.refused[Why.FLOOD] >= doorkeeper.MOST_HANDSHAKES


def test_members_without_a_place_are_bounded_and_the_newest_connection_of_a_place_counts(tmp_path: Path) -> None:
    with running(tmp_path) as exchange, ExitStack() as opened:
        for _ in range(20):
            opened.enter_context(insider(exchange))
        clients = [member(exchange.port, replica) for replica in range(3)]
        first = round_of(clients, 1)
        assert len(exchange.exchange._nameless) <= 4
        again = [member(exchange.port, replica) for replica in range(3)]
        second = round_of(again, 2)
        assert all(is_dropped(client._live) for client in clients)
        assert not np.array_equal(mean_of(part(1), first[0]), mean_of(part(2), second[0]))


def test_what_comes_in_pieces_is_what_comes_whole(tmp_path: Path) -> None:
    """TCP cuts where it likes: also in the middle of a header."""
    with running(tmp_path) as exchange, insider(exchange) as connection:
        spoken = (
            encode(Kind.HELLO, Hello(0, seat_key(HUB, 0))) + encode(Kind.OFFER, Piece(1, 0, 4, DONOR), 4) + b"four"
        )
        for byte in spoken:
            connection.sendall(struct.pack("B", byte))
        kind, map_bytes, _ = struct.unpack("!BIQ", connection.recv(HEADER.size))
        assert (kind, len(connection.recv(map_bytes))) == (Kind.STANDS, map_bytes)


def test_who_asks_on_and_on_and_does_not_read_is_dropped(tmp_path: Path) -> None:
    """What waits for it is the hub's memory."""
    with running(tmp_path) as exchange:
        donate(member(exchange.port, 1), 1, bytes(1 << 20))
        asks = encode(Kind.HELLO, Hello(0, seat_key(HUB, 0))) + encode(Kind.WANT, Piece(1)) * 1000
        with insider(exchange) as connection:
            connection.sendall(asks)
            refused(exchange, Why.MALFORMED, 1)
        assert exchange.exchange.answers.failure is None


def test_a_state_that_no_pool_has_is_not_begun(tmp_path: Path) -> None:
    """It would lie on the hub's disk."""
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(2)]
        for number in (1, 2):
            round_of(clients, number)
        with insider(exchange) as connection:
            offer = Piece(9, 0, STATE_COPIES * ADAPTERS * SIZE * 4 + STATE_MORE + 1, TICKETS.of_donor(9, 2))
            connection.sendall(encode(Kind.HELLO, Hello(2, seat_key(HUB, 2))) + encode(Kind.OFFER, offer, 1) + b"x")
            assert is_dropped(connection)
        refused(exchange, Why.MALFORMED, 1)
        assert not list(tmp_path.glob("state*"))


LATER = 10**9


@pytest.mark.parametrize(
    "forged",
    [
        {"generation": LATER},
        {"round": LATER},
        {"members": (1,)},
        {"version": 7},
        {"settled": LATER},
        {"adapters": (3, 4)},
        {"ticket": ""},
        {"ticket": "\N{SNOWMAN}"},
        {"ticket": Tickets("another run", HUB).of_round(1, 1, 0, (0, 2), (0, 1, 2), 0)},
    ],
)
def test_a_round_that_the_hub_has_not_ordered_holds_nobody_up(tmp_path: Path, forged: dict) -> None:
    """A member that names a later round, or itself as the only member, would shut all others out."""
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        false = msgspec.structs.replace(part(1), **forged)
        with pytest.raises(ExchangeError, match=NOT_ORDERED):
            clients[1].reduce(false, body(delta(1)))
        refused(exchange, Why.IDENTITY, 1)
        assert mean_of(part(1), round_of(clients, 1)[0]).shape == (2, SIZE)


def test_a_donor_that_the_hub_has_not_named_gives_nobody_a_state(tmp_path: Path) -> None:
    """Neither now nor of a generation that is far ahead, which would keep the right one's from being taken."""
    with running(tmp_path) as exchange:
        donor, false, newcomer = (member(exchange.port, replica) for replica in range(3))
        for generation, ticket in ((4, TICKETS.of_donor(4, 0)), (LATER, TICKETS.of_donor(4, 1)), (4, "")):
            with pytest.raises(ExchangeError, match=NOT_ORDERED):
                false.give(generation, b"a state of its own", ticket)
        donate(donor, 4, b"the fleet's")
        assert newcomer.want(4) == b"the fleet's"
