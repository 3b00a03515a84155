"""What torchrun starts in test_workers.py: one worker of one replica, which goes through a list of cases.

Its arguments are a folder and its replica's number. In the folder lie cases.json and a key file for each case; the
program leaves each worker's facts there, and the adapter of replica 0.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.support import await_true, kpool, tiny_lora
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune import sharded
from tsugi_cli.finetune.export import export
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.step import StepBatches, gradients
from tsugi_cli.finetune.tokens import IGNORED, Sample, collate
from tsugi_cli.finetune.workers import part, spread
from tsugi_kpool import world
from tsugi_kpool.core.settings import KPool, Mode, Payload
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Follower
from tsugi_kpool.engine.inside import Inside, opened
from tsugi_kpool.engine.shards import local
from tsugi_kpool.engine.shards import whole as gathered
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.link import Identity, Link

CPU = torch.device("cpu")
MICRO_BATCH = 3
"""Odd, so that two workers have unequal parts; the last micro-batch has one sample, so that one worker has none."""
SAMPLES = 31
ENOUGH_STEPS = 4
"""Of one replica, for a round of both."""


SPREAD = {
    "tied": ["model=tied", "lora.init=orthogonal"],
    "pissa": ["model=tiny", "lora.init=pissa"],
    "saved": ["model=tiny", "lora.dora=true", "lora.modules_to_save=lm_head", "model.dtype=bfloat16"],
}
"""Runs whose base is read by one worker and cut over both."""


def settings_of(case: dict[str, Any]) -> KPool:
    kinds = {"mode": Mode, "payload": Payload}
    return kpool(n=4, k=2, **{name: kinds.get(name, bool)(value) for name, value in case["settings"].items()})


def sample(position: int) -> Sample:
    """As many tokens as it pleases, some of them supervised."""
    generator = torch.Generator().manual_seed(position)
    ids = torch.randint(0, 64, (6 + 3 * (position % 4),), generator=generator).tolist()
    hidden = 1 + position % 5
    return Sample(ids, [IGNORED] * hidden + ids[hidden:])


def micro_batches(start: int, stop: int) -> list[list[Sample]]:
    positions = range(start, stop)
    return [[sample(p) for p in positions[i : i + MICRO_BATCH]] for i in range(0, len(positions), MICRO_BATCH)]


def cut(samples: list[Sample], inside: Inside) -> StepBatches:
    """A step in two micro-batches, the second of which has too few samples for all workers."""
    parts = [part(some, inside) for some in (samples[:2], samples[2:]) if some]
    batches = tuple(collate(mine, 0) if counts else collate(mine, 0).weightless() for mine, counts in parts)
    return StepBatches(sum(each.tokens for each in samples), batches)


def start_model(settings: KPool, seed: int) -> Any:
    """The tiny model with adapters that depend on the seed."""
    model = tiny_lora(settings, rank=1).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def train(engine: KPoolEngine | Follower, forward: torch.nn.Module, inside: Inside) -> None:
    """The loop of the training story. The first round comes while there is more to train, however quick steps are."""
    optimizer = torch.optim.AdamW(engine.pool.parameters(), lr=1e-2)
    engine.join()
    for lease in engine.leases():
        for samples in micro_batches(lease.start, lease.stop):
            if isinstance(engine, KPoolEngine) and engine.progress.steps == ENOUGH_STEPS:
                await_true(lambda: engine.aggregator.version, "the first round")
            engine.apply_rounds()
            if engine.draining:
                break
            step = gradients(forward, cut(samples, inside), inside).whole
            engine.apply(optimizer, step.tokens)
            engine.report(step.samples, step.tokens, 0.01, step.loss, 1e-2)
    engine.finish()


def run(case: dict[str, Any], folder: Path, replica: int, inside: Inside) -> None:
    settings = settings_of(case)
    # Replicas begin elsewhere, and workers too, but for FSDP2: there each worker's rows become part of one model.
    model = start_model(settings, seed=10 * replica + (inside.worker if case["inside"] == "ddp" else 0))
    forward = spread(model, case["inside"], inside, CPU)
    link = None
    if inside.worker:
        engine: KPoolEngine | Follower = Follower(model, settings, inside, grad_clip=1.0)
    else:
        adamw = partial(torch.optim.AdamW, lr=1e-2)
        leader = KPoolEngine(model, settings, replica, optimizer=adamw, grad_clip=1.0, inside=inside)
        identity = Identity(replica, "test", 0, "c0ffee", leader.pool.layout(settings.payload))
        link = Link(keys.load(folder / f"{case['name']}.keys"), identity, leader.beat, 0.2, 30.0)
        link.start()
        leader.start(link)
        engine = leader
    train(engine, forward, inside)
    values = [gathered(parameter).detach() for parameter in engine.pool.parameters()]
    facts: dict[str, Any] = {
        "digest": hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest(),
        "version": engine.version,
    }
    if replica == 0:
        export(model, folder / case["name"] if inside.worker == 0 else None)
        ids = torch.arange(20)[None]
        with torch.no_grad():
            facts["logits"] = model(input_ids=ids).logits[0, -1].tolist()
    if isinstance(engine, KPoolEngine) and link is not None:
        ledger = engine.buffer.ledger
        facts |= {"produced": ledger.produced, "committed": ledger.committed, "discarded": ledger.discarded}
        link.bye()
        link.stop()
        engine.stop()
    (folder / f"{case['name']}.{replica}.{inside.worker}.json").write_text(json.dumps(facts))


def read_once(name: str, folder: Path, inside: Inside) -> None:
    """The same base and LoRA in shards and whole: how often it was read, and how far the logits are apart."""
    words = [*SPREAD[name], "topology.workers=2", "topology.inside=fsdp2", "train.micro_batch=2"]
    spec = compose([f"model={folder / 'tied'}" if word == "model=tied" else word for word in words])
    reads: list[str] = []

    def reading(*arguments: Any) -> Any:
        reads.append(name)
        return load(*arguments)

    torch.manual_seed(spec.seed)
    with mock.patch.object(sharded, "load", reading):
        model, _ = sharded.in_shards(spec, folder / f"{name}.start", None, inside, CPU)
    held = sum(local(parameter).numel() for parameter in model.parameters())
    torch.manual_seed(spec.seed)
    wanted = add_pool(load(spec.model)[0], spec.lora, folder / f"{name}.start")
    same = {each: gathered(value.detach()) for each, value in model.named_parameters()}
    ids = torch.arange(20)[None]
    with torch.no_grad():
        apart = (model.eval()(input_ids=ids).logits - wanted.eval()(input_ids=ids).logits).abs().max()
    facts = {
        "reads": len(reads),
        "apart": float(apart),
        "share": held / sum(parameter.numel() for parameter in wanted.parameters()),
        "different": [each for each, value in wanted.named_parameters() if not torch.equal(value, same[each])],
    }
    (folder / f"read.{name}.{inside.worker}.json").write_text(json.dumps(facts))


def main() -> None:
    folder, replica = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    with opened(world.worker_rank(), on_gpu=False) as inside:
        for case in json.loads((folder / "cases.json").read_text()):
            if replica < case["replicas"]:
                run(case, folder, replica, inside)
        for name in SPREAD if replica == 0 else ():
            read_once(name, folder, inside)


if __name__ == "__main__":
    main()
