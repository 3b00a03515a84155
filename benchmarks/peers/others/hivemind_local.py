"""hivemind.Optimizer with local updates: own steps, state averaged whenever all have done 200 samples together."""

from __future__ import annotations

import hivemind
import torch
import workload

TARGET, MATCHMAKING_S = 200, 2.0


def train(run: workload.Run) -> None:
    model = workload.lora(run.base, run.job.seed)
    peers = [] if run.rank == 0 else run.ask("maddrs").split()
    dht = hivemind.DHT(host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=peers, start=True)
    if run.rank == 0:
        run.post("maddrs", " ".join(str(address) for address in dht.get_visible_maddrs()))
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id=f"run{run.job.seed}",
        target_batch_size=TARGET,
        batch_size_per_step=workload.BATCH,
        params=workload.trainable(model),
        optimizer=lambda params: torch.optim.AdamW(params, lr=run.lr),
        use_local_updates=True,
        matchmaking_time=MATCHMAKING_S,
        averaging_timeout=10.0,
    )
    for loss in run.losses(model, model):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.notes["epochs"] = optimizer.local_epoch
