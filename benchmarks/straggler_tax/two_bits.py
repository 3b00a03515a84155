"""Codes of two bits and fewer in the engine's place of int4: which one a round should carry.

    python benchmarks/straggler_tax/two_bits.py --replicas 4 8 --seeds 31 32 33

Each code uses a few of a nibble's sixteen values, over a link that takes as long for a byte as the code's own bytes
would; all that it loses is sent later, as the engine does it. A row of `docs/straggler_tax.md` is one code. Each run
is written as it ends, and not made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import numpy as np
import torch
from harness import add, made
from methods import ARMS, AUTO, Setting, kpool
from numpy.typing import NDArray
from run import MODELS, laboratory
from scenarios import SCENARIOS
from training import Course

from tsugi_cli.finetune.model import quieten
from tsugi_kpool.codec import coding
from tsugi_kpool.core.settings import Payload

Floats = NDArray[np.float32]
CONTAINER = coding.CODES[Payload.INT4]
SCALE_BITS = 16
"""A scale is a bf16 in the codes that are tried: rounded up, so that it is never too small for its block."""
EVEN = (-1.5, -0.5, 0.5, 1.5)


@dataclass(frozen=True)
class Try:
    """A code: `levels` times a scale for every `size` numbers, of which each takes `bits`."""

    size: int
    scale: Callable[[Floats], Floats]
    """[blocks, size] -> [blocks]."""
    levels: tuple[float, ...] = EVEN
    bits: float = 2.0
    steps: int = 4
    """Of each replica between two rounds of an adapter."""
    k: int = 2
    """Adapters of 8 in a round."""

    @property
    def wire_bits(self) -> float:
        """Of a number, with its share of the scale."""
        return self.bits + SCALE_BITS / self.size

    @property
    def limits(self) -> Floats:
        """Half way between the levels."""
        levels = np.array(self.levels, np.float32)
        return (levels[1:] + levels[:-1]) / 2


def largest(parts: float) -> Callable[[Floats], Floats]:
    """The block's largest number is so many scales: up to 2 it is half of one away from a level, at most."""
    return lambda values: np.asarray(np.abs(values).max(axis=1) / np.float32(parts), np.float32)


def root_mean_square(times: float = 1.0) -> Callable[[Floats], Floats]:
    return lambda values: np.asarray(np.sqrt(np.square(values).mean(axis=1)) * np.float32(times), np.float32)


def mean_size(times: float) -> Callable[[Floats], Floats]:
    return lambda values: np.asarray(np.abs(values).mean(axis=1) * np.float32(times), np.float32)


def least_squares(values: Floats) -> Floats:
    """The scale that fits best to the levels which the root mean square gives."""
    first = root_mean_square()(values)
    found = np.sign(values) * np.where(np.abs(values) < first[:, None], np.float32(0.5), np.float32(1.5))
    return np.asarray((values * found).sum(axis=1) / np.square(found).sum(axis=1).clip(min=0.25), np.float32)


TRIES = {
    "rms_64": Try(64, root_mean_square()),
    "max_64": Try(64, largest(2.25)),
    "max_128": Try(128, largest(2.5)),
    "whole_64": Try(64, largest(2.0)),
    "whole_64_k8": Try(64, largest(2.0), k=8),
    "whole_128": Try(128, largest(2.0)),
    "whole_128_k8": Try(128, largest(2.0), k=8),
    "fitted_64": Try(64, least_squares),
    "lloyd_max_64": Try(64, root_mean_square(), (-1.510, -0.4528, 0.4528, 1.510)),
    "mean_64": Try(64, mean_size(1.25)),
    "three_64": Try(64, root_mean_square(1.22), (-1.0, 0.0, 1.0)),
    "three_128_3": Try(128, root_mean_square(1.22), (-1.0, 0.0, 1.0), bits=1.6, steps=3),
    "signs_128_2": Try(128, mean_size(1.0), (-1.0, 1.0), bits=1.0, steps=2),
}
"""`whole`: no number is beyond the outer levels' half step. `three`: five to a byte would be 1.6 bits."""


@contextmanager
def in_place_of_int4(code: Try) -> Iterator[None]:
    """The engine codes as this one while it lasts."""
    levels, limits = np.array(code.levels, np.float32), code.limits

    def encode(values: Floats, _: Any, scales: Floats, packed: NDArray[np.uint8]) -> None:
        # bf16, rounded up
        scales[:] = ((code.scale(values).view(np.uint32) + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)
        found = np.digitize(values / np.maximum(scales, coding.SMALLEST)[:, None], limits).astype(np.uint8)
        packed[:] = found[:, 0::2] | found[:, 1::2] << 4

    def decode(scales: Floats, packed: NDArray[np.uint8], _: Any, out: Floats) -> None:
        found = np.empty((len(packed), code.size), np.uint8)
        found[:, 0::2], found[:, 1::2] = packed & 15, packed >> 4
        np.multiply(levels[found.clip(max=len(levels) - 1)], scales[:, None], out=out)

    before = coding._code, coding._decode
    coding._code, coding._decode = encode, decode
    coding.CODES[Payload.INT4] = coding.Blocks(code.size, CONTAINER.levels, CONTAINER.bits)
    try:
        yield
    finally:
        coding._code, coding._decode = before
        coding.CODES[Payload.INT4] = CONTAINER


def run_of(setting: Setting, code: Try) -> dict[str, Any]:
    """A run's figures; `setting` has its steps already."""
    carried = CONTAINER.bits + 8 * coding.SCALE_BYTES / code.size
    share = code.wire_bits / carried
    with in_place_of_int4(code):
        arm = kpool(("payload", Payload.INT4), *AUTO, optimizer="fleet_adamw")
        found = arm(replace(setting, scenario=replace(setting.scenario, share=share)))
    return {**found, "bytes_per_sample": found["bytes_per_sample"] * share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--scenarios", nargs="+", default=["slow_link"], choices=list(SCENARIOS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--codes", nargs="+", default=["ddp", "int4", *TRIES], choices=["ddp", "int4", *TRIES])
    parser.add_argument("--lr-scales", type=float, nargs="+", default=[4.0], help="of the recipe's learning rate")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    cells = product(arguments.scenarios, arguments.seeds, arguments.replicas, arguments.lr_scales, arguments.codes)
    for scenario, seed, replicas, scale, name in cells:
        key = {"replicas": replicas, "scenario": scenario, "seed": seed, "arm": name, "lr_scale": scale}
        if made("two_bits", **key):
            continue
        began_s = time.process_time()
        run = {**key, **_run(scenario, seed, replicas, scale, name)}
        run["cpu_s"] = round(time.process_time() - began_s, 1)
        print({**key, "loss": run["curve"][-1][2], "cpu_s": run["cpu_s"]}, flush=True)
        codes = {name: (code.wire_bits, code.steps) for name, code in TRIES.items()}
        add("two_bits", run, sizes=MODELS, codes={"int4": (4.5, 4), **codes})


def _run(scenario: str, seed: int, replicas: int, scale: float, name: str) -> dict[str, Any]:
    code = TRIES.get(name, Try(CONTAINER.size, largest(CONTAINER.levels)))
    settings = (f"kpool.min_steps={code.steps}", f"kpool.k={code.k}")
    spec, lab = laboratory("pretrained", replicas, seed, scale, settings)
    setting = Setting(SCENARIOS[scenario], spec, lab, Course(spec, lab, 32), 32)
    if name in TRIES:
        return run_of(setting, TRIES[name])
    if name == "ddp":
        return ARMS["ddp"](setting)
    return kpool(("payload", Payload.INT4), *AUTO, optimizer="fleet_adamw")(setting)


if __name__ == "__main__":
    main()
