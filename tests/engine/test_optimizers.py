"""Optimizers by name: which class, which rates, and a state that is saved and taken up again."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.engine.test_resume import STEPS, adapter, manifest
from tests.runs import run
from tests.support import kpool, tiny_lora
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_cli.finetune.schedule import Schedule
from tsugi_cli.finetune.tokens import Sample, collate
from tsugi_kpool.engine.state import moments, restore
from tsugi_kpool.errors import MachineError

HERE = ["adamw", "fleet_adamw", "adafactor", "muon"]
OF_BITSANDBYTES = ["adamw_8bit", "paged_adamw_8bit", "lion"]


def train_of(**changes):
    return replace(compose(["model=tiny"]).train, **changes)


def made(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name in OF_BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    return optimizer_factory(train_of(optimizer=name, lr=1e-2), 2)(parameters)


def matrices() -> list[nn.Parameter]:
    """One that is large enough for 8 bits, and a small one."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 128), (4, 6))]


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for each in parameters:
        each.grad = torch.randn(each.shape, generator=generator)
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", [*HERE, *OF_BITSANDBYTES])
def test_it_goes_on_from_its_own_state_bit_for_bit(name):
    """Counters that are no tensors, sums of rows and scales of blocks are part of it."""
    parameters = matrices()
    optimizer = made(name, parameters)
    for seed in range(3):
        step(optimizer, parameters, seed)
    saved = moments(optimizer)
    twins = [nn.Parameter(each.detach().clone()) for each in parameters]
    again = made(name, twins)
    assert restore(again, saved)
    for seed in (3, 4):
        step(optimizer, parameters, seed)
        step(again, twins, seed)
    assert all(torch.equal(one, other) for one, other in zip(parameters, twins, strict=True))


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw"), ("adafactor", "fleet_adamw"),
    ("adamw", "adafactor"), ("adamw", "adamw_8bit"), ("adamw_8bit", "adamw"), ("adamw_8bit", "lion")])  # fmt: skip
def test_another_optimizers_state_is_not_taken(before, after):
    parameters = matrices()
    optimizer = made(before, parameters)
    step(optimizer, parameters, 0)
    other = made(after, parameters)
    assert not restore(other, moments(optimizer))
    step(other, parameters, 1)


def test_a_run_changes_its_optimizer_between_two_parts(tmp_path, monkeypatch):
    """Stopped with Muon it goes on bit for bit; with another one it begins with none of its state."""
    words = [*STEPS, "train.optimizer=muon", "kpool.overlap=false"]
    undisturbed = run(words, tmp_path, monkeypatch)
    first = run(words, tmp_path, monkeypatch, stop_at=7)
    same = run([f"resume={first.root}"], tmp_path, monkeypatch)
    other = run([f"resume={first.root}", "train.optimizer=adafactor"], tmp_path, monkeypatch)
    assert adapter(same) == adapter(undisturbed)
    assert adapter(other) != adapter(undisturbed)
    assert manifest(other).samples == 48


def test_b_and_embeddings_have_rates_of_their_own_through_the_schedule():
    model = tiny_lora(kpool(), target_modules=["q_proj", "embed_tokens"])
    train = train_of(lora_plus_ratio=16.0, embedding_lr=1e-4, lr=1e-2, weight_decay=0.1, warmup=0.0)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = optimizer_factory(train, model=model)(parameters)
    names = {id(each): name for name, each in model.named_parameters()}
    schedule = Schedule(train, [3] * 100, replicas=1)
    lr = schedule.set_lr(optimizer, 50)
    schedule.set_decay(optimizer, 6)
    rates = {names[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert len(rates) == len(parameters)
    for name, rate in rates.items():
        share = 0.01 if "embedding" in name else 16.0 if "lora_B" in name else 1.0
        assert rate == pytest.approx(lr * share), name
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {schedule.decay(6)}


def test_the_first_memory_is_the_optimizers_usual_one_or_what_the_user_says():
    assert optimizer_factory(train_of())(matrices()).defaults["betas"] == (0.9, 0.99)
    assert optimizer_factory(train_of(beta1=0.8))(matrices()).defaults["betas"] == (0.8, 0.99)
    assert optimizer_factory(train_of(optimizer="muon"))(matrices()).defaults["momentum"] == 0.95


def test_a_package_that_is_gone_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        MachineError, match=r"train.optimizer=lion needs one more package: pip install 'tsugi\[quant\]'"
    ):
        optimizer_factory(train_of(optimizer="lion"))(matrices())


def test_smoothed_targets_give_each_word_of_the_vocabulary_its_share():
    model = tiny_lora(kpool())
    batch = collate([Sample(list(range(10)), list(range(10)))], 0)
    with torch.no_grad():
        logits = model(**batch.inputs).logits[0, :-1].float().log_softmax(-1)
        plain = -logits[torch.arange(9), batch.labels[0, 1:]].mean()
        expected = 0.9 * plain - 0.1 * logits.mean()
        assert float(supervised_loss(model, batch, 0.1)) == pytest.approx(float(expected), rel=1e-5)
        assert float(supervised_loss(model, batch)) == pytest.approx(float(plain), rel=1e-5)


def test_noise_on_embeddings_is_for_training_alone(tmp_path, monkeypatch):
    """A run with it ends elsewhere, and its base model is measured without."""
    words = [*STEPS, "train.max_steps=6", "kpool.overlap=false"]
    plain, noisy = (run([*words, *more], tmp_path, monkeypatch) for more in ((), ("train.neftune=10",)))
    assert adapter(plain) != adapter(noisy)
    losses = [
        [line for line in paths.events.read_text().splitlines() if '"evaluated"' in line and '"base"' in line]
        for paths in (plain, noisy)
    ]
    assert losses[0]
    assert [line.partition('"sums"')[2] for line in losses[0]] == [line.partition('"sums"')[2] for line in losses[1]]
    assert math.isfinite(manifest(noisy).tokens)
