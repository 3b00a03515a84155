"""What a part of a round should count: its steps alike, or its tokens, which count a long part twice.

    python benchmarks/straggler_tax/shares.py --replicas 8 --seeds 101 102 103 104

The engine's own rounds with another rule in the place of `codec.header.shares` (decision 0062), in pairs: the same
seeds, speeds and links. Each run is written as it ends, and not made again; `docs/straggler_tax.md` has the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import numpy as np
import torch
from harness import add, made
from methods import ARMS, Setting
from run import MODELS, laboratory
from scenarios import SCENARIOS
from training import Course

from tsugi_cli.finetune.model import quieten
from tsugi_kpool.codec import header
from tsugi_kpool.codec.coding import Floats

Rule = Callable[[header.Header], Floats]
STEPS = header.shares


def by_tokens(headers: header.Header) -> Floats:
    """FedAvg's: a member's share of the tokens."""
    tokens = headers[:, header.TOKENS]
    return np.asarray(tokens / np.maximum(tokens.sum(axis=0), 1.0), np.float32)


def as_far(headers: header.Header) -> Floats:
    """Steps count alike, and a round of equal steps is as long as by tokens."""
    shares, steps = STEPS(headers), headers[:, header.STEPS]
    long, short = (np.sum(each * steps, axis=0) for each in (by_tokens(headers), shares))
    return np.asarray(shares * long / np.maximum(short, 1e-9), np.float32)


RULES: dict[str, Rule] = {"steps": STEPS, "tokens": by_tokens, "as_far": as_far}


@contextmanager
def in_force(rule: Rule) -> Iterator[None]:
    """The engine's rounds go by this rule while it lasts."""
    header.shares = rule  # type: ignore[assignment]
    try:
        yield
    finally:
        header.shares = STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[8])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--lr-scales", type=float, nargs="+", default=[5.0], help="of the recipe's learning rate")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    cells = product(arguments.replicas, arguments.seeds, arguments.lr_scales, arguments.scenarios, arguments.rules)
    for replicas, seed, scale, scenario, rule in cells:
        key = {"replicas": replicas, "scenario": scenario, "seed": seed, "arm": rule, "lr_scale": scale}
        if made("shares", **key):
            continue
        began_s = time.process_time()
        spec, lab = laboratory("pretrained", replicas, seed, scale)
        arm = ARMS["kpool_auto" if SCENARIOS[scenario].fast_link else "kpool_auto_int2"]
        with in_force(RULES[rule]):
            found = arm(Setting(SCENARIOS[scenario], spec, lab, Course(spec, lab, 32), 32))
        run = {**key, **found, "cpu_s": round(time.process_time() - began_s, 1)}
        print({**key, "loss": run["curve"][-1][2], "cpu_s": run["cpu_s"]}, flush=True)
        add("shares", run, sizes=MODELS)


if __name__ == "__main__":
    main()
