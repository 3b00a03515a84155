"""Whoever is not let in, and whoever is and misbehaves: counted, shown, harmless to those who train."""

from __future__ import annotations

import os
import socket
import time

import pytest
import zmq

from tests.support import hub_plan, keeps_events, send_unheard
from tests.unit.test_messages import BEAT
from tsugi_kpool.core import events
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.messages import Ack, Beat, Hello, Refused, StatusRequest, StorePut, decode, encode
from tsugi_kpool.sideband.hub.ingress import Limits
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link
from tsugi_kpool.sideband.observer import ask_status
from tsugi_kpool.sideband.sockets import link_socket

WAIT_S = 60.0


@pytest.fixture
def hub():
    events = []
    limits = Limits(per_s=1.0, burst=50.0)
    server = HubServer(hub_plan(), RunKeys.generate(), keeps_events(events), limits=limits)
    server.keys = server.start("127.0.0.1", 0)
    server.events = events
    yield server
    server.stop()


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def refused(hub, kind: str, times: int = 1) -> dict[str, int]:
    """Wait until so many have been refused."""
    deadline_s = time.monotonic() + WAIT_S
    while (counts := hub.status().refused).get(kind, 0) < times:
        assert time.monotonic() < deadline_s, f"no {kind} in {counts}"
        time.sleep(0.01)
    return counts


def raw(hub) -> socket.socket:
    host, port = hub.keys.address.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def hello(hub, replica: int, incarnation: str) -> Hello:
    """Of a process that holds the run's key file."""
    return Hello(1, replica, incarnation, "h", 1, "c0ffee", "l", seat_key(hub.keys.hub_secret, replica))


def answer(dealer):
    assert dealer.poll(WAIT_S * 1000)
    return decode(dealer.recv())


def test_wrong_key_is_counted(hub, context):
    stranger = RunKeys.generate()
    forged = RunKeys(hub.keys.hub_public, "", stranger.member_public, stranger.member_secret, hub.keys.address)
    dealer = link_socket(context, forged)
    send_unheard(dealer, encode(StatusRequest()))
    assert refused(hub, "key")
    assert hub.ask(lambda state: len(state.members)) == 0


def test_plain_zeromq_and_garbage_are_counted(hub, context):
    plain = context.socket(zmq.DEALER)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(hub.keys.address)
    send_unheard(plain, encode(StatusRequest()))
    refused(hub, "handshake")
    with raw(hub) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n" + os.urandom(500))
        refused(hub, "handshake", 2)
    assert ask_status(hub.keys, WAIT_S).stage == "gathering"


def test_silent_and_half_open_connections_keep_nobody_out(hub):
    silent = [raw(hub) for _ in range(50)]
    for each in silent[:25]:
        each.sendall(b"\xff\x00\x00")  # the first bytes of a greeting, and no more
    assert ask_status(hub.keys, WAIT_S).stage == "gathering"
    for each in silent:
        each.close()


def test_every_refusal_is_an_event(hub, context):
    dealer = link_socket(context, hub.keys)
    dealer.send(b"\x01garbage")
    refused(hub, "malformed")
    deadline_s = time.monotonic() + WAIT_S
    while not any(event.name == "refused" for event in hub.events):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert events.Refused("malformed", 1, 1) in hub.events


def test_second_process_may_not_take_a_members_place(hub, context):
    """It learns why; the member and the run go on."""
    member, thief = link_socket(context, hub.keys), link_socket(context, hub.keys)
    member.send(encode(hello(hub, 0, "mine")))
    assert answer(member) == Ack(1)
    thief.send(encode(hello(hub, 0, "other")))
    found = answer(thief)
    assert isinstance(found, Refused)
    assert "already joined" in found.reason
    assert hub.ask(lambda state: (state.failure, state.members[0].hello.incarnation)) == (None, "mine")


def test_forged_messages_change_nothing(hub, context):
    """A member speaks for another one, with and without knowing which process that is."""
    member, liar = link_socket(context, hub.keys), link_socket(context, hub.keys)
    for replica, dealer in ((0, member), (1, liar)):
        dealer.send(encode(hello(hub, replica, f"i{replica}")))
        answer(dealer)
    forged = (
        beat(0, "guessed", tokens=10**6),
        beat(0, "i0", tokens=10**6),
        StorePut(5, 0, "epoch1/0", b"my own address"),
    )
    for count, message in enumerate(forged, 1):
        liar.send(encode(message))
        refused(hub, "identity", count)
    assert forged[0].tokens == 10**6
    assert hub.ask(lambda state: (state.members[0].beat, state.store)) == (None, {})


def beat(replica: int, incarnation: str, **changes) -> Beat:
    import msgspec

    values = {"replica": replica, "incarnation": incarnation, "generation": 1, "version": 0, "pooled": (1,) * 4}
    return msgspec.structs.replace(BEAT, **values | changes)


def test_a_flood_of_few_and_long_frames_is_one_as_well(context):
    limits = Limits(bytes_per_s=1.0, bytes_burst=10.5 * 100_000)
    server = HubServer(hub_plan(), RunKeys.generate(), keeps_events([]), limits=limits)
    server.keys = server.start("127.0.0.1", 0)
    try:
        flooder = link_socket(context, server.keys)
        for _ in range(30):
            flooder.send(b"x" * 100_000)
        counts = refused(server, "flood", 20)
        assert (counts["malformed"], counts["flood"]) == (10, 20)
    finally:
        server.stop()


def test_flood_is_dropped_and_the_others_are_served(hub, context):
    flooder = link_socket(context, hub.keys)
    for _ in range(500):
        flooder.send(encode(StatusRequest()))
    refused(hub, "flood", 100)
    link = Link(hub.keys, Identity(0, "h", 1, "c0ffee", "l"), lambda incarnation: beat(0, incarnation), 0.5, WAIT_S)
    link.start()
    deadline_s = time.monotonic() + WAIT_S
    while hub.ask(lambda state: len(state.members)) == 0:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    link.stop(timeout_s=1.0)
