"""Eval loss and answers to test requests; every replica does its share and sends sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.packing import PackedSample
from tsugi_cli.data.prepared import Prepared
from tsugi_cli.data.rows import Sample
from tsugi_cli.data.tables import Question
from tsugi_kpool.core.messages import Evaluated
from tsugi_kpool.engine.inside import ALONE, Inside

from .functions import import_function
from .objectives import SUPERVISED, Objective, add, batch_of
from .tokens import Batch
from .workers import CPU

Scorer = Callable[[str, str], dict[str, bool]]
Held = Sample | PackedSample
"""A row of the eval split: a sample, or a preference pair."""


class Evaluator:
    """This worker's share of the eval and test splits.

    The workers of a replica go through their batches in step, because under FSDP2 every forward needs all of them:
    who has none left goes on with a batch that does not count.
    """

    def __init__(
        self,
        spec: RunSpec,
        data: Prepared,
        tokenizer: Any,
        replica: int,
        inside: Inside = ALONE,
        device: torch.device = CPU,
        objective: Objective = SUPERVISED,
    ) -> None:
        self.objective = objective
        scorer = spec.data.scorer
        self._score: Scorer | None = import_function(scorer, "data.scorer") if scorer else None
        # Without a scorer nothing is counted: what is answered is shown, from eval where there is no test.
        asked = data.test if scorer else (data.test or data.eval_questions)[: spec.evaluate.examples]
        workers = inside.workers
        first, everybody = replica * workers, spec.topology.replicas * workers
        if replica >= spec.topology.replicas:
            first = max(len(data.eval), len(asked))  # it joined a running job: the shares have been taken
        share = slice(first + inside.worker, None, everybody)
        self._spec, self._tokenizer, self._replica, self._device = spec, tokenizer, replica, device
        self._pairs = data.train.pairs
        self._eval: Sequence[Held] = data.eval[share]
        self._test, self._split = asked[share], data.eval
        self._in_step = workers > 1 and spec.topology.inside == "fsdp2"
        # Worker 0 has the longest share.
        most = [len(range(first, len(split), everybody)) for split in (data.eval, asked)]
        self._turns, self._test_turns = (-(-each // spec.evaluate.batch) for each in most)
        self._spare = data.eval[:1], asked[:1]

    def run(self, model: Any, stage: str, stop: Callable[[], bool]) -> Evaluated:
        """Measure the model; `stop` is asked between batches and ends it early."""
        was_training = model.training
        model.eval()
        sums: dict[str, float] = {}
        examples: list[tuple[str, str, str]] = []
        # FSDP2's buffers must not become inference tensors: training goes on with them.
        with torch.no_grad() if self._in_step else torch.inference_mode():
            for batch in self._batches(self._eval):
                if stop():
                    break
                self.objective.measure(sums, model, batch)
            if self._spare[1]:
                self._answer(model, sums, examples, stop)
        model.train(was_training)
        return Evaluated(0, self._replica, "", stage, sums, tuple(examples))

    def whole(self) -> list[Batch]:
        """The whole eval split, for one worker alone."""
        return self._cut(self._split)

    def _answer(
        self, model: Any, sums: dict[str, float], examples: list[tuple[str, str, str]], stop: Callable[[], bool]
    ) -> None:
        size = self._spec.evaluate.batch
        for turn in range(self._test_turns):
            if stop():
                return
            chunk = self._test[turn * size : (turn + 1) * size]
            answers = self._generate(model, chunk or self._spare[1])
            for question, answer in zip(chunk, answers, strict=bool(chunk)):
                add(sums, "answered", 1)
                for name, value in (self._score(question.expected, answer) if self._score else {}).items():
                    add(sums, name, float(value))
                if len(examples) < self._spec.evaluate.examples:
                    examples.append((question.asked, question.expected, answer))

    def _generate(self, model: Any, questions: list[Question]) -> list[str]:
        """Greedy answers, prompts padded on the left."""
        prompts = [question.prompt for question in questions]
        width = max(len(prompt) for prompt in prompts)
        pad = self._tokenizer.pad_token_id
        ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        out = model.generate(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            synced_gpus=self._in_step,
            max_new_tokens=self._spec.evaluate.max_new_tokens,
            do_sample=False,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        return list(self._tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))

    def _batches(self, samples: Sequence[Held]) -> list[Batch]:
        batches = self._cut(samples)
        if len(batches) == self._turns:
            return batches
        (spare,) = (each.weightless() for each in self._cut(self._spare[0]))
        return batches + [spare] * (self._turns - len(batches))

    def _cut(self, samples: Sequence[Held]) -> list[Batch]:
        """Of similar lengths, so that little is padding."""
        rows = sorted(samples, key=lambda sample: len(sample.ids))
        size, pad = self._spec.evaluate.batch, self._tokenizer.pad_token_id
        cut = (rows[i : i + size] for i in range(0, len(rows), size))
        return [batch_of(each, pad, self._pairs).to(self._device) for each in cut]
