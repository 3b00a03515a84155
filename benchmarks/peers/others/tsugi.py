"""This project's engine as a library: three lines in a plain loop. Eight adapters, two in a round."""

from __future__ import annotations

from typing import Any

import torch
import workload
from peft import get_peft_model

from tsugi_kpool import KPoolLoraConfig, plesio_init

N, K = 8, 2


def train(run: workload.Run) -> None:
    _train(run, {}, lambda _handle, parameters: torch.optim.AdamW(parameters, lr=run.lr))


def fleet(run: workload.Run) -> None:
    """With its own optimizer, and four bits on a slow link, as its documentation says."""
    settings = {"payload": "int4"} if run.job.machines else {}
    _train(run, settings, lambda handle, parameters: handle.optimizer(parameters, lr=run.lr))


def _train(run: workload.Run, settings: dict[str, Any], optimizer_of: Any) -> None:
    config = KPoolLoraConfig(
        r=run.job.lora_rank // N,
        lora_alpha=workload.ALPHA // workload.RANK * run.job.lora_rank // N,
        target_modules=workload.TARGETS,
        n_adapters=N,
        k_active=K,
        sideband_addr=f"tcp://{run.address(0)}:0",
        trust_network=bool(run.job.machines),
        **settings,
    )
    torch.manual_seed(run.job.seed)
    model = get_peft_model(workload.load(run.base), config)
    handle = plesio_init(model, config)
    optimizer = optimizer_of(handle, workload.trainable(model))
    for loss in run.losses(model, model):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.notes["rounds"] = handle.version
