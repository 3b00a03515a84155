"""Phase correction: a FIRE delayed for a step that is about to end, and smaller work for slow replicas."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import hub_plan, kpool
from tests.unit.test_hub import a_beat, fires
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.lease_book import LeaseBook
from tsugi_kpool.core.messages import Hello
from tsugi_kpool.core.rounds.fire_delay import WORTH, Step, awaited
from tsugi_kpool.core.rounds.sizing import WorkSizes, fitting, resize
from tsugi_kpool.sideband.hub.server import TICK_MS, HubServer
from tsugi_kpool.sideband.keys import RunKeys


@pytest.mark.parametrize(
    ("now_s", "began_s", "seconds", "held"),
    [
        (10.0, 9.02, 1.0, True),  # ends at 10.02
        (10.03, 9.02, 1.0, True),  # should have ended: any moment now
        (10.0, 9.2, 1.0, False),  # ends too late
        (10.0, 8.9, 1.0, False),  # should have ended before the round was worth it
        (10.05, 9.02, 1.0, False),  # the delay is over
        (10.0, 9.9, 0.11, False),  # too short to be worth it
    ],
)
def test_a_round_is_held_for_what_is_about_to_end(now_s, began_s, seconds, held):
    assert awaited(now_s, 10.0, 0.05, [Step(3, began_s, seconds)]) == ((3,) if held else ())


@given(
    now_s=st.floats(0, 100),
    ready_s=st.floats(0, 100),
    fire_delay_s=st.floats(0, 1),
    steps=st.lists(
        st.builds(Step, st.integers(0, 9), st.floats(0, 100), st.floats(0, 100)),
        max_size=9,
        unique_by=lambda step: step.replica,
    ),
)
def test_no_hold_is_longer_than_allowed(now_s, ready_s, fire_delay_s, steps):
    held = awaited(now_s, ready_s, fire_delay_s, steps)
    if now_s >= ready_s + fire_delay_s:
        assert not held
    assert all(
        step.seconds >= WORTH * fire_delay_s for step in steps if step.replica in held and held == (step.replica,)
    )


def delaying_hub(fire_delay_s: float) -> Hub:
    """Two members; the second one's steps take 1 s, and it is 0.97 s into one when the pool is full."""
    hub = Hub(hub_plan(kpool=kpool(k=1, n=3, fire_delay_s=fire_delay_s)), 0.0)
    for replica in range(2):
        hub.receive(Hello(1, replica, "i", "h", 1, "c0ffee", "l"), 0.0)
        hub.receive(a_beat(replica, 1, 0, (0, 0, 0), False), 0.1)
    hub.receive(beat(1, 2, (2, 2, 2)), 9.03)
    return hub


def beat(replica: int, steps: int, pooled):
    return msgspec.structs.replace(a_beat(replica, 1, 0, pooled, False), steps=steps)


def test_without_a_hold_the_round_fires_at_once():
    assert fires(delaying_hub(0.0).receive(beat(0, 2, (2, 2, 2)), 10.0))


def test_the_hub_holds_until_the_step_has_ended_and_says_so():
    hub = delaying_hub(0.05)
    assert not fires(hub.receive(beat(0, 2, (2, 2, 2)), 10.0))
    assert hub.held_until_s == pytest.approx(10.05)
    effects = hub.receive(beat(1, 3, (3, 3, 3)), 10.03)
    assert fires(effects)
    fired = next(e.data for e in effects if isinstance(e, Event) and e.name == "fired")
    assert (fired["delayed_s"], fired["delayed_for"], fired["pooled"]) == (0.03, [1], 5)
    assert hub.held_until_s is None


def test_a_step_that_does_not_end_is_not_waited_for():
    hub = delaying_hub(0.05)
    assert not fires(hub.receive(beat(0, 2, (2, 2, 2)), 10.0))
    assert not fires(hub.tick(10.04))
    assert fires(hub.tick(10.05))


def test_the_server_wakes_at_the_end_of_a_hold():
    """Not at its next tick, or a delay of 20 ms would take up to 70."""
    server = HubServer(hub_plan(kpool=kpool(fire_delay_s=0.02)), RunKeys.generate(), lambda told: None)
    assert server._pause_ms() == TICK_MS
    server._hub.ready_s = time.monotonic() - 0.015
    assert server._pause_ms() <= 5
    server._hub.ready_s = time.monotonic() - 1.0
    assert server._pause_ms() == 0


def test_a_hold_that_is_a_wait_is_refused():
    assert "kpool.fire_delay_s must lie in [0, 1], found 2" in kpool(fire_delay_s=2.0).problems()[0]


@pytest.mark.parametrize(
    ("seconds_per_sample", "period_s", "sizes"),
    [
        ({0: 0.1, 1: 0.1}, 0.0, {0: 8, 1: 8}),
        ({0: 0.1, 1: 0.4}, 0.0, {0: 8, 1: 2}),  # as long as the fast one's step
        ({0: 0.1, 1: 0.4}, 1.6, {0: 8, 1: 4}),  # rounds are longer: so may a step be
        ({0: 0.1, 1: 0.12}, 0.0, {0: 8, 1: 8}),  # a little slower is not slow
        ({0: 0.1, 1: 9.0}, 0.0, {0: 8, 1: 1}),
        ({}, 1.0, {}),
    ],
)
def test_slow_replicas_get_what_fits(seconds_per_sample, period_s, sizes):
    fits = fitting(seconds_per_sample, 8, period_s)
    assert {replica: resize(8, each, 8) for replica, each in fits.items()} == sizes


@given(size=st.integers(1, 64), fits=st.floats(0.01, 1000), micro_batch=st.integers(1, 64))
def test_sizes_stay_within_bounds_and_come_to_rest(size, fits, micro_batch):
    size = min(size, micro_batch)
    new = resize(size, fits, micro_batch)
    assert 1 <= new <= micro_batch
    again = resize(new, fits, micro_batch)
    assert again == new, "the same facts change nothing a second time"


def test_sizes_follow_a_replica_that_turns_slow_and_fast_again():
    sizes = WorkSizes(8)
    assert sizes.committed(0.0, {0: 0.1, 1: 0.1}) == {}
    assert sizes.committed(0.8, {0: 0.1, 1: 0.4}) == {1: (8, 2)}
    assert sizes.committed(1.6, {0: 0.1, 1: 0.42}) == {}, "noise"
    assert sizes.committed(2.4, {0: 0.1, 1: 0.1}) == {1: (2, 8)}
    assert (sizes.of(1), sizes.of(7)) == (8, 8)


@given(st.integers(0, 300), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), max_size=200))
def test_leases_of_any_size_leave_no_gap(total, requests):
    book, tickets, given_out = LeaseBook(total, 8, 8, replicas=4), [0] * 4, []
    for replica, micro_batch in requests:
        tickets[replica] += 1
        lease = book.offer(tickets[replica], micro_batch)
        book.take(replica, lease)
        given_out += range(lease.start, lease.stop)
        assert lease.stop - lease.start <= micro_batch
        assert lease.micro_batch == (0 if micro_batch == 8 else micro_batch)
    assert given_out == list(range(len(given_out)))
    assert len(given_out) <= total
