"""What the engine holds: copies of the pool by mode and payload, and whether anything grows over many rounds.

    python benchmarks/engine/memory.py --rounds 2000

A copy is counted when a tensor's storage is alive that the model, its gradients and the loop's optimizer do not
own; 1.0 is one fp32 copy of all N adapters. `rest` is held all the time, `reduced` is added while a round waits for
its Commit, and `peak` is added while everybody's parts are being combined. Growth is measured on two replicas in
one process, over gloo.
"""

from __future__ import annotations

import argparse
import gc
import queue
import sys
import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import psutil
import torch
from harness import save
from torch import nn

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, quieten
from tsugi_kpool.core.messages import Commit, Fire, Generation, Message, Reduced
from tsugi_kpool.core.rounds.statements import UNSIGNED
from tsugi_kpool.core.settings import Mode, Payload
from tsugi_kpool.engine import gradient, update
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.rounds import combine, pack

WAIT_S = 60.0


class Uplink:
    """A hub of queues: the rounds are ordered by whoever holds it."""

    values: dict[str, bytes]

    def __init__(self, values: dict[str, bytes]) -> None:
        self.asked = 0
        self.orders: queue.Queue[Message] = queue.Queue()
        self.reports: queue.Queue[Reduced] = queue.Queue()
        self.values = values

    def next_order(self, timeout_s: float) -> Message | None:
        self.asked += 1
        try:
            return self.orders.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def report(self, message: Any) -> None:
        self.reports.put(message)

    def sign(self, generation: int, round: int, digest: bytes) -> bytes:
        del generation, round, digest
        return UNSIGNED

    def watch(self, heed) -> None:
        del heed

    def nudge(self) -> None:
        return None

    def store_put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        waited = threading.Event()
        for _ in range(max(1, int(timeout_s / 0.005))):
            if key in self.values:
                return self.values[key]
            waited.wait(0.005)
        return None


class Trainer:
    """A replica whose gradients are drawn, not computed: the engine does not mind."""

    def __init__(self, spec: RunSpec, model: nn.Module, number: int) -> None:
        adamw = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)  # noqa: E731
        self.engine = KPoolEngine(model, spec.kpool, number, optimizer=adamw, grad_clip=1.0)
        self.optimizer = adamw(self.engine.trainable())

    def step(self) -> None:
        self.engine.buffer.apply_rounds()
        for parameter in self.engine.pool.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.engine.apply(self.optimizer, 5)


def setting(mode: Mode, payload: Payload, model: str = "tiny") -> RunSpec:
    return compose([f"model={model}", f"kpool.mode={mode}", f"kpool.payload={payload}"])


def fresh(spec: RunSpec) -> nn.Module:
    model: nn.Module = add_pool(load(spec.model)[0], spec.lora)
    return model


# --- copies -------------------------------------------------------------------------------------------------------


def held_bytes() -> int:
    """Bytes of all tensors' storages that are alive in this process."""
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def copies(mode: Mode, payload: Payload) -> dict[str, Any]:
    """One replica of two through a few rounds, step by step."""
    spec = setting(mode, payload)
    model = fresh(spec)
    before = held_bytes()
    trainer = Trainer(spec, model, 0)
    engine, k = trainer.engine, spec.kpool.k
    pool_bytes = 4 * engine.pool.n * engine.pool.size
    peak = 0

    def counting(*_: torch.Tensor) -> str:
        nonlocal peak
        peak = held_bytes()
        return "digest"

    original, update.sha256, gradient.sha256 = update.sha256, counting, counting  # the moment when most is alive
    try:
        for first in (0, k, 2 * k):
            trainer.step()
            trainer.engine.buffer.apply_rounds()
            rest = held_bytes() - before
            contribution = engine.buffer.contribution(range(first, first + k))
            mine = pack(contribution, payload)
            outcome = combine([mine, mine.clone()], 0, contribution, engine.buffer.update, payload, True)
            del mine
            reduced = held_bytes() - before
            engine.buffer.commit(contribution, outcome)
            del contribution, outcome
    finally:
        update.sha256 = gradient.sha256 = original
    own = sum(s.numel() * 4 for state in trainer.optimizer.state.values() for s in state.values() if s.dim())
    rest, reduced, peak = rest - own, reduced - own, peak - before - own
    return {
        "mode": str(mode),
        "payload": str(payload),
        "rest": rest / pool_bytes,
        "reduced": (reduced - rest) / pool_bytes,
        "peak": (peak - rest) / pool_bytes,
    }


# --- growth -------------------------------------------------------------------------------------------------------


class Pair:
    """Two replicas in one process with their aggregators, a gloo group, and rounds ordered from here."""

    def __init__(self, spec: RunSpec) -> None:
        values: dict[str, bytes] = {}
        self._kpool, self.round = spec.kpool, 0
        self.trainers = [Trainer(spec, fresh(spec), number) for number in (0, 1)]
        self.uplinks = [Uplink(values), Uplink(values)]
        for trainer, uplink in zip(self.trainers, self.uplinks, strict=True):
            trainer.engine.start(uplink)  # type: ignore[arg-type]
            uplink.orders.put(Generation(1, (0, 1), 0, newcomers=(0, 1)))
        for trainer in self.trainers:
            trainer.engine.flags.formed.wait(WAIT_S)

    def rounds(self, count: int) -> None:
        """Each with a step of both replicas before it."""
        n, k = self._kpool.n, self._kpool.k
        for _ in range(count):
            first = self.round * k % n
            self.round += 1
            for trainer in self.trainers:
                trainer.step()
            self._tell(Fire(1, self.round, tuple(range(first, first + k)), (0, 1), "count", self.round - 1))
            digests = {uplink.reports.get(timeout=WAIT_S).digest for uplink in self.uplinks}
            if len(digests) != 1:
                raise RuntimeError(f"round {self.round} gave different anchors")
            self._tell(Commit(1, self.round))
            self._await(lambda: all(t.engine.aggregator.version == self.round for t in self.trainers), "committed")
        # An aggregator counts the version first and lets go of the round's tensors when it asks for its next order.
        asked = [uplink.asked for uplink in self.uplinks]
        self._await(lambda: all(u.asked > was for u, was in zip(self.uplinks, asked, strict=True)), "let go")

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.engine.stop()

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"round {self.round} was not {what}")
            time.sleep(0.001)

    def _tell(self, order: Message) -> None:
        for uplink in self.uplinks:
            uplink.orders.put(order)


def census() -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    objects = gc.get_objects()
    return {
        "tensors": sum(isinstance(each, torch.Tensor) for each in objects),
        "objects": len(objects),
        "threads": threading.active_count(),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


def growth(mode: Mode, payload: Payload, rounds: int, every: int) -> dict[str, Any]:
    """Marks of one pair's census and memory as rounds pass."""
    pair = Pair(setting(mode, payload))
    marks = []
    try:
        while pair.round < rounds:
            pair.rounds(min(every, rounds - pair.round))
            marks.append({"round": pair.round, **census(), "rss_bytes": psutil.Process().memory_info().rss})
            print(mode, payload, marks[-1], flush=True)
    finally:
        pair.close()
    return {"mode": str(mode), "payload": str(payload), "marks": marks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    table = [copies(mode, payload) for mode, payload in product(Mode, Payload)]
    for row in table:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    grown = [growth(mode, Payload.INT8, arguments.rounds, max(1, arguments.rounds // 10)) for mode in Mode]
    if not arguments.dry:
        save("memory", {"pool": {"n": 8, "k": 2}, "copies": table, "growth": grown})


if __name__ == "__main__":
    main()
