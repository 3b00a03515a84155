"""The straggler tax: time to a target loss by five methods on the same data, real gradients in virtual time.

    python benchmarks/straggler_tax/run.py --models pretrained --replicas 2 4 8 --seeds 0 1 2

Every method trains a real model on real data in one process, one micro-batch after the other; a virtual clock says
how long it would have taken on the fleet of the scenario (scenarios.py). K-Pool's arm is the engine itself with the
hub's own decisions (../engine/virtual.py); the others are synchronous, so that their rounds are known beforehand
(clocks.py, training.py). So two cores are enough for eight replicas, and the load of the machine changes no figure.
Each run is written as it ends, and not made again; `docs/straggler_tax.md` has the tables.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import torch
from harness import add, made
from lab import Lab
from methods import ARMS, Setting
from pretrain import overrides
from scenarios import SCENARIOS
from training import Course
from verdicts import rate_of, rates_for

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.model import quieten

BOUNDS = ("kpool.min_steps=1", "kpool.max_steps=10")
QUIET = (
    "recipe=smollm2_tools",
    "data.n_test=0",
    "data.scorer=null",
    "evaluate.examples=0",
    "evaluate.batch=8",
    "train.micro_batch=1",
    "train.optimizer=adamw",
)
MODELS: dict[str, dict[str, Any]] = {
    "pretrained": {"samples": 640, "n_eval": 32, "every": 32},
    "smollm2_135m": {"samples": 160, "n_eval": 24, "every": 32},
    "smollm2_docstrings": {"samples": 640, "n_eval": 24, "every": 32},
}
OVERRIDES = {"smollm2_docstrings": ("model=smollm2_135m", "data=docstrings", "model.dtype=bfloat16")}
"""Of a model that is more than a name. In bf16 a step takes a little more than half of the processor time."""
LEARNING_RATES: dict[str, dict[str, float]] = {
    "pretrained": {
        "ddp": 4.0,
        "drop_slowest": 4.0,
        "balanced": 8.0,
        "hivemind": 8.0,
        "kpool": 6.0,
        "ddp_end": 6.0,
        "drop_slowest_end": 6.0,
        "kpool_frugal": 8.0,
        "kpool_spaced": 4.0,
        "kpool_fleet": 4.0,
        "kpool_fleet_int4": 4.0,
        "kpool_smoothed": 4.0,
        "kpool_smoothed_int4": 4.0,
        "kpool_fleet_scatter": 4.0,
        "kpool_fleet_int4_scatter": 4.0,
        "kpool_fleet_scatter_all": 4.0,
        "kpool_fleet_scatter_all_linger": 4.0,
        "kpool_auto": 4.0,
        "kpool_auto_int4": 4.0,
        "kpool_auto_int2": 4.0,
    },
    "pretrained/2": {
        "drop_slowest": 2.0,
        "kpool": 3.0,
        "kpool_fleet": 3.0,
        "kpool_fleet_int4": 3.0,
        "kpool_smoothed": 3.0,
        "kpool_smoothed_int4": 3.0,
        "kpool_auto": 3.0,
        "kpool_auto_int4": 3.0,
        "kpool_auto_int2": 3.0,
    },
    "pretrained/8": {"ddp": 6.0, "drop_slowest": 6.0, "kpool": 8.0},
    "smollm2_135m/8": {"ddp": 4.0},
    "smollm2_135m": {
        "ddp": 2.0,
        "drop_slowest": 2.0,
        "balanced": 4.0,
        "hivemind": 4.0,
        "kpool": 4.0,
        "kpool_fleet": 2.0,
        "kpool_fleet_int4": 2.0,
        "kpool_smoothed": 2.0,
        "kpool_smoothed_int4": 2.0,
        "kpool_auto": 2.0,
        "kpool_auto_int4": 2.0,
    },
    "smollm2_docstrings": {"ddp": 1.0, "kpool_auto": 1.0, "kpool_auto_int2": 1.0},
}
"""Of each method, as a multiple of the recipe's: the best of those tried (`--lr-scales`), by the mean over seeds.

Looked for on four replicas; on two and eight by the final loss of seed 0 with a straggler. A variant
(`kpool_frugal`) that is not named takes its method's (`rate_of`). `ddp_end`: the rate at which DDP ends
lowest, where another one is earlier at the target; goals are judged against whichever is harder to meet.
"""


def laboratory(model: str, replicas: int, seed: int, scale: float, settings: Sequence[str] = ()) -> tuple[Any, Lab]:
    """The run's settings, with these on top, and the model and data that its arms share."""
    size = MODELS[model]
    fleet = (f"topology.replicas={replicas}", f"topology.min_replicas={replicas}", f"seed={seed}")
    its = OVERRIDES.get(model) or overrides(model)
    data = (*its, f"data.n_train={size['samples']}", f"data.n_eval={size['n_eval']}")
    lr = compose([*QUIET]).train.lr * scale
    spec = compose([*QUIET, *fleet, *data, *BOUNDS, f"train.lr={lr:g}", *settings])
    return spec, Lab(spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pretrained"], choices=list(MODELS))
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", default="straggler_tax", help="name of the file below benchmarks/results")
    parser.add_argument(
        "--samples", type=int, help="of each run, instead of the model's own; each number has a file of results"
    )
    parser.add_argument("--lr-scales", type=float, nargs="+", help="instead of each method's own")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE", help="for all arms")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    for model in arguments.models:
        MODELS[model]["samples"] = arguments.samples or MODELS[model]["samples"]
    settings = " ".join(arguments.settings) or None
    for model, replicas, seed, arm in product(arguments.models, arguments.replicas, arguments.seeds, arguments.arms):
        for scale in arguments.lr_scales or [rate_of(rates_for(LEARNING_RATES, model, replicas), arm)]:
            spec, lab, course = None, None, None
            for name in arguments.scenarios:
                key = {"model": model, "replicas": replicas, "scenario": name, "seed": seed, "arm": arm}
                key["lr_scale"] = scale
                if made(arguments.results, **key, settings=settings):
                    continue
                if lab is None or course is None:
                    spec, lab = laboratory(model, replicas, seed, scale, arguments.settings)
                    course = Course(spec, lab, MODELS[model]["every"])
                began_s = time.process_time()
                figures = ARMS[arm](Setting(SCENARIOS[name], spec, lab, course, MODELS[model]["every"]))
                more = {"settings": settings} if settings else {}
                run = {**key, **more, **figures, "cpu_s": time.process_time() - began_s}
                print({**key, **more, "loss": figures["curve"][-1][2], "cpu_s": run["cpu_s"]}, flush=True)
                add(arguments.results, run, sizes=MODELS, learning_rates=LEARNING_RATES)


if __name__ == "__main__":
    main()
