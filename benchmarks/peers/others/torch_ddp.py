"""torch DistributedDataParallel: the gradient is averaged in every step."""

from __future__ import annotations

import torch
import torch.distributed as dist
import workload
from torch.nn.parallel import DistributedDataParallel


def train(run: workload.Run) -> None:
    dist.init_process_group("gloo")
    model = run.lora()
    forward = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(workload.trainable(model), lr=run.lr)
    for loss in run.losses(forward, model):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
