"""docs/design.md rules 1, 2 and 3 with real tensors: every payload, mode and selection, over random schedules."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from peft import PeftModel

from tests.support import kpool, tiny_lora, tiny_model
from tsugi_cli.finetune.export import export
from tsugi_kpool.core.messages import Fire
from tsugi_kpool.core.rounds.selection import Selection
from tsugi_kpool.core.settings import Mode, Payload, Routing, SelectAt
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.gradient import GradientUpdate
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.rounds import combine, pack

ALL = (0, 1, 2, 3)
IDS = torch.arange(24).view(2, 12)


class Replica:
    """A buffer whose training thread adds random numbers, or random gradients."""

    def __init__(self, mode: Mode, seed: int) -> None:
        self.model = tiny_lora(kpool(mode=mode))
        self.pool = AdapterPool(self.model, n=4)
        adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        gradient = mode is Mode.GRADIENT
        self.rule = GradientUpdate(self.pool, adamw, 1.0, 20) if gradient else LocalUpdate(self.pool)
        self.buffer = ElasticBuffer(self.rule)
        self._generator = torch.Generator().manual_seed(seed)
        self._gradient = gradient

    def train(self, tokens: int, lazy: bool) -> None:
        if not lazy:  # else rounds have reduced that this step has not seen
            self.buffer.apply_rounds()
        active = self.buffer.active or ALL
        change = torch.randn(len(active), self.pool.size, generator=self._generator) * 0.02
        for parameter in self.pool.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=self._generator) if self._gradient else None
        with self.buffer.collecting(tokens, lr=1e-2):
            if not self._gradient:
                self.pool.add(active, change)

    def check_accounts(self) -> None:
        ledger = self.buffer.ledger
        for adapter in ALL:
            accounted = ledger.committed[adapter] + ledger.discarded[adapter] + ledger.buffered(adapter)
            assert accounted == ledger.produced[adapter]
            assert ledger.steps[adapter] >= 0


class Schedule:
    """Rounds of a few replicas, with what happens in between drawn from a seed."""

    def __init__(self, mode: Mode, select_at: SelectAt, payload: Payload, seed: int) -> None:
        self.draw = random.Random(seed)
        self.settings = kpool(
            mode=mode, select_at=select_at, payload=payload, k=self.draw.choice([1, 2, 3]),
            routing=self.draw.choice(list(Routing)), error_feedback=self.draw.random() < 0.5,
        )  # fmt: skip
        self.replicas = [Replica(mode, seed * 10 + number) for number in range(self.draw.choice([2, 3]))]
        self.selection = Selection(self.settings)
        self.round = 0
        for replica in self.replicas:
            self.activate(replica)
            replica.buffer.adopt(self.replicas[0].rule.anchor.clone())

    def activate(self, replica: Replica) -> None:
        replica.buffer.activate(self.selection.due if self.settings.select_at is SelectAt.TRAIN else ())

    def work(self) -> None:
        for replica in self.replicas:
            for _ in range(self.draw.randint(0, 2)):
                replica.train(self.draw.randint(1, 50), self.draw.random() < 0.3)

    def fire(self, adapters: tuple[int, ...], work: bool = True) -> None:
        self.round += 1
        contributions = [replica.buffer.contribution(adapters) for replica in self.replicas]
        parts = [pack(contribution, self.settings.payload) for contribution in contributions]
        outcomes = [
            combine(parts, rank, mine, self.replicas[rank].rule, self.settings.payload, self.settings.error_feedback)
            for rank, mine in enumerate(contributions)
        ]
        if work:
            self.work()
        assert len({outcome.digest for outcome in outcomes}) == 1
        pooled = [sum(each.buffer.pooled()[adapter] for each in self.replicas) for adapter in ALL]
        self.selection.committed(Fire(1, self.round, adapters, (0, 1), "count"), outcomes[0].adapters, pooled)
        for replica, contribution, outcome in zip(self.replicas, contributions, outcomes, strict=True):
            self.activate(replica)
            replica.buffer.commit(contribution, outcome)
            replica.check_accounts()
            assert torch.equal(replica.rule.anchor, self.replicas[0].rule.anchor), "rule 1"


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("select_at", SelectAt)
@pytest.mark.parametrize("mode", Mode)
def test_random_schedules_with_real_tensors(mode, select_at, payload, tmp_path):
    seed = 100 * list(Mode).index(mode) + 10 * list(SelectAt).index(select_at) + list(Payload).index(payload)
    schedule = Schedule(mode, select_at, payload, seed)
    for _ in range(8):
        schedule.work()
        schedule.fire(schedule.selection.due)
    schedule.fire(ALL, work=False)
    for replica in schedule.replicas:
        assert replica.buffer.ledger.committed == replica.buffer.ledger.produced, "the last round ships all"
        replica.buffer.apply_rounds()
        replica.buffer.settle()
    first, last = schedule.replicas[0], schedule.replicas[-1]
    export(first.model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, last.model.eval()(IDS).logits, atol=1e-5, rtol=0)
        assert not torch.allclose(loaded(IDS).logits, tiny_model()(IDS).logits, atol=1e-3), "it has trained"
