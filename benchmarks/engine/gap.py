"""Why local mode trails synchronous training on a short run, and what closes the gap: one change at a time.

    python benchmarks/engine/gap.py --arms base 'k=n, every step' --seeds 1 --scales 2

Equally fast replicas in virtual time (virtual.py), the recipe of rates.py, whose `ddp` is what every arm is compared
with at equal tokens. An arm is the recipe's local mode with settings of its own, and may do what the engine does not:
multiply each round's mean change (`outer`), or average the replicas' AdamW moments in every round (`moments`).
Each run is written as it ends, and not made again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from corrected_adamw import CorrectedAdamW
from harness import add, made
from lab import Lab
from pretrain import overrides
from rates import SAMPLES, ddp, setting
from smoothed_adamw import SmoothedAdamW
from steps import local_steps
from tensor_replica import Watched
from virtual import TensorFleet

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.model import quieten
from tsugi_kpool.core.messages import Fire
from tsugi_kpool.engine.ways import Outcome
from tsugi_kpool.sim.replica import Replica
from tsugi_kpool.sim.scenario import LinkModel, Speeds

EVERY_STEP = ("kpool.k=8", "kpool.min_steps=1", "kpool.max_steps=10")
EXACT = ("kpool.payload=fp32",)


@dataclass(frozen=True)
class Arm:
    """What differs from the recipe's local mode."""

    overrides: tuple[str, ...] = ()
    outer: float = 1.0
    """Every round's mean change is multiplied by this."""
    moments: tuple[str, ...] = ()
    """AdamW's states that every round averages over the replicas."""
    optimizer: type[CorrectedAdamW] | type[SmoothedAdamW] | None = None
    """The replicas', instead of the run's."""


V, MV = ("exp_avg_sq",), ("exp_avg", "exp_avg_sq")
ARMS = {
    "base": Arm(),
    "k=n": Arm(("kpool.k=8",)),
    "k=n, every step": Arm(EVERY_STEP),
    "k=n, every step, fp32": Arm(EVERY_STEP + EXACT),
    "min_steps=2": Arm(("kpool.min_steps=2",)),
    "min_steps=1": Arm(("kpool.min_steps=1",)),
    "fp32": Arm(EXACT),
    "outer 1.5": Arm(outer=1.5),
    "outer 2": Arm(outer=2.0),
    "outer 2, every step": Arm(EVERY_STEP, outer=2.0),
    "v averaged": Arm(moments=V),
    "m, v averaged": Arm(moments=MV),
    "m averaged": Arm(moments=MV[:1]),
    "m, v averaged, every step": Arm(EVERY_STEP, moments=MV),
    "warm-up 0.1": Arm(("train.warmup=0.1",)),
    "warm-up 0.2": Arm(("train.warmup=0.2",)),
    "final rate 0": Arm(("train.final_lr=0.0",)),
    "fleet's v": Arm(optimizer=CorrectedAdamW),
    "fleet's v, every step": Arm(EVERY_STEP, optimizer=CorrectedAdamW),
    "fleet's v, m averaged": Arm(moments=MV[:1], optimizer=CorrectedAdamW),
    "smoothed v": Arm(optimizer=SmoothedAdamW),
    "smoothed v, every step": Arm(EVERY_STEP, optimizer=SmoothedAdamW),
    "smoothed v, min_steps=1": Arm(("kpool.min_steps=1",), optimizer=SmoothedAdamW),
    "beta2 0.95": Arm(("train.beta2=0.95",)),
    "beta2 0.999": Arm(("train.beta2=0.999",)),
}
LOCK_STEP = {"lock step 1": 1, "lock step 4": 4}
"""Local SGD without delay or coding: all replicas take so many AdamW steps, then all go on from the mean."""


class Tried(Watched):
    """A replica whose rounds are multiplied by `outer`."""

    outer = 1.0

    def landed_with(self, outcome: Any, sent_bytes: int) -> Any:
        outcome = super().landed_with(outcome, sent_bytes)
        if self.outer != 1.0:
            combined = outcome.combined
            more = (combined.agreed - self.engine.buffer.update.anchor[list(combined.adapters)]) * (self.outer - 1.0)
            combined = replace(combined, agreed=combined.agreed + more, own=combined.own + more)
            outcome = replace(outcome, combined=combined)
            self.in_flight = (self.in_flight[0], outcome)  # type: ignore[index,assignment]
        return outcome


class TriedFleet(TensorFleet):
    """A fleet of such replicas."""

    def __init__(self, arm: Arm, spec: RunSpec, lab: Lab) -> None:
        self._arm = arm
        speeds, link = Speeds((1.0,), jitter=0.1), LinkModel(bandwidth_bytes_per_s=1e8)
        super().__init__(spec, lab, speeds, link, lab.batches.total)

    def _replica(self, number: int, draw: random.Random) -> Replica:
        del draw
        train, optimizer = self._spec.train, None
        if self._arm.optimizer is not None:
            replicas, betas = self._spec.topology.replicas, (0.9, train.beta2)
            optimizer = partial(self._arm.optimizer, replicas=replicas, lr=train.lr, betas=betas)
        replica = Tried(number, self._spec, self._lab, self._trained, optimizer)
        replica.outer = self._arm.outer
        return replica

    def _reduced(self, fire: Fire, outcomes: list[Outcome], payload: int, seconds: float) -> None:
        super()._reduced(fire, outcomes, payload, seconds)
        optimizers = [self.replicas[number].optimizer for number in fire.members]  # type: ignore[attr-defined]
        for name in self._arm.moments:
            for states in zip(*(optimizer.state.values() for optimizer in optimizers), strict=True):
                mean = torch.stack([state[name] for state in states]).mean(dim=0)
                for state in states:
                    state[name].copy_(mean)


def lock_step(spec: RunSpec, lab: Lab, steps: int) -> float:
    """Eval loss after local SGD in lock step."""
    replicas = spec.topology.replicas
    rounds = [(steps,) * replicas] * (lab.batches.total // (steps * replicas))
    *_, model = local_steps(spec, lab, rounds)
    return lab.loss(model)


def measure(spec: RunSpec, lab: Lab, name: str) -> dict[str, Any]:
    """One arm's eval loss."""
    started_s = time.process_time()
    if name == "ddp":
        figures: dict[str, Any] = {"loss": ddp(spec, lab)}
    elif name in LOCK_STEP:
        figures = {"loss": lock_step(spec, lab, LOCK_STEP[name])}
    else:
        fleet = TriedFleet(ARMS[name], spec, lab)
        report = fleet.run(1e6)
        if report.failure or fleet.differences:
            raise SystemExit(f"{report.failure} {fleet.differences[:3]}")
        figures = {"loss": fleet.curve[-1].loss, "rounds": report.versions}
    return {**figures, "cpu_s": time.process_time() - started_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smollm2_tools", choices=list(SAMPLES))
    parser.add_argument("--model", default="smollm2_135m", choices=["smollm2_135m", "tiny", "pretrained"])
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--samples", type=int, help="of the run; rates.py's when it is not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[2.0], help="of the recipe's learning rate")
    parser.add_argument("--arms", nargs="+", default=["ddp", *LOCK_STEP, *ARMS], choices=["ddp", *LOCK_STEP, *ARMS])
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    samples = arguments.samples or SAMPLES[arguments.recipe]
    for seed, scale, arm in product(arguments.seeds, arguments.scales, arguments.arms):
        key = {"recipe": arguments.recipe, "replicas": arguments.replicas, "samples": samples, "seed": seed}
        key |= {"arm": arm, "lr_scale": scale, "model": arguments.model}
        if made("gap", **key):
            continue
        more = (*(ARMS[arm].overrides if arm in ARMS else ()), *overrides(key["model"]))
        spec = setting(arguments.recipe, arguments.replicas, seed, scale, *more, f"data.n_train={samples}")
        run = {**key, **measure(spec, Lab(spec), arm)}
        print(run, flush=True)
        add("gap", run)


if __name__ == "__main__":
    main()
