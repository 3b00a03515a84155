"""hivemind.Optimizer with local updates: own steps, state averaged whenever all have done enough samples together."""

from __future__ import annotations

from typing import Any

import hivemind
import torch
import workload

TARGET, SOONER, MATCHMAKING_S = 200, 100, 2.0
"""Samples of all between two averages, of `train` and of `sooner`. It averages in the background by default."""


def train(run: workload.Run) -> None:
    _train(run, target_batch_size=TARGET, averaging_timeout=10.0)


def sooner(run: workload.Run) -> None:
    """Twice as often, in 16 bits."""
    half = hivemind.compression.Float16Compression()
    _train(run, target_batch_size=SOONER, averaging_timeout=20.0, state_averaging_compression=half)


def _train(run: workload.Run, **settings: Any) -> None:
    model = run.lora()
    peers = [] if run.rank == 0 else run.ask("maddrs").split()
    dht = hivemind.DHT(host_maddrs=[f"/ip4/{run.address()}/tcp/0"], initial_peers=peers, start=True)
    if run.rank == 0:
        run.post("maddrs", " ".join(str(address) for address in dht.get_visible_maddrs()))
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id=f"run{run.job.seed}",
        batch_size_per_step=workload.BATCH,
        params=workload.trainable(model),
        optimizer=lambda params: torch.optim.AdamW(params, lr=run.lr),
        use_local_updates=True,
        matchmaking_time=MATCHMAKING_S,
        **settings,
    )
    for loss in run.losses(model, model):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.notes["epochs"] = optimizer.local_epoch
