"""Learning rates of local mode and of synchronous training: each arm's own best, at equal tokens, in virtual time.

    python benchmarks/engine/rates.py --recipe smollm2_tools --replicas 2 4 --seeds 0 1 --scales 1 2

`ddp` is what DistributedDataParallel computes (ddp.py runs the real one): one AdamW step on the mean gradient of
the next R micro-batches. `local` is local mode on equally fast replicas with the recipe's own rounds (virtual.py).
Scales are of the recipe's learning rate. Each run is written as it ends, and not made again.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from harness import runs, save
from lab import Lab
from steps import one_step
from virtual import TensorFleet

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.model import quieten
from tsugi_kpool.sim.scenario import LinkModel, Speeds

SAMPLES = {"smollm2_tools": 240, "smollm2_docstrings": 160}
QUIET = ("data.n_test=0", "data.scorer=null", "evaluate.examples=0", "evaluate.batch=8", "train.optimizer=adamw")
KEY = ("recipe", "replicas", "seed", "arm", "lr_scale")


def setting(recipe: str, replicas: int, seed: int, scale: float, *more: str) -> RunSpec:
    overrides = [f"recipe={recipe}", f"seed={seed}", f"data.n_train={SAMPLES[recipe]}", *QUIET]
    overrides += [f"topology.replicas={replicas}", f"topology.min_replicas={replicas}"]
    lr = compose(overrides).train.lr * scale
    return compose([*overrides, f"train.lr={lr:g}", *more])


def ddp(spec: RunSpec, lab: Lab) -> float:
    """Eval loss after synchronous training."""
    size = spec.train.micro_batch * spec.topology.replicas
    *_, model = one_step(spec, lab, [(size,)] * (lab.batches.total // size))
    return lab.loss(model)


def local(spec: RunSpec, lab: Lab) -> float:
    """Eval loss after local mode."""
    fleet = TensorFleet(
        spec, lab, Speeds((1.0,), jitter=0.1), LinkModel(bandwidth_bytes_per_s=1e8), lab.batches.total
    )
    report = fleet.run(1e6)
    if report.failure or fleet.differences:
        raise SystemExit(f"{report.failure} {fleet.differences[:3]}")
    return fleet.curve[-1].loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smollm2_tools", choices=list(SAMPLES))
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--arms", nargs="+", default=["ddp", "local"], choices=["ddp", "local"])
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    known = runs("rates")
    for seed, replicas, scale in product(arguments.seeds, arguments.replicas, arguments.scales):
        lab = None  # it holds the schedule, so that another rate needs another one
        for arm in arguments.arms:
            key = (arguments.recipe, replicas, seed, arm, scale)
            if any(tuple(run[name] for name in KEY) == key for run in known):
                continue
            spec = setting(arguments.recipe, replicas, seed, scale)
            lab = lab or Lab(spec)
            loss = (ddp if arm == "ddp" else local)(spec, lab)
            known.append({**dict(zip(KEY, key, strict=True)), "loss": loss})
            print(known[-1], flush=True)
            save("rates", {"samples": SAMPLES, "runs": known})


if __name__ == "__main__":
    main()
