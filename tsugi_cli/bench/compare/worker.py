"""The peers' worker, started by torchrun: `python -m tsugi_cli.bench.compare.worker --jobs FILE`. Its story.

It makes several runs one after another, so that processes start once. Model, data order, optimizer, schedule and
emulated device are those of `tsugi finetune`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.distributed.elastic.multiprocessing.errors import record

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.leaks import packer_for
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, quieten
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_cli.finetune.pace import StepPacing
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_cli.finetune.track import Track
from tsugi_cli.finetune.worker import listen_to_agent
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.engine.inside import default_group
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.system import end_with_parent

from .ddp import leave
from .strategies import STRATEGIES


@dataclass(frozen=True)
class Job:
    """One run, as the launcher writes it."""

    folder: str
    method: str
    sync_every: int


class Holder:
    """Gives the adapters for the curve: the model's own, which all replicas share when it is asked."""

    def __init__(self, model: torch.nn.Module, n: int) -> None:
        self._pool = AdapterPool(model, n)
        self.version = 0
        """Supervised tokens in the adapters."""

    def anchors(self) -> Tensor:
        """Return a copy of all adapters: [N, P], fp32."""
        return self._pool.read(range(self._pool.n))


def train(spec: RunSpec, paths: RunPaths, job: Job) -> None:
    """Make one run: in each step every replica trains on its part, in the run's data order."""
    rank, world, size = dist.get_rank(), dist.get_world_size(), spec.train.step_samples
    torch.manual_seed(spec.seed)
    base, tokenizer = load(spec.model)
    model = add_pool(base, spec.lora).train()
    data = opened(spec)
    packer = packer_for(model) if data.train.packed else None
    batches = LeasedBatches(spec, data, tokenizer, packer=packer)
    pace, track, holder = (
        StepPacing(spec.fault, rank, spec.seed),
        Track.of(spec, paths, rank, 0),
        Holder(model, spec.kpool.n),
    )
    method = STRATEGIES[job.method]
    # These methods are AdamW's, as published; what a user names is taken for them, too.
    settings = replace(spec.train, optimizer="adamw") if spec.train.optimizer == "auto" else spec.train
    make = optimizer_factory(settings, world if method.own_steps else 1, model)
    adamw = make([each for each in model.parameters() if each.requires_grad])
    strategy = method(model, adamw, pace, spec.train.grad_clip, job.sync_every)
    schedule = batches.schedule
    dist.barrier()
    track.begin()
    for start in range(0, batches.total, world * size):
        if strategy.agreed:
            holder.version = schedule.tokens(0, start)
            track.look(schedule.done(start), holder)
        own = start + rank * size
        ((_, batch),) = batches.of(Lease(ticket=0, start=own, stop=own + size))
        pace.start()
        schedule.set_lr(strategy.optimizer, start)
        strategy.step(batch, batch.tokens * world / schedule.tokens(start, start + world * size))
    strategy.close()
    holder.version = schedule.tokens(0, batches.total)
    track.end(pace, holder)
    dist.barrier()


@record
def main() -> None:
    """The entry point; torchrun's error file takes an exception to the launcher."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    arguments = parser.parse_args()
    jobs = [Job(**each) for each in json.loads(arguments.jobs.read_text(encoding="utf-8"))]
    end_with_parent()
    listen_to_agent()
    quieten()
    store, world = str(arguments.store), arguments.world
    default_group("gloo", lambda: FileStore(store, world), arguments.rank, world)
    for job in jobs:
        paths = RunPaths(Path(job.folder))
        spec = read_resolved(paths)
        torch.set_num_threads(spec.topology.threads_per_worker)
        train(spec, paths, job)
    leave()


if __name__ == "__main__":
    main()
