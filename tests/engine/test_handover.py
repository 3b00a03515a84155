"""A newcomer begins where the others stand: anchors, in gradient mode moments, too; others keep their buffers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.engine.test_gradient_mode import ALL, Replica
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.collective import ThreadGroup, ThreadRendezvous
from tsugi_kpool.engine.handover import same, shared, take_over
from tsugi_kpool.engine.rounds import combine, pack


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
