"""A version is measured on a copy, between steps: what trains, and what a round ships, stays as it is."""

from __future__ import annotations

import pytest
import torch

from tests.support import kpool, tiny_lora
from tsugi_cli.finetune.between_steps import BetweenSteps
from tsugi_cli.finetune.objectives import SUPERVISED
from tsugi_cli.finetune.tokens import Sample, collate
from tsugi_kpool.core.messages import Evaluated
from tsugi_kpool.engine.anchor_copy import AnchorCopy, Version
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.progress import Progress

PAD = 0


class Engine:
    """Gives versions, and hears what they measure."""

    def __init__(self, pool: AdapterPool) -> None:
        self.pool, self.progress = pool, Progress()
        self.given: list[Version] = []
        self.heard: list[Evaluated] = []

    def to_evaluate(self) -> Version | None:
        return self.given.pop(0) if self.given else None

    def version_evaluated(self, message: Evaluated) -> None:
        self.heard.append(message)


class Split:
    objective = SUPERVISED

    def __init__(self) -> None:
        self.batches = [collate([Sample(list(range(1, n)), [0] * 2 + [1] * (n - 3))], PAD) for n in (6, 9, 12)]

    def whole(self):
        return self.batches


def measured(model, split: Split) -> dict[str, float]:
    sums: dict[str, float] = {}
    for batch in split.whole():
        with torch.no_grad():
            SUPERVISED.measure(sums, model, batch)
    return sums


@pytest.fixture
def pool_and_model():
    model = tiny_lora(kpool(n=4, k=4))
    pool = AdapterPool(model, n=4)
    pool.write(torch.randn(4, pool.size) * 0.1)
    return pool, model


def test_the_copy_is_measured_and_the_live_values_train_on(pool_and_model):
    pool, model = pool_and_model
    split, engine, anchor = Split(), Engine(pool), torch.randn(4, pool.size) * 0.1
    model.train()
    live = pool.read(range(4))
    objects = [id(each) for each in model.parameters()]
    between = BetweenSteps(model, engine, split, 1)
    between.look()
    assert engine.heard == []
    engine.given.append(Version(7, anchor))
    for turn in range(3):
        assert engine.heard == []
        between.look()
        assert torch.equal(pool.read(range(4)), live), turn
        assert model.training
    between.look()
    (told,) = engine.heard
    assert (told.stage, told.replica) == ("v000007", 1)
    assert [id(each) for each in model.parameters()] == objects
    pool.write(anchor)
    assert told.sums == pytest.approx(measured(model.eval(), split), rel=1e-6)


def test_a_newer_version_takes_the_place_of_one_under_way(pool_and_model):
    pool, model = pool_and_model
    engine = Engine(pool)
    between = BetweenSteps(model, engine, Split(), 0)
    engine.given.append(Version(1, torch.zeros(4, pool.size)))
    between.look()
    engine.given.append(Version(2, torch.zeros(4, pool.size)))
    for _ in range(4):
        between.look()
    assert [each.stage for each in engine.heard] == ["v000002"]


def test_an_evaluation_takes_no_time_of_training(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("tsugi_kpool.engine.progress.time.monotonic", lambda: now_s[0])
    progress = Progress(started_s=90.0, activity="training")
    progress.pause("evaluating")
    now_s[0] += 30.0
    assert (progress.trained_s(), progress.activity) == (10.0, "evaluating")
    progress.go_on()
    assert (progress.trained_s(), progress.activity) == (10.0, "training")
    now_s[0] += 5.0
    assert progress.trained_s() == 15.0


def test_only_the_replica_that_a_commit_names_copies_and_the_copy_stays():
    class Buffer:
        class update:
            anchor = torch.ones(2, 3)

    copies = AnchorCopy(1, Buffer)
    for evaluator in (None, 0):
        copies.committed(4, evaluator)
    assert copies.take() is None
    copies.committed(5, 1)
    Buffer.update.anchor += 1
    taken = copies.take()
    assert taken.number == 5
    assert torch.equal(taken.anchor, torch.ones(2, 3))
    assert copies.take() is None
