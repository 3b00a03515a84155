"""What the console remembers: little, and of the whole run."""

from __future__ import annotations

import pytest

from tests.pictures import event, fleet, past
from tsugi_cli.console.history import EVENTS_KEPT, STEPS_KEPT, TREND_KEPT, History


def test_the_same_status_twice_adds_nothing() -> None:
    history = History()
    for _ in range(5):
        history.observe(fleet())
    assert len(history.loss.values) == 1
    assert len(history.steps[0]) == 1


def test_history_stays_small_and_keeps_the_whole_run() -> None:
    history = past(fleet(), steps=5000)
    assert len(history.loss.values) < TREND_KEPT
    assert len(history.steps[0]) == STEPS_KEPT
    assert len(past(fleet()).events) <= EVENTS_KEPT
    assert history.loss.values[0] == pytest.approx(2.0, abs=0.2)
    assert history.loss.values[-1] == pytest.approx(2.0 - 50, abs=0.5)
    history.observe(fleet(1))
    assert list(history.steps) == [0]  # who has left takes its steps along


def test_rounds_in_a_row_share_one_line() -> None:
    history = History()
    for number in (1, 2, 3):
        history.record(event("fired", round=number, adapters=[1, 2], reason="count", pooled=9))
        history.record(event("committed", round=number, version=number, seconds=0.42, payload_bytes=1_234_567))
    history.record(event("aborted", round=4, reason="timeout"))
    history.record(event("committed", round=5, version=4, seconds=0.42, payload_bytes=1_234_567))
    assert list(history.events) == [
        "14:03:07  rounds 1 to 3 committed, the last in 0.4s, 1.2 MB",
        "14:03:07  round 4 aborted: timeout",
        "14:03:07  round 5 committed in 0.4s, 1.2 MB",
    ]


def at(second: float) -> str:
    return f"2026-10-05T14:03:{second:06.3f}+02:00"


def test_rounds_are_timed_by_their_events() -> None:
    history = History()
    for number in (1, 2, 3):
        fired = event("fired", round=number, adapters=[1, 2], reason="link free", pooled=9, delayed_s=0.012)
        history.record({**fired, "time": at(number)})
        if number == 1:
            reduced = event("committed", round=1, seconds=0.3, payload_bytes=1000)
            history.record({**reduced, "time": at(1.5)})
        if number == 2:
            history.record({**event("aborted", round=2, reason="left"), "time": at(2.2)})
    first, second, third = history.rounds
    assert (first.reason, first.collective_s, first.payload_bytes) == ("link free", 0.3, 1000)
    assert first.delayed_s == 0.012
    assert first.whole_s == pytest.approx(0.5)
    assert (second.aborted, second.whole_s) == (True, pytest.approx(0.2))
    assert third.flying


def test_rounds_without_their_beginning_or_with_strange_values_are_kept() -> None:
    history = History()
    history.record({"event": "committed", "round": 7, "seconds": "x", "time": "never"})
    history.record({"event": "fired", "round": None, "adapters": 3})
    history.record({"event": "aborted"})
    assert [one.number for one in history.rounds] == [7, 0]
    assert not history.rounds[0].flying


def test_a_fleets_evaluations_in_a_row_share_one_line():
    history = History()
    for stage, replicas in (("base", 4), ("trained", 2)):
        for number in range(replicas):
            history.record(event("evaluated", replica=number, stage=stage))
    history.record(event("finished", version=3))
    history.record(event("evaluated", replica=0, stage="trained"))
    assert [line[10:] for line in history.events] == [
        "4 replicas have evaluated their shares, base",
        "2 replicas have evaluated their shares, trained",
        "finished at version 3",
        "replica 0 has evaluated its share, trained",
    ]
