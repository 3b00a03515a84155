"""A replica of a few lines around the real engine, forked from a server that has torch already: there in 0.2 s.

Its task can be learnt: the next token follows from the present one by a fixed table, with a tenth of noise.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

VOCABULARY, LENGTH, NOISE = 64, 16, 0.1
BUDGET = 1e6
"""Of a sideband whose groups are formed again several times a second: else its usual 2 KB/s set the pace."""


def sample(position: int) -> Any:
    """The sample at a position of the data order: (1, LENGTH) token ids, always the same."""
    import torch

    table = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(1000 + position)
    ids = [int(torch.randint(0, VOCABULARY, (1,), generator=draw))]
    while len(ids) < LENGTH:
        noisy = float(torch.rand(1, generator=draw)) < NOISE
        ids.append(int(torch.randint(0, VOCABULARY, (1,), generator=draw)) if noisy else int(table[ids[-1]]))
    return torch.tensor([ids])


def resources() -> dict[str, int]:
    """What a process may leak."""
    import psutil

    process = psutil.Process()
    return {"fds": process.num_fds(), "threads": process.num_threads(), "rss_kib": process.memory_info().rss // 1024}


def train(replica: int, keys: Any, settings: Any, step_s: float, lr: float, result: str, count_leaks: bool) -> None:
    """Train to the end of the run; the loss of the anchors on 64 samples that nobody trained on is left in a file."""
    import json

    import torch

    from tests.support import tiny_lora
    from tsugi_kpool.engine.engine import KPoolEngine
    from tsugi_kpool.errors import FencedError, SidebandError
    from tsugi_kpool.sideband.link import Identity, Link

    torch.set_num_threads(1)
    model = tiny_lora(settings).train()
    adamw = partial(torch.optim.AdamW, lr=lr)
    engine = KPoolEngine(model, settings, replica, optimizer=adamw, grad_clip=1.0)
    layout = engine.pool.layout(settings.payload)
    budget = BUDGET if count_leaks else 2000.0
    link = Link(keys, Identity(replica, "chaos", 0, "c0ffee", layout), engine.beat, 0.2, 60.0, budget_bytes_s=budget)
    watcher = Watcher(engine, Path(result)) if count_leaks else None
    link.start()
    engine.start(link)
    if watcher is not None:
        watcher.start()
    optimizer = adamw(engine.pool.parameters())
    try:
        engine.join()
        for lease in engine.leases():
            for position in range(lease.start, lease.stop):
                engine.apply_rounds()
                started_s, ids = time.monotonic(), sample(position)
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                time.sleep(step_s)
                engine.apply(optimizer, LENGTH - 1, 1)
                engine.report(1, LENGTH - 1, time.monotonic() - started_s, float(loss.detach()), lr)
        engine.finish()
        with torch.no_grad():
            held_out = torch.cat([sample(-each - 1) for each in range(64)])
            loss = float(model.eval()(input_ids=held_out, labels=held_out).loss)
        ledger = engine.buffer.ledger
        facts = {"loss": loss, "produced": sum(ledger.produced), "committed": sum(ledger.committed)}
        Path(result).with_suffix(".end.json").write_text(json.dumps({**facts, "discarded": sum(ledger.discarded)}))
        link.bye()
    except (FencedError, SidebandError):
        pass  # the fleet has gone on without this process
    finally:
        link.stop()
        engine.stop()


class Watcher(threading.Thread):
    """Writes down what the process holds after every tenth generation that its aggregator has formed."""

    def __init__(self, engine: Any, path: Path) -> None:
        super().__init__(daemon=True)
        self._engine, self._path = engine, path

    def run(self) -> None:
        import json

        seen = 0
        with self._path.open("w") as file:
            while True:
                generation = self._engine.aggregator.membership.generation
                if generation >= seen + 10 or (generation and not seen):
                    seen = generation
                    file.write(json.dumps({"generation": generation, **resources()}) + "\n")
                    file.flush()
                time.sleep(0.05)
