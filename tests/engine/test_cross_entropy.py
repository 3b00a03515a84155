"""The loss in pieces is torch's own, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tsugi_cli.finetune import cross_entropy as ours
from tsugi_cli.finetune.tokens import IGNORED


def both(monkeypatch, dtype: torch.dtype, smoothing: float, piece: int):
    """(loss, gradient of what the logits are made of) of torch, and ours in pieces of so many logits."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator, dtype=dtype)
    head = torch.randn(16, 37, generator=generator, dtype=dtype)
    wanted = torch.randint(0, 37, (50,), generator=generator)
    wanted[::7] = IGNORED
    wanted[:12] = IGNORED
    monkeypatch.setattr(ours, "AT_ONCE", 0)
    monkeypatch.setattr(ours, "PIECE", piece)
    found = []
    for how in (
        lambda logits: cross_entropy(logits.float(), wanted, ignore_index=IGNORED, label_smoothing=smoothing),
        lambda logits: ours.mean_loss(logits, wanted, IGNORED, smoothing),
    ):
        start = hidden.clone().requires_grad_()
        loss = how(start @ head)
        (loss * 3).backward()
        found.append((loss.detach(), start.grad))
    return found


@pytest.mark.parametrize("piece", [1, 37 * 5, 37 * 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_loss_of_all_at_once(monkeypatch, dtype, smoothing, piece):
    """Whole pieces may have nothing to learn from; the last one is smaller; one row is the least."""
    (loss, gradient), (found, of_pieces) = both(monkeypatch, dtype, smoothing, piece)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    assert of_pieces.dtype is dtype
    apart = (of_pieces - gradient).float().norm() / gradient.float().norm()
    assert float(apart) < (1e-6 if dtype is torch.float32 else 1e-2)


def test_without_gradients_there_are_none(monkeypatch):
    monkeypatch.setattr(ours, "AT_ONCE", 0)
    logits = torch.randn(9, 11)
    wanted = torch.arange(9)
    with torch.no_grad():
        found = ours.mean_loss(logits, wanted, IGNORED)
    torch.testing.assert_close(found, cross_entropy(logits, wanted))
    assert not found.requires_grad
