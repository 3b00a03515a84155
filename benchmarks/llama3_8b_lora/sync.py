"""The synchronous arm: DistributedDataParallel (or FSDP2 in each node), PEFT and AdamW over all workers of all nodes.

    torchrun --nnodes 2 --nproc-per-node 8 ... benchmarks/llama3_8b_lora/sync.py --out RUNS/seed0/sync.json \\
        recipe=benchmarks/llama3_8b_lora/sync.yaml seed=0

Takes the overrides of `tsugi finetune` and reuses its data, tokens, loss, schedule and evaluation. A step is one
micro-batch of every replica: `topology.replicas` x `train.micro_batch` samples. Where `fault.*` slows a replica down,
its gradients are ready that much later: the delay stands between its backward pass and the all-reduce.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import records
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from tsugi_cli.bench.compare.leaving import leave
from tsugi_cli.config.compose import compose, config_hash, to_tree
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.evaluate import Evaluator, supervised_loss
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, quieten
from tsugi_cli.finetune.pace import StepPacing
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches, optimizer_factory
from tsugi_kpool import init_process_group
from tsugi_kpool.core.messages import Lease


@dataclass(frozen=True)
class Place:
    """This rank: a worker of a replica, as batches and evaluation see it."""

    worker: int
    workers: int
    replica: int
    device: torch.device


def train(spec: RunSpec, place: Place) -> dict[str, Any]:
    """One run of this rank; the record on all ranks."""
    torch.manual_seed(spec.seed)
    data = opened(spec)
    base, tokenizer = load(spec.model)
    model = add_pool(base, spec.lora).train()
    pace = StepPacing(spec.fault, place.replica)
    forward = spread(model, spec, place, pace)
    batches = LeasedBatches(spec, data, tokenizer, place, place.device)
    evaluator = Evaluator(spec, data, tokenizer, place.replica, place, place.device)
    optimizer = optimizer_factory(spec.train)(p for p in model.parameters() if p.requires_grad)
    started_s = time.monotonic()
    points = steps(spec, place, forward, optimizer, batches, pace)
    trained_s = time.monotonic() - started_s
    memory = torch.cuda.max_memory_allocated(place.device) if place.device.type == "cuda" else None
    return {
        "arm": "sync",
        "failure": None,
        **records.summarise(points),
        "final_loss": loss_of(evaluator, model, place),
        "trained_s": trained_s,
        "memory_bytes": memory,
        "equal": records.equal(to_tree(spec)),
        "config_hash": config_hash(spec),
    }


def spread(model: Any, spec: RunSpec, place: Place, pace: StepPacing) -> nn.Module:
    """Over all ranks: DDP, or in each replica shards and between replicas copies (HSDP)."""
    if spec.topology.inside == "fsdp2" and place.workers > 1:
        if any(to_tree(spec)["fault"].values()):
            raise SystemExit("fault.* needs topology.inside=ddp here: FSDP2 offers no moment to delay a gradient")
        return sharded(model, spec, place)
    forward = DistributedDataParallel(model.to(place.device))

    def ready(group, bucket):  # DDP compares annotations, and those of this file are texts
        if bucket.is_last():
            if place.device.type == "cuda":
                torch.cuda.synchronize(place.device)
            pace.slow_down()
        return allreduce_hook(group, bucket)

    forward.register_comm_hook(None, ready)
    return forward


def sharded(model: Any, spec: RunSpec, place: Place) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(
        place.device.type, (spec.topology.replicas, place.workers), mesh_dim_names=("replicas", "workers")
    )
    base = model.get_base_model()
    for module in base.modules():
        if type(module).__name__ in set(base._no_split_modules or ()):
            fully_shard(module, mesh=mesh)
    fully_shard(base, mesh=mesh)
    return model


def steps(
    spec: RunSpec,
    place: Place,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: LeasedBatches,
    pace: StepPacing,
) -> list[records.Point]:
    """All steps of the run, with the whole fleet's losses."""
    size, world = spec.train.micro_batch, dist.get_world_size()
    together = size * spec.topology.replicas
    parameters = [p for p in model.parameters() if p.requires_grad]
    marks, own = [], []
    for start in range(0, batches.total - together + 1, together):
        mine = start + place.replica * size
        ((_, batch),) = batches.of(Lease(ticket=0, start=mine, stop=mine + size))
        pace.start()
        batches.schedule.set_lr(optimizer, start)
        tokens = batches.schedule.tokens(start, start + together)
        loss = supervised_loss(model, batch)
        (loss * (batch.tokens * world / tokens)).backward()  # the mean over ranks is taken of what is left
        torch.nn.utils.clip_grad_norm_(parameters, spec.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        own.append((float(loss.detach()) * batch.tokens, batch.tokens))
        marks.append(time.monotonic())
    sums = torch.tensor(own, dtype=torch.float64, device=place.device)
    dist.all_reduce(sums)
    return [
        records.Point(at, together, int(count), float(total / count))
        for at, (total, count) in zip(marks, sums.tolist(), strict=True)
    ]


def loss_of(evaluator: Evaluator, model: Any, place: Place) -> float:
    """Eval loss per supervised token, over all ranks' shares."""
    sums = evaluator.run(model, "trained", stop=lambda: False).sums
    both = torch.tensor([sums.get("loss_sum", 0.0), sums.get("loss_tokens", 0.0)], dtype=torch.float64)
    both = both.to(place.device)
    dist.all_reduce(both)
    return float(both[0] / both[1])


def place_of(spec: RunSpec) -> Place:
    """Where torchrun has put us.

    Raises:
        SystemExit: the number of ranks is not that of the fleet's workers.
    """
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    workers = spec.topology.workers
    if world != spec.topology.replicas * workers:
        raise SystemExit(f"{world} ranks for {spec.topology.replicas} replicas of {workers} workers")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return Place(rank % workers, workers, rank // workers, device)


def backend(device: torch.device) -> str:
    """NCCL needs a GPU for every rank of a machine; ranks that share one take gloo."""
    alone = int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    return "nccl" if device.type == "cuda" and alone else "gloo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    quieten()
    spec = compose(arguments.overrides)
    torch.set_num_threads(spec.topology.threads_per_worker)
    place = place_of(spec)
    init_process_group(backend(place.device))
    record = train(spec, place)
    if dist.get_rank() == 0:
        records.write(arguments.out, record)
    leave()


if __name__ == "__main__":
    main()
