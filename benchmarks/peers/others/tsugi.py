"""This project's engine as a library: three lines in a plain loop. Eight adapters of rank 1, two in a round."""

from __future__ import annotations

import torch
import workload
from peft import get_peft_model

from tsugi_kpool import KPoolLoraConfig, plesio_init

N, K = 8, 2


def train(run: workload.Run) -> None:
    config = KPoolLoraConfig(
        r=workload.RANK // N,
        lora_alpha=workload.ALPHA // N,
        target_modules=workload.TARGETS,
        n_adapters=N,
        k_active=K,
        sideband_addr="tcp://127.0.0.1:0",
    )
    torch.manual_seed(run.job.seed)
    model = get_peft_model(workload.load(run.base), config)
    handle = plesio_init(model, config)
    optimizer = torch.optim.AdamW(workload.trainable(model), lr=run.lr)
    for loss in run.losses(model, model):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.notes["rounds"] = handle.version
