"""When to fire, and what to ship: arms compared in virtual time on a real model (virtual.py), paired by seed.

    python benchmarks/engine/arms.py --study trigger --recipes smollm2_tools --seeds 0 1 2

Four replicas, one of them 4x slower; a step takes 1 s of virtual time. Equal tokens in all arms of a seed.
The link is given by what an all-gather of all adapters in int8 costs on it, in steps. Each run is written as
it ends, and not made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pretrain
import torch
from harness import runs, save
from lab import Lab
from virtual import TensorFleet

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.model import quieten
from tsugi_kpool.sim.scenario import LinkModel, Slow, Speeds

REPLICAS, STRAGGLER = 4, Slow(3, 4.0)
SAMPLES = {"smollm2_tools": 160, "smollm2_docstrings": 128, "pretrained_tools": 480}
EVERY = {"smollm2_tools": 32, "smollm2_docstrings": 32, "pretrained_tools": 48}
N_EVAL = 32
BOUNDS = ("kpool.min_steps=2", "kpool.max_steps=10")
FOURS = ("train.micro_batch=4",)
"""What can be made smaller."""
STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    "trigger": {
        "count=2": (*BOUNDS, "kpool.trigger=count", "kpool.count=2"),
        "count=4": (*BOUNDS, "kpool.trigger=count", "kpool.count=4"),
        "count=8": (*BOUNDS, "kpool.trigger=count", "kpool.count=8"),
        "eps=auto": (*BOUNDS, "kpool.eps=auto"),
        "eps=1": (*BOUNDS, "kpool.eps=1.0"),
        "eps=4": (*BOUNDS, "kpool.eps=4.0"),
        "eps=0.3": (*BOUNDS, "kpool.eps=0.3"),
    },
    "selection": {
        "k=n": (*BOUNDS, "kpool.k=8"),
        "k=n/4 at ship": (*BOUNDS, "kpool.k=2"),
        "k=n/4 at train": (*BOUNDS, "kpool.k=2", "kpool.select_at=train"),
        "k=n/4, loss_aware": (*BOUNDS, "kpool.k=2", "kpool.routing=loss_aware"),
    },
    "payload": {
        "int8": BOUNDS,
        "bf16": (*BOUNDS, "kpool.payload=bf16"),
        "fp32": (*BOUNDS, "kpool.payload=fp32"),
        "int4": (*BOUNDS, "kpool.payload=int4"),
        "int4, no feedback": (*BOUNDS, "kpool.payload=int4", "kpool.error_feedback=false"),
        "int2": (*BOUNDS, "kpool.payload=int2"),
        "int2, no feedback": (*BOUNDS, "kpool.payload=int2", "kpool.error_feedback=false"),
    },
    "overlap": {
        "overlap": BOUNDS,
        "no overlap": (*BOUNDS, "kpool.overlap=false"),
    },
    "size_work": {
        "local": (*BOUNDS, *FOURS),
        "local, sized": (*BOUNDS, *FOURS, "kpool.size_work=true"),
        "gradient": (*BOUNDS, *FOURS, "kpool.mode=gradient"),
        "gradient, sized": (*BOUNDS, *FOURS, "kpool.mode=gradient", "kpool.size_work=true"),
    },
}
LR = {"pretrained_tools": "train.lr=0.012"}
"""Where the recipe's is not right."""
LINKS = {"fast": 0.05, "slow": 8.0}
"""Steps that an all-gather of the whole pool takes."""


def measure(
    recipe: str, link: str, seed: int, overrides: tuple[str, ...], lab: Lab | None
) -> tuple[dict[str, Any], Lab]:
    """One arm: its curve of eval loss, its rounds."""
    quiet = (
        "data.n_test=0",
        "data.scorer=null",
        "evaluate.examples=0",
        f"data.n_eval={N_EVAL}",
        "train.micro_batch=1",
        "evaluate.batch=8",
    )
    fleet_size = (f"topology.replicas={REPLICAS}", f"topology.min_replicas={REPLICAS}")
    model = (LR[recipe], *pretrain.overrides("pretrained")) if recipe in LR else ()
    base = recipe.replace("pretrained", "smollm2")
    data = (f"seed={seed}", f"data.n_train={SAMPLES[recipe]}")
    spec = compose([f"recipe={base}", *data, *quiet, *fleet_size, *model, *overrides])
    lab = lab or Lab(spec)
    started_s = time.process_time()
    fleet = TensorFleet(spec, lab, Speeds((1.0,), slow=(STRAGGLER,)), _link(link, lab), EVERY[recipe])
    report = fleet.run(1e6)
    if report.failure or fleet.differences:
        raise SystemExit(f"{report.failure} {fleet.differences[:3]}")
    figures = {
        "curve": [asdict(point) for point in fleet.curve],
        "rounds": report.rounds,
        "versions": report.versions,
        "goodput": report.goodput,
        "sent_megabytes": report.sent_bytes[0] / 1e6,
        "samples": report.samples,
        "noise": asdict(fleet.hub.rounds.noise),
        "cpu_s": time.process_time() - started_s,
    }
    return figures, lab


def _link(name: str, lab: Lab) -> LinkModel:
    """A link on which all adapters take as long as LINKS says."""
    numbers = sum(p.numel() for p in lab.model.parameters() if p.requires_grad)
    return LinkModel(latency_s=0.001, bandwidth_bytes_per_s=numbers * (REPLICAS - 1) / LINKS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), required=True)
    parser.add_argument("--recipes", nargs="+", default=["smollm2_tools"], choices=list(SAMPLES))
    parser.add_argument("--links", nargs="+", default=list(LINKS), choices=list(LINKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    known = runs(arguments.study)
    for seed, recipe in product(arguments.seeds, arguments.recipes):
        lab = None
        for link, arm in product(arguments.links, arguments.arms or STUDIES[arguments.study]):
            key = {"recipe": recipe, "link": link, "seed": seed, "arm": arm}
            if any({name: run[name] for name in key} == key for run in known):
                continue
            figures, lab = measure(recipe, link, seed, STUDIES[arguments.study][arm], lab)
            known.append({**key, **figures})
            losses = [round(point["loss"], 4) for point in figures["curve"]]
            print(key, losses, figures["rounds"], figures["cpu_s"], flush=True)
            save(arguments.study, {"replicas": REPLICAS, "samples": SAMPLES, "links": LINKS, "runs": known})


if __name__ == "__main__":
    main()
