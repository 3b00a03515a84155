"""What `handle.optimizer` makes: AdamW for steps that are averaged, or AdamW itself where none are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tsugi_kpool.core.settings import KPool, Mode, SelectAt
from tsugi_kpool.fleet_adamw import FleetAdamW


def optimizer_for(
    params: Iterable[Any], replicas: int, settings: KPool | None, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return an optimizer over these parameters or groups.

    Args:
        params: As for any optimizer of torch.
        replicas: How many begin; the pool tells the optimizer how many are left.
        settings: The pool's; None without peers.
        options: AdamW's: lr, betas, eps, weight_decay.
    """
    # In gradient mode the fleet steps on the mean gradient; FleetAdamW counts steps of whole matrices.
    averaged = settings is not None and settings.mode is Mode.LOCAL and settings.select_at is not SelectAt.TRAIN
    return FleetAdamW(params, replicas, **options) if averaged else torch.optim.AdamW(params, **options)
