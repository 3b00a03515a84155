"""What a replica has buffered is no numbers: it is thrown away, counted, and never shipped."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch

from tests.engine.test_overlap import WAIT_S, Uplink
from tests.support import kpool, tiny_lora
from tsugi_kpool.core.messages import Commit, Discarded, Fire, Generation, Reduced
from tsugi_kpool.core.settings import Mode, Payload
from tsugi_kpool.engine.buffer import UNUSABLE
from tsugi_kpool.engine.collective import SingleGroup
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.rounds import UnusableRound, combine, pack

ALL = (0, 1, 2, 3)


class Replica:
    """An engine alone in its generation, and the hub's orders."""

    def __init__(self, mode: Mode) -> None:
        settings = kpool(mode=mode)
        self.engine, self.uplink, self.round = KPoolEngine(tiny_lora(settings), settings, 0), Uplink(), 0
        self.engine.start(self.uplink, lambda order: SingleGroup())
        self.uplink.orders.put(Generation(1, (0,), 0))
        self.engine.join()
        self.optimizer = torch.optim.AdamW(self.engine.pool.parameters(), lr=1e-3)
        self.ledger = self.engine.buffer.ledger

    def step(self, gradient: float = 1.0, nonsense: str | None = None) -> None:
        for parameter in self.engine.pool.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        self.engine.apply(self.optimizer, 5, 2, nonsense)

    def fire(self) -> Reduced:
        self.round += 1
        version = self.engine.version
        self.uplink.orders.put(Fire(1, self.round, ALL, (0,), "count", version))
        report = self.uplink.reports.get(timeout=WAIT_S)
        assert isinstance(report, Reduced)
        return report

    def commit(self) -> None:
        version = self.engine.version
        self.uplink.orders.put(Commit(1, self.round))
        until = time.monotonic() + WAIT_S
        while self.engine.version == version:
            assert time.monotonic() < until
            time.sleep(0.001)

    def thrown_away(self) -> Discarded:
        self.engine.apply_rounds()
        report = self.uplink.reports.get(timeout=WAIT_S)
        assert isinstance(report, Discarded)
        return report

    def check(self) -> None:
        live, anchor = self.engine.pool.read(ALL), self.engine.buffer.update.anchor
        assert torch.equal(live, anchor.detach())
        assert bool(torch.isfinite(anchor).all())


@pytest.fixture(params=list(Mode))
def replica(request):
    made = Replica(request.param)
    yield made
    made.engine.stop()


def test_what_is_no_number_is_thrown_away_and_the_replica_begins_again(replica):
    replica.step()
    replica.fire()
    replica.commit()
    replica.engine.apply_rounds()
    replica.step()
    replica.step(math.nan)
    reduced = replica.fire()
    assert reduced.weight == 0
    assert reduced.durable == 2, "what is only thrown away later is not durable yet"
    replica.commit()
    said = replica.thrown_away()
    assert "no numbers" in said.reason
    assert said.tokens == 2 * 5 * 4
    replica.check()
    assert replica.ledger.discarded_by == {UNUSABLE: 40}
    replica.step()
    assert replica.fire().weight == 20
    replica.commit()
    replica.engine.apply_rounds()
    assert [replica.ledger.buffered(each) for each in ALL] == [0] * 4
    assert replica.ledger.durable == replica.ledger.samples == 8
    for state in replica.optimizer.state.values():
        assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_a_loss_that_is_no_number_takes_no_effect(replica):
    replica.step()
    replica.step(nonsense="the loss is nan at sample 7")
    said = replica.thrown_away()
    assert said.reason == "the loss is nan at sample 7"
    assert said.tokens == 40
    replica.check()
    assert replica.ledger.samples == replica.ledger.durable == 4


def test_what_is_under_way_is_committed_before_the_replica_begins_again(replica):
    replica.step()
    assert replica.fire().weight == 20
    replica.step(nonsense="the loss is nan")
    applying = threading.Thread(target=replica.engine.apply_rounds)
    applying.start()
    replica.commit()
    applying.join(WAIT_S)
    assert not applying.is_alive()
    assert isinstance(replica.uplink.reports.get(timeout=WAIT_S), Discarded)
    assert [replica.ledger.committed[each] for each in ALL] == [5] * 4
    assert [replica.ledger.discarded[each] for each in ALL] == [5] * 4
    replica.check()


def test_all_members_see_whose_part_is_unusable(replica):
    replica.step()
    buffer = replica.engine.buffer
    good = buffer.contribution(ALL)
    bad = torch.full_like(good.delta, math.inf)
    parts = [pack(good, Payload.FP32), pack(type(good)(good.shipment, bad, good.norm2_sum, good.lr), Payload.FP32)]
    outcome = combine(parts, 0, good, buffer.update, Payload.FP32, False)
    assert isinstance(outcome, UnusableRound)
    assert outcome.ranks == (1,)
