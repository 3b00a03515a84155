"""The pure decisions: tables for what is documented, properties for what must always hold."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import kpool
from tsugi_kpool.core.hub.lease_book import LeaseBook
from tsugi_kpool.core.messages import Abort, Commit, Finish, Fire, Generation
from tsugi_kpool.core.replica.ledger import ContributionLedger
from tsugi_kpool.core.replica.stage import Action, Stage, react
from tsugi_kpool.core.rounds.noise import Noise, estimate
from tsugi_kpool.core.rounds.trigger import Reason, decide, together
from tsugi_kpool.core.settings import Trigger

UNKNOWN = Noise()
KNOWN = Noise(norm2=1.0, trace=12.0, rounds=5)  # needs 12 / eps steps


@pytest.mark.parametrize(
    ("changes", "pooled", "link_free", "noise", "fire", "reason"),
    [
        ({}, 3, True, UNKNOWN, False, Reason.FILLING),
        ({}, 4, True, UNKNOWN, True, Reason.LINK_FREE),
        ({}, 4, False, UNKNOWN, False, Reason.LINK_BUSY),
        ({"trigger": Trigger.COUNT, "count": 5}, 9, True, UNKNOWN, False, Reason.FILLING),
        ({"trigger": Trigger.COUNT, "count": 5}, 10, True, UNKNOWN, True, Reason.COUNT),
        ({"eps": 1.0, "count": 5}, 9, True, UNKNOWN, False, Reason.FILLING),
        ({"eps": 1.0, "count": 5}, 10, True, UNKNOWN, True, Reason.COUNT),
        ({"eps": 1.0}, 11, True, KNOWN, False, Reason.FILLING),
        ({"eps": 1.0}, 12, True, KNOWN, True, Reason.CONVERGED),
        ({"eps": 100.0}, 3, True, KNOWN, False, Reason.FILLING),  # min_steps holds
        ({"eps": 100.0}, 4, True, KNOWN, True, Reason.CONVERGED),
        ({"eps": 1e-3}, 19, True, KNOWN, False, Reason.FILLING),
        ({"eps": 1e-3}, 20, True, KNOWN, True, Reason.CAP),  # max_steps holds
    ],
)
def test_trigger_fires_when_documented(changes, pooled, link_free, noise, fire, reason):
    verdict = decide(kpool(**changes), pooled, 2, link_free, noise)
    assert (verdict.fire, verdict.reason) == (fire, reason)


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        ([1.0] * 8, 8.0),
        ([1.0] * 7 + [4.0], 7.25),
        ([4.0, 1.0], 1.25),
        ([1.0, 4.0, 4.0], 3.0),  # the usual one is slow, and waits for nobody's next step
        ([0.1] + [1.0] * 3, 4.0),  # a fast one makes more, and is not waited for
        ([1.0, 1.4, 0.8, 1.2], 4.0),  # as uneven as steps are anyway
        ([0.0, 1.0, 0.0, 4.0], 3.25),  # not known: as usual
        ([0.0, 0.0], 2.0),
        ([], 0.0),
    ],
)
def test_of_a_slow_members_step_a_share_is_made_with_the_others(seconds, steps):
    assert together(seconds) == pytest.approx(steps)


@pytest.mark.parametrize(("pace", "least"), [(None, 16), (8.0, 16), (7.25, 14), (2.5, 16), (0.0, 16)])
def test_the_trigger_waits_for_no_whole_step_where_a_part_of_one_is_lacking(pace, least):
    """16 steps are 2.2 of a usual member at a pace of 7.25, and 6.4 at one of 2.5."""
    fires = [pooled for pooled in range(1, 30) if decide(kpool(), pooled, 8, True, UNKNOWN, pace).fire]
    assert fires[0] == least


@given(
    pooled=st.integers(0, 100),
    replicas=st.integers(1, 9),
    eps=st.one_of(st.just("auto"), st.floats(1e-6, 1e6)),
    norm2=st.floats(-1e3, 1e3),
    trace=st.floats(-1e3, 1e3),
    trigger=st.sampled_from(Trigger),
)
def test_trigger_never_leaves_its_bounds(pooled, replicas, eps, norm2, trace, trigger):
    settings = kpool(eps=eps, trigger=trigger)
    fire = decide(settings, pooled, replicas, True, Noise(norm2, trace, rounds=9)).fire
    if pooled < settings.min_steps * replicas:
        assert not fire
    if pooled >= settings.max_steps * replicas:
        assert fire, "an unknown or hopeless estimate must never hold a round beyond the cap"


def test_noise_estimate_is_unbiased():
    """Many rounds of n noisy changes around a known mean give back |G|^2 and trSigma."""
    draw = random.Random(0)
    dimensions, n, sigma, mean = 20, 8, 0.5, 0.3
    norm2s, traces = [], []
    for _ in range(2000):
        changes = [[mean + draw.gauss(0, sigma) for _ in range(dimensions)] for _ in range(n)]
        pooled = [sum(column) for column in zip(*changes, strict=True)]
        norm2, trace = estimate(sum(x * x for x in pooled), sum(x * x for c in changes for x in c), n)
        norm2s.append(norm2)
        traces.append(trace)
    assert sum(norm2s) / 2000 == pytest.approx(dimensions * mean**2, rel=0.02)
    assert sum(traces) / 2000 == pytest.approx(dimensions * sigma**2, rel=0.02)


def test_noise_is_unknown_until_it_is_known():
    noise = Noise()
    for _ in range(2):
        noise = noise.updated(1.0, 4.0)
        assert noise.needed(1.0) is None
    assert noise.updated(1.0, 4.0).needed(1.0) == pytest.approx(4.0)
    assert Noise(norm2=-1.0, trace=4.0, rounds=9).needed(1.0) is None
    assert noise.updated(0.0, 0.0) == noise, "a round in which nothing was measured says nothing"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.sets(st.integers(0, 3), min_size=1)), max_size=60))
def test_every_token_is_committed_or_buffered(history):
    """docs/design.md rule 2 for one replica, with work going on between snapshot and commit."""
    ledger, in_flight = ContributionLedger(4), None
    for train, tokens, adapters in history:
        if train:
            ledger.collect(tokens)
        elif in_flight is None:
            in_flight = ledger.shipment(sorted(adapters))
        else:
            ledger.commit(in_flight)
            in_flight = None
        for adapter in range(4):
            assert ledger.buffered(adapter) >= 0
            assert ledger.committed[adapter] + ledger.buffered(adapter) == ledger.produced[adapter]
            assert ledger.steps[adapter] >= 0


@pytest.mark.parametrize("read", [lambda ledger: ledger.steps, lambda ledger: ledger.produced])
def test_reading_the_books_in_another_thread_loses_no_step_that_ends_meanwhile(read):
    """A link reads them for every beat, without the lock that the training thread holds."""
    ended = 0
    for moment in range(12):
        ledger, lines = ContributionLedger(2), iter(range(1000))
        ledger.collect(5)

        def train(_, event, __, ledger=ledger, lines=lines, moment=moment):
            nonlocal ended
            if event == "line" and next(lines) == moment:
                ledger.collect(7)
                ended += 1
            return train

        before, ended_before = sys.gettrace(), ended
        sys.settrace(train)
        read(ledger)
        sys.settrace(before)
        meanwhile = ended - ended_before
        assert ledger.produced == [5 + 7 * meanwhile] * 2
        assert ledger.steps == [1 + meanwhile] * 2
    assert ended, "at some of these moments the reading was under way"


@given(
    total=st.integers(0, 200),
    size=st.integers(1, 20),
    granularity=st.integers(1, 4),
    askers=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=400),
)
def test_leases_hand_out_every_position_once(total, size, granularity, askers):
    book = LeaseBook(total, size, granularity, replicas=4)
    tickets = [0, 0, 0, 0]
    given_out = []
    for replica, repeat in askers:
        if repeat and tickets[replica]:
            again = book.grant(replica, tickets[replica])
            assert again == book.grant(replica, tickets[replica]), "a repeated question gets the same answer"
            continue
        tickets[replica] += 1
        lease = book.grant(replica, tickets[replica])
        given_out += range(lease.start, lease.stop)
    assert given_out == list(range(len(given_out)))
    assert book.exhausted == (len(given_out) >= total)


def test_closed_lease_book_gives_no_more():
    book = LeaseBook(10, 2, 1, replicas=1)
    book.grant(0, 1)
    book.closed = True
    lease = book.grant(0, 2)
    assert lease.start == lease.stop


FIRE = Fire(1, 5, (0,), (0, 1), "count", version=3)


@pytest.mark.parametrize(
    ("stage", "generation", "round", "version", "order", "action"),
    [
        (Stage.OUTSIDE, 0, 0, 0, Generation(1, (0, 1), 0), Action.FORM),
        (Stage.IDLE, 1, 4, 3, Generation(1, (0, 1), 0), Action.IGNORE),
        (Stage.IDLE, 1, 4, 3, FIRE, Action.START),
        (Stage.IDLE, 2, 4, 3, FIRE, Action.IGNORE),  # of another generation
        (Stage.IDLE, 1, 4, 2, FIRE, Action.IGNORE),  # it has not applied what the others start from
        (Stage.REDUCED, 1, 4, 2, FIRE, Action.COMMIT_THEN_START),  # the Commit of round 4 was lost
        (Stage.REDUCED, 1, 4, 3, FIRE, Action.FORGET_THEN_START),  # the Abort of round 4 was lost
        (Stage.REDUCED, 1, 4, 1, FIRE, Action.IGNORE),  # one round cannot make up for two versions
        (Stage.REDUCED, 1, 5, 3, FIRE, Action.IGNORE),  # repeated
        (Stage.REDUCED, 1, 5, 3, Commit(1, 5), Action.COMMIT),
        (Stage.IDLE, 1, 5, 4, Commit(1, 5), Action.IGNORE),  # repeated
        (Stage.REDUCED, 1, 5, 3, Commit(1, 4), Action.IGNORE),  # late
        (Stage.REDUCED, 1, 5, 3, Abort(1, 5, "x"), Action.FORGET),
        (Stage.IDLE, 1, 5, 3, Abort(1, 5, "x"), Action.IGNORE),
        (Stage.IDLE, 1, 5, 3, Finish(5, True), Action.IGNORE),
    ],
)
def test_member_reacts_only_to_the_next_expected_order(stage, generation, round, version, order, action):
    assert react(stage, generation, round, version, order) is action
