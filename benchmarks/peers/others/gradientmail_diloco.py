"""gradientmail's DiLoCo through a store that speaks S3: own steps; any node closes a round with whoever has reported.

The store is moto's server, on a machine of its own behind a fast link, where machines are namespaces.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import Any

import boto3
import gradientmail as gm
import torch
import worker
import workload
from botocore.exceptions import BotoCoreError, ClientError

EVERY, FRAGMENTS, POLL_S, PORT = 8, 2, 0.5, 9000
BUCKET = "training"
os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}


def train(run: workload.Run) -> None:
    """Its defaults: what was learnt while a round is on its way is dropped, and an outer optimizer with momentum."""
    _train(run, gm.DiLoCo(sync_every=EVERY, fragments=FRAGMENTS))


def carry(run: workload.Run) -> None:
    """What was learnt meanwhile is kept, and the plain mean is taken; on a slow link in eight bits both ways."""
    coded: Any = {"delta_dtype": "F8_E4M3", "commit_dtype": "F8_E4M3"} if run.job.machines else {}
    kept = {"alignment": gm.Carry(), "outer_lr": 1.0, "outer_momentum": 0.0, "merge": gm.WeightedMean()}
    _train(run, gm.DiLoCo(sync_every=EVERY, fragments=FRAGMENTS, **kept, **coded))


class Adapter(torch.nn.Module):
    """The LoRA alone: every parameter of the module that it is given is exchanged."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.values = torch.nn.ParameterList(workload.trainable(model))


def _train(run: workload.Run, algorithm: Any) -> None:
    place = run.job.address(run.job.replicas)
    port = PORT if run.job.machines else int(os.environ["MASTER_PORT"])
    if run.rank == 0:
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", place, "-p", str(port)],
            preexec_fn=lambda: worker.move(run.job.machines[-1] if run.job.machines else None),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        made(f"http://{place}:{port}")
        run.post("store", "there")
    run.ask("store")
    model = run.lora()
    optimizer = torch.optim.AdamW(workload.trainable(model), lr=run.lr)
    mailbox = gm.S3Mailbox(bucket=BUCKET, prefix="run", endpoint_url=f"http://{place}:{port}")
    session = gm.Session(
        Adapter(model),
        algorithm=algorithm,
        mailbox=mailbox,
        node_id=f"rank-{run.rank}",
        poll_interval=POLL_S,
        callbacks=(),
    )
    session.join()

    def step(loss: torch.Tensor) -> int:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return workload.BATCH

    session.run(step, run.losses(model, model))


def made(url: str) -> None:
    """Make the bucket, as soon as the store answers."""
    client = boto3.client("s3", endpoint_url=url)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        with contextlib.suppress(BotoCoreError, ClientError):
            client.create_bucket(Bucket=BUCKET)
            return
        time.sleep(0.3)
    raise TimeoutError(f"the store at {url} does not answer")
