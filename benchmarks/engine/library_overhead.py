"""What the library costs a loop of one's own: its step against the same loop in plain PEFT, on one replica.

    python benchmarks/engine/library_overhead.py --pairs 120

One process trains two copies of a model of 30 M parameters: one in a plain loop (forward, backward, step, zero_grad),
one in the same loop with the library's hooks, link, hub and rounds. They take turns after every single step, in the
order plain, ours, ours, plain, so that a neighbour or a clock that changes slowly meets both alike. Such four steps
are a pair, and give one ratio, ours / plain, of the training thread's processor seconds (`thread`) and of time
(`wall`). What is reported is the median over pairs, its quartiles, and the 95 % interval of the median. `hooks` is
1 + the processor seconds inside the library's hooks / those of a plain step: the part of `thread` that does not move
with the machine's caches and neighbours.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from harness import save_part
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tsugi_kpool import KPoolLoraConfig
from tsugi_kpool.library.hooks import Hooks
from tsugi_kpool.library.session import meet
from tsugi_kpool.world import World

ROWS, TOKENS = 4, 128
"""The size of a batch."""
WARM_UP = 3
"""Pairs that are not counted."""
HOOKS = ("_before_forward", "_after_forward", "_gradient_has_come", "_before_step", "_after_step")
Meter = tuple[float, float]


def model_of(config: LoraConfig) -> Any:
    """30 M parameters, and the LoRA of all its linear layers."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    return get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=4096, **shape)), config)


class Loop:
    """An ordinary one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
        self._ids = torch.randint(0, 4096, (ROWS, TOKENS))

    def step(self) -> Meter:
        """Train one step; the thread's processor seconds, and seconds."""
        thread_s, wall_s = time.thread_time(), time.perf_counter()
        self._model(input_ids=self._ids, labels=self._ids).loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.thread_time() - thread_s, time.perf_counter() - wall_s


class Inside:
    """Processor seconds inside the library's hooks, from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in HOOKS:
            setattr(Hooks, name, self._timed(getattr(Hooks, name)))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            began_s = time.thread_time()
            hook(*args)
            self.seconds += time.thread_time() - began_s

        return timed


def measure(pairs: int) -> dict[str, Any]:
    """Both loops in turns."""
    config = KPoolLoraConfig(r=4, lora_alpha=8, target_modules="all-linear", n_adapters=4, k_active=2)
    plain, ours = (model_of(each) for each in (LoraConfig(**config.to_dict()), config))
    inside = Inside()
    found: list[tuple[Meter, Meter]] = []
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        session = meet(ours, config.settings(), "default", World(), "tcp://127.0.0.1:0", keys)
        loops = {"plain": Loop(plain), "ours": Loop(ours)}
        for number in range(-WARM_UP, pairs):
            if number == 0:
                inside.seconds, before = 0.0, session.engine.version
            took = {name: [loops[name].step()] for name in ("plain", "ours")}
            for name in ("ours", "plain"):
                took[name].append(loops[name].step())
            if number >= 0:
                found.append((_sum(took["plain"]), _sum(took["ours"])))
        rounds = session.engine.version - before
        session.drain(60)
    plain_s = statistics.median(plain[0] for plain, _ in found) / 2
    return {
        "parameters": sum(each.numel() for each in plain.get_base_model().parameters()),
        "pairs": pairs,
        "plain_step_cpu_s": plain_s,
        "rounds_per_step": rounds / (2 * pairs),
        "hooks": 1 + inside.seconds / (2 * pairs) / plain_s,
        "thread": _spread([ours[0] / plain[0] for plain, ours in found]),
        "wall": _spread([ours[1] / plain[1] for plain, ours in found]),
    }


def _sum(steps: list[Meter]) -> Meter:
    return sum(each[0] for each in steps), sum(each[1] for each in steps)


def _spread(ratios: list[float]) -> dict[str, float]:
    """Median, quartiles, and the 95 % interval of the median: order statistics of a fair coin."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    beside = math.ceil(0.98 * math.sqrt(len(ratios)))
    ordered, at = sorted(ratios), len(ratios) // 2
    interval = ordered[max(0, at - beside)], ordered[min(len(ordered) - 1, at + beside)]
    return {"median": middle, "q1": low, "q3": high, "low": interval[0], "high": interval[1]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = measure(arguments.pairs)
    print(world, flush=True)
    if not arguments.dry:
        save_part("overhead", "library", world)
