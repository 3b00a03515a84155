"""Synchronous training to compare with: DistributedDataParallel, PEFT and AdamW on the same data in the same order.

    torchrun --rdzv-backend=tsugi --nproc-per-node=2 benchmarks/engine/ddp.py --out FILE recipe=smollm2_tools ...

Takes the overrides of `tsugi finetune` and reuses its data, tokens, loss, schedule and evaluation. The LoRA has the
pool's total rank. In step s, rank i trains on the i-th of the next R micro-batches of the data order; the gradient
is that of the mean over all their supervised tokens, clipped as a whole.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tsugi_cli.bench.compare.leaving import leave
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.evaluate import Evaluator, supervised_loss
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, quieten
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches, optimizer_factory
from tsugi_kpool import init_process_group
from tsugi_kpool.core.messages import Lease


def train(spec: RunSpec) -> dict[str, Any]:
    """One run of this rank; the same figures on all ranks."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(spec.seed)
    data = opened(spec)
    base, tokenizer = load(spec.model)
    model = add_pool(base, spec.lora).train()
    batches = LeasedBatches(spec, data, tokenizer)
    if batches.total % (world * spec.train.micro_batch):
        raise SystemExit(f"{batches.total} samples do not fill whole steps of {world} micro-batches")
    evaluator = Evaluator(spec, data, tokenizer, rank)
    before = loss_of(evaluator, model, "base")
    optimizer = optimizer_factory(spec.train)(p for p in model.parameters() if p.requires_grad)
    started_s = time.monotonic()
    tokens = steps(spec, DistributedDataParallel(model), optimizer, batches)
    trained_s = time.monotonic() - started_s
    loss = {"base": before, "trained": loss_of(evaluator, model, "trained")}
    return {"loss": loss, "samples": batches.total, "tokens": tokens, "trained_s": trained_s}


def steps(spec: RunSpec, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: LeasedBatches) -> int:
    """All steps of the run; the fleet's supervised tokens."""
    rank, world, size = dist.get_rank(), dist.get_world_size(), spec.train.micro_batch
    parameters = [p for p in model.parameters() if p.requires_grad]
    tokens = 0
    for start in range(0, batches.total, world * size):
        own = start + rank * size
        ((_, batch),) = batches.of(Lease(ticket=0, start=own, stop=own + size))
        batches.schedule.set_lr(optimizer, start)
        count = torch.tensor(batch.tokens)
        dist.all_reduce(count)
        loss = supervised_loss(model, batch)
        (loss * (batch.tokens * world / int(count))).backward()  # DDP takes the mean over ranks of what is left
        torch.nn.utils.clip_grad_norm_(parameters, spec.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int(count)
    return tokens


def loss_of(evaluator: Evaluator, model: Any, stage: str) -> float:
    """Eval loss per supervised token, over all ranks' shares."""
    sums = evaluator.run(model, stage, stop=lambda: False).sums
    both = torch.tensor([sums["loss_sum"], sums["loss_tokens"]], dtype=torch.float64)
    dist.all_reduce(both)
    return float(both[0] / both[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    quieten()
    spec = compose(arguments.overrides)
    torch.set_num_threads(spec.topology.threads_per_worker)
    init_process_group("gloo")
    figures = train(spec)
    if dist.get_rank() == 0:
        arguments.out.write_text(json.dumps(figures))
    leave()


if __name__ == "__main__":
    main()
