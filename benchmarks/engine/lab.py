"""A base model, its data and its start values: what all arms of one seed share."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.evaluate import Evaluator
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches


class Lab:
    """Of one seed; models are copied from it, and measured on its eval part."""

    def __init__(self, spec: RunSpec) -> None:
        data = opened(spec)
        base, tokenizer = load(spec.model)
        torch.manual_seed(spec.seed)
        self.model = add_pool(base, spec.lora).train()
        self.batches = LeasedBatches(spec, data, tokenizer)
        self._evaluator = Evaluator(replace(spec, topology=replace(spec.topology, replicas=1)), data, tokenizer, 0)

    def copy(self) -> Any:
        """Another model on the same base weights, with the LoRA's start values."""
        frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        return copy.deepcopy(self.model, frozen)

    def loss(self, model: Any) -> float:
        sums = self._evaluator.run(model, "trained", stop=lambda: False).sums
        return sums["loss_sum"] / sums["loss_tokens"]
