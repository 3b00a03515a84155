"""The check of an owner: who has summed wrong is found by whoever sums again, and nobody can be framed by one."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.engine.test_overlap import WAIT_S, Uplink
from tests.engine.test_scattered import ALL, Fleet
from tests.support import await_true, kpool, tiny_lora
from tsugi_kpool.codec import header
from tsugi_kpool.codec.coding import decode, encode
from tsugi_kpool.core.messages import Check, Commit, Fire, Generation
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.rounds.statements import SIGNATURE_BYTES
from tsugi_kpool.core.settings import Payload, Reduce
from tsugi_kpool.engine import rounds, scattered
from tsugi_kpool.engine.aggregator import Aggregator
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.rounds import UnusableRound
from tsugi_kpool.engine.thread_group import ThreadGroup, ThreadRendezvous
from tsugi_kpool.engine.ways import exchanged, finished
from tsugi_kpool.errors import LaunchError

MEMBERS, LIAR = 4, 2


def reduced(fleet: Fleet, lie: Callable | None = None, spoil: int | None = None, commit: bool = False):
    """Reduce a round; `lie` changes what the liar sends to all as an owner, `spoil` the part of a member."""
    contributions = [each.buffer.contribution(ALL) for each in fleet.present]
    if spoil is not None:
        contributions[spoil].delta[0, 0] = float("inf")
    ways = [way.of(each) for way, each in zip(fleet.ways, contributions, strict=True)]
    got = exchanged([next(way) for way in ways])
    wanted = [way.send(mine) for way, mine in zip(ways, got, strict=True)]
    if lie is not None:
        frames = fleet.ways[LIAR]
        for part in wanted[LIAR].parts[:1]:  # one tensor goes to all
            lie(frames.cut, part.numpy())
    outcomes = finished(ways, wanted)
    assert len({outcome.digest for outcome in outcomes}) == 1, "a wrong sum is the same wrong bits for all"
    if commit:
        fleet.commit(contributions, outcomes)
    return outcomes


def check(fleet: Fleet, owner: int, *checkers: int, tamper: Callable | None = None) -> list[tuple[int, ...]]:
    """What each member finds."""
    ways = [way.check(owner, checkers) for way in fleet.ways]
    wanted = [next(way) for way in ways]
    if tamper is not None:
        tamper(wanted)
    return finished(ways, wanted)


def mean_of(cut, answer: np.ndarray) -> np.ndarray:
    """The coded mean in an owner's frame to all, in place."""
    return answer[1 + 8 * len(ALL) : -SIGNATURE_BYTES]


def doubled(cut, answer):
    code, count = mean_of(cut, answer), len(ALL) * cut.width(LIAR)
    code[:] = encode(2 * decode(code.copy(), count, cut.payload), cut.payload)


def one_block(cut, answer):
    """As small a lie as is found: one number, by what is no longer rounding."""
    code, count = mean_of(cut, answer), len(ALL) * cut.width(LIAR)
    values = decode(code.copy(), count, cut.payload).copy()
    values[7] -= 3.0 * np.abs(values[: cut.block]).max()
    code[:] = encode(values, cut.payload)


def blames(cut, answer):
    answer[0] |= 64  # the second member


def ready(payload: Payload = Payload.INT8, **changes) -> Fleet:
    """A fleet with a few rounds behind it: residuals are there, and their bounds are known."""
    fleet = Fleet(MEMBERS, payload, **changes)
    for _ in range(2):
        fleet.train()
        fleet.round()
    fleet.train()
    return fleet


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("error_feedback", [True, False])
def test_honest_owners_are_cleared_by_everybody(payload, error_feedback):
    fleet = ready(payload, error_feedback=error_feedback)
    for _ in range(3):
        reduced(fleet, commit=True)
        for owner in range(MEMBERS):
            assert check(fleet, owner, *range(MEMBERS)) == [()] * MEMBERS
        fleet.train(scale=2.0)
        fleet.train(scale=1e-4)


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("lie", [doubled, one_block, blames])
def test_an_owner_that_lies_is_named_by_whoever_checks_it(payload, lie):
    fleet = ready(payload)
    reduced(fleet, lie)
    assert check(fleet, LIAR, 0) == [(LIAR,), (), (), ()], "the others have only sent"
    assert [each for rank, each in enumerate(check(fleet, LIAR, *range(MEMBERS))) if rank != LIAR] == [(LIAR,)] * 3
    assert check(fleet, 1, 0) == [()] * MEMBERS, "other owners are clear"


@pytest.mark.parametrize("payload", Payload)
def test_an_owner_whose_mean_is_no_numbers_is_named_by_all_and_nothing_is_applied(payload):
    fleet = ready(payload)
    outcomes = reduced(fleet, lambda cut, answer: mean_of(cut, answer).fill(255))
    assert {(type(each), each.ranks, each.blamer) for each in outcomes} == {(UnusableRound, (LIAR,), None)}


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -float("inf")])
def test_a_noise_that_is_no_number_was_not_measured(said):
    """The hub refuses a report with such a number, and would refuse everybody's."""
    headers = np.stack([header.header([5], [3], [1.0], 0.1)] * 2)
    assert rounds._noise(headers, np.array([4.0])) != (0.0, 0.0)
    assert rounds._noise(headers, np.array([said])) == (0.0, 0.0)
    headers[1, header.NORM2_SUM] = said
    assert rounds._noise(headers, np.array([4.0])) == (0.0, 0.0)


def test_an_owner_that_knows_the_rule_and_hides_its_lie_in_its_own_part_is_found():
    """It cannot make up, when it is checked, a part of its own that would explain the mean: it is bound by what it
    promised all owners before it had seen anybody's part."""
    fleet = ready()
    reduced(fleet, doubled)

    def made_up(wanted):
        for rank in (0, 1, 3):
            part = wanted[LIAR].parts[rank]
            if part.numel():
                wanted[LIAR].parts[rank] = torch.cat([part[:-300], part[-300:] ^ 1])

    assert check(fleet, LIAR, 0, tamper=made_up)[0] == (LIAR,)


def test_a_member_that_gives_a_checker_other_bytes_is_the_one_that_is_wrong():
    fleet = ready()
    reduced(fleet)

    def framing(wanted):
        wanted[3].parts[0] = torch.cat([wanted[3].parts[0][:-1], wanted[3].parts[0][-1:] ^ 1])

    def other_weight(wanted):
        wanted[3].parts[0] = torch.cat(
            [torch.tensor([9.0], dtype=torch.float64).view(torch.uint8), wanted[3].parts[0][8:]]
        )

    assert check(fleet, LIAR, 0, tamper=framing)[0] == (3,)
    assert check(fleet, LIAR, 0, tamper=other_weight)[0] == (3,)


def test_blame_that_is_true_is_confirmed():
    fleet = ready()
    (outcome,) = set(reduced(fleet, spoil=1))
    assert isinstance(outcome, UnusableRound)
    assert outcome.ranks == (1,)
    assert check(fleet, outcome.blamer, *range(MEMBERS)) == [()] * MEMBERS


def test_a_residual_that_nobody_can_know_accuses_nobody():
    """A newcomer has not seen the mean before: it accepts what the owner may have kept of it."""
    fleet = ready(Payload.INT4)
    fleet.owners[0].keeper.forget()
    reduced(fleet)
    assert all(check(fleet, owner, 0) == [()] * MEMBERS for owner in range(1, MEMBERS))


def test_only_checkers_get_bytes():
    fleet = ready()
    reduced(fleet)
    way = [each.check(LIAR, (1,)) for each in fleet.ways]
    wanted = [next(each) for each in way]
    assert [each.receives[0] > 0 for each in wanted] == [False, True, False, False]
    assert [sum(part.numel() > 0 for part in each.parts) for each in wanted] == [1] * MEMBERS


@pytest.fixture
def engines():
    """Three replicas over a group of threads, whose hub is the test."""
    settings, rendezvous = kpool(reduce=Reduce.SCATTER), ThreadRendezvous(3)
    made = [(KPoolEngine(tiny_lora(settings), settings, number), Uplink()) for number in range(3)]
    for number, (engine, uplink) in enumerate(made):
        engine.start(uplink, lambda order, number=number: ThreadGroup(number, rendezvous))
        uplink.orders.put(Generation(1, (0, 1, 2), 0))
    for engine, _ in made:
        engine.join()
    yield made
    for engine, _ in made:
        engine.stop()


def told(engines, order) -> list:
    """Give all an order; what each one reports."""
    for _, uplink in engines:
        uplink.orders.put(order)
    return [uplink.reports.get(timeout=WAIT_S) for _, uplink in engines]


def test_replicas_obey_a_check_between_reduced_and_commit(engines, monkeypatch):
    honest = scattered._own

    def own(place, *given):
        answer, rest = honest(place, *given)
        if place.rank == 1:
            answer = answer.copy()
            answer[-1 - SIGNATURE_BYTES] ^= 64
        return answer, rest

    monkeypatch.setattr(scattered, "_own", own)
    for number, (engine, _) in enumerate(engines):
        with engine.buffer.collecting(5):
            engine.pool.add(ALL, torch.full((4, engine.pool.size), 0.1 * number))
    reports = told(engines, Fire(1, 1, ALL, (0, 1, 2), "count", 0))
    assert len({report.digest for report in reports}) == 1
    before = [engine.aggregator.sent_bytes for engine, _ in engines]
    assert [each.wrong for each in told(engines, Check(1, 1, 1, (2,)))] == [(), (), (1,)]
    sent = [engine.aggregator.sent_bytes - was for (engine, _), was in zip(engines, before, strict=True)]
    assert [each > 0 for each in sent] == [True, True, False], "its bytes are counted"
    found = told(engines, Check(1, 1, 1, (0, 1, 2)))
    assert [each.wrong for each in found] == [(1,)] * 3
    assert {(each.round, each.owner, each.checkers) for each in found} == {(1, 1, 3)}
    sent = [engine.aggregator.sent_bytes for engine, _ in engines]
    assert told(engines, Check(1, 1, 1, (0, 1, 2))) == found, "another hub asks: done already, and said again"
    assert [engine.aggregator.sent_bytes for engine, _ in engines] == sent
    for _, uplink in engines:
        uplink.orders.put(Check(1, 9, 1, (0,)))  # of no round here
        uplink.orders.put(Commit(1, 1))
    for engine, uplink in engines:
        await_true(lambda engine=engine: engine.version == 1, "the round is committed")
        assert uplink.reports.empty()


@pytest.mark.parametrize(("owner", "checkers"), [(9, (0,)), (1, (0, 9))])
def test_a_check_that_names_who_is_no_member_ends_the_replica_by_name(owner, checkers):
    aggregator = Aggregator(Mock(), kpool(), Mock(), Mock())
    aggregator.membership.generation, aggregator.round, aggregator.members = 1, 3, (0, 1, 2, 4)
    aggregator.stage, aggregator._reducer = Stage.REDUCED, Mock()
    with pytest.raises(LaunchError, match=f"orders what cannot be: a check of replica {owner} that names"):
        aggregator._obey(Check(1, 3, owner, checkers))
