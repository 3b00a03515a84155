"""The model as a worker trains it: base, LoRA, activations, spread over the replica's workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.neftune import activate_neftune

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.engine.inside import Inside

from .lora import add_pool
from .model import load
from .sharded import in_shards
from .workers import checkpoint_activations, compiled, spread


def assembled(spec: RunSpec, paths: RunPaths, inside: Inside, device: torch.device) -> tuple[Any, nn.Module, Any]:
    """The PEFT model on its device, what the training thread calls, and the tokenizer.

    Raises:
        TsugiError: the base model cannot be had, or takes no such LoRA.
    """
    resumed = resumed_of(paths)
    earlier = RunPaths(resumed.parent).lora_start if resumed is not None else None
    if inside.workers > 1 and spec.topology.inside == "fsdp2":
        model, tokenizer = in_shards(spec, paths.lora_start, earlier, inside, device)
        _add_noise(model, spec.train.neftune)
        return model, compiled(model, spec.model), tokenizer
    base, tokenizer = load(spec.model, device)
    model = add_pool(base, spec.lora, paths.lora_start, earlier).train()
    checkpoint_activations(model, spec.model, device)
    _add_noise(model, spec.train.neftune)
    return model, compiled(spread(model, spec.topology.inside, inside, device), spec.model), tokenizer


def _add_noise(model: Any, size: float) -> None:
    """NEFTune: noise on the embeddings, for as long as the model trains; 0 adds none."""
    if size:
        activate_neftune(model, size)
