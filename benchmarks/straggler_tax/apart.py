"""Rounds that are far apart, or carry few bits, in lock step: what they cost in loss, without a hub or a clock.

    python benchmarks/straggler_tax/apart.py --replicas 4 --seeds 31 32 33

All replicas take the same number of steps, then all go on from the mean: nothing is late, so that only the spacing of
rounds and their code differ. Three questions, each answered against arms of the same seed:

- `qsr4`: rounds by learning rate. H = 4 (rate's top / rate)^2 (QSR, arXiv 2310.14423): close together early, far
  apart late. Against `mean2`, `mean4` ... (every round after so many steps, fp32).
- `sparse2`: SparseLoCo's code (arXiv 2508.15706): 64 numbers of 4,096 with 2 bits each, what is left over is kept
  outside of the live parameters and decays. `sparse_live2`: left over in the live parameters, where the engine keeps
  it. Against `int4_8` (the engine's code, two stages) and `int2_4` (the same with four levels).
- `fair8`: LoRA-FAIR's correction in closed form (arXiv 2411.14961): B moves so that B A is nearer to the mean of the
  replicas' products. Every `mean` arm measures how far apart these are (`gap`).

Each run is written as it ends, and not made again.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import torch
from codes import CODES
from harness import add, made
from lab import Lab
from run import MODELS, laboratory
from steps import one_step, step, trained
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.model import quieten
from tsugi_cli.finetune.optimizers import optimizer_of

DECAY = 0.95
"""SparseLoCo's, of what is left over."""
RIDGE = 1e-3
"""LoRA-FAIR's lambda, as a share of the mean diagonal of A Aᵀ."""


@dataclass(frozen=True)
class Arm:
    """One way of meeting."""

    steps: int
    """Of each replica between two rounds; with `by_rate` at the top of the learning rate."""
    code: str = "mean"
    by_rate: bool = False
    outside: float | None = None
    """What a code has left over is kept outside of the live parameters and decays so; None: it stays in them."""
    fair: bool = False


def arm_of(name: str) -> Arm:
    """`int4_8`: that code, a round after 8 steps; `sparse_live2` keeps its rest in the live parameters."""
    kind, steps = re.fullmatch(r"(\D+?|\D+\d_)(\d+)", name).groups()  # type: ignore[union-attr]
    kind = kind.rstrip("_")
    if kind == "qsr":
        return Arm(int(steps), by_rate=True)
    if kind == "fair":
        return Arm(int(steps), fair=True)
    if kind == "sparse":
        return Arm(int(steps), kind, outside=DECAY)
    return Arm(int(steps), kind.removesuffix("_live"))


class LockStep:
    """A fleet that meets after every round's steps.

    Args:
        spec: The run, with the optimizer that its replicas step with.
        lab: Its model and data.
        arm: How it meets.
    """

    def __init__(self, spec: RunSpec, lab: Lab, arm: Arm) -> None:
        self.spec, self.lab, self.arm, self.code = spec, lab, arm, CODES[arm.code]
        self.replicas = spec.topology.replicas
        self.models = [lab.copy() for _ in range(self.replicas)]
        adamw = optimizer_of(spec)
        self.optimizers = [adamw(trained(model)) for model in self.models]
        self.anchor = _flat(self.models[0])
        self.left = [torch.zeros_like(self.anchor) for _ in self.models]
        self.rest = torch.zeros_like(self.anchor)
        self.rounds, self.gaps = 0, list[dict[str, float]]()

    def run(self) -> float:
        """Eval loss at the end of the data."""
        position, total = 0, self.lab.batches.total
        while position < total:
            for _ in range(self._length(position)):
                if position >= total:
                    break
                for model, optimizer in zip(self.models, self.optimizers, strict=True):
                    step(self.spec, self.lab, model, optimizer, position, 1)
                    position += 1
            self._meet()
        vector_to_parameters(self.anchor, trained(self.models[0]))
        return self.lab.loss(self.models[0])

    def _length(self, position: int) -> int:
        """Steps until the next round."""
        if not self.arm.by_rate:
            return self.arm.steps
        schedule, top = self.lab.batches.schedule, self.spec.train.lr
        warm = schedule.done(position) < self.spec.train.warmup
        return self.arm.steps if warm else int(self.arm.steps * (top / schedule.lr(position)) ** 2)

    @torch.no_grad()
    def _meet(self) -> None:
        live = [_flat(model) for model in self.models]
        if self.arm.code == "mean":
            self._measure(live)
        deltas = [each - self.anchor for each in live]
        if self.arm.outside is not None:
            self.left = [left * self.arm.outside + delta for left, delta in zip(self.left, deltas, strict=True)]
            sent = [self.code.apply(left) for left in self.left]
            self.left = [left - part for left, part in zip(self.left, sent, strict=True)]
        else:
            sent = [self.code.apply(delta) for delta in deltas]
        mean = torch.stack(sent).mean(dim=0)
        if self.code.summed and self.arm.code != "mean":
            wanted = mean + self.rest
            mean = self.code.apply(wanted)
            self.rest = wanted - mean
        self.anchor = self.anchor + mean
        if self.arm.fair:
            self.anchor = self._corrected(live)
        self.rounds += 1
        for model, delta, part in zip(self.models, deltas, sent, strict=True):
            own = delta - part if self.arm.outside is None else 0.0
            vector_to_parameters(self.anchor + own, trained(model))

    def _pairs(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A [r, in] and B [out, r] of every module."""
        named = [(name, p) for name, p in self.models[0].named_parameters() if p.requires_grad]
        parts = dict(zip((n for n, _ in named), vector.split([p.numel() for _, p in named]), strict=True))
        shapes = {name: p.shape for name, p in named}
        for name in parts:
            if "lora_A" in name:
                other = name.replace("lora_A", "lora_B")
                yield parts[name].view(shapes[name]), parts[other].view(shapes[other])

    def _products(self, live: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of every module: mean of products, mean A, mean B, and the product before the round."""
        mean = torch.stack(list(live)).mean(dim=0)
        for own, (a, b), (old_a, old_b) in zip(
            zip(*(self._pairs(each) for each in live), strict=True),
            self._pairs(mean),
            self._pairs(self.anchor),
            strict=True,
        ):
            yield torch.stack([each_b @ each_a for each_a, each_b in own]).mean(dim=0), a, b, old_b @ old_a

    def _measure(self, live: Sequence[Tensor]) -> None:
        """The gap between mean of products and product of means, against the round's change and the product."""
        gap = moved = whole = 0.0
        for products, a, b, before in self._products(live):
            gap += float((products - b @ a).square().sum())
            moved += float((b @ a - before).square().sum())
            whole += float((b @ a).square().sum())
        self.gaps.append({"of_change": (gap / moved) ** 0.5, "of_product": (gap / whole) ** 0.5})

    def _corrected(self, live: Sequence[Tensor]) -> Tensor:
        """The mean whose B has been moved towards the mean of products: B + G Aᵀ (A Aᵀ + λI)⁻¹."""
        target = torch.stack(list(live)).mean(dim=0)
        for (products, a, b, _), (_, own_b) in zip(self._products(live), self._pairs(target), strict=True):
            square = a @ a.T
            ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
            own_b += (products - b @ a) @ torch.linalg.solve(square + ridge, a).T
        return target


def _flat(model: Any) -> Tensor:
    return parameters_to_vector(trained(model)).detach().clone()


def figures(fleet: LockStep) -> dict[str, Any]:
    """A run's loss, bytes and gaps."""
    loss = fleet.run()
    steps = fleet.lab.batches.total / fleet.replicas
    ddp_bits = 32.0 * 2 * (fleet.replicas - 1) / fleet.replicas * steps
    found: dict[str, Any] = {"loss": round(loss, 5), "rounds": fleet.rounds}
    found["bytes"] = round(ddp_bits / (fleet.code.sent_bits(fleet.replicas) * fleet.rounds), 2)
    for name in ("of_change", "of_product"):
        if fleet.gaps:
            found[f"gap_{name}"] = round(sum(each[name] for each in fleet.gaps) / len(fleet.gaps), 5)
    return found


MEANS, RATES = ("mean1", "mean2", "mean4", "mean8"), ("qsr1", "qsr2")
CODED, FAIR = ("sparse2", "int4_8", "int2_4"), ("fair8",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--scales", type=float, nargs="+", default=[4.0], help="of the recipe's learning rate")
    parser.add_argument("--arms", nargs="+", default=["ddp", *MEANS, *RATES, *CODED, *FAIR])
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE", help="for all arms")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    settings = " ".join(arguments.settings) or None
    more = {"settings": settings} if settings else {}
    for replicas, seed, scale in product(arguments.replicas, arguments.seeds, arguments.scales):
        lab = None
        for name in arguments.arms:
            key = {"replicas": replicas, "seed": seed, "lr_scale": scale, "arm": name}
            if made("apart", **key, settings=settings):
                continue
            if lab is None:
                own = ("train.optimizer=auto", *arguments.settings)
                spec, lab = laboratory("pretrained", replicas, seed, scale, own)
            began_s = time.process_time()
            run = {
                **key,
                **more,
                **(_ddp(spec, lab) if name == "ddp" else figures(LockStep(spec, lab, arm_of(name)))),
            }
            run["cpu_s"] = round(time.process_time() - began_s, 1)
            print(run, flush=True)
            add("apart", run, sizes=MODELS)


def _ddp(spec: RunSpec, lab: Lab) -> dict[str, Any]:
    replicas, total = spec.topology.replicas, lab.batches.total
    plain = replace(spec, train=replace(spec.train, optimizer="adamw"))
    *_, model = one_step(plain, lab, [(1,) * replicas] * (total // replicas))
    return {"loss": round(lab.loss(model), 5), "rounds": total // replicas, "bytes": 1.0}


if __name__ == "__main__":
    main()
