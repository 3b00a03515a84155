"""A link that turns slow is named, though nobody waits for its rounds; what only looks like one is not.

Where its rounds are waited for, the wait is named in its place.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
import pytest

from tests.pictures import fleet, replica
from tests.unit.test_messages import BEAT, VITALS
from tsugi_cli.console.events import event_text
from tsugi_cli.console.plain import plain_line
from tsugi_cli.console.slow import slow_lines
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.hub.health import judge
from tsugi_kpool.core.hub.members import Member
from tsugi_kpool.core.messages import Hello
from tsugi_kpool.core.slow.stragglers import Concluded, Stragglers

STEP_S, ROUND_S, TURNS_SLOW_S = 0.2, 0.5, 60.0
CALM, FULL = 0.001, 0.35
"""Median round trips of a link, as a run over a cable of 200 kbit/s showed them (docs/log.md)."""
QUICK, LATE = 0.008, 1.5
STEPS_OF_A_ROUND = 6
"""So rare is a wait for a round on a busy machine, of whose steps each is a beat."""


class Run:
    """Three replicas that train as fast as ever, while what their links show changes at a moment.

    `waits`: without overlap, the training threads wait for each round.
    """

    def __init__(self, waits: bool = False) -> None:
        self.waits, self._waited_s, self._landed_s = waits, 0.0, 0.0
        self.book, self.events = Stragglers(), []
        self._members = {
            number: Member(Hello(1, number, "i", "h", 1, "c0ffee", "l"), 0.0, 0.0) for number in range(3)
        }
        self.now_s, self._steps = 0.0, 0

    def until(self, end_s: float, transfer_s: float = QUICK, rtt_s: tuple[float, ...] = (CALM,) * 3) -> None:
        """Beats after each step, vitals once a second, a round after each as soon as the link is free."""
        heard_s = self.now_s
        while self.now_s < end_s:
            self.now_s += STEP_S
            self._steps += 1
            for number, member in self._members.items():
                busy_s = STEP_S * self._steps
                at_s = busy_s + self._waited_s
                changes = {"replica": number, "incarnation": "i", "steps": self._steps, "tokens": self._steps}
                times = {"busy_s": busy_s, "wait_s": 0.0, "sync_wait_s": self._waited_s}
                times |= {"stepped_s": at_s, "trained_s": at_s}
                beat = msgspec.structs.replace(BEAT, **changes, **times, worked=100 * self._steps)
                member.observe(beat, self.now_s)
                self.book.beat(beat, self.now_s)
            if self.now_s >= heard_s + 1.0:
                heard_s = self.now_s
                for number, each_s in enumerate(rtt_s):
                    facts = {"replica": number, "incarnation": "i", "rtt_usual_s": each_s}
                    self.book.vitals(msgspec.structs.replace(VITALS, **facts), self.now_s)
            if self.now_s >= self._landed_s + (STEPS_OF_A_ROUND * STEP_S if self.waits else max(ROUND_S, transfer_s)):
                if self.waits:
                    self.now_s, self._waited_s = self.now_s + transfer_s, self._waited_s + transfer_s
                self._landed_s = self.now_s
                self.book.round(transfer_s, self.now_s)
            self.events += self.book.turn(self._members, True, self.now_s)

    def slowness(self, number: int):
        return self.book.of(number, self.now_s).slowness


@pytest.fixture
def run() -> Run:
    calm = Run()
    calm.until(TURNS_SLOW_S)
    assert not calm.events
    return calm


def test_a_link_that_turns_slow_is_named_with_the_moment_and_its_figures(run):
    run.until(TURNS_SLOW_S + 9, LATE)  # the median of 16 round trips, a second apart, still says nothing
    assert not run.events
    run.until(TURNS_SLOW_S + 30, LATE, (CALM, CALM, FULL))
    found = run.slowness(2)
    assert (found.part, found.cause) == ("round", "link")
    assert found.evidence == ("round trip 0.35 s (before: 1 ms)",)
    assert (found.before_s, found.after_s) == (QUICK, LATE)
    assert run.now_s - found.since_s == pytest.approx(TURNS_SLOW_S, abs=2.5), "when the first slow round began"
    assert [run.slowness(number) for number in (0, 1)] == [None, None]
    assert [(each.name, each.data["replica"]) for each in run.events] == [("slow", 2)], "told once"
    run.until(TURNS_SLOW_S + 60)
    assert run.slowness(2) is None
    assert [each.name for each in run.events] == ["slow", "link_recovered"]


@pytest.mark.parametrize(
    ("transfer_s", "rtt_s"),
    [
        pytest.param(LATE, (CALM,) * 3, id="rounds alone: whose link it is is not known"),
        pytest.param(QUICK, (CALM, CALM, FULL), id="a round trip alone: no round is late"),
        pytest.param(LATE, (FULL,) * 3, id="all round trips: a busy machine, or the hub's own link"),
        pytest.param(0.1, (CALM, CALM, FULL), id="rounds that are over before the next step"),
    ],
)
def test_what_only_looks_like_a_slow_link_names_nobody(run, transfer_s, rtt_s):
    run.until(TURNS_SLOW_S + 40, transfer_s, rtt_s)
    assert not run.events
    assert [run.slowness(number) for number in range(3)] == [None] * 3


def test_a_replica_that_waits_for_a_round_now_and_then_is_slower_by_what_it_waits():
    """Without overlap. One beat in six has a wait: a busy machine, each of whose steps is a beat."""
    run = Run(waits=True)
    run.until(TURNS_SLOW_S)
    assert not run.events
    run.until(TURNS_SLOW_S + 60, LATE, (CALM, CALM, FULL))
    for number, whose in ((2, ""), (0, "replica 2's ")):
        found = run.slowness(number)
        assert (found.part, found.cause) == ("sync wait", "link")
        assert found.evidence[0] == f"{whose}round trip 0.35 s (before: 1 ms)"
        assert found.before_s == pytest.approx(STEP_S, rel=0.05)
        assert found.after_s == pytest.approx(STEP_S + LATE / STEPS_OF_A_ROUND, rel=0.2)
    run.until(TURNS_SLOW_S + 120)
    assert [run.slowness(number) for number in range(3)] == [None] * 3, "it has recovered, link and all"


def test_a_link_that_was_named_by_its_rounds_is_named_by_the_wait_when_somebody_waits_for_them(run):
    run.until(TURNS_SLOW_S + 30, LATE, (CALM, CALM, FULL))
    assert run.slowness(2).part == "round"
    run.waits = True
    run.until(TURNS_SLOW_S + 90, LATE, (CALM, CALM, FULL))
    assert run.slowness(2).part == "sync wait"
    told = [part_told(each) for each in run.events if part_told(each)[0] == 2]
    assert list(dict.fromkeys(told)) == [(2, "round"), (2, "sync wait")], "it is told, too"


def part_told(found: Concluded) -> tuple[int, str | None]:
    """Whom it is about, and the part of the time where somebody is slow."""
    told = found.data if isinstance(found, Event) else msgspec.structs.asdict(found)
    return told["replica"], told.get("part")


def test_a_slow_link_in_words(run):
    run.until(TURNS_SLOW_S + 30, LATE, (CALM, CALM, FULL))
    status = fleet(replicas=(replica(0), replica(1, slowness=run.slowness(2))))
    line = slow_lines(status, datetime(2026, 1, 1, 12, 5, 31))[0]
    assert "its link makes rounds 187.5x slow since 12:05:0" in line
    assert line.endswith("(a round's transfer 8 ms → 1.50 s); cause: link (round trip 0.35 s (before: 1 ms))")
    assert "slow link(r1)" in plain_line(status)
    assert judge("training", status.replicas, 1).reasons == (
        "replica 1 (node-1.cluster.example.org) is behind a slow link: rounds come late",
    )
    event = {"event": run.events[0].name, "time": "2026-01-01T12:05:31.000+01:00", **run.events[0].data}
    assert "cause: link (round trip 0.35 s" in event_text(event)
