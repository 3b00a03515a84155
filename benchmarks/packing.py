"""What packing gains: supervised tokens a second of packed rows and of batches by length, over random batches.

    python benchmarks/packing.py --model tiny --seeds 0 1 2
    python benchmarks/packing.py --model smollm2_135m --capacity 256 --rows 1 --steps 3

Chats of very different lengths (lognormal, as people's are). All arms train the same model in one process, in turns:
a step of each, then the next step of each. A step of every arm has about as many tokens, padding left out. Only
ratios within a pair of steps are compared, because machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from harness import add, made

from tsugi_cli.config.compose import compose
from tsugi_cli.data.packing import PackedSample, by_length, joined, pack
from tsugi_cli.data.rows import Sample
from tsugi_cli.finetune import model as models
from tsugi_cli.finetune.leaks import packer_for
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import quieten
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.packed import Packer
from tsugi_cli.finetune.tokens import Batch, collate, labelled

SAMPLES = 2048
MEAN = 0.15
"""Median length of a sample, as a share of a row."""
ARMS = ("random", "by_length", "packed")


@dataclass(frozen=True)
class Load:
    """Of a packed micro-batch; the other arms' have about as many tokens."""

    capacity: int
    rows: int


def samples_of(seed: int, vocabulary: int, capacity: int) -> list[Sample]:
    """The last two thirds of each are trained on."""
    chance = random.Random(seed)
    found = []
    for _ in range(SAMPLES):
        length = min(capacity, max(8, int(chance.lognormvariate(math.log(MEAN * capacity), 0.9))))
        ids = [chance.randrange(vocabulary) for _ in range(length)]
        found.append(Sample(ids, ((length // 3, length),)))
    return found


def batches_of(arm: str, samples: list[Sample], seed: int, packer: Packer, load: Load) -> Iterator[Batch]:
    """Endless, each with about as many tokens of samples."""
    chance, lengths = random.Random(seed), [len(sample.ids) for sample in samples]
    if arm == "packed":
        rows: list[PackedSample] = [
            joined([samples[each] for each in row], row) for row in pack(lengths, load.capacity, seed)
        ]
        while True:
            yield packer.collate(chance.sample(rows, load.rows), 0)
    size = round(load.rows * load.capacity / statistics.mean(lengths))
    while True:
        order = list(range(len(samples)))
        chance.shuffle(order)
        order = by_length(order, lengths, size, chance) if arm == "by_length" else order
        starts = list(range(0, len(order) - size + 1, size))
        chance.shuffle(starts)  # few steps would see few chunks of the order else
        for start in starts:
            yield collate([labelled(samples[each]) for each in order[start : start + size]], 0)


def step_s(model: Any, optimizer: Any, batch: Batch, ready: Callable[[], None]) -> float:
    """Forward, backward and step."""
    ready()
    started_s = time.perf_counter()
    supervised_loss(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    ready()
    return time.perf_counter() - started_s


def measure(model: str, seed: int, steps: int, load: Load) -> dict[str, Any]:
    """Supervised tokens a second of every arm, over steps taken in turns."""
    spec = compose([f"model={model}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    trained = add_pool(models.load(spec.model)[0], spec.lora).train().to(device)
    optimizer = torch.optim.AdamW([each for each in trained.parameters() if each.requires_grad], lr=1e-4)
    ready = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    packer = packer_for(trained, device)
    samples = samples_of(seed, trained.config.vocab_size, load.capacity)
    arms = {arm: batches_of(arm, samples, seed, packer, load) for arm in ARMS}
    tokens, seconds, worked = dict.fromkeys(ARMS, 0), dict.fromkeys(ARMS, 0.0), dict.fromkeys(ARMS, 0)
    for step in range(-1, steps):  # the first step of each is not counted
        for arm, batches in arms.items():
            batch = next(batches).to(device)
            took_s = step_s(trained, optimizer, batch, ready)
            if step >= 0:
                seconds[arm] += took_s
                tokens[arm] += batch.tokens
                worked[arm] += batch.worked
    rates = {arm: tokens[arm] / seconds[arm] for arm in ARMS}
    return {
        "model": model,
        "device": device.type,
        "seed": seed,
        "steps": steps,
        "capacity": load.capacity,
        "rows": load.rows,
        "way": packer.way.value,
        "supervised_tokens_per_s": {arm: round(rate, 1) for arm, rate in rates.items()},
        "supervised_share_of_work": {arm: round(tokens[arm] / worked[arm], 3) for arm in ARMS},
        "by_length_over_random": round(rates["by_length"] / rates["random"], 3),
        "packed_over_random": round(rates["packed"] / rates["random"], 3),
        "packed_over_by_length": round(rates["packed"] / rates["by_length"], 3),
    }


def main() -> None:
    """One run for each seed that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--capacity", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a micro-batch")
    arguments = parser.parse_args()
    quieten()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for seed in arguments.seeds:
        if not made("packing", model=arguments.model, device=device, seed=seed):
            run = measure(arguments.model, seed, arguments.steps, Load(arguments.capacity, arguments.rows))
            print(run, flush=True)
            add("packing", run)


if __name__ == "__main__":
    main()
