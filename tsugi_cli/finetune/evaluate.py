"""Eval loss and answers to test requests; every replica does its share and sends sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tsugi_cli.spec import RunSpec
from tsugi_kpool.core.messages import Evaluated

from .data import Conversation, Splits, import_function
from .tokens import IGNORED, Batch, Sample, collate, prompt_ids, tokenise

Scorer = Callable[[str, str], dict[str, bool]]


def supervised_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy over the supervised tokens of a batch.

    Logits are computed only where some sample is supervised: the vocabulary is the widest part of a small model.
    """
    targets = batch.labels[:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().flatten()
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, logits_to_keep=columns).logits
    wanted = targets[:, columns].reshape(-1)
    return cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=IGNORED)


class Evaluator:
    """This replica's share of the eval and test splits."""

    def __init__(self, spec: RunSpec, splits: Splits, tokenizer: Any, replica: int) -> None:
        share = slice(replica, None, spec.topology.replicas)
        self._spec, self._tokenizer, self._replica = spec, tokenizer, replica
        self._eval = tokenise(splits.eval[share], tokenizer, spec.data.max_tokens)
        self._test = splits.test[share]
        scorer = spec.data.scorer
        self._score: Scorer | None = import_function(scorer, "data.scorer") if scorer else None

    def run(self, model: Any, stage: str, stop: Callable[[], bool]) -> Evaluated:
        """Measure the model; `stop` is asked between batches and ends it early."""
        was_training = model.training
        model.eval()
        sums: dict[str, float] = {}
        examples: list[tuple[str, str, str]] = []
        with torch.inference_mode():
            for batch in self._batches(self._eval):
                if stop():
                    break
                _add(sums, "loss_sum", float(supervised_loss(model, batch)) * batch.tokens)
                _add(sums, "loss_tokens", batch.tokens)
            if self._score is not None:
                self._answer(model, sums, examples, stop)
        model.train(was_training)
        return Evaluated(0, self._replica, "", stage, sums, tuple(examples))

    def _answer(
        self, model: Any, sums: dict[str, float], examples: list[tuple[str, str, str]], stop: Callable[[], bool]
    ) -> None:
        size = self._spec.evaluate.batch
        for start in range(0, len(self._test), size):
            if stop():
                return
            chunk = self._test[start : start + size]
            for conversation, answer in zip(chunk, self._generate(model, chunk), strict=True):
                expected = conversation[-1]["content"]
                _add(sums, "answered", 1)
                for name, value in (self._score(expected, answer) if self._score else {}).items():
                    _add(sums, name, float(value))
                if len(examples) < self._spec.evaluate.examples:
                    examples.append((conversation[-2]["content"], expected, answer))

    def _generate(self, model: Any, conversations: list[Conversation]) -> list[str]:
        """Greedy answers, prompts padded on the left."""
        prompts = [prompt_ids(conversation, self._tokenizer) for conversation in conversations]
        width = max(len(prompt) for prompt in prompts)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self._spec.evaluate.max_new_tokens,
            do_sample=False,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        return list(self._tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))

    def _batches(self, samples: list[Sample]) -> list[Batch]:
        """Of similar lengths, so that little is padding."""
        samples = sorted(samples, key=lambda sample: len(sample.ids))
        size, pad = self._spec.evaluate.batch, self._tokenizer.pad_token_id
        return [collate(samples[i : i + size], pad) for i in range(0, len(samples), size)]


def _add(sums: dict[str, float], name: str, value: float) -> None:
    sums[name] = sums.get(name, 0.0) + value
