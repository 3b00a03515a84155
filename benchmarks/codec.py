"""What a number costs to code and to decode, of each payload beside int4, on one core.

    python benchmarks/codec.py

Payloads take turns, and a figure is the least of all turns: whoever else uses the machine makes it slower, never
quicker. Time is processor time. `docs/figures.md` has the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from harness import save

from tsugi_kpool.codec.coding import coded_bytes, decode, encode
from tsugi_kpool.core.settings import Payload

NUMBERS = 1 << 20
"""Of a round: 4 MiB of fp32, as K=2 of the eight adapters of a small model's LoRA."""


def spent_ns(work: Callable[[], object]) -> float:
    """Processor time of a number."""
    began = time.process_time_ns()
    work()
    return (time.process_time_ns() - began) / NUMBERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60)
    turns = parser.parse_args().turns
    values = np.random.default_rng(0).standard_normal(NUMBERS).astype(np.float32)
    back = np.empty_like(values)
    coded = {payload: np.empty(coded_bytes(NUMBERS, payload), np.uint8) for payload in Payload}
    spent: dict[Payload, list[tuple[float, float]]] = {payload: [] for payload in Payload}
    for _ in range(turns):
        for payload, out in coded.items():
            to = spent_ns(lambda payload=payload, out=out: encode(values, payload, out))  # type: ignore[misc]
            of = spent_ns(lambda payload=payload, out=out: decode(out, NUMBERS, payload, back))  # type: ignore[misc]
            spent[payload].append((to, of))
    runs = [
        {
            "payload": payload.value,
            "bits": 8 * len(coded[payload]) / NUMBERS,
            "encode_ns": round(min(to for to, _ in each), 3),
            "decode_ns": round(min(of for _, of in each), 3),
        }
        for payload, each in spent.items()
    ]
    save("codec", {"numbers": NUMBERS, "turns": turns, "runs": runs}, run_per_line=True)


if __name__ == "__main__":
    main()
