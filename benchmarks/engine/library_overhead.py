"""What the library costs a loop of one's own: its step against the same loop in plain PEFT, on one replica.

    python benchmarks/engine/library_overhead.py --pairs 8

One process trains two copies of a model of 30 M parameters in turns, a block of steps each: one in a plain loop
(forward, backward, step, zero_grad), one in the same loop with the library's hooks, link, hub and rounds. `thread` is
the training thread's processor seconds, library / plain: the median over pairs of blocks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from harness import save
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tsugi_kpool import KPoolLoraConfig
from tsugi_kpool.library.session import meet
from tsugi_kpool.world import World

STEPS, ROWS, TOKENS = 4, 4, 128
"""In one block; and the size of a batch."""


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

    def block(self) -> float:
        """Train some steps; the thread's processor seconds."""
        began_s = time.thread_time()
        for _ in range(STEPS):
            self._model(input_ids=self._ids, labels=self._ids).loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return time.thread_time() - began_s


def measure(pairs: int) -> dict[str, Any]:
    """Both loops in turns, the first pair as a warm-up."""
    config = KPoolLoraConfig(r=4, lora_alpha=8, target_modules="all-linear", n_adapters=4, k_active=2)
    plain, ours = (model_of(each) for each in (LoraConfig(**config.to_dict()), config))
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        session = meet(ours, config.settings(), "default", World(), "tcp://127.0.0.1:0", keys)
        loops = [Loop(plain), Loop(ours)]
        seconds = []
        for number in range(pairs + 1):
            order = (0, 1) if number % 2 else (1, 0)
            took = {each: loops[each].block() for each in order}
            seconds.append((took[0], took[1]))
        rounds = session.engine.version
        session.drain(60)
    ratios = [ours_s / plain_s for plain_s, ours_s in seconds[1:]]
    low, middle, high = statistics.quantiles(ratios, n=4)
    facts = {"median": middle, "q1": low, "q3": high}
    parameters = sum(each.numel() for each in plain.get_base_model().parameters())
    return {"parameters": parameters, "steps": STEPS, "rounds": rounds, "thread": facts, "pairs": seconds[1:]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    save("library_overhead", {"worlds": [measure(arguments.pairs)]})
