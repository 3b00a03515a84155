"""When beats go out: soon after news, rarely without, within a budget, and seldom while the hub is silent."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tsugi_kpool.core.replica.heartbeat_pacing import (
    BUDGET_AIM,
    BUDGET_BURST_S,
    MIN_BEAT_GAP_S,
    SILENT_GAP_S,
    SILENT_S,
    VITALS_S,
    HeartbeatPacing,
)

BEAT_S = 0.5
BEAT_BYTES = 200
STEP_S = 0.01


def beats(
    pacing: HeartbeatPacing, from_s: float, until_s: float, news: bool, hub_answers: bool = True
) -> list[float]:
    """When a thread that looks every STEP_S sends beats."""
    found = []
    for step in range(round(from_s / STEP_S), round(until_s / STEP_S)):
        now_s = step * STEP_S
        pacing.nudged |= news
        if hub_answers:
            pacing.heard(0, now_s)
        if pacing.takes_beat(now_s):
            pacing.sent(BEAT_BYTES, True, now_s)
            found.append(now_s)
    return found


def gaps(times: list[float]) -> set[float]:
    return {round(second - first, 3) for first, second in pairwise(times)}


def test_the_first_beat_is_due_at_once_and_others_every_beat_s():
    found = beats(HeartbeatPacing(BEAT_S, 1e6), 0.0, 3.0, news=False)
    assert found[0] == 0.0
    assert gaps(found) == {BEAT_S}


def test_news_is_told_as_soon_as_the_gap_allows():
    assert gaps(beats(HeartbeatPacing(BEAT_S, 1e6), 0.0, 3.0, news=True)) == {0.13}, (
        "the first look after MIN_BEAT_GAP_S"
    )


def test_a_beat_without_news_delays_none():
    """A step that ends just after such a beat is told at once: the round that needs it would wait for it."""
    pacing = HeartbeatPacing(BEAT_S, 1e6)
    idle = beats(pacing, 0.0, 1.02, news=False)
    assert beats(pacing, 1.02, 1.03, news=True) == [1.02]
    assert 1.02 - idle[-1] < MIN_BEAT_GAP_S
    assert beats(pacing, 1.03, 1.3, news=True)[0] >= 1.02 + MIN_BEAT_GAP_S, (
        "but news is told no more often than before"
    )


def test_beats_with_news_give_way_to_what_must_not_be_lost():
    """A generation forms, and that takes more than the budget: only what is owed in any case goes out for a while."""
    pacing, rate = HeartbeatPacing(BEAT_S, 2000.0), 2000.0 * BUDGET_AIM
    pacing.sent(BEAT_BYTES, True, 0.0)
    pacing.sent(8000, False, 0.0)
    found = beats(pacing, 0.0, 10.0, news=True)
    saved_s = (8000 - 2000 * BUDGET_BURST_S) / rate
    assert gaps([each for each in found if each < saved_s]) == {BEAT_S}
    assert gaps([each for each in found if each > saved_s + 3 * BEAT_S]) == {0.13}
    frugal = HeartbeatPacing(BEAT_S, 1000.0)
    found = beats(frugal, 0.0, 20.0, news=True)
    assert frugal.up_bytes == len(found) * BEAT_BYTES <= 1000 * (20 + BUDGET_BURST_S)


@pytest.mark.parametrize("news", [True, False])
def test_a_silent_hub_is_told_less_often_until_it_is_heard_again(news):
    pacing = HeartbeatPacing(BEAT_S, 1e6)
    pacing.heard(0, 0.0)
    found = beats(pacing, 0.0, 10.0, news, hub_answers=False)
    assert gaps([each for each in found if each > SILENT_S]) == {SILENT_GAP_S}
    assert max(gaps([each for each in found if each < SILENT_S])) <= BEAT_S
    assert beats(pacing, 10.0, 10.5, news=True)[0] <= 10.0 + MIN_BEAT_GAP_S, "it is heard again"


def test_vitals_are_due_once_a_second():
    pacing = HeartbeatPacing(BEAT_S, 1e6)
    assert [pacing.takes_vitals(at_s) for at_s in (0.0, 0.5, VITALS_S, 1.5, 2.5)] == [True, False, True, False, True]


def test_a_thread_that_sleeps_until_next_s_finds_a_beat_due_and_none_before():
    """Whatever has happened: to the last bit of the time, or a sleeper would wake for nothing, again and again."""
    draw, now_s, pacing, found = random.Random(0), 0.0, HeartbeatPacing(BEAT_S, 900.0), 0
    for _ in range(5000):
        pacing.nudged |= draw.random() < 0.5
        if draw.random() < 0.3:
            pacing.heard(draw.randrange(300), now_s)
        if draw.random() < 0.2:
            pacing.sent(draw.randrange(2000), False, now_s)
        due_s = pacing.next_s(now_s)
        woken_s = now_s + draw.random() * 0.3
        if due_s <= woken_s:
            now_s = max(now_s, due_s)
            assert pacing.takes_beat(now_s)
            pacing.sent(BEAT_BYTES, True, now_s)
            found += 1
        else:
            now_s = woken_s
            assert not pacing.takes_beat(now_s)
    assert found > 1000
    assert pacing.up_bytes > found * BEAT_BYTES


def test_beats_that_a_simulation_leaves_out_delay_the_next_one_as_those_that_are_sent():
    sent, skipped = HeartbeatPacing(BEAT_S, 1e6), HeartbeatPacing(BEAT_S, 1e6)
    for pacing in (sent, skipped):
        pacing.heard(0, 0.0)
        assert pacing.takes_beat(0.05)
    for due_s in (0.55, 1.05, 1.55):
        assert sent.takes_beat(due_s)
    skipped.skip(1.6)
    for pacing in (sent, skipped):
        pacing.heard(0, 1.6)
        assert pacing.next_s(1.6) == 1.55 + BEAT_S
        pacing.nudged = True
        assert pacing.next_s(1.6) <= 1.6, "news waits for other news only"
