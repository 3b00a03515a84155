"""No synchronisation at all: what one replica reaches alone. A bound for throughput, not a peer."""

from __future__ import annotations

import torch
import workload


def train(run: workload.Run) -> None:
    model = run.lora()
    optimizer = torch.optim.AdamW(workload.trainable(model), lr=run.lr)
    for loss in run.losses(model, model):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
