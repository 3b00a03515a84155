"""Clock offset from four stamps: exact on a symmetric link, bounded by half the round trip on any other."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import hub_plan
from tests.unit.test_messages import BEAT
from tsugi_kpool.core.replica.clock import WINDOW, ClockFilter, Exchange
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link

HOUR_S = 3600.0
DELAY_S = st.floats(0.0, 2.0)


def exchange(sent_s: float, offset_s: float, up_s: float, down_s: float, at_hub_s: float = 0.0) -> Exchange:
    """What the stamps are when the hub's clock is ours plus `offset_s`."""
    received_s = sent_s + up_s + offset_s
    answered_s = received_s + at_hub_s
    return Exchange(sent_s, received_s, answered_s, answered_s - offset_s + down_s)


@pytest.mark.parametrize(
    ("offset_s", "up_s", "down_s", "at_hub_s", "estimate_s", "rtt_s"),
    [
        (0.0, 0.1, 0.1, 0.0, 0.0, 0.2),
        (5.0, 0.1, 0.1, 0.3, 5.0, 0.2),
        (-HOUR_S, 0.2, 0.2, 0.0, -HOUR_S, 0.4),
        (1.0, 0.3, 0.1, 0.0, 1.1, 0.4),  # only one way is slow: half the difference is taken for offset
        (1.0, 0.0, 0.4, 0.0, 0.8, 0.4),
    ],
)
def test_known_exchanges(offset_s, up_s, down_s, at_hub_s, estimate_s, rtt_s):
    got = exchange(100.0, offset_s, up_s, down_s, at_hub_s)
    assert got.offset_s == pytest.approx(estimate_s)
    assert got.rtt_s == pytest.approx(rtt_s)


@given(st.floats(-1e6, 1e6), DELAY_S, DELAY_S, DELAY_S)
def test_the_error_is_at_most_half_the_round_trip(offset_s, up_s, down_s, at_hub_s):
    got = exchange(1000.0, offset_s, up_s, down_s, at_hub_s)
    assert abs(got.offset_s - offset_s) <= got.rtt_s / 2 + 1e-6


@given(st.lists(st.tuples(DELAY_S, DELAY_S), min_size=1, max_size=60))
def test_of_the_newest_exchanges_the_quickest_counts(delays):
    clock = ClockFilter()
    for second, (up_s, down_s) in enumerate(delays):
        clock.take(exchange(float(second), 42.0, up_s, down_s))
    best = clock.best()
    assert best.rtt_s == pytest.approx(min(sum(each) for each in delays[-WINDOW:]), abs=1e-9)
    assert abs(best.offset_s - 42.0) <= best.rtt_s / 2 + 1e-9


def test_jitter_is_filtered():
    """Queues add to single round trips; the estimate stays far better than the usual exchange."""
    draw, clock = random.Random(0), ClockFilter()
    errors = []
    for second in range(500):
        up_s, down_s = 0.01 + draw.expovariate(20), 0.01 + draw.expovariate(20)
        clock.take(exchange(float(second), 7.0, up_s, down_s))
        errors.append(abs(clock.best().offset_s - 7.0))
    assert max(errors[WINDOW:]) < 0.03
    assert sum(errors[WINDOW:]) / len(errors[WINDOW:]) < 0.01


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, 1.0])
def test_a_replaced_clock_is_followed_at_once(step_s):
    """Another hub's monotonic clock begins anywhere: the old estimate is dropped with the first exchange."""
    clock = ClockFilter()
    for second in range(50):
        clock.take(exchange(float(second), 3.0, 0.01, 0.02))
    clock.take(exchange(50.0, 3.0 + step_s, 0.2, 0.1))
    assert abs(clock.best().offset_s - (3.0 + step_s)) <= 0.15 + 1e-9


def test_a_slow_wander_is_no_replaced_clock():
    """100 parts per million: within what oscillators do; the best exchange may be a window old."""
    clock = ClockFilter()
    for second in range(2000):
        clock.take(exchange(float(second), second * 1e-4, 0.005, 0.005))
        assert abs(clock.best().offset_s - second * 1e-4) < 0.01


@pytest.mark.parametrize(
    "stamps", [(1.0, 5.0, 4.0, 2.0), (2.0, 5.0, 5.0, 1.0), (1.0, 5.0, 9.0, 2.0), (1.0, math.nan, 5.0, 2.0),
               (1.0, math.inf, math.inf, 2.0)],
)  # fmt: skip
def test_what_cannot_be_is_ignored(stamps):
    clock = ClockFilter()
    clock.take(exchange(0.0, 1.0, 0.1, 0.1))
    clock.take(Exchange(*stamps))
    assert clock.best().offset_s == pytest.approx(1.0)


def test_a_link_estimates_the_hubs_clock_while_the_wall_clock_is_set_back(monkeypatch):
    """Same machine, so one monotonic clock: offset 0. Wall clocks are an hour off, and nobody looks at them."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - HOUR_S)
    server = HubServer(hub_plan(), RunKeys.generate(), lambda told: None)
    keys = server.start("127.0.0.1", 0)
    link = Link(keys, Identity(0, "h", 1, "c0ffee", "l"), lambda incarnation: BEAT, 0.2, 30.0)
    link.start()
    try:
        speed, deadline_s = None, time.monotonic() + 60
        while time.monotonic() < deadline_s and (speed is None or speed.vitals is None or speed.vitals.rtt_s is None):
            speed = server.ask(lambda hub: hub.stragglers.of(0, time.monotonic()))
            time.sleep(0.02)
    finally:
        link.stop(1.0)
        server.stop()
    assert speed.vitals.rtt_s is not None
    assert abs(speed.vitals.offset_s) <= speed.vitals.rtt_s / 2 + 1e-3
    assert speed.vitals.up_bytes > 0
