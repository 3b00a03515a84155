"""Who is slow, since when and why, on synthetic series: change points, work, drift, diagnosis, the straggler tax."""

from __future__ import annotations

import math
import random
from datetime import datetime
from statistics import fmean

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.test_messages import BEAT
from tsugi_cli.events import event_text
from tsugi_cli.slow import slowness_text
from tsugi_kpool.core.change_point import LEAST_STEPS, ChangeDetector
from tsugi_kpool.core.diagnosis import Case, Cause, LinkFacts, OtherLink, Part, Parts, diagnose, mean_facts
from tsugi_kpool.core.drift import Level, Yardstick, drift, middle
from tsugi_kpool.core.facts import UNKNOWN, MachineFacts
from tsugi_kpool.core.pace import Pace, usual
from tsugi_kpool.core.tax import Rates, StragglerTax
from tsugi_kpool.core.work import Workload

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


# --- diagnosis --------------------------------------------------------------------------------------------

FAST = Parts(micro_step=0.4, data_wait=0.01, hold=0.002, outside=0.003)
CALM = MachineFacts(
    cpu_share=1.0, thread_share=0.95, queue_share=0.01, quota_share=0.0, steal=0.0, busy=0.5, load=0.5,
    memory_free=0.6, major_faults_per_s=0.0, swap_in_bytes_per_s=0.0,
)  # fmt: skip
GPU = MachineFacts(thread_share=0.4, queue_share=0.0, gpu_clock=0.95, gpu_busy=0.99, memory_free=0.6)


def changed(facts: MachineFacts, **changes: object) -> MachineFacts:
    return replace(facts, **changes)


CASES = [
    ("steal", {"micro_step": 1.6}, CALM, {"steal": 0.62}, Cause.COMPUTE, "CPU steal 62 %"),
    ("hog", {"micro_step": 0.8}, CALM, {"queue_share": 0.48, "thread_share": 0.5}, Cause.COMPUTE,
     "waited for a core 48 % of the time, load 0.5 per core"),
    ("slept", {"micro_step": 1.6}, CALM, {"thread_share": 0.24}, Cause.COMPUTE,
     "the training thread slept 74 % of the time"),
    ("quota", {"micro_step": 1.6}, CALM, {"quota_share": 0.7, "thread_share": 0.95}, Cause.COMPUTE,
     "stopped by its CPU quota 70 % of the time"),
    ("heat", {"micro_step": 0.8}, GPU, {"gpu_clock": 0.45, "gpu_throttle": "heat"}, Cause.COMPUTE,
     "GPU throttled: heat"),
    ("clock", {"micro_step": 0.8}, GPU, {"gpu_clock": 0.45}, Cause.COMPUTE, "GPU clock at 45 % of its highest"),
    ("swap", {"micro_step": 3.0}, CALM, {"major_faults_per_s": 800.0, "memory_free": 0.01}, Cause.MEMORY,
     "800 page faults/s from disk"),
    ("data", {"data_wait": 1.2}, CALM, {}, Cause.DATA, "waits 1.20 s (before: 10 ms) for a micro-batch"),
    ("rounds", {"hold": 1.2}, CALM, {}, Cause.ROUNDS, "held up 1.20 s (before: 2 ms) for each micro-step"),
    ("loader", {"outside": 1.2}, CALM, {}, Cause.OUTSIDE, "1.20 s (before: 3 ms) between micro-steps"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "usual", "now", "cause", "evidence"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_cause_is_named_from_facts(parts, usual, now, cause, evidence):
    found = diagnose(Case(FAST, replace(FAST, **parts), usual, changed(usual, **now)))
    assert found.cause is cause
    assert found.evidence[0].startswith(evidence)


def test_on_a_crowded_machine_only_what_grew_with_the_micro_step_is_evidence():
    """Three quarters of the time without a core before and after: the thread slept, the queue is not to blame."""
    crowded = changed(CALM, thread_share=0.25, queue_share=0.74)
    slept = diagnose(
        Case(FAST, replace(FAST, micro_step=1.6), crowded, changed(CALM, thread_share=0.06, queue_share=0.18))
    )
    assert slept.evidence == ("the training thread slept 75 % of the time",)
    queued = diagnose(
        Case(FAST, replace(FAST, micro_step=1.6), crowded, changed(CALM, thread_share=0.06, queue_share=0.93))
    )
    assert queued.evidence == ("waited for a core 93 % of the time, load 0.5 per core (before: 74 %)",)


@pytest.mark.parametrize("part", ["data_wait", "hold"])
def test_a_wait_that_the_link_explains_is_the_links(part):
    links = {"link_before": LinkFacts(rtt_s=0.002), "link_now": LinkFacts(rtt_s=0.8)}
    found = diagnose(Case(FAST, replace(FAST, **{part: 1.2}), CALM, CALM, **links))
    assert found.cause is Cause.LINK
    assert found.evidence == ("round trip 0.80 s (before: 2 ms)",)


def test_rounds_that_take_longer_explain_a_replica_that_is_held_up_but_not_late_data():
    links = {"link_before": LinkFacts(0.002, 0.1), "link_now": LinkFacts(0.002, 0.9)}
    held = diagnose(Case(FAST, replace(FAST, hold=1.2), CALM, CALM, **links))
    assert (held.cause, held.evidence) == (Cause.LINK, ("a round's transfer 0.90 s (before: 0.10 s)",))
    late = diagnose(Case(FAST, replace(FAST, data_wait=1.2), CALM, CALM, **links))
    assert late.cause is Cause.DATA


def test_a_round_that_waits_for_another_replicas_link_names_that_replica():
    """Everybody is held up by a slow transfer; the round trips say whose link it is."""
    links = {"link_before": LinkFacts(0.001, 0.01), "link_now": LinkFacts(0.001, 1.5)}
    held = diagnose(Case(FAST, replace(FAST, hold=0.7), CALM, CALM, **links, other=OtherLink(1, 0.001, 0.35)))
    assert held.cause is Cause.LINK
    assert held.evidence == (
        "replica 1's round trip 0.35 s (before: 1 ms)",
        "a round's transfer 1.50 s (before: 10 ms)",
    )
    own = {**links, "link_now": LinkFacts(0.3, 1.5)}
    held = diagnose(Case(FAST, replace(FAST, hold=1.2), CALM, CALM, **own, other=OtherLink(1, 0.001, 0.35)))
    assert held.evidence[0] == "round trip 0.30 s (before: 1 ms)"
    quick = {"link_before": LinkFacts(0.001, 0.01), "link_now": LinkFacts(0.001, 0.01)}
    waits = diagnose(Case(FAST, replace(FAST, hold=0.7), CALM, CALM, **quick, other=OtherLink(1, 0.001, 0.35)))
    assert waits.cause is Cause.ROUNDS, "the rounds themselves are as quick as before"


def test_a_thread_that_is_held_up_does_not_sleep_in_its_micro_step():
    """Half of the time it waits for a round, and the micro-step takes a little longer, too."""
    held = diagnose(Case(FAST, replace(FAST, micro_step=0.9, hold=0.4), CALM, changed(CALM, thread_share=0.6)))
    assert (held.part, held.evidence) == (Part.MICRO_STEP, ())


def test_waits_that_come_in_bursts_are_the_mean_of_each_and_one_alone_is_none():
    """Every fifth micro-step waits a second for a round; once, and only once, the hub is frozen for a minute."""
    bursts, frozen = Pace("i"), Pace("i")
    for step in range(60):
        beat(bursts, step, hold_s=float(step // 5))
        beat(frozen, step, hold_s=60.0 if step >= 50 else 0.0)
    assert usual(bursts.recent()).hold == pytest.approx(0.2, abs=0.1)
    assert bursts.level == pytest.approx(math.log(0.6), abs=0.2)
    assert usual(frozen.recent()).hold == 0.0
    assert frozen.level == pytest.approx(math.log(0.4), abs=0.01)


def beat(pace: Pace, step: int, hold_s: float) -> None:
    """A beat after each micro-step of 0.4 s; `hold_s` in all."""
    at_s = 0.4 * step + hold_s
    changes = {"micro_steps": step, "tokens": step, "worked": 100 * step, "busy_s": 0.4 * step, "hold_s": hold_s}
    at = {"stepped_s": at_s, "trained_s": at_s, "wait_s": 0.0, "incarnation": "i"}
    pace.take(msgspec.structs.replace(BEAT, **changes, **at), Workload(), at_s)


def test_a_machine_that_shows_nothing_gives_no_evidence():
    """A device that is simply slower: compute, and nothing is made up."""
    found = diagnose(Case(FAST, replace(FAST, micro_step=1.6), CALM, CALM))
    assert (found.part, found.cause, found.evidence) == (Part.MICRO_STEP, Cause.COMPUTE, ())
    assert diagnose(Case(FAST, replace(FAST, micro_step=1.6))).evidence == (), "nothing is known at all"


def test_a_training_thread_that_waits_for_a_busy_gpu_does_not_sleep():
    found = diagnose(Case(FAST, replace(FAST, micro_step=1.6), GPU, changed(GPU, thread_share=0.05)))
    assert found.evidence == ()


def test_facts_are_averaged_over_the_samples_that_know_them():
    mean = mean_facts([MachineFacts(steal=0.2), MachineFacts(steal=0.4, gpu_throttle="heat"), MachineFacts()])
    assert mean.steal == pytest.approx(0.3)
    assert mean.gpu_throttle == "heat"
    assert mean.load == UNKNOWN


# --- the straggler tax ------------------------------------------------------------------------------------


def rates(*seconds_per_token: float, share: float = 1.0) -> list[Rates]:
    """Replicas that train for this share of their time."""
    return [Rates(each, share / each if each else 0.0) for each in seconds_per_token]


def test_the_tax_of_one_4x_straggler_of_four():
    """Own pace 3 + 1/4 tokens a second, lock-step 4 / 4: training at own pace recovers all of the difference."""
    tax = StragglerTax()
    for second in range(101):
        tax.advance(float(second), rates(1.0, 1.0, 1.0, 4.0), True)
    assert tax.lockstep_tokens(325) == pytest.approx(100.0)
    assert tax.recovered() == pytest.approx(1.0)


def test_lock_step_itself_recovers_nothing_and_equal_replicas_pay_no_tax():
    slow, equal = StragglerTax(), StragglerTax()
    for second in range(101):
        slow.advance(float(second), [*rates(1.0, 1.0, 1.0, 4.0, share=1.0 / 3.25)], True)
        equal.advance(float(second), rates(1.0, 1.0, 1.0, 1.04, share=0.8), True)
    assert slow.recovered() == pytest.approx(0.0)
    assert equal.recovered() is None
    assert equal.lockstep_tokens(400) == pytest.approx(400 / 0.8, rel=0.04)


def test_time_in_which_not_all_train_or_are_known_does_not_count():
    tax = StragglerTax()
    tax.advance(0.0, rates(0.0, 1.0), True)
    tax.advance(10.0, rates(1.0, 2.0), True)
    tax.advance(20.0, rates(1.0, 2.0), True)
    tax.advance(30.0, rates(1.0, 2.0), False)
    assert tax.trained == pytest.approx(15.0)
    assert tax.lockstep == pytest.approx(10.0)


def test_what_was_lost_before_a_replica_turned_slow_is_not_charged_to_its_tax():
    """A minute in which equal replicas lost a tenth to waits; then one of two turns 4x slower, and nobody waits."""
    tax, told = StragglerTax(), []
    for second in range(60):
        tax.advance(float(second), rates(1.0, 1.0, share=0.9), True)
    for second in range(60, 100):
        mixed = 1.0 + 3.0 * min(1.0, (second - 60) / 20)  # its window fills with slow micro-steps
        tax.advance(float(second), rates(1.0, mixed), True)
        told.append(tax.recovered())
    assert told[:5] == [None] * 5, "not known yet is no 0 %"
    assert all(each == pytest.approx(1.0) for each in told if each is not None)
    assert told[-1] is not None


# --- words ------------------------------------------------------------------------------------------------

FACTS = {
    "factor": 3.8, "since_s": 60.0, "before_s": 0.41, "after_s": 1.56, "part": "micro-step", "cause": "compute",
    "evidence": ["CPU steal 62 %"],
}  # fmt: skip


def test_a_slow_replica_in_words():
    text = "3.8x slow since 12:04:31 (micro-step 0.41 s → 1.56 s); cause: compute (CPU steal 62 %)"
    assert slowness_text(FACTS, datetime(2026, 1, 1, 12, 5, 31)) == text
    event = {"event": "slow", "time": "2026-01-01T12:05:31.000+01:00", "replica": 1, **FACTS}
    assert event_text(event) == f"replica 1: {text}"


def test_what_an_event_lacks_or_hides_is_shown_safely():
    assert "?" in event_text({"event": "slow", "time": "never", "cause": "?"})
    assert "\x1b" not in event_text({"event": "slow", **FACTS, "evidence": ["\x1b[31m"], "cause": "\x1b[0m"})
