"""The optimizers that `train.optimizer` names, of torch, transformers and bitsandbytes, and their groups.

A group's `lr` and `weight_decay` are set before every step, by the tokens of the fleet (`schedule.py`); a group that
differs has shares of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tsugi_cli.config.spec import RunSpec, Train
from tsugi_cli.config.training import chosen
from tsugi_kpool.engine.gradient import OptimizerFactory
from tsugi_kpool.errors import MachineError
from tsugi_kpool.fleet_adamw import FleetAdamW

from .schedule import SCALE_DECAY, SCALE_LR

BETA1 = {"muon": 0.95}
"""What an optimizer is usually given; the others take 0.9."""
BITSANDBYTES = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "lion": "Lion"}


def optimizer_of(spec: RunSpec, model: nn.Module | None = None) -> OptimizerFactory:
    """What a run's replicas step with, or in gradient mode all together; arguments as in `optimizer_factory`.

    FleetAdamW begins with the run's replicas, and the engine tells it how many are left.
    """
    topology = spec.topology
    name: Any = chosen(spec.train.optimizer, spec.kpool.mode, topology.replicas + topology.spare)
    return optimizer_factory(replace(spec.train, optimizer=name), topology.replicas, model)


def optimizer_factory(train: Train, replicas: int = 1, model: nn.Module | None = None) -> OptimizerFactory:
    """The optimizer of these settings.

    Args:
        train: The run's settings; `auto` goes by `replicas`.
        replicas: How many average their steps; of a step on the mean gradient there is one.
        model: Where rates differ between parameters: whose they are.
    """
    if model is not None and (train.lora_plus_ratio != 1 or train.embedding_lr is not None):
        return partial(_in_groups, model, train, replicas)
    return lambda parameters: _kind(train, replicas, parameters)(parameters)


def _kind(train: Train, replicas: int, parameters: list[nn.Parameter]) -> Any:
    """The class with its settings, for parameters like these.

    Raises:
        MachineError: its package is missing, or too old.
    """
    name, decay = chosen(train.optimizer, "local", replicas), train.weight_decay
    beta1 = BETA1.get(name, 0.9) if train.beta1 is None else train.beta1
    adam: dict[str, Any] = {"lr": train.lr, "betas": (beta1, train.beta2), "weight_decay": decay}
    if name == "adamw":
        on_gpu = all(each.device.type == "cuda" for each in parameters)
        return partial(torch.optim.AdamW, **adam, fused=True if on_gpu else None)
    if name == "fleet_adamw":
        return partial(FleetAdamW, **adam, replicas=replicas)
    if name == "muon":
        # So the rate that is right for AdamW is right for it (arXiv 2502.16982).
        return partial(
            torch.optim.Muon, lr=train.lr, momentum=beta1, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return partial(Adafactor, lr=train.lr, weight_decay=decay, scale_parameter=False, relative_step=False)
    return partial(_of_bitsandbytes(name), **adam)


def _of_bitsandbytes(name: str) -> Any:
    try:
        optim = import_module("bitsandbytes.optim")
    except ImportError as error:
        raise MachineError(f"train.optimizer={name} needs one more package: pip install 'tsugi[quant]'") from error
    return getattr(optim, BITSANDBYTES[name])


def _in_groups(
    model: nn.Module, train: Train, replicas: int, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """PEFT's groups: A, embeddings, B with a higher rate, and of B what never decays."""
    from peft.optimizers import create_loraplus_optimizer

    kind = _kind(train, replicas, parameters)
    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        kind.func,
        lr=train.lr,
        loraplus_lr_ratio=train.lora_plus_ratio,
        loraplus_lr_embedding=train.lr if train.embedding_lr is None else train.embedding_lr,
        loraplus_weight_decay=train.weight_decay,
        **{name: value for name, value in kind.keywords.items() if name not in ("lr", "weight_decay")},
    )
    for group in made.param_groups:
        group[SCALE_LR] = group["lr"] / train.lr
        group[SCALE_DECAY] = float(group["weight_decay"] > 0)
    return made
