"""The sideband's doors: who holds the run's key is heard, nobody else; a busy port is one clear error."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import msgspec
import pytest
import zmq

from tests.support import await_true, hub_plan, keeps_events, send_unheard
from tests.unit.test_messages import BEAT
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import MAX_FRAME_BYTES, Hello, Slot, SlotRequest, StatusRequest, encode
from tsugi_kpool.errors import LaunchError, MachineError, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.hub.dispatcher import Dispatcher
from tsugi_kpool.sideband.hub.fitting import fitting
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys
from tsugi_kpool.sideband.link import BUDGET_BURST_S, MIN_BEAT_GAP_S, Identity, Link
from tsugi_kpool.sideband.observer import Observer, ask_status
from tsugi_kpool.sideband.sockets import link_socket


@pytest.fixture
def hub():
    events = []
    server = HubServer(hub_plan(), RunKeys.generate(), keeps_events(events))
    server.keys = server.start("127.0.0.1", 0)
    server.events = events
    yield server
    server.stop()


def await_error(link: Link) -> None:
    """Ask for orders, as the aggregator does, until the link says what is wrong."""
    for _ in range(200):
        link.next_order(0.1)


def test_holder_of_the_key_is_answered(hub):
    status = ask_status(hub.keys, timeout_s=60)
    assert (status.run, status.stage, status.expected) == ("test", "gathering", 2)


def test_observer_may_ask_but_not_join(hub):
    """Another machine's observer token: the status is answered, a Hello is not even looked at."""
    keys, _ = token.read(token.write(hub.keys, Role.OBSERVER), hub.keys.address)
    context = zmq.Context()
    dealer = link_socket(context, keys)
    dealer.send(encode(Hello(1, 0, "i", "h", 1, "c0ffee", "l")))
    assert ask_status(keys, timeout_s=60).stage == "gathering"
    assert not dealer.poll(200)
    assert hub.ask(lambda state: len(state.members)) == 0
    context.destroy(linger=0)


def test_stranger_learns_nothing(hub):
    """Another member key, though it knows the hub's address and public key."""
    stranger = RunKeys.generate()
    forged = RunKeys(
        hub.keys.hub_public, stranger.hub_secret, stranger.member_public, stranger.member_secret, hub.keys.address
    )
    with pytest.raises(SidebandError, match=r"no hub answers .*other keys than these"):
        ask_status(forged, timeout_s=1.0)


def test_plain_client_is_not_heard(hub):
    """No CURVE at all: its frames never reach the decoder."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(hub.keys.address)
    send_unheard(dealer, encode(StatusRequest()))
    await_true(lambda: hub.status().refused.get("handshake", 0) > 0, "the hub to show it out", 60.0)
    assert not dealer.poll(0)
    context.destroy(linger=0)
    assert hub.ask(lambda state: state.refusals.counts["malformed"]) == 0
    assert hub.ask(lambda state: len(state.members)) == 0


def test_malformed_frames_of_a_member_are_counted_and_harmless(hub):
    context = zmq.Context()
    dealer = link_socket(context, hub.keys)
    for frame in (b"", b"\x01garbage", os.urandom(2000), b"\x01" + b"\xc1" * 100):
        dealer.send(frame)
    dealer.send_multipart([b"two", b"frames"])
    dealer.send(encode(StatusRequest()))
    assert dealer.poll(60_000), "the hub still answers"
    assert hub.status().refused == {"malformed": 5}
    context.destroy(linger=0)


def test_oversized_frame_is_not_taken_in(hub):
    context = zmq.Context()
    dealer = link_socket(context, hub.keys)
    dealer.send(b"\x01" * (MAX_FRAME_BYTES + 1))
    assert ask_status(hub.keys, timeout_s=60).stage == "gathering"
    assert hub.status().refused == {}, "ZeroMQ itself drops it"
    context.destroy(linger=0)


def test_refused_replica_learns_why(hub):
    link = Link(hub.keys, Identity(0, "h", 1, "another config", "l"), lambda incarnation: BEAT, 0.2, 60.0)
    link.start()
    with pytest.raises(LaunchError, match="configuration differs"):
        await_error(link)
    link.stop()


def test_hub_without_keys_stays_on_loopback_unless_told():
    with pytest.raises(MachineError, match=r"does not listen on 0\.0\.0\.0 without keys"):
        HubServer(hub_plan(), RunKeys.none(), lambda told: None).start("0.0.0.0", 0)


def test_hub_without_keys_answers_on_loopback():
    server = HubServer(hub_plan(), RunKeys.none(), lambda told: None)
    keys = server.start("127.0.0.1", 0)
    try:
        assert ask_status(keys, timeout_s=60).stage == "gathering"
    finally:
        server.stop()


def test_silent_hub_is_noticed_by_the_link():
    server = HubServer(hub_plan(), RunKeys.generate(), lambda told: None)
    keys = server.start("127.0.0.1", 0)
    link = Link(keys, Identity(0, "h", 1, "c0ffee", "l"), lambda incarnation: BEAT, 0.2, 1.0)
    link.start()
    server.stop()
    with pytest.raises(SidebandError, match="silent for 1 s"):
        await_error(link)
    link.stop(timeout_s=1.0)


def test_lost_messages_are_resent_until_acknowledged(hub):
    """A Hello that the hub never answered (it was not there) arrives once the hub is."""
    link = Link(hub.keys, Identity(1, "h", 1, "c0ffee", "l"), lambda incarnation: BEAT, 0.2, 60.0)
    link.start()
    await_true(lambda: hub.ask(lambda state: 1 in state.members), "the Hello", 60.0)
    link.stop()


def test_busy_port_is_one_clear_error(hub):
    port = int(hub.keys.address.rsplit(":", 1)[1])
    second = HubServer(hub_plan(), RunKeys.generate(), lambda told: None)
    with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{port}"):
        second.start("127.0.0.1", port)
    second.stop()


def test_status_of_a_large_fleet_fits_into_a_frame():
    """1,000 replicas: the answer shows those that lag most, and the hub lives on."""
    hub = Hub(hub_plan(replicas=1000), 0.0)
    for replica in range(1000):
        hub.receive(Hello(1, replica, "i", "a-host-with-a-long-name", 1, "c0ffee", "l"), 0.0)
        beat = msgspec.structs.replace(BEAT, replica=replica, incarnation="i", pooled=(1,) * 4, steps=replica)
        hub.receive(beat, float(replica))
    shown = fitting(fleet_status(hub, 1000.0))
    assert len(encode(shown)) < MAX_FRAME_BYTES
    assert shown.expected == 1000
    assert shown.replicas[0].replica == 0, "the one that lags most is among them"


def test_keys_are_written_for_their_owner_alone(tmp_path):
    path = tmp_path / "keys.json"
    keys = RunKeys.generate()
    sideband_keys.save(keys, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sideband_keys.load(path) == keys
    path.chmod(0o644)
    with pytest.raises(SidebandError, match="0600"):
        sideband_keys.load(path)


def test_hello_twice_is_one_member(hub):
    context = zmq.Context()
    dealer = link_socket(context, hub.keys)
    hello = Hello(1, 0, "i", "h", 1, "c0ffee", "l", seat_key(hub.keys.hub_secret, 0))
    for _ in range(3):
        dealer.send(encode(hello))
    for _ in range(3):
        assert dealer.poll(60_000)
        dealer.recv()
    assert [event.name for event in hub.events] == ["joined"]
    context.destroy(linger=0)


def test_a_link_keeps_to_its_budget(hub):
    """Progress without end: beats are spaced so that all bytes of both ways stay within what the time allowed."""
    budget, begun_s = 500.0, time.monotonic()
    link = Link(
        hub.keys, Identity(1, "h", 1, "c0ffee", "l"), lambda incarnation: BEAT, 0.5, 20.0, budget_bytes_s=budget
    )
    link.start()
    while time.monotonic() - begun_s < 4.0:
        link.nudge()
        time.sleep(0.005)
    link.stop()
    elapsed_s = time.monotonic() - begun_s
    owed = (elapsed_s / 0.5 + 1) * len(encode(BEAT))  # one beat every beat_s in any case
    assert link.pacing.up_bytes + link.pacing.down_bytes <= budget * (elapsed_s + BUDGET_BURST_S) + owed
    unlimited = elapsed_s / MIN_BEAT_GAP_S * len(encode(BEAT))
    assert link.pacing.up_bytes < unlimited


def test_the_place_of_a_join_that_was_killed_is_free_when_its_connection_has_closed():
    """Nothing is said: a killed process gives nothing back."""
    server = HubServer(
        hub_plan(joinable=1, config="seed: 0", supervised=False), RunKeys.generate(), lambda told: None
    )
    keys = server.start("127.0.0.1", 0)
    try:
        with Observer(keys) as killed:
            assert killed.ask(SlotRequest("killed"), Slot, 20.0).replica == 1
            with Observer(keys) as second, pytest.raises(LaunchError, match="no replica is missing"):
                second.ask(SlotRequest("second"), Slot, 60.0)
        await_true(lambda: not server.ask(lambda hub: hub.slots.held("killed")), "the hub sees it", 60.0)
        with Observer(keys) as third:
            assert third.ask(SlotRequest("third"), Slot, 20.0).replica == 1
    finally:
        server.stop()


def test_a_hub_that_takes_the_keys_and_says_nothing_is_told_from_one_with_other_keys(monkeypatch):
    """As behind a path that drops large packets: the handshake's small ones pass."""
    monkeypatch.setattr(Dispatcher, "hear", lambda *_: [])
    hub = HubServer(hub_plan(), RunKeys.generate(), keeps_events([]))
    keys = hub.start("127.0.0.1", 0)
    try:
        with pytest.raises(SidebandError, match=r"it takes these keys and then says nothing: .*\(MTU: try 1280\)"):
            ask_status(keys, 0.1)
        with pytest.raises(SidebandError, match="which has other keys than these"):
            ask_status(replace(RunKeys.generate(), address=keys.address), 0.1)
    finally:
        hub.stop()
