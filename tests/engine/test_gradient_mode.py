"""Gradient mode: exactly large-batch training when nothing is late, the same bits everywhere when much is."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from tests.support import kpool, tiny_lora
from tsugi_kpool.core.settings import Mode, Payload
from tsugi_kpool.engine.buffer import STALE, ElasticBuffer
from tsugi_kpool.engine.gradient import GradientUpdate, sum_of_squares
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.rounds import combine, pack

LR = 1e-3
ADAMW = partial(torch.optim.AdamW, lr=LR, weight_decay=0.01)
ALL = (0, 1, 2, 3)


class Replica:
    """A buffer in gradient mode, with a real tiny model under it."""

    def __init__(
        self,
        grad_clip: float | None = None,
        max_staleness: int = 20,
        measure_noise: bool = False,
        decay_tokens: float | None = None,
    ) -> None:
        self.model = tiny_lora(kpool(mode=Mode.GRADIENT)).train()
        self.pool = AdapterPool(self.model, n=4)
        self.rule = GradientUpdate(self.pool, ADAMW, grad_clip, max_staleness, measure_noise, decay_tokens)
        self.buffer = ElasticBuffer(self.rule)

    def train(self, ids: torch.Tensor, lr: float = LR) -> int:
        """One step on real data, as the story takes it."""
        self.buffer.apply_rounds()
        self.model(input_ids=ids, labels=ids).loss.backward()
        return self.end(ids.numel() - ids.shape[0], lr)

    def pretend(self, gradient: float | torch.Generator, tokens: int, lr: float = LR) -> None:
        """A step whose gradient is this number everywhere, or drawn at random."""
        for parameter in self.pool.parameters():
            if isinstance(gradient, float):
                parameter.grad = torch.full_like(parameter, gradient)
            else:
                parameter.grad = torch.randn(parameter.shape, generator=gradient) * 0.01
        self.end(tokens, lr)

    def end(self, tokens: int, lr: float) -> int:
        with self.buffer.collecting(tokens, lr):
            pass
        self.model.zero_grad(set_to_none=True)
        return tokens

    def live(self) -> torch.Tensor:
        return self.pool.read(range(4))

    def moments(self) -> dict[str, torch.Tensor]:
        """Each of AdamW's averages, [4, P]; zeros for an adapter that has never stepped."""
        states = [self.rule.optimizer.state.get(flat, {}) for flat in self.rule.flat]
        none = torch.zeros(self.pool.size)
        return {name: torch.stack([state.get(name, none) for state in states]) for name in ("exp_avg", "exp_avg_sq")}


def start(count: int, **settings) -> list[Replica]:
    replicas = [Replica(**settings) for _ in range(count)]
    for replica in replicas[1:]:
        replica.buffer.adopt(replicas[0].rule.anchor)
    return replicas


def run_round(replicas, adapters=ALL, payload=Payload.FP32, error_feedback=True, between=lambda: None, commit=True):
    """Everybody contributes, `between` happens while the round is in flight, everybody commits (or none)."""
    contributions = [replica.buffer.contribution(adapters) for replica in replicas]
    parts = [pack(contribution, payload) for contribution in contributions]
    outcomes = [
        combine(parts, rank, contribution, replicas[rank].rule, payload, error_feedback)
        for rank, contribution in enumerate(contributions)
    ]
    between()
    if commit:
        for replica, contribution, outcome in zip(replicas, contributions, outcomes, strict=True):
            replica.buffer.commit(contribution, outcome)
    return outcomes


def batch(generator: torch.Generator, length: int) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=generator)


def as_rows(like: torch.nn.Module, values: dict[torch.nn.Parameter, torch.Tensor]) -> torch.Tensor:
    """Tensors that belong to a model's LoRA parameters, as rows of adapters [4, P]."""
    shell = tiny_lora(kpool())
    for parameter, place in zip(like.parameters(), shell.parameters(), strict=True):
        if parameter in values:
            place.data.copy_(values[parameter])
    return AdapterPool(shell, n=4).read(range(4))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def large_batch_step(model, optimizer, pieces, grad_clip) -> None:
    """Plain training on the union of the pieces: mean loss over all their supervised tokens."""
    total = sum(ids.numel() - ids.shape[0] for ids in pieces)
    for ids in pieces:
        tokens = ids.numel() - ids.shape[0]
        (model(input_ids=ids, labels=ids).loss * tokens / total).backward()
    if grad_clip is not None:
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("grad_clip", [None, 0.05], ids=["no-clip", "clip"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_large_batch_training_of_one_process(count, grad_clip):
    """docs/design.md section 3: K=N, no overlap, fp32, uneven micro-batches; parameters and both moments."""
    replicas = start(count, grad_clip=grad_clip)
    alone = tiny_lora(kpool()).train()
    trainable = [p for p in alone.parameters() if p.requires_grad]
    optimizer = ADAMW(trainable)
    generator = torch.Generator().manual_seed(count)
    lengths = random.Random(count)
    for _ in range(10):
        pieces = []
        for replica in replicas:
            for _ in range(lengths.randint(1, 3)):
                pieces.append(batch(generator, lengths.randint(3, 30)))
                replica.train(pieces[-1])
        run_round(replicas)
        large_batch_step(alone, optimizer, pieces, grad_clip)
    for replica in replicas:
        replica.buffer.apply_rounds()
        assert torch.equal(replica.live(), replicas[0].rule.anchor), "live parameters are the anchors"
    expected = as_rows(alone, {p: p.data for p in trainable})
    assert relative_error(replicas[0].rule.anchor, expected) < 1e-6
    for name, found in replicas[0].moments().items():
        state = as_rows(alone, {p: optimizer.state[p][name] for p in trainable})
        assert relative_error(found, state) < 1e-6, name
    assert {int(replicas[0].rule.optimizer.state[flat]["step"]) for flat in replicas[0].rule.flat} == {10}


def test_gradient_of_a_round_is_that_of_all_its_tokens():
    """300 tokens of gradient 1 and 100 of gradient -1 are 400 of gradient 0.5, per adapter and exactly."""
    many, few = replicas = start(2)
    many.pretend(1.0, tokens=200)
    many.pretend(1.0, tokens=100)
    few.pretend(-1.0, tokens=100)
    outcomes = run_round(replicas, (1, 3))
    assert torch.equal(outcomes[0].combined.agreed, torch.full((2, many.pool.size), 0.5))
    assert outcomes[0].weights == (600, 200), "tokens of each member, summed over the adapters"


def test_unselected_adapters_do_not_move_by_one_bit():
    """Nor do their moments: AdamW with a gradient of zero would move both."""
    replicas = start(2)
    generator = torch.Generator().manual_seed(0)
    for replica in replicas:
        replica.train(batch(generator, 12))
    run_round(replicas)  # now every adapter has moments
    for adapters in [(0, 2), (1,), (3,)]:
        others = [adapter for adapter in ALL if adapter not in adapters]
        for replica in replicas:
            replica.train(batch(generator, 9))
        before, moments = replicas[0].rule.anchor.clone(), replicas[0].moments()
        run_round(replicas, adapters)
        moved = (replicas[0].rule.anchor != before).any(dim=1).tolist()
        assert moved == [adapter in adapters for adapter in ALL]
        for name, after in replicas[0].moments().items():
            assert torch.equal(after[others], moments[name][others])


def test_an_adapter_to_which_nobody_gives_weight_is_not_stepped():
    replicas = start(2)
    before = replicas[0].rule.anchor.clone()
    run_round(replicas)
    assert torch.equal(replicas[0].rule.anchor, before)
    assert replicas[0].rule.version == 1


def test_clip_is_of_the_mean_gradient_over_the_selected_adapters():
    replicas = start(2, grad_clip=1.0)
    for replica in replicas:
        replica.pretend(3.0, tokens=10)
    (mean, other) = (outcome.combined.agreed for outcome in run_round(replicas, (0, 1)))
    assert torch.equal(mean, other)
    assert float(mean.norm()) == pytest.approx(1.0, abs=1e-4)


def test_sum_of_squares_of_any_shape():
    for size in (0, 1, 2, 3, 1000, 1023):
        values = torch.randn(size, 1)
        assert sum_of_squares(values) == pytest.approx(float(values.double().square().sum()))


def test_replicas_at_different_learning_rates_take_the_same_step():
    """The one of the round is the mean by tokens."""
    replicas = start(2)
    replicas[0].pretend(1.0, tokens=300, lr=4e-3)
    replicas[1].pretend(1.0, tokens=100, lr=8e-3)
    outcomes = run_round(replicas)
    assert outcomes[0].combined.lr == outcomes[1].combined.lr == pytest.approx(5e-3)
    assert outcomes[0].digest == outcomes[1].digest
    assert torch.equal(replicas[0].rule.anchor, replicas[1].rule.anchor)
    assert replicas[1].rule.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_another_learning_rate_or_another_anchor_changes_the_digest():
    """What the step starts from is agreed before it: a replica whose anchors have parted is found out."""
    replicas = start(2)
    for replica in replicas:
        replica.pretend(1.0, tokens=10)
    replicas[1].rule.anchor[2, 0] += 1e-6
    same = run_round(replicas, (0, 1), commit=False)
    different = run_round(replicas, (2, 3), commit=False)
    assert same[0].digest == same[1].digest
    assert different[0].digest != different[1].digest


def test_late_gradients_go_into_the_next_round_unscaled():
    fast, slow = replicas = start(2)
    fast.pretend(1.0, tokens=10)
    run_round(replicas)
    slow.pretend(2.0, tokens=30)  # has not reduced that round: computed on version 0
    fast.buffer.apply_rounds()
    fast.pretend(1.0, tokens=10)
    outcomes = run_round(replicas)
    torch.testing.assert_close(outcomes[0].combined.agreed, torch.full((4, fast.pool.size), 1.75))
    assert slow.rule.staleness == {1: 30 * 4}
    assert fast.rule.staleness == {0: 20 * 4}


def test_gradients_collected_in_flight_belong_to_the_next_round():
    (alone,) = start(1)
    alone.pretend(1.0, tokens=10)
    run_round([alone], between=lambda: alone.pretend(5.0, tokens=7))
    assert [alone.buffer.ledger.buffered(adapter) for adapter in ALL] == [7] * 4
    outcomes = run_round([alone])
    torch.testing.assert_close(outcomes[0].combined.agreed, torch.full((4, alone.pool.size), 5.0))


def test_what_an_aborted_round_shipped_is_shipped_again():
    (alone,) = start(1)
    alone.pretend(1.0, tokens=10)
    run_round([alone], commit=False)
    alone.pretend(4.0, tokens=5)
    outcomes = run_round([alone])
    torch.testing.assert_close(outcomes[0].combined.agreed, torch.full((4, alone.pool.size), 2.0))
    assert alone.buffer.ledger.committed == [15] * 4


def test_too_late_is_discarded_and_counted():
    fast, slow = replicas = start(2, max_staleness=2)
    slow.pretend(9.0, tokens=3)
    for _ in range(3):
        fast.buffer.apply_rounds()
        fast.pretend(1.0, tokens=10)
        run_round(replicas, (0, 1))
    slow.pretend(9.0, tokens=4)  # still on version 0
    outcomes = run_round(replicas, (0, 2))
    ledger = slow.buffer.ledger
    assert outcomes[0].weights == (10 * 2, 0), "at the fast one adapter 0 was empty, adapter 2 had versions 1 and 2"
    assert fast.buffer.ledger.discarded == [0, 0, 10, 0], "adapter 2 has waited for longer than the cut-off, too"
    assert ledger.committed == [3, 3, 0, 0]
    assert ledger.discarded == [4, 0, 7, 0]
    assert ledger.discarded_by == {STALE: 11}
    assert [ledger.buffered(adapter) for adapter in ALL] == [0, 4, 0, 7]
    assert ledger.steps == [0, 1, 0, 2]


@pytest.mark.parametrize("error_feedback", [True, False])
def test_error_feedback_ships_later_what_coding_has_lost(error_feedback):
    """Over many rounds of the same gradient the shipped sums come to the true one with feedback, not without."""
    (alone,) = start(1)
    generator = torch.Generator().manual_seed(1)
    gradient = [torch.randn(parameter.shape, generator=generator) for parameter in alone.pool.parameters()]
    shipped = torch.zeros(4, alone.pool.size)
    for _ in range(20):
        for parameter, values in zip(alone.pool.parameters(), gradient, strict=True):
            parameter.grad = values.clone()
        true = alone.pool.gradients()
        alone.end(tokens=1, lr=LR)
        shipped += run_round([alone], ALL, Payload.INT4, error_feedback)[0].combined.agreed
    error = float((shipped / 20 - true).abs().max())
    assert (error < 0.03) if error_feedback else (error > 0.1)


def test_noise_is_measured_on_gradient_sums():
    """Q and the pooled sums are of the same quantity: equal gradients have no variance."""
    replicas = start(2, measure_noise=True)
    for replica in replicas:
        replica.pretend(0.5, tokens=10)
        replica.pretend(0.5, tokens=10)
    norm2, trace = run_round(replicas)[0].noise
    assert norm2 == pytest.approx(25.0 * 4 * replicas[0].pool.size, rel=1e-6)
    assert trace == pytest.approx(0.0, abs=1e-3 * norm2)


@pytest.mark.parametrize("seed", range(40))
def test_anchors_stay_bit_identical_and_every_token_is_accounted_for(seed):
    """docs/design.md rules 1 and 2: random speeds, rates, payloads, selections, aborts, rounds applied late."""
    draw = random.Random(seed)
    clip, cut_off = draw.choice([None, 0.5]), draw.choice([1, 3, 20])
    replicas = start(draw.choice([2, 3, 4]), grad_clip=clip, max_staleness=cut_off)
    payload, feedback = draw.choice(list(Payload)), draw.random() < 0.5
    generator = torch.Generator().manual_seed(seed)
    laziness = [draw.choice([0.0, 0.5, 0.9]) for _ in replicas]

    def work():
        for replica, lazy in zip(replicas, laziness, strict=True):
            for _ in range(draw.randint(0, 2)):
                if draw.random() >= lazy:  # else this gradient was computed on an older version
                    replica.buffer.apply_rounds()
                replica.pretend(generator, draw.randint(0, 50), lr=draw.uniform(1e-4, 1e-2))

    for _ in range(12):
        work()
        adapters = tuple(sorted(draw.sample(ALL, draw.randint(1, 4))))
        commit = draw.random() < 0.9
        outcomes = run_round(replicas, adapters, payload, feedback, between=work, commit=commit)
        assert len({outcome.digest for outcome in outcomes}) == 1
        assert all(torch.equal(replica.rule.anchor, replicas[0].rule.anchor) for replica in replicas)
        for replica in replicas:
            check_accounts(replica, cut_off)


def check_accounts(replica: Replica, cut_off: int) -> None:
    """committed + discarded + buffered = produced, and what is called buffered really is."""
    ledger = replica.buffer.ledger
    for adapter in ALL:
        segments = replica.rule._segments[adapter]
        assert sum(segment.tokens for segment in segments) == ledger.buffered(adapter)
        assert sum(segment.steps for segment in segments) == ledger.steps[adapter] >= 0
        accounted = ledger.committed[adapter] + ledger.discarded[adapter] + ledger.buffered(adapter)
        assert accounted == ledger.produced[adapter]
    assert sum(ledger.discarded_by.values()) == sum(ledger.discarded)
    assert all(late <= cut_off for late in replica.rule.staleness)
