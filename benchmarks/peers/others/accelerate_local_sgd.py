"""accelerate's LocalSGD: own steps, all parameters averaged every eighth."""

from __future__ import annotations

import torch
import workload
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD

EVERY = 8


def train(run: workload.Run) -> None:
    accelerator = Accelerator(cpu=True)
    inner = run.lora()
    trained = torch.optim.AdamW(workload.trainable(inner), lr=run.lr)
    model, optimizer = accelerator.prepare(inner, trained)
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=EVERY, enabled=True) as local:
        for loss in run.losses(model, inner):
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            local.step()
