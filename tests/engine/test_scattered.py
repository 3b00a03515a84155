"""Two-stage rounds: an owner sums each shard for all. What is applied, what owners keep, what nobody may change."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from tests.engine.test_rounds import Replica
from tests.support import kpool
from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.core.rounds.reduction import reduction, sent_payloads
from tsugi_kpool.core.settings import Mode, Payload, Reduce
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.collective import CollectiveError
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.reducing import GroupReducer, Ways
from tsugi_kpool.engine.rounds import RoundResult
from tsugi_kpool.engine.thread_group import ThreadGroup, ThreadRendezvous
from tsugi_kpool.engine.ways import exchanged, together

ALL = (0, 1, 2, 3)


class Owner(Replica):
    """A replica that can own a shard."""

    def __init__(self, payload: Payload) -> None:
        super().__init__()
        self.keeper = Keeper(self.pool.n, self.pool.size, payload)
        self.rule = LocalUpdate(self.pool, keeper=self.keeper)
        self.buffer = ElasticBuffer(self.rule)


class Fleet:
    """Owners whose collectives are in this process."""

    def __init__(self, members: int, payload: Payload = Payload.INT8, **changes) -> None:
        self.settings = kpool(reduce=Reduce.SCATTER, payload=payload, **changes)
        self.draw = torch.Generator().manual_seed(members)
        self.owners = [Owner(payload) for _ in range(members)]
        for each in self.owners[1:]:
            each.buffer.adopt(self.owners[0].anchor())
        self.form(*range(members))

    def form(self, *members: int) -> None:
        """Form a generation of these."""
        self.present = [self.owners[number] for number in members]
        places = enumerate(self.present)
        self.ways = [Ways(rank, len(self.present), each.rule, self.settings) for rank, each in places]

    def train(self, scale: float = 0.02) -> None:
        for number, each in enumerate(self.present):
            each.buffer.apply_rounds()
            with each.buffer.collecting(10 * number + 5):
                each.pool.add(ALL, torch.randn(4, each.pool.size, generator=self.draw) * scale)

    def reduce(self, adapters=ALL):
        """Reduce a round: everybody's contribution and outcome."""
        contributions = [each.buffer.contribution(adapters) for each in self.present]
        return contributions, together([way.of(each) for way, each in zip(self.ways, contributions, strict=True)])

    def commit(self, contributions, outcomes) -> None:
        assert len({outcome.digest for outcome in outcomes}) == 1
        for each, given, outcome in zip(self.present, contributions, outcomes, strict=True):
            each.buffer.commit(given, outcome)
        assert all(torch.equal(each.anchor(), self.present[0].anchor()) for each in self.present), "rule 1"

    def round(self, adapters=ALL) -> None:
        self.commit(*self.reduce(adapters))

    def residuals(self) -> torch.Tensor:
        """All owners', at their places."""
        found = [each.keeper.residuals() for each in self.present]
        zeros = np.zeros(self.owners[0].anchor().shape, np.float32)
        return torch.from_numpy(np.sum([zeros, *(each for each in found if each is not None)], axis=0))


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("members", [2, 3, 5])
def test_what_is_committed_and_what_owners_keep_is_what_was_sent(payload, members):
    """Nothing is lost by coding the mean, whichever adapters a round ships."""
    fleet, draw = Fleet(members, payload), random.Random(members)
    origin = fleet.owners[0].anchor().double().clone()
    sent = torch.zeros_like(origin)
    for _ in range(6):
        fleet.train()
        adapters = tuple(sorted(draw.sample(ALL, 2)))
        before = fleet.owners[0].anchor()[list(adapters)].double()
        contributions, outcomes = fleet.reduce(adapters)
        tokens = torch.tensor([given.shipment.tokens for given in contributions], dtype=torch.float64)
        for outcome, share in zip(outcomes, tokens / tokens.sum(0), strict=True):
            part = outcome.combined.agreed.double() - before - outcome.combined.own.double()
            sent[list(adapters)] += share[:, None] * part
        fleet.commit(contributions, outcomes)
    applied = fleet.owners[0].anchor().double() - origin
    torch.testing.assert_close(applied + fleet.residuals().double(), sent, atol=2e-6, rtol=0)
    assert payload is Payload.FP32 or fleet.residuals().any()


def test_exact_payloads_give_the_gathered_rounds_anchors():
    scattered, gathered = Fleet(3, Payload.FP32), Fleet(3, Payload.FP32)
    gathered.settings = kpool(payload=Payload.FP32)
    gathered.form(0, 1, 2)
    for _ in range(3):
        for fleet in (scattered, gathered):
            fleet.train()
            fleet.round((0, 2))
    assert torch.equal(scattered.owners[0].anchor(), gathered.owners[0].anchor())


def test_an_aborted_round_changes_no_residual_and_is_shipped_again():
    fleet = Fleet(3, Payload.INT4)
    fleet.train()
    fleet.round()
    before = fleet.residuals()
    fleet.train()
    first = fleet.reduce()[1]
    for each in fleet.present:
        each.buffer.forget()
    assert torch.equal(fleet.residuals(), before)
    contributions, again = fleet.reduce()
    assert [each.digest for each in again] == [each.digest for each in first]
    fleet.commit(contributions, again)


def test_who_has_no_weight_leaves_residuals_where_they_are():
    fleet = Fleet(2, Payload.INT4)
    fleet.train()
    fleet.round()
    before, anchor = fleet.residuals(), fleet.owners[0].anchor().clone()
    fleet.round()  # nobody has trained
    assert torch.equal(fleet.residuals(), before)
    assert torch.equal(fleet.owners[0].anchor(), anchor)


def test_the_same_generation_again_keeps_residuals_and_another_one_ships_them():
    fleet = Fleet(3, Payload.INT4)
    fleet.train()
    fleet.round()
    before = fleet.residuals()
    fleet.form(0, 1, 2)
    assert torch.equal(fleet.residuals(), before), "an aborted collective forms the same group anew"
    fleet.form(0, 1)
    kept = fleet.residuals()
    assert (kept[kept != 0] == before[kept != 0]).all(), "what an owner still owns stays with it"
    assert kept.any()
    fleet.train(0.0)
    fleet.round()
    assert len({each.anchor().numpy().tobytes() for each in fleet.present}) == 1


def test_residuals_that_move_are_the_change_of_the_member_that_had_them():
    """Times the owners that there were: a member's change counts for its share of the tokens only."""
    fleet = Fleet(4, Payload.INT4)
    fleet.train()
    fleet.round()
    for each in fleet.owners:
        each.buffer.apply_rounds()
    live = [each.live() for each in fleet.owners]
    had = [torch.from_numpy(each.keeper.residuals()) for each in fleet.owners]
    fleet.settings = kpool(payload=Payload.INT4)  # gathered: there are no owners any more
    fleet.form(0, 1, 2, 3)
    for each, was, mine in zip(fleet.owners, live, had, strict=True):
        each.buffer.apply_rounds()
        torch.testing.assert_close(each.live() - was, 4 * mine, atol=1e-7, rtol=1e-3)
        assert each.keeper.residuals() is None


def test_residuals_go_through_a_checkpoint_bit_for_bit():
    fleet, resumed = Fleet(3, Payload.INT4), Fleet(3, Payload.INT4)
    fleet.train()
    fleet.round()
    for each, other in zip(fleet.owners, resumed.owners, strict=True):
        each.buffer.apply_rounds()
        other.buffer.adopt(each.anchor().clone())
        other.rule.restore_residuals({name: value.clone() for name, value in each.rule.residuals().items()})
        other.pool.write(each.live())
    resumed.draw.set_state(fleet.draw.get_state())
    resumed.form(0, 1, 2)
    assert torch.equal(resumed.residuals(), fleet.residuals())
    for one in (fleet, resumed):
        one.train()
        one.round()
    assert torch.equal(resumed.owners[0].anchor(), fleet.owners[0].anchor())


def test_a_newcomer_owns_nothing_and_other_anchors_end_what_one_has():
    fleet = Fleet(2, Payload.INT4)
    fleet.train()
    fleet.round()
    first, second = fleet.owners
    second.buffer.adopt(second.anchor().clone())
    assert second.keeper.residuals() is not None, "the same anchors"
    second.buffer.adopt(first.anchor() + 1.0)
    assert second.keeper.residuals() is None


@pytest.mark.parametrize("payload", Payload)
def test_a_part_that_is_no_numbers_is_named_by_all_although_one_owner_sees_it(payload):
    fleet = Fleet(3, payload)
    fleet.train()
    broken = fleet.present[1]
    contributions = [each.buffer.contribution(ALL) for each in fleet.present]
    contributions[1].delta[2, 5] = float("nan")
    outcomes = together([way.of(each) for way, each in zip(fleet.ways, contributions, strict=True)])
    (outcome,) = set(outcomes)
    assert (outcome.ranks, outcome.blamer is None) == ((1,), False)
    assert not broken.keeper.residuals()


def test_a_part_that_is_not_what_was_promised_breaks_the_round():
    fleet = Fleet(3)
    fleet.train()
    ways = [way.of(each.buffer.contribution(ALL)) for way, each in zip(fleet.ways, fleet.present, strict=True)]
    got = exchanged([next(way) for way in ways])
    got[0][2][-1] ^= 1
    with pytest.raises(CollectiveError, match="member 2 is not what it has promised"):
        ways[0].send(got[0])


def test_members_that_are_told_different_weights_do_not_agree():
    fleet = Fleet(3)
    fleet.train()
    ways = [way.of(each.buffer.contribution(ALL)) for way, each in zip(fleet.ways, fleet.present, strict=True)]
    got = exchanged([next(way) for way in ways])
    got[0][2][:8] = torch.tensor([999.0], dtype=torch.float64).view(torch.uint8)
    got = exchanged([way.send(mine) for way, mine in zip(ways, got, strict=True)])
    digests = []
    for way, mine in zip(ways, got, strict=True):
        with pytest.raises(StopIteration) as end:
            way.send(mine)
        digests.append(end.value.value.digest)
    assert digests[1] == digests[2] != digests[0]


def test_more_owners_than_blocks():
    """Adapters of a tiny model have fewer blocks than there are members: some own nothing."""
    fleet = Fleet(9)
    assert min(fleet.ways[0].cut.width(owner) for owner in range(9)) == 0
    for _ in range(2):
        fleet.train()
        fleet.round()


def test_threads_over_a_group_count_what_they_send():
    settings, world = kpool(reduce=Reduce.SCATTER), 4
    owners = [Owner(settings.payload) for _ in range(world)]
    for each in owners[1:]:
        each.buffer.adopt(owners[0].anchor())
    rendezvous, found = ThreadRendezvous(world), {}

    def member(rank: int) -> None:
        each = owners[rank]
        with each.buffer.collecting(10):
            each.pool.add(ALL, torch.full((4, each.pool.size), float(rank)))
        reducer = GroupReducer(ThreadGroup(rank, rendezvous), each.rule, settings)
        contribution = each.buffer.contribution(ALL)
        found[rank] = reducer.reduce(contribution)
        each.buffer.commit(contribution, found[rank].outcome)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    assert len({each.anchor().numpy().tobytes() for each in owners}) == 1
    assert all(isinstance(each.outcome, RoundResult) for each in found.values())
    traffic = [each.traffic for each in found.values()]
    assert sum(each.sent_bytes for each in traffic) == sum(each.received_bytes for each in traffic)
    whole = 4 * owners[0].pool.size
    assert all(each.sent_bytes < 2 * whole for each in traffic), "gathered: 3 times the payload"


def test_auto_takes_owners_where_they_save_bytes():
    auto = kpool(reduce=Reduce.AUTO)
    assert [reduction(auto, members) for members in (1, 2, 3)] == [Reduce.GATHER] * 3
    assert reduction(auto, 4) is reduction(auto, 100) is Reduce.SCATTER
    assert reduction(kpool(reduce=Reduce.AUTO, mode=Mode.GRADIENT), 8) is Reduce.GATHER
    assert reduction(kpool(reduce=Reduce.SCATTER), 1) is Reduce.GATHER
    assert 1.75 < sent_payloads(auto, 8) < 1.8, "with the checks of owners"
    assert sent_payloads(kpool(reduce=Reduce.GATHER), 8) == 7.0
    (problem,) = kpool(reduce=Reduce.SCATTER, mode=Mode.GRADIENT).problems()
    assert "kpool.reduce=scatter goes with kpool.mode=local" in problem
