"""What the signatures of owners cost a member in a two-stage round, and what a comparison costs.

    python benchmarks/engine/signatures.py

One member's way is driven with made-up parts of the others. Rounds and what is new in them (the digest of what a
member tells all, and its signature) take turns; figures are medians of processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from harness import save
from scale import LLAMA, _Mean

from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.codec.shards import Cut
from tsugi_kpool.core.hub.comparison import Comparison
from tsugi_kpool.core.messages import Compare, Compared
from tsugi_kpool.core.replica.ledger import Shipment
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.rounds import Contribution
from tsugi_kpool.engine.scatter_check import Evidence
from tsugi_kpool.engine.scattered import scattered
from tsugi_kpool.engine.ways import Place
from tsugi_kpool.sideband.signing import Signer, verified


class Member:
    """One of `members`, whose others send what it sends itself."""

    def __init__(self, members: int) -> None:
        self.members, self.kept = members, list[Evidence]()
        self._cut, self._keeper = Cut(LLAMA, members, Payload.INT8), Keeper(2, LLAMA, Payload.INT8)
        self._keeper.begin(self._cut, 0)
        self._place = Place(0, members, _Mean(), Payload.INT8, True)  # type: ignore[arg-type]
        delta = torch.randn(2, LLAMA) * 1e-3
        shipment = Shipment((0, 1), (100, 100), (4, 4), 0)
        self._mine = Contribution(shipment, delta, torch.zeros(2, dtype=torch.float64), 1e-3)

    def round_ms(self) -> float:
        """Reduce a round; returns its processor time."""
        began_s = time.process_time()
        way: Any = scattered(self._place, self._keeper, self._cut, self._mine, self.kept)
        second = way.send([next(way).parts[0]] * self.members)
        answers = [torch.zeros(size, dtype=torch.uint8) for size in second.receives]
        with contextlib.suppress(StopIteration):
            way.send([second.parts[0], *answers[1:]])
        return (time.process_time() - began_s) * 1e3

    def signature_ms(self, signer: Signer, number: int) -> float:
        """Make the digest of what this member has told the others, and sign it; returns the processor time."""
        evidence = self.kept[0]
        began_s = time.process_time()
        told = evidence.headers[0].tobytes() + evidence.roots[0]
        signer.sign(1, number, evidence.frames.digest(told, evidence.answers[0]))
        return (time.process_time() - began_s) * 1e3


def measured(members: int, pairs: int) -> dict[str, Any]:
    """The cost with so many members."""
    member, signer, numbers = Member(members), Signer(), count(1)
    both = [(member.round_ms(), member.signature_ms(signer, next(numbers))) for _ in range(pairs)]
    round_ms, signature_ms = (statistics.median(each) for each in zip(*both, strict=True))
    began_s = time.process_time()
    digests, signatures = member.kept[0].shown()
    shown_ms = (time.process_time() - began_s) * 1e3
    comparison = Comparison(Compare(1, 1), tuple(range(members)), 0.0)
    for each in range(members):
        other = b"\1" * 32 + digests[32:] if each == 1 else digests
        comparison.take(Compared(1, each, "", 1, 1, other, signatures))
    began_s = time.process_time()
    comparison.found(dict.fromkeys(range(members), signer.key), verified)
    return {
        "members": members,
        "round_ms": round(round_ms, 2),
        "signature_ms": round(signature_ms, 3),
        "share": round(signature_ms / round_ms, 4),
        "shown_ms": round(shown_ms, 2),
        "hub_ms": round((time.process_time() - began_s) * 1e3, 2),
        "bytes_sent": 64 * (members - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[4, 8, 32, 128])
    parser.add_argument("--pairs", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for members in given.members:
        runs.append(measured(members, given.pairs))
        print(runs[-1], flush=True)
    save("signatures", {"pairs": given.pairs, "numbers": 2 * LLAMA, "runs": runs}, run_per_line=True)


if __name__ == "__main__":
    main()
