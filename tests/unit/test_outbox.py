"""A link's mailboxes without its socket: nothing asked for is lost, asked for twice, or kept for ever."""

from __future__ import annotations

import queue
import threading

import msgspec
import pytest

from tests.support import hub_plan
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.outgoing import thin
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import (
    Bye,
    Commit,
    Fire,
    Generation,
    Hello,
    Lease,
    LeaseRequest,
    Reduced,
    StatusRequest,
    StoreGet,
    StoreValue,
    decode,
    encode,
)
from tsugi_kpool.core.replica.outbox import REPEAT_S, Outbox
from tsugi_kpool.sideband.hub import dispatcher as dispatcher_module
from tsugi_kpool.sideband.hub.dispatcher import FORGET_EVERY_S, Dispatcher
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link


@pytest.fixture
def link():
    """Never started: the tests deliver what the hub would send."""
    return Link(RunKeys.none(), Identity(1, "h", 1, "c0ffee", "l"), lambda incarnation: None, 0.5, 20.0)


def test_what_is_not_acknowledged_is_said_again():
    outbox = Outbox(3, "i")
    outbox.add(Bye(0, 0, ""))
    assert outbox.due(10.0) == [Bye(1, 3, "i")]
    assert outbox.due(10.0 + REPEAT_S / 2) == []
    assert outbox.due(10.0 + REPEAT_S) == [Bye(1, 3, "i")]
    outbox.settle(1)
    assert outbox.due(20.0) == []
    assert outbox.acknowledged


def test_a_question_waits_once_however_often_it_is_asked(link):
    """While the hub is away a waiting caller asks every 50 ms; what comes back must not be met by a flood."""
    for _ in range(400):
        assert link.store_get("epoch1/a", 0.0) is None
    assert link.due(1.0) == [StoreGet(1, "epoch1/a")]
    link.deliver(StoreValue("epoch1/a", b"x"))
    assert link.store_get("epoch1/a", 0.0) == b"x"


def test_values_of_an_earlier_generation_are_forgotten(link):
    link.deliver(Generation(1, (0, 1), 0))
    link.deliver(StoreValue("epoch1/a", b"x"))
    link.deliver(Generation(1, (0, 1), 0))  # repeated: nothing is lost by that
    assert link.store_get("epoch1/a", 0.0) == b"x"
    link.deliver(Generation(2, (0, 1), 0))
    link.deliver(StoreValue("epoch2/a", b"y"))
    assert list(link._values) == ["epoch2/a"]


def test_a_lease_that_arrives_just_now_is_not_asked_for_again(link):
    """The range of a request that is overtaken by another one of the same link would never be trained on."""
    asker = threading.Thread(target=link.lease, daemon=True)

    class Slow(queue.SimpleQueue):
        def put(self, lease):
            asker.start()  # the training thread wants data at the very moment at which some come
            asker.join(timeout=0.3)
            super().put(lease)

    link._leases = Slow()
    link._ask_for_lease()
    assert link.due(1.0) == [LeaseRequest(1, link.incarnation, 1)]
    link.deliver(Lease(1, 0, 4))
    asker.join(timeout=60)
    assert not asker.is_alive()
    assert link.due(2.0) == [LeaseRequest(1, link.incarnation, 2)], "one more, for the next range"


def test_connections_that_have_gone_are_forgotten():
    """A link that is cut off again and again comes back by another route each time."""

    class Egress:
        def learn(self, replica, route):
            pass

    hub = Hub(hub_plan(), 0.0)
    dispatcher = Dispatcher(hub, Egress(), lambda: None)
    dispatcher.hear(b"1", Hello(1, 1, "i", "h", 1, "c0ffee", "l"), 0.0)
    dispatcher.hear(b"2", Hello(1, 1, "i", "h", 1, "c0ffee", "l"), 1.0)
    assert set(dispatcher._replica_of) == {b"1", b"2"}
    dispatcher.look_around(lambda route: route == b"2", FORGET_EVERY_S + 1.0)
    assert set(dispatcher._replica_of) == {b"2"}


def test_observers_do_not_keep_the_hub_busy(monkeypatch):
    """However many ask at once, one status is made for all of them."""
    made = []
    monkeypatch.setattr(
        dispatcher_module, "status_for_askers", lambda hub, now_s: made.append(now_s) or fleet_status(hub, now_s)
    )
    dispatcher = Dispatcher(Hub(hub_plan(), 0.0), None, lambda: None)
    for _ in range(100):
        [(answer, route)] = dispatcher.hear(b"1", StatusRequest(), 1.0)
        assert (answer.message.run, route) == ("test", b"1")
    assert made == [1.0]
    dispatcher.hear(b"1", StatusRequest(), 100.0)
    assert made == [1.0, 100.0]


def test_a_fire_goes_out_without_its_members():
    """Whoever may act on it knows them from the Generation; a thousand numbers are 3 KB, over a second's budget."""
    fire = Fire(1, 2, (0, 1), tuple(range(1000)), "count", 1)
    assert len(encode(thin(fire))) < 100
    assert decode(encode(thin(fire))) == msgspec.structs.replace(fire, members=())
    assert thin(Commit(1, 2)) == Commit(1, 2)


def test_a_commit_acknowledges_the_landings_of_its_round_and_of_those_before():
    outbox = Outbox(1, "i")
    for round in (1, 2, 3):
        outbox.add(Reduced(0, 1, "i", 1, round, "d", 0.1, 9, (), 0.0, 0.0))
    outbox.add(Bye(0, 1, "i"))
    outbox.committed(2)
    assert [(type(each), each.seq) for each in outbox.due(REPEAT_S)] == [(Reduced, 3), (Bye, 4)]
