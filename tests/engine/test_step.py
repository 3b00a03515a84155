"""A step of several micro-batches is one step: its gradient, its weight, its samples in the ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.engine.test_resume import STEPS, adapter, manifest
from tests.runs import ALONE, QUIET, run
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.data import micro_batches, noise_seed
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.step import gradients
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.engine.inside import ALONE as BY_ITSELF


class Trained:
    """The tiny model with a pool that has begun to learn, and the gradients of steps on real data."""

    def __init__(self, *words: str) -> None:
        self.spec = compose([*QUIET, *words])
        base, self.tokenizer = load(self.spec.model)
        self.model = add_pool(base, self.spec.lora).train()
        self.data = opened(self.spec)
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]
        torch.manual_seed(3)
        for each in self.parameters:
            torch.nn.init.normal_(each, std=0.05)

    def steps(self, lease: Lease, **train):
        spec = replace(self.spec, train=replace(self.spec.train, **train))
        return list(LeasedBatches(spec, self.data, self.tokenizer).steps(lease))

    def gradient(self, step):
        found = gradients(self.model, step, BY_ITSELF).whole
        flat = torch.cat([each.grad.flatten() for each in self.parameters])
        self.model.zero_grad(set_to_none=True)
        return found, flat


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.mark.parametrize(("micro_batch", "accumulate"), [(1, 12), (2, 6), (5, 3), (7, 2)])
def test_a_step_in_micro_batches_has_the_gradient_of_one_big_batch(trained, micro_batch, accumulate):
    """Samples have unequal numbers of tokens, and the last micro-batch may be smaller: every token counts alike."""
    lease = Lease(ticket=0, start=3, stop=15, micro_batch=12)
    (big,) = trained.steps(lease, micro_batch=12)
    (cut,) = trained.steps(lease, micro_batch=micro_batch, accumulate=accumulate)
    assert len({batch.tokens for batch in cut.batches}) > 1
    assert len(cut.batches) == -(-12 // micro_batch)
    whole, expected = trained.gradient(big)
    found, gradient = trained.gradient(cut)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (found.tokens, found.samples) == (whole.tokens, whole.samples) == (big.tokens, 12)


def test_a_lease_is_cut_into_steps_and_these_into_micro_batches(trained):
    """A slow replica's lease may ask for smaller steps: then there are fewer micro-batches in one."""
    lease = Lease(ticket=0, start=0, stop=20)
    usual = trained.steps(lease, micro_batch=2, accumulate=4)
    assert [(step.position, [batch.samples for batch in step.batches]) for step in usual] == [
        (0, [2, 2, 2, 2]), (8, [2, 2, 2, 2]), (16, [2, 2]),
    ]  # fmt: skip
    slow = trained.steps(replace_size(lease, 3), micro_batch=2, accumulate=4)
    assert [[batch.samples for batch in step.batches] for step in slow][:2] == [[2, 1], [2, 1]]
    assert sum(step.tokens for step in usual) == sum(step.tokens for step in slow)


def test_a_micro_batch_by_tokens_computes_no_more_and_has_the_same_gradient(trained):
    """Short samples go together, long ones apart; what is counted is what is computed, padding included."""
    lease = Lease(ticket=0, start=0, stop=32)
    (big,) = trained.steps(lease, micro_batch=32)
    longest = max(trained.data.train.lengths())
    (cut,) = trained.steps(lease, micro_batch=16, accumulate=2, batch_tokens=3 * longest)
    assert max(batch.worked for batch in cut.batches) <= 3 * longest
    assert len({batch.ids.shape[0] for batch in cut.batches}) > 1
    _, expected = trained.gradient(big)
    _, gradient = trained.gradient(cut)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


class Scaled:
    """A loss scaled up, as narrow formats need it: its gradients are scaled down once, when all are there."""

    def __init__(self, parameters) -> None:
        self._parameters = parameters

    def backward(self, loss: torch.Tensor) -> None:
        (loss * 1024).backward()

    def done(self) -> None:
        for each in self._parameters:
            each.grad /= 1024


def test_a_scaled_loss_is_scaled_back_once_a_step(trained):
    (step,) = trained.steps(Lease(ticket=0, start=0, stop=6), micro_batch=2, accumulate=3)
    _, expected = trained.gradient(step)
    gradients(trained.model, step, BY_ITSELF, how=Scaled(trained.parameters))
    gradient = torch.cat([each.grad.flatten() for each in trained.parameters])
    trained.model.zero_grad(set_to_none=True)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize(
    ("lengths", "most", "workers", "sizes"),
    [
        ([5, 5, 5, 5], 10, 1, [2, 2]),
        ([5, 5, 5, 5, 5], 10, 2, [4, 1]),
        ([3, 3, 3, 9, 1], 9, 1, [3, 1, 1]),
        ([99, 1], 10, 1, [1, 1]),
        ([1] * 7, 100, 1, [7]),
        ([4, 4, 4], None, 1, [2, 1]),
    ],
)
def test_where_a_step_is_cut(lengths, most, workers, sizes):
    positions = range(10, 10 + len(lengths))
    parts = micro_batches(positions, lengths, 2, most, workers)
    assert [len(part) for part in parts] == sizes
    assert [each for part in parts for each in part] == list(positions)


def replace_size(lease: Lease, size: int) -> Lease:
    return Lease(lease.ticket, lease.start, lease.stop, size)


def test_noise_goes_by_the_step_and_nothing_that_came_before():
    """Else all replicas, which begin with the same seed, would drop the same numbers at the same time."""
    trained = Trained("lora.dropout=0.5")
    one, other = trained.steps(Lease(ticket=0, start=0, stop=8), micro_batch=4)
    torch.manual_seed(0)
    _, first = trained.gradient(one)
    torch.manual_seed(17)
    _, again = trained.gradient(one)
    assert torch.equal(first, again)
    same_data = replace(one, noise=other.noise)
    assert one.noise != other.noise
    assert not torch.equal(first, trained.gradient(same_data)[1])
    assert noise_seed(0, 8, 0) != noise_seed(0, 8, 1) != noise_seed(1, 8, 1)


def test_a_run_with_noise_resumes_bit_for_bit(tmp_path, monkeypatch):
    words = [*STEPS, "lora.dropout=0.3", "train.neftune=5", "kpool.overlap=false"]
    undisturbed = run(words, tmp_path, monkeypatch)
    first = run(words, tmp_path, monkeypatch, stop_at=7)
    last = run([f"resume={first.root}"], tmp_path, monkeypatch)
    assert adapter(last) == adapter(undisturbed)


def test_stopped_within_a_step_of_two_micro_batches_it_resumes_bit_for_bit(tmp_path, monkeypatch):
    """Steps, leases and checkpoints count whole steps: every sample is trained on once."""
    words = [*STEPS, "train.micro_batch=1", "train.accumulate=2", "kpool.overlap=false"]
    undisturbed = run(words, tmp_path, monkeypatch)
    first = run(words, tmp_path, monkeypatch, stop_at=13)
    before = manifest(first)
    assert 12 <= before.samples < 48
    assert before.samples % 2 == 0
    last = run([f"resume={first.root}"], tmp_path, monkeypatch)
    after = manifest(last)
    assert (after.samples, after.trained, after.done) == (48, 48, ((0, 48),))
    assert adapter(last) == adapter(undisturbed)


def test_a_replica_that_dies_within_a_step_loses_whole_steps_and_nothing_else(tmp_path, monkeypatch):
    """What it had computed of that step counts for nobody, and its samples are handed out again."""
    words = [*ALONE, "train.micro_batch=1", "train.accumulate=3", "train.max_steps=4000", "kpool.k=8"]
    saved = []

    def look(checkpoints, hub):
        if checkpoints.newest is not None and checkpoints.newest.manifest.samples:
            saved.append(True)

    words += ["train.checkpoint.every_s=0.05", "kpool.min_steps=1"]
    died = run(words, tmp_path, monkeypatch, dies=lambda number: bool(saved) and number % 3 == 2, turn=look)
    before = manifest(died)
    assert before.samples > 0
    assert before.samples % 3 == 0
    steps = before.samples // 3 + 20
    again = [f"resume={died.root}", f"train.max_steps={steps}", "train.checkpoint.every_s=0"]
    after = manifest(run(again, tmp_path, monkeypatch))
    assert (after.samples, after.done) == (3 * steps, ((0, 3 * steps),))


def test_accumulation_ends_where_large_micro_batches_do(tmp_path, monkeypatch):
    """Schedule, weight decay and rounds see steps, however they are computed."""
    words = [*ALONE, "train.max_steps=6", "train.lr=0.01", "train.weight_decay=0.1", "kpool.overlap=false"]
    words.append("data.group_by_length=4")
    ends = [
        manifest(run([*words, *cut], tmp_path, monkeypatch))
        for cut in (("train.micro_batch=4",), ("train.micro_batch=1", "train.accumulate=4"))
    ]
    assert ends[0].samples == ends[1].samples == 24
    assert ends[0].tokens == ends[1].tokens
