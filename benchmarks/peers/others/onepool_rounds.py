"""onepool's coordinator and workers over its own TLS connections: rounds by speed after five steps of calibration.

Its trainer reads a Hugging Face model and a text file by itself; ours, with the same methods, takes its place, so
that the steps are those of everybody else. The outer step is the plain mean (rate 1, no momentum).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import torch
import workload
from onepool.hw.probe import probe
from onepool.jobs.spec import TrainJob
from onepool.net.client import PoolClient
from onepool.net.server import PoolHost
from onepool.session import SessionCode
from onepool.train import distributed
from onepool.train.local import LocalTrainer, RoundStats

EVERY, LINK, ENDLESS = 8, 4, 100_000
"""Steps of a fast machine's round, how many times more on a slow link, and of the whole run."""
CLIP = 1.0
HOUR_S = 3600.0


def train(run: workload.Run) -> None:
    class Trainer(LocalTrainer):
        def setup(self) -> None:
            self.model = run.lora()
            self.optimizer = torch.optim.AdamW(workload.trainable(self.model), lr=run.lr)
            self.losses = run.losses(self.model, self.model)

        def run_round(self, steps: int, round_index: int = 0) -> RoundStats:
            started_s, found = time.monotonic(), []
            for _ in range(steps):
                loss = next(self.losses, None)
                if loss is None:  # the run is over, and this process is ended
                    time.sleep(HOUR_S)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimizer.step()
                self.optimizer.zero_grad()
                found.append(loss.item())
            run.notes["rounds"] = round_index
            took_s = time.monotonic() - started_s
            return RoundStats(round_index, steps, sum(found) / steps, 0.0, steps / took_s)

        def set_shard(self, shard_index: int, num_shards: int) -> None:
            """Every rank draws data of its own."""

        def save(self, tag: str = "final") -> Any:
            """The score is taken from the model itself."""

        choice = type("CPU", (), {"device": "cpu"})()

    distributed.LocalTrainer = Trainer
    os.environ["ONEPOOL_ALLOW_SAME_MACHINE"] = "1"
    asyncio.run(_host(run) if run.rank == 0 else _member(run))


async def _host(run: workload.Run) -> None:
    code = SessionCode.generate()
    host = PoolHost(code, probe())
    await host.start()
    run.post("pool", json.dumps([code.code, host.port, host.fingerprint]))
    while len(host.state.members) < run.job.replicas:
        await asyncio.sleep(0.1)
    job = TrainJob(
        model="",
        dataset="",
        steps=ENDLESS,
        inner_steps=EVERY * (LINK if run.job.machines else 1),
        batch_size=workload.BATCH,
        outer_lr=1.0,
        outer_momentum=0.0,
    )
    await distributed.Coordinator(host, job).run()


async def _member(run: workload.Run) -> None:
    code, port, fingerprint = json.loads(await asyncio.to_thread(run.ask, "pool"))
    client = PoolClient(SessionCode(code), probe())
    await client.connect(run.address(0), port, fingerprint)
    await asyncio.gather(client.run(), distributed.worker_loop(client))
