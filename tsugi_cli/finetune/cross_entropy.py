"""Cross-entropy of many tokens over a large vocabulary, in pieces: never more than one of them in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

AT_ONCE = 1 << 24
"""So many logits, 64 MiB in fp32, are one call of torch's function."""
PIECE = 1 << 22
"""Logits in one piece."""


def mean_loss(logits: Tensor, wanted: Tensor, ignored: int, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the tokens that are not ignored, fp32.

    Args:
        logits: [tokens, vocabulary], of any number format.
        wanted: [tokens]: the right ones.
        ignored: Stands in `wanted` where nothing is asked for.
        label_smoothing: Share of the target that is spread over the whole vocabulary.
    """
    if logits.numel() <= AT_ONCE:
        return cross_entropy(logits.float(), wanted, ignore_index=ignored, label_smoothing=label_smoothing)
    return _in_pieces(logits, wanted, ignored, label_smoothing).sum() / (wanted != ignored).sum()


def token_losses(logits: Tensor, wanted: Tensor, ignored: int) -> Tensor:
    """The loss of every token, fp32 [tokens]; 0 where it is ignored.

    Args:
        logits: [tokens, vocabulary], of any number format.
        wanted: [tokens]: the right ones.
        ignored: Stands in `wanted` where nothing is asked for.
    """
    if logits.numel() <= AT_ONCE:
        return cross_entropy(logits.float(), wanted, ignore_index=ignored, reduction="none")
    return _in_pieces(logits, wanted, ignored, 0.0)


def _in_pieces(logits: Tensor, wanted: Tensor, ignored: int, label_smoothing: float) -> Tensor:
    found: Tensor = _InPieces.apply(logits, wanted, ignored, label_smoothing)  # type: ignore[no-untyped-call]
    return found


class _InPieces(torch.autograd.Function):
    """Forward has each piece's softmax at hand, so it makes the gradient, too; of all else nothing is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, ignored: int, label_smoothing: float) -> Tensor:
        rows = max(1, PIECE // logits.shape[1])
        losses = []
        gradient = torch.empty_like(logits) if logits.requires_grad else None
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            with torch.enable_grad():
                piece = logits[here].detach().float().requires_grad_(gradient is not None)
                loss = cross_entropy(
                    piece, wanted[here], ignore_index=ignored, label_smoothing=label_smoothing, reduction="none"
                )
                if gradient is not None:
                    (gradient[here],) = torch.autograd.grad(loss.sum(), piece)
            losses.append(loss.detach())
        ctx.gradient = gradient
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0][:, None]), None, None, None
