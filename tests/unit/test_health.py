"""The fleet's health: who is missed, who is slow, and when too few are left."""

from __future__ import annotations

import pytest

from tests.pictures import replica
from tsugi_kpool.core.hub.health import Health, judge
from tsugi_kpool.core.messages import Slowness

WELL = (replica(0), replica(1), replica(2))
SILENT = replica(1, state="silent", host="b")
DEAD = replica(2, state="failed", host="c")


def slow(number, factor):
    facts = Slowness(factor, 9.0, 0.4, 1.6, "step", "compute", ())
    return replica(number, host="b", slowness=facts)


SLOW = slow(1, 4.0)


@pytest.mark.parametrize(
    ("stage", "rows", "least", "health", "reason"),
    [
        ("training", WELL, 3, Health.HEALTHY, ""),
        ("gathering", WELL[:1], 3, Health.HEALTHY, ""),
        ("training", (WELL[0], SILENT), 1, Health.DEGRADED, "replica 1 (b) is silent"),
        ("training", (WELL[0], SILENT), 2, Health.NO_QUORUM, "1 of at least 2 replicas are live"),
        ("draining", (WELL[0], SILENT, DEAD), 2, Health.NO_QUORUM, "1 of at least 2 replicas are live"),
        ("training", (WELL[0], SILENT, DEAD), 1, Health.DEGRADED, "replicas 1, 2 are lost"),
        ("training", (WELL[0], SLOW, WELL[2]), 3, Health.DEGRADED, "replica 1 (b) is slow, 4.0x, cause: compute"),
        ("failed", (WELL[0], DEAD), 2, Health.DEGRADED, "the run has failed: out of memory"),
        ("finished", (replica(0, state="done"), replica(1, state="done", silent_s=90.0)), 2, Health.HEALTHY, ""),
        ("draining", (WELL[0], SLOW), 2, Health.HEALTHY, ""),
    ],
)
def test_verdicts(stage, rows, least, health, reason):
    verdict = judge(stage, rows, least, "out of memory")
    assert verdict.health is health
    assert " ".join(verdict.reasons[:1]) == reason


def test_a_slow_replica_stays_named_until_the_data_is_used_up():
    verdict = judge("training", (WELL[0], slow(1, 2.5), slow(2, 4.0)), 2)
    assert verdict.reasons == ("replicas 2, 1 are slow, up to 4.0x, cause: compute",)
    assert judge("training", (WELL[0], replica(1, tokens_per_s=1.0)), 2).health is Health.HEALTHY


def test_what_was_refused_degrades():
    verdict = judge("training", WELL, 1, refused={"malformed": 4, "role": 3, "key": 90})
    assert (verdict.health, verdict.reasons) == (Health.DEGRADED, ("7 frames of holders of a key were refused",))
    assert judge("training", WELL, 1, refused={"key": 90, "old": 2}).health is Health.HEALTHY


def test_of_many_a_few_are_named():
    rows = [*WELL[:1], *(replica(i, state="silent") for i in range(1, 101))]
    assert judge("training", rows, 1).reasons == ("replicas 1, 2, 3 and 97 more are silent",)
