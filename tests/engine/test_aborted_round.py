"""A round that was reduced and then aborted leaves no trace, also on a member that never heard the Abort."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_overlap import WAIT_S, make_engine, train  # noqa: F401  (a fixture)
from tsugi_kpool.core.messages import Abort, Fire
from tsugi_kpool.core.settings import Payload


@pytest.mark.parametrize("told", [True, False])
def test_an_aborted_round_ships_again_with_the_next(make_engine, told):  # noqa: F811
    engine, uplink = make_engine(payload=Payload.FP32)
    optimizer = torch.optim.AdamW(engine.pool.parameters(), lr=1e-3)
    train(engine, optimizer)
    uplink.orders.put(Fire(1, 1, (0, 1), (0,), "count", version=0))
    first = uplink.reports.get(timeout=WAIT_S)
    if told:
        uplink.orders.put(Abort(1, 1, "a member left"))
    uplink.orders.put(Fire(1, 2, (0, 1), (0,), "count", version=0))
    second = uplink.reports.get(timeout=WAIT_S)
    assert engine.aggregator.version == 0
    assert engine.buffer.ledger.committed == [0, 0, 0, 0]
    assert second.digest == first.digest, "from the same anchors, with the same change"
    assert second.weights == (10,), "five tokens for each of the two adapters, as before"


def test_a_missed_commit_is_made_up_for_by_the_next_fire(make_engine):  # noqa: F811
    engine, uplink = make_engine(payload=Payload.FP32)
    train(engine, torch.optim.AdamW(engine.pool.parameters(), lr=1e-3))
    uplink.orders.put(Fire(1, 1, (0, 1), (0,), "count", version=0))
    uplink.reports.get(timeout=WAIT_S)
    uplink.orders.put(Fire(1, 2, (2, 3), (0,), "count", version=1))
    uplink.reports.get(timeout=WAIT_S)
    assert engine.aggregator.version == 1
    assert engine.buffer.ledger.committed == [5, 5, 0, 0]
