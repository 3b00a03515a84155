"""How long a replica waits for the commit of its own newest change, after a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.test_fleet import checked
from tests.support import hub_plan, kpool
from tsugi_kpool.core.replica.linger import ENOUGH, PAUSE_STEPS, ROUNDS, TRIES, Linger
from tsugi_kpool.core.settings import LONGEST_LINGER, Mode, Trigger
from tsugi_kpool.sim import Fleet, LinkModel, Slow, Speeds

WHOLE = {"n": 4, "k": 4, "min_steps": 1}


def lingering(share: float = 0.2, seconds: float = 1.0, **changes) -> Linger:
    linger = Linger(kpool(linger=share, **{**WHOLE, **changes}))
    linger.stepped(seconds)
    return linger


def test_the_bound_is_a_share_of_the_usual_step():
    linger = lingering()
    for seconds in (1.0, 30.0, 1.0, 1.0):
        linger.stepped(seconds)
    assert linger.bound_s(5, 8, (1, 1, 1, 1)) == pytest.approx(0.2), "one long step moves it not"


@pytest.mark.parametrize(
    ("changes", "members", "buffered"),
    [
        ({"share": 0.0}, 8, (1, 1, 1, 1)),
        ({}, 1, (1, 1, 1, 1)),  # nobody else
        ({}, 8, (0, 0, 0, 0)),  # all is committed
        ({"min_steps": 2}, 8, (1, 1, 1, 1)),  # a round is due after the next step
        ({"trigger": Trigger.COUNT, "count": 3}, 8, (2, 2, 2, 2)),
        ({"k": 1}, 8, (1, 1, 1, 1)),  # four rounds take longer than a fifth of a second
    ],
    ids=["off", "alone", "committed", "filling", "counting", "many rounds"],
)
def test_nobody_waits_where_no_commit_can_come(changes, members, buffered):
    assert lingering(**changes).bound_s(5, members, buffered) == 0.0


def test_long_steps_have_room_for_several_rounds():
    assert lingering(seconds=10.0, k=1).bound_s(5, 8, (1, 1, 1, 1)) == pytest.approx(2.0)
    assert lingering(seconds=1.0, k="auto").bound_s(5, 8, (1, 1, 1, 1)) == pytest.approx(0.2)


def test_the_straggler_does_not_wait_and_waits_again_when_it_has_caught_up():
    linger = lingering()
    for _ in range(ROUNDS):
        linger.committed((4, 4, 4, 1), rank=3)
    assert linger.behind
    assert linger.bound_s(5, 4, (1, 1, 1, 1)) == 0.0
    for _ in range(ROUNDS):
        linger.committed((4, 4, 4, 4), rank=3)
    assert linger.bound_s(5, 4, (1, 1, 1, 1)) > 0.0


def test_waits_that_do_not_pay_end_and_all_try_again_at_one_version():
    one, other = lingering(), lingering()
    for linger, version in ((one, 3), (other, 40)):
        for _ in range(TRIES):
            assert linger.bound_s(version, 8, (1, 1, 1, 1)) > 0.0
            linger.ended(False, version)
        assert linger.bound_s(PAUSE_STEPS - 1, 8, (1, 1, 1, 1)) == 0.0
        assert linger.bound_s(PAUSE_STEPS, 8, (1, 1, 1, 1)) > 0.0


def test_a_wait_in_four_that_pays_is_enough():
    linger = lingering()
    for number in range(10 * TRIES):
        linger.ended(number % (TRIES // ENOUGH) == 0, 7)
    assert linger.bound_s(7, 8, (1, 1, 1, 1)) > 0.0


@given(
    share=st.floats(0, LONGEST_LINGER),
    steps=st.lists(st.floats(0, 1e4), min_size=1, max_size=20),
    ends=st.lists(st.booleans(), max_size=30),
    version=st.integers(0, 1000),
)
def test_no_wait_is_longer_than_allowed(share, steps, ends, version):
    linger = lingering(share, steps[0])
    for seconds in steps:
        linger.stepped(seconds)
    for end in ends:
        linger.ended(end, version)
    assert 0.0 <= linger.bound_s(version, 8, (3, 0, 0, 0)) <= share * max(steps)


@pytest.mark.parametrize("share", [-0.1, 0.21, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    assert "kpool.linger must lie in [0, 0.2], a share of a step" in kpool(linger=share).problems()[0]


def test_gradient_mode_has_no_lingering():
    (said,) = kpool(linger=0.1, mode=Mode.GRADIENT).problems()
    assert "kpool.linger goes with kpool.mode=local" in said
    assert "kpool.overlap=false" in said


def fleet(speeds: Speeds, share: float) -> Fleet:
    settings = kpool(n=8, k=8, min_steps=1, fire_delay_s=0.05, linger=share)
    plan = hub_plan(replicas=8, samples=640, micro_batch=1, lease_samples=1, kpool=settings)
    return Fleet(plan, speeds, LinkModel(latency_s=0.001), seed=0)


def test_in_an_even_fleet_everybodys_step_is_committed_before_the_next_one_begins():
    found = {}
    for share in (0.0, 0.2):
        even = fleet(Speeds((1.0,), jitter=0.03), share)
        report = checked(even, 200)
        found[share] = report.staleness
        assert report.seconds < (1 + share) * 85
    assert found[0.2] < 0.1 < 0.9 < found[0.0]


def test_a_straggler_waits_for_nobody_and_a_fleet_out_of_step_seldom():
    slow = fleet(Speeds((1.0,), jitter=0.03, slow=(Slow(7, 4.0),)), 0.2)
    checked(slow, 400)
    assert slow.replicas[7].progress.lingered_s == 0.0
    uneven = fleet(Speeds((1.0,), jitter=0.5), 0.2)
    checked(uneven, 400)
    assert all(replica.progress.lingered_s < 0.08 * replica.progress.busy_s for replica in uneven.replicas)
