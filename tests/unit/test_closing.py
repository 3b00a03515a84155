"""When a round at an exchange closes: what the rule says of every member that is missing."""

from __future__ import annotations

import math
import random

import pytest

from tests.support import kpool
from tsugi_kpool.core.rounds.closing import (
    FIRST_GRACE_S,
    GONE_S,
    LEAST_GRACE_S,
    MOST_MISSES,
    Awaited,
    Missing,
    Quorum,
    closes_s,
    grace_of,
    missed,
    quorum_of,
)

QUORUM = Quorum(0.5, 10.0, 30.0)


@pytest.mark.parametrize(
    ("enough_s", "missing", "expected"),
    [
        (None, [], -math.inf),  # all parts are here
        (None, [Missing()], math.inf),  # too few parts, and it may still come
        (None, [Missing(gone_s=100.0)], 100.0 + GONE_S),  # it has died
        (None, [Missing(gone_s=100.0), Missing()], math.inf),
        (90.0, [Missing()], 100.0),  # it is slow
        (90.0, [Missing(), Missing(gone_s=95.0)], 100.0),
        (90.0, [Missing(gone_s=95.0)], 95.0 + GONE_S),  # a death need not be waited for
        (90.0, [Missing(gone_s=200.0)], 100.0),  # nor longer than a slow one
        (90.0, [Missing(misses=MOST_MISSES - 1)], 100.0),
        (90.0, [Missing(misses=MOST_MISSES)], 120.0),  # it has missed too often
        (90.0, [Missing(misses=MOST_MISSES, gone_s=91.0)], 91.0 + GONE_S),
    ],
)
def test_a_round_waits_for_who_may_still_come_and_not_for_the_dead(
    enough_s: float | None, missing: list[Missing], expected: float
) -> None:
    assert closes_s(QUORUM, 10.0, enough_s, missing) == expected


def test_members_that_are_alike_count_as_one_and_the_rule_says_the_same() -> None:
    """Whatever comes in whatever order: as when every member is asked about, as long as not all have gone."""
    for seed in range(200):
        draw = random.Random(seed)
        members = draw.sample(range(20), draw.randint(1, 12))
        misses = {each: draw.choice([0, 1, MOST_MISSES]) for each in members}
        gone_s = {each: draw.uniform(80.0, 120.0) for each in draw.sample(range(20), draw.randint(0, 6))}
        awaited, here = Awaited(members, misses), set[int]()
        for came in draw.sample(members, len(members)):
            enough_s = draw.choice([None, 95.0])
            each_of_them = [
                Missing(max(gone_s[each], 90.0) if each in gone_s else None, misses[each])
                for each in members
                if each not in here
            ]
            few = list(awaited.kinds(gone_s, 90.0))
            assert closes_s(QUORUM, 10.0, enough_s, few) == closes_s(QUORUM, 10.0, enough_s, each_of_them)
            assert len(few) <= len(gone_s) + 2, "those who have gone, and two kinds of others"
            here.add(came)
            awaited.came(came)
        assert closes_s(QUORUM, 10.0, None, awaited.kinds(gone_s, 90.0)) == -math.inf, "all are here"


@pytest.mark.parametrize(("share", "members", "needed"), [(0.5, 4, 2), (0.5, 5, 3), (1.0, 7, 7), (0.01, 3, 1)])
def test_how_many_parts_are_enough(share: float, members: int, needed: int) -> None:
    assert Quorum(share).needed(members) == needed


def test_the_grace_is_what_is_set_or_half_of_what_the_period_leaves() -> None:
    assert grace_of(QUORUM, 100.0, 1.0) == 10.0
    auto = quorum_of(kpool(round_grace_s="auto"))
    assert grace_of(auto, None, 1.0) == FIRST_GRACE_S
    assert grace_of(auto, 9.0, 1.0) == 4.0
    assert grace_of(auto, 2.0, 5.0) == LEAST_GRACE_S


def test_a_short_timeout_shortens_the_grace_and_is_no_mistake() -> None:
    settings = kpool(round_timeout_s=5.0)
    assert settings.problems() == []
    assert grace_of(quorum_of(settings), 100.0, 1.0) == 2.5


def test_misses_are_counted_in_a_row() -> None:
    counted: dict[int, int] = {}
    for parts in ((0, 1), (0,), (0,)):
        counted = missed(counted, (0, 1, 2), parts)
    assert counted == {0: 0, 1: 2, 2: 3}
    assert missed(counted, (0, 2), (0, 2)) == {0: 0, 2: 0}, "who has left is forgotten"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round_quorum": 0.0}, "kpool.round_quorum must lie in (0, 1], found 0.0"),
        ({"round_quorum": 1.5}, "kpool.round_quorum must lie in (0, 1], found 1.5"),
        ({"round_grace_s": -1.0}, "kpool.round_grace_s must not be negative, found -1.0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, float], words: str) -> None:
    assert any(words in problem for problem in kpool(**changes).problems())
