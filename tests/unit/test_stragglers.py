"""Each replica's pace on synthetic series: change points, work, drift, waits that come in bursts."""

from __future__ import annotations

import math
import random
from statistics import fmean

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_messages import BEAT
from tsugi_kpool.core.hub.members import Member
from tsugi_kpool.core.messages import Hello
from tsugi_kpool.core.slow.change_point import LEAST_STEPS, ChangeDetector, cut
from tsugi_kpool.core.slow.drift import Level, Yardstick, drift, middle
from tsugi_kpool.core.slow.pace import Pace, usual
from tsugi_kpool.core.slow.stragglers import Stragglers
from tsugi_kpool.core.slow.work import Workload

# --- change points ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2, 0.3, 0.5])
def test_lognormal_jitter_is_hardly_ever_a_change(sigma):
    """At most one false alarm in 10,000 steps, of any seed (an alarm alone names nobody: see ENTER)."""
    for seed in range(3):
        draw, detector = random.Random(f"{sigma}:{seed}"), ChangeDetector()
        alarms = sum(detector.take(draw.gauss(0.0, sigma), float(step)) is not None for step in range(10_000))
        assert alarms <= 1


@pytest.mark.parametrize(
    ("sigma", "factor", "within"),
    [(0.02, 1.5, 8), (0.05, 2.0, 6), (0.1, 2.0, 8), (0.2, 4.0, 8), (0.3, 4.0, 15), (0.5, 4.0, 40)],
)
def test_a_change_is_found_soon_and_its_moment_is_told(sigma, factor, within):
    for seed in range(10):
        draw, detector = random.Random(seed), ChangeDetector()
        for step in range(100):
            detector.take(draw.gauss(0.0, sigma), float(step))
        found = None
        for step in range(100, 100 + within):
            found = found or detector.take(math.log(factor) + draw.gauss(0.0, sigma), float(step))
        assert found is not None
        assert found.up
        assert abs(found.since_s - 100) <= max(2, 40 * sigma)
        assert math.exp(found.before) == pytest.approx(1.0, abs=max(0.02, sigma))


@given(st.integers(20, 300), st.lists(st.floats(0.0, 12.0), min_size=1, max_size=LEAST_STEPS - 1))
def test_a_few_outliers_are_no_change_however_large(steady, outliers):
    detector = ChangeDetector()
    for step in range(steady):
        assert detector.take(0.0, float(step)) is None
    assert all(detector.take(level, 1000.0) is None for level in outliers)


def test_back_to_the_old_level_is_a_change_down():
    detector, found = ChangeDetector(), []
    for step in range(300):
        change = detector.take(1.4 if 100 <= step < 200 else 0.0, float(step))
        found += [(change.up, change.since_s)] if change else []
    assert found == [(True, 100.0), (False, 200.0)]


# --- work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elasticity", [0.0, 0.5, 1.0])
def test_how_durations_depend_on_work_is_learnt(elasticity):
    draw, workload = random.Random(0), Workload()
    before = None
    for _ in range(400):
        work = draw.choice([40.0, 80.0, 160.0])
        now = (work, work**elasticity * math.exp(draw.gauss(0.0, 0.1)))
        if before is not None:
            workload.learn(before, now)
        before = now
    assert workload.elasticity == pytest.approx(elasticity, abs=0.1)


def test_a_replica_that_is_given_smaller_micro_batches_does_not_look_fast():
    """4x slower, and so its micro-batches become a quarter: per work it is as slow as before."""
    workload = Workload()
    assert workload.scale(100.0) == 1.0
    workload.learn((100.0, 4.0), (25.0, 1.0))
    assert 1.0 * workload.scale(25.0) == pytest.approx(4.0)


# --- drift ------------------------------------------------------------------------------------------------


def test_the_interval_of_drift_holds_the_truth_as_often_as_it_says():
    """A replica 1.3x slower than nine others with lognormal jitter; 95 % of the intervals, give or take."""
    draw, held = random.Random(1), 0
    for _ in range(300):
        levels = []
        for replica in range(10):
            centre = math.log(1.3) if replica == 0 else 0.0
            sample = [draw.gauss(centre, 0.2) for _ in range(40)]
            levels.append(Level(fmean(sample), 0.2 / math.sqrt(40)))
        value, error = drift(levels[0], middle(levels))
        held += abs(value - (1 / 1.3 - 1)) <= error
    assert 270 <= held <= 299


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_yardstick_is_the_lower_median_of_the_others(levels):
    yardstick = Yardstick(levels)
    for place, own in enumerate(levels):
        others = sorted(levels[:place] + levels[place + 1 :])
        assert yardstick.of(own) == others[(len(others) - 1) // 2]


def test_alone_there_is_no_yardstick():
    assert Yardstick([1.0]).of(1.0) is None


# --- waits ---------------------------------------------------------------------------------------------


def test_a_wait_once_in_ten_steps_is_the_mean_of_each():
    """A round comes every `kpool.max_steps` steps at the latest, and each step may be a beat of its own."""
    rare = Pace("i")
    for step in range(80):
        beat(rare, step, sync_wait_s=3.0 * (step // 10))
    assert usual(rare.recent()).sync_wait == pytest.approx(0.3, abs=0.05)


def test_waits_that_come_in_bursts_are_the_mean_of_each_and_one_alone_is_none():
    """Every fifth step waits a second for a round; once, and only once, the hub is frozen for a minute."""
    bursts, frozen = Pace("i"), Pace("i")
    for step in range(60):
        beat(bursts, step, sync_wait_s=float(step // 5))
        beat(frozen, step, sync_wait_s=60.0 if step >= 50 else 0.0)
    assert usual(bursts.recent()).sync_wait == pytest.approx(0.2, abs=0.1)
    assert bursts.level == pytest.approx(math.log(0.6), abs=0.2)
    assert usual(frozen.recent()).sync_wait == 0.0
    assert frozen.level == pytest.approx(math.log(0.4), abs=0.01)


def beat(pace: Pace, step: int, sync_wait_s: float) -> None:
    """A beat after each step of 0.4 s; `sync_wait_s` in all."""
    at_s = 0.4 * step + sync_wait_s
    changes = {"steps": step, "tokens": step, "worked": 100 * step, "busy_s": 0.4 * step, "sync_wait_s": sync_wait_s}
    at = {"stepped_s": at_s, "trained_s": at_s, "wait_s": 0.0, "incarnation": "i"}
    pace.take(msgspec.structs.replace(BEAT, **changes, **at), Workload(), at_s)


# --- a beginning that no detector has seen -----------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.5])
def test_the_cut_of_a_series_is_where_it_changed_and_nowhere_else(sigma):
    for seed in range(50):
        draw = random.Random(f"{sigma}:{seed}")
        even = [draw.gauss(0.0, sigma) for _ in range(64)]
        assert cut(even) is None
        assert cut([each + (2.5 if n >= 40 else 0.0) for n, each in enumerate(even)]) in range(39, 42)
    assert cut([]) is cut([0.0] * 64) is None


def told_slow(quick: int) -> float | None:
    """A replica has 60 steps of 60 ms and these of 15 ms, then each one waits a second for data; its slowdown's age
    in steps that waited, by the hub's status."""
    book, fleet = Stragglers(), {n: Member(Hello(1, n, "i", "h", 1, "c0ffee", "l"), 0.0, 0.0) for n in range(2)}
    now_s = busy_s = wait_s = 0.0
    other = 0
    for step in range(1, 60 + quick + 41):
        took_s = 0.06 if step <= 60 else 0.015
        waited_s = 1.0 if step > 60 + quick else 0.0
        busy_s, wait_s, now_s = busy_s + took_s, wait_s + waited_s, now_s + took_s + waited_s
        facts = {"incarnation": "i", "sync_wait_s": 0.0, "stepped_s": now_s, "trained_s": now_s}
        first = {
            "replica": 0,
            "steps": step,
            "tokens": step,
            "worked": 100 * step,
            "busy_s": busy_s,
            "wait_s": wait_s,
        }
        while 0.03 * other < now_s:
            other += 1
            done = {"steps": other, "tokens": other, "worked": 100 * other, "busy_s": 0.03 * other, "wait_s": 0.0}
            heard(book, fleet[1], 0.03 * other, facts | done | {"replica": 1})
        heard(book, fleet[0], now_s, facts | first)
        book.turn(fleet, True, now_s)
    slowness = book.of(0, now_s).slowness
    return None if slowness is None else slowness.since_s


def heard(book: Stragglers, member: Member, at_s: float, facts: dict) -> None:
    beat = msgspec.structs.replace(BEAT, **facts)
    member.observe(beat, at_s)
    book.beat(beat, at_s)


@pytest.mark.parametrize("quick", range(4, 40, 4))
def test_who_turns_slow_while_another_change_is_learnt_is_dated_all_the_same(quick):
    assert told_slow(quick) == pytest.approx(40.0, abs=6.0)
