"""The synchronous arm: DistributedDataParallel (or FSDP2 in each node), PEFT and AdamW over all workers of all nodes.

    torchrun --nnodes 2 --nproc-per-node 8 ... benchmarks/llama3_8b_lora/sync.py --out RUNS/seed0/sync.json \\
        recipe=benchmarks/llama3_8b_lora/sync.yaml seed=0

Takes the overrides of `tsugi finetune`; ../synchronous.py says what a step is: one micro-batch of every replica,
`topology.replicas` x `train.micro_batch` samples.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import records
import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from synchronous import Place, Synchronous, copies, place_of

from tsugi_cli.bench.compare.ddp import leave
from tsugi_cli.config.compose import compose, config_hash, to_tree
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.model import quieten
from tsugi_cli.finetune.pace import StepPacing
from tsugi_kpool import init_process_group


def train(spec: RunSpec, place: Place) -> dict[str, Any]:
    """One run of this rank; the record on all ranks."""
    run = Synchronous(spec, place, spread)
    started_s = time.monotonic()
    steps = run.train()
    trained_s = time.monotonic() - started_s
    memory = torch.cuda.max_memory_allocated(place.device) if place.device.type == "cuda" else None
    return {
        "arm": "sync",
        "failure": None,
        **records.summarise([records.Point(*step) for step in steps]),
        "final_loss": run.loss("trained"),
        "trained_s": trained_s,
        "memory_bytes": memory,
        "equal": records.equal(to_tree(spec)),
        "config_hash": config_hash(spec),
    }


def spread(model: Any, spec: RunSpec, place: Place, pace: StepPacing) -> nn.Module:
    """Over all ranks: DDP, or in each replica shards and between replicas copies (HSDP)."""
    if spec.topology.inside != "fsdp2" or place.workers == 1:
        return copies(model, spec, place, pace)
    if any(to_tree(spec)["fault"].values()):
        raise SystemExit("fault.* needs topology.inside=ddp here: FSDP2 offers no moment to delay a gradient")
    return sharded(model, spec, place)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    quieten()
    spec = compose(arguments.overrides)
    torch.set_num_threads(spec.topology.threads_per_worker)
    place = place_of(spec)
    init_process_group(place.backend)
    record = train(spec, place)
    if dist.get_rank() == 0:
        records.write(arguments.out, record)
    leave()


if __name__ == "__main__":
    main()
