"""A newcomer begins where the others stand: anchors, in gradient mode moments, too; others keep their buffers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.engine.test_gradient_mode import ALL, Replica
from tests.support import kpool, tiny_lora
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.collective import CollectiveError
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.membership import same, shared, take_over
from tsugi_kpool.engine.rounds import combine, pack
from tsugi_kpool.engine.state import moments
from tsugi_kpool.engine.thread_group import ThreadGroup, ThreadRendezvous


def a_round(replicas: list[Replica]) -> None:
    contributions = [replica.buffer.contribution(ALL) for replica in replicas]
    parts = [pack(each, Payload.FP32) for each in contributions]
    for rank, (replica, each) in enumerate(zip(replicas, contributions, strict=True)):
        replica.buffer.commit(each, combine(parts, rank, each, replica.rule, Payload.FP32, False))


def hand_over(replicas: list[Replica], donor: int) -> list[dict[str, torch.Tensor]]:
    meeting = ThreadRendezvous(len(replicas))

    def member(rank: int) -> dict[str, torch.Tensor]:
        return shared(ThreadGroup(rank, meeting), donor, replicas[rank].buffer)

    with ThreadPoolExecutor(len(replicas)) as pool:
        return list(pool.map(member, range(len(replicas))))


@pytest.mark.parametrize("size", [2**60, 0, -1])
def test_a_donor_that_names_an_impossible_size_takes_nobodys_memory(size):
    meeting, replica = ThreadRendezvous(2), Replica()

    def lie() -> None:
        ThreadGroup(1, meeting).broadcast(torch.tensor([size], dtype=torch.int64), 1)

    with ThreadPoolExecutor(1) as pool:
        lying = pool.submit(lie)
        with pytest.raises(CollectiveError, match=f"a state of {size} bytes, where this pool's has"):
            shared(ThreadGroup(0, meeting), 1, replica.buffer)
        lying.result(60)


@pytest.mark.parametrize("newcomer", [0, 1])
def test_a_newcomer_takes_the_same_steps_from_then_on(newcomer):
    old, new = Replica(), Replica()
    for step in range(5):
        old.pretend(0.1 * (step + 1), tokens=7)
        a_round([old])
    old.pretend(0.3, tokens=5)
    new.pretend(9.0, tokens=11)  # of no worth to anybody: it was computed on other anchors
    replicas = [new, old] if newcomer == 0 else [old, new]
    states = hand_over(replicas, donor=1 - newcomer)
    assert same(old.buffer, states[newcomer])
    assert not same(new.buffer, states[newcomer])
    take_over(new.buffer, states[newcomer], version=5)
    assert new.buffer.ledger.discarded_by == {"adopted": 44}
    assert old.buffer.ledger.buffered(0) == 5, "what the others have buffered stays"
    new.pretend(0.2, tokens=3)
    a_round(replicas)
    for _ in range(3):
        old.pretend(0.1, tokens=2)
        new.pretend(-0.2, tokens=2)
        a_round(replicas)
    assert torch.equal(old.rule.anchor, new.rule.anchor), "other moments would have led elsewhere"
    assert old.rule.version == new.rule.version == 9


def test_in_local_mode_a_newcomer_goes_on_with_the_donors_moments():
    """Not with its anchors alone: AdamW's next step would be another one."""
    settings = kpool()
    engines = [KPoolEngine(tiny_lora(settings), settings, replica) for replica in range(2)]
    optimizers = [torch.optim.AdamW(engine.trainable(), lr=1e-3) for engine in engines]

    def step(replica: int, gradient: float) -> None:
        for parameter in engines[replica].pool.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        engines[replica].apply(optimizers[replica], 5)

    for number in range(4):
        step(0, 0.1 * (number + 1))
    states = hand_over(engines, donor=0)
    before = moments(optimizers[0])
    take_over(engines[1].buffer, states[1], version=1)
    for replica in range(2):
        step(replica, 0.2)
    ours, theirs = (moments(optimizer) for optimizer in optimizers)
    assert before
    assert set(ours) == set(theirs) == set(before)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["0.exp_avg"], before["0.exp_avg"])
