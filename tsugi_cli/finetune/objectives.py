"""What a run learns from a micro-batch: answers (SFT), or which of two answers is preferred (DPO).

A loss is the mean over what counts alike: supervised tokens, or pairs. A micro-batch's share of a step, and a
replica's of a round, is that of its `tokens`; of pairs each counts the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid

from tsugi_cli.config import spec
from tsugi_cli.data.packing import PackedSample
from tsugi_cli.data.rows import Sample

from .cross_entropy import mean_loss, token_losses
from .metric import Metric
from .reference import Reference
from .tokens import IGNORED, Batch, collate, collate_pairs, labelled


def supervised_loss(model: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the supervised tokens of a batch.

    Logits are computed only where some sample is supervised: the vocabulary is the widest part of a small model.
    """
    logits, wanted = supervised(model, batch)
    return mean_loss(logits, wanted, IGNORED, label_smoothing)


def supervised(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [tokens, vocabulary] and targets [tokens], of the columns where some sample is supervised.

    A target is IGNORED where its own sample is not.
    """
    targets = batch.labels[:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().flatten()
    logits = model(**batch.inputs, logits_to_keep=columns).logits
    return logits.flatten(0, 1), targets[:, columns].reshape(-1)


def add(sums: dict[str, float], name: str, value: float) -> None:
    """Add to a sum of an evaluation."""
    sums[name] = sums.get(name, 0.0) + value


class Objective(Protocol):
    """What is learnt."""

    def loss(self, forward: Any, batch: Batch) -> Tensor:
        """The mean over what counts in a batch."""

    def measure(self, sums: dict[str, float], forward: Any, batch: Batch) -> None:
        """Add what the model makes of a batch to the sums of an evaluation; one that does not count adds nothing."""


@dataclass(frozen=True)
class Supervised:
    """Answers are learnt, token by token.

    Attributes:
        label_smoothing: Share of each target that is spread over the whole vocabulary; evaluation knows none.
        metric: What else is measured, if anything.
    """

    label_smoothing: float = 0.0
    metric: Metric | None = None

    def loss(self, forward: Any, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return supervised_loss(forward, batch, self.label_smoothing)

    def measure(self, sums: dict[str, float], forward: Any, batch: Batch) -> None:
        """Loss, right tokens, and the user's metric; every token weighs the same."""
        logits, wanted = supervised(forward, batch)
        if not batch.tokens:
            return
        add(sums, "loss_sum", float(mean_loss(logits, wanted, IGNORED)) * batch.tokens)
        add(sums, "right_tokens", int((logits.argmax(-1) == wanted).sum()))
        add(sums, "loss_tokens", batch.tokens)
        if self.metric is not None:
            kept = wanted != IGNORED
            for name, value in self.metric(logits[kept], wanted[kept]).items():
                add(sums, name, value * batch.tokens)


SUPERVISED = Supervised()


@dataclass(frozen=True)
class Scores:
    """Of pairs; all fp32 [pairs]."""

    chosen: Tensor
    """How much likelier the chosen answer is than for the reference: the difference of log-probabilities."""
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


class Preference:
    """Preferred answers become likelier than rejected ones, measured against the base model.

    Args:
        settings: Which loss.
        model: PEFT's, not spread over workers: the reference is inside of it.
    """

    def __init__(self, settings: spec.Dpo, model: Any) -> None:
        self._settings, self._reference = settings, Reference(model)

    def loss(self, forward: Any, batch: Batch) -> Tensor:
        """The mean over pairs."""
        return losses(self._settings, self.scores(forward, batch)).mean()

    def measure(self, sums: dict[str, float], forward: Any, batch: Batch) -> None:
        """Loss, margin and how often the chosen answer has gained more; every pair weighs the same."""
        scores = self.scores(forward, batch)
        if not batch.tokens:
            return
        margins = self._settings.beta * (scores.chosen - scores.rejected)
        add(sums, "loss_sum", float(losses(self._settings, scores).sum()))
        add(sums, "loss_tokens", len(margins))
        add(sums, "margin_sum", float(margins.sum()))
        add(sums, "right_pairs", int((margins > 0).sum()))

    def scores(self, forward: Any, batch: Batch) -> Scores:
        """What the model says of the pairs of a batch."""
        with torch.no_grad():
            before = answer_logps(self._reference, batch)
        gained = answer_logps(forward, batch) - before
        tokens = (batch.labels[:, 1:] != IGNORED).sum(1)
        return Scores(gained[0::2], gained[1::2], tokens[0::2], tokens[1::2])


def answer_logps(forward: Any, batch: Batch) -> Tensor:
    """Log-probability of each row's trained tokens together: fp32 [rows]."""
    logits, wanted = supervised(forward, batch)
    return -token_losses(logits, wanted, IGNORED).view(len(batch.ids), -1).sum(1)


def losses(settings: spec.Dpo, scores: Scores) -> Tensor:
    """The loss of each pair: the formulas of TRL's DPOTrainer, by its names."""
    beta, kind = settings.beta, settings.loss_type
    margin = beta * (scores.chosen - scores.rejected)
    if kind == "hinge":
        return torch.relu(1 - margin)
    if kind == "ipo":  # by token, as its authors have it
        mean = scores.chosen / scores.chosen_tokens.clamp(min=1) - scores.rejected / scores.rejected_tokens.clamp(
            min=1
        )
        return (mean - 1 / (2 * beta)) ** 2
    if kind == "robust":
        flipped = settings.label_smoothing
        both = (1 - flipped) * logsigmoid(margin) - flipped * logsigmoid(-margin)
        return -both / (1 - 2 * flipped)
    if kind == "apo_zero":
        return 1 - sigmoid(beta * scores.chosen) + sigmoid(beta * scores.rejected)
    if kind == "apo_down":
        return sigmoid(beta * scores.chosen) + 1 - sigmoid(margin)
    return -logsigmoid(margin)


def objective_of(run: spec.RunSpec, model: Any) -> Objective:
    """The run's objective.

    Args:
        run: The run's settings.
        model: PEFT's, not spread over workers.

    Raises:
        ConfigError: `evaluate.metric` cannot be used.
    """
    train, metric = run.train, run.evaluate.metric
    if train.objective == "dpo":
        return Preference(train.dpo, model)
    return Supervised(train.label_smoothing, None if metric is None else Metric(metric))


def batch_of(rows: Sequence[Sample | PackedSample], pad_id: int, pairs: bool) -> Batch:
    """Rows of an evaluation as a batch; every pair weighs 1."""
    if pairs:
        return collate_pairs([row for row in rows if isinstance(row, PackedSample)], pad_id)
    return collate([labelled(row) for row in rows], pad_id)
