"""`train.batch_tokens=auto`: how many tokens this replica computes at once, found once, before it joins.

A step is only cut by it, so its gradient is the same on a large device and on a small one. A device with memory of
its own is tried: too much raises an error there. A CPU is not: where too much is asked for, the system ends some
process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.errors import ConfigError, MachineError

from .activations import FP32, HALF, ON_CPU, logit_bytes, shape_of, token_bytes
from .objectives import Objective
from .precision import dtype_of
from .tokens import Sample, collate

KEY = "train.batch_tokens=auto"
SHARE = 0.5
"""Of the free memory of a machine: the rest is for what comes later, and for others."""
LATER = 3.5
"""Numbers for each trained one that come after the trial: AdamW's moments, and what a round has on its way."""


def tokens_at_once(
    spec: RunSpec, longest: int, model: Any, forward: nn.Module, objective: Objective, device: torch.device
) -> int | None:
    """Tokens, padding included, that this replica computes at once; None where samples are counted.

    Args:
        spec: The run.
        longest: Tokens of the longest sample; of a pair those of both sides.
        model: PEFT's.
        forward: What the training thread calls.
        objective: What is learnt.
        device: Where.

    Raises:
        ConfigError: nobody knows what this model needs on a CPU.
        MachineError: not even one sample fits.
    """
    if spec.train.batch_tokens != "auto":
        return spec.train.batch_tokens
    most = spec.train.step_samples
    if device.type == "cpu":
        samples = min(most, int(_free() // _bytes(spec, longest, model)))
        _refuse_none(samples, longest)
    else:
        samples = tried(lambda count: _trial(count, longest, spec, model, forward, objective, device), most, longest)
    sys.stderr.write(f"{KEY}: {samples * longest:,} tokens at once, {samples} of {most} samples of a step\n")
    return samples * longest


def tried(trial: Callable[[int], None], most: int, longest: int) -> int:
    """Halve the number of samples until a trial does not run out of memory.

    Raises:
        MachineError: not even one sample fits.
    """
    samples = most
    while samples:
        try:
            trial(samples)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            samples //= 2
        else:
            return samples
    _refuse_none(samples, longest)
    return 0


def _refuse_none(samples: int, longest: int) -> None:
    if samples < 1:
        raise MachineError(
            f"{KEY}: there is no memory for one sample of {longest:,} tokens; lower data.max_tokens, or set "
            "model.gradient_checkpointing=true"
        )


def _free() -> float:
    """Bytes of main memory that a replica may take for activations. All replicas of a machine ask at about the same
    time, so they share by what is asked for below."""
    return SHARE * float(psutil.virtual_memory().available)


def _bytes(spec: RunSpec, longest: int, model: Any) -> float:
    """Bytes of one sample on a CPU, times the replicas that share this machine."""
    shape = shape_of(model.config.to_dict()) if spec.model.attention != "eager" else None
    if shape is None:
        raise ConfigError([
            f"{KEY}: on a CPU memory is counted, and nobody has counted that of a model of the type "
            f"{model.config.model_type} with model.attention={spec.model.attention}: give a number"
        ])  # fmt: skip
    width = FP32 if dtype_of(spec.model.dtype, torch.device("cpu")) is torch.float32 else HALF
    of_token = token_bytes(shape, spec.lora.rank, width, spec.model.gradient_checkpointing is True)
    here = spec.topology.replicas if spec.topology.here is None else max(1, spec.topology.here)
    return here * ON_CPU * (longest * of_token + logit_bytes(shape, longest, width))


def _trial(
    samples: int,
    longest: int,
    spec: RunSpec,
    model: Any,
    forward: nn.Module,
    objective: Objective,
    device: torch.device,
) -> None:
    """Compute a micro-batch of samples that are all as long as the longest, beside what will come later."""
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    sides = 2 if spec.train.objective == "dpo" else 1
    ids = [1] * max(2, longest // sides)
    ballast = torch.empty(round(LATER * trained), device=device)
    try:
        batch = collate([Sample(ids, ids)] * (samples * sides), 0).to(device)
        objective.loss(forward, batch).backward()
    finally:
        del ballast
        model.zero_grad(set_to_none=True)
        torch.accelerator.empty_cache() if device.type != "cpu" else None
