"""Gradient mode with two real processes is one process on the union of the micro-batches, moments included.

Every micro-batch has another number of supervised tokens: in the plain loop, with accelerate, and where a step is
made of two micro-batches.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.library import LOCK_STEP
from tests.support import forking

REPLICAS, STEPS, JOIN_S = 2, 4, 150
KINDS = {"plain": 1, "plain-accumulated": 2, "accelerate": 1, "accelerate-accumulated": 2}
"""How many micro-batches make a step."""
ADAMW = {"lr": 1e-3, "weight_decay": 0.01}


def pieces(kind: str, step: int, replica: int) -> list[dict]:
    """The micro-batches of one replica's step, between 3 and 22 supervised tokens in each."""
    import torch

    made = []
    for number in range(KINDS[kind]):
        generator = torch.Generator().manual_seed(1000 * step + 10 * replica + number)
        ids = torch.randint(0, 64, (2, 12), generator=generator)
        labels = ids.clone()
        masked = torch.randint(0, 11, (2,), generator=generator)
        for row, count in zip(labels, masked, strict=True):
            row[:count] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def supervised(group: list[dict]) -> int:
    return sum(int((each["labels"][..., 1:] != -100).sum()) for each in group)


def replica_main(replica: int, folder: str) -> None:
    """Every kind of loop, one after the other; each leaves its values and the fleet's moments in a file."""
    import torch

    torch.set_num_threads(1)
    for kind in KINDS:
        result = train_kind(kind, replica, Path(folder))
        torch.save(result, Path(folder) / f"{kind}.{replica}.pt")


def train_kind(kind: str, replica: int, folder: Path) -> dict:
    import torch
    from accelerate import Accelerator

    from tests.library import config, pooled_model, trained
    from tsugi_kpool import plesio_init

    settings = config(**LOCK_STEP)
    model = pooled_model(settings)
    with plesio_init(model, settings, replica=replica, replicas=REPLICAS, keys=folder / f"{kind}.keys") as handle:
        optimizer = torch.optim.AdamW(trained(model), **ADAMW)
        accelerator, called = None, model
        if kind.startswith("accelerate"):
            accelerator = Accelerator(gradient_accumulation_steps=KINDS[kind])
            called, optimizer = accelerator.prepare(model, optimizer)
        for step in range(STEPS):
            if accelerator is None:
                plain_step(called, optimizer, pieces(kind, step, replica))
            else:
                accelerate_step(accelerator, called, optimizer, pieces(kind, step, replica))
            wait_for(handle, step + 1)
        update = handle._session.engine.buffer.update
        moments = {
            name: torch.stack([update.optimizer.state[flat][name] for flat in update.flat])
            for name in ("exp_avg", "exp_avg_sq")
        }
        return {"values": update.anchor.clone(), **moments}


def plain_step(model, optimizer, group: list[dict]) -> None:
    """As docs/library.md says: every micro-batch's loss over the tokens of all that make the step."""
    tokens = supervised(group)
    for micro_batch in group:
        model(**micro_batch, num_items_in_batch=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def accelerate_step(accelerator, model, optimizer, group: list[dict]) -> None:
    """The same; accelerate divides by the number of micro-batches, which is taken back."""
    tokens = supervised(group)
    for micro_batch in group:
        with accelerator.accumulate(model):
            loss = model(**micro_batch, num_items_in_batch=tokens).loss
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            optimizer.step()
            optimizer.zero_grad()


def wait_for(handle, version: int) -> None:
    """Until the round with our gradient has been committed; the next forward pass applies it."""
    deadline_s = time.monotonic() + JOIN_S
    while handle.version < version:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def one_process(kind: str) -> dict:
    """Plain training on the union: the loss of every step is the mean over all its supervised tokens."""
    import torch

    from tests.library import config, pooled_model, rows, trained

    model = pooled_model(config(**LOCK_STEP))
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters, **ADAMW)
    for step in range(STEPS):
        plain_step(model, optimizer, [each for replica in range(REPLICAS) for each in pieces(kind, step, replica)])
    moments = {
        name: rows(model, [optimizer.state[parameter][name] for parameter in parameters])
        for name in ("exp_avg", "exp_avg_sq")
    }
    return {"values": rows(model, [parameter.detach() for parameter in parameters]), **moments}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the two processes have left."""
    import torch

    folder = tmp_path_factory.mktemp("exact")
    context = forking()
    processes = [context.Process(target=replica_main, args=(replica, str(folder))) for replica in range(REPLICAS)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(JOIN_S)
        assert [process.exitcode for process in processes] == [0] * REPLICAS
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return {kind: [torch.load(folder / f"{kind}.{replica}.pt") for replica in range(REPLICAS)] for kind in KINDS}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_on_the_union(results, kind):
    expected = one_process(kind)
    first, second = results[kind]
    for name, plain in expected.items():
        assert first[name].equal(second[name])
        assert float((first[name] - plain).norm() / plain.norm()) < 1e-6, name
