"""Gradient mode: a round decays weights in proportion to its supervised tokens, and stays exact."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_gradient_mode import ADAMW, as_rows, batch, large_batch_step, relative_error, run_round, start
from tests.support import kpool, tiny_lora


def test_weight_decay_by_tokens_equals_large_batch_training_too():
    """A round of as many tokens as the mean decays as AdamW says, one of half of them half as much: exactly."""
    mean = 2 * (2 * 11)
    replicas = start(2, decay_tokens=mean)
    alone = tiny_lora(kpool()).train()
    trainable = [p for p in alone.parameters() if p.requires_grad]
    optimizer = ADAMW(trainable)
    generator = torch.Generator().manual_seed(0)
    for lengths in [(12, 12), (12, 12), (6, 8), (23, 23), (3, 30)]:
        pieces = [batch(generator, length) for length in lengths]
        for replica, ids in zip(replicas, pieces, strict=True):
            replica.train(ids)
        run_round(replicas)
        tokens = sum(ids.numel() - ids.shape[0] for ids in pieces)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01 * tokens / mean
        large_batch_step(alone, optimizer, pieces, None)
        expected = as_rows(alone, {p: p.data for p in trainable})
        assert relative_error(replicas[0].rule.anchor, expected) < 1e-6
    decays = [group["weight_decay"] for group in replicas[0].rule.optimizer.param_groups]
    assert decays == pytest.approx([0.01 * 62 / mean] * 4)


def test_an_adapter_decays_by_its_own_tokens():
    """What has waited for its turn brings more tokens, and decays as much as the rounds that it has missed."""
    (alone,) = start(1, decay_tokens=10.0)
    alone.pretend(1.0, tokens=10)
    run_round([alone], (0, 1))
    alone.pretend(1.0, tokens=5)
    run_round([alone], (0, 2))
    decays = [group["weight_decay"] for group in alone.rule.optimizer.param_groups]
    assert decays == pytest.approx([0.005, 0.01, 0.015, 0.01])
