"""What the engine costs one replica: its step time against a plain PEFT and AdamW loop of equal total rank.

    python benchmarks/engine/overhead.py --models tiny smollm2_135m --pairs 12

One process trains two copies of the model in turns, a block of steps each: one in a plain loop (backward, clip,
step), one through the engine as `tsugi finetune` calls it (apply, backward, step, report), with its link, and a hub
in another process that fires rounds all the time. Between blocks the engine comes to rest, so that no round is
counted in a plain block.

Three ratios, engine / plain, each the median over pairs of blocks: `wall` (what a user sees), `thread` (processor
seconds of the training thread alone), `process` (processor seconds of all threads: what the engine costs where
there is no second core for its own threads; gloo's and the link's are in it). Processor seconds are the better
figure on a machine that others use. `calls` is 1 + the training thread's processor seconds inside the engine's own
calls / a plain block's: the part of `thread` that does not move with the machine's caches and neighbours.

With `--device cuda` blocks are timed until the GPU has done all of them: then `wall` is the figure to look at. A
model may be a folder, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from harness import kept, save

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, quieten
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link

STEPS = {"tiny": 60, "smollm2_135m": 6}
"""In one block: about a second."""
OF_A_FOLDER = 10
"""The same for a model that a folder holds."""
Meter = tuple[float, float, float]
CALLS = ("apply_rounds", "open_step", "close_step", "report")
"""What the engine adds to a step of the training thread."""


def setting(model: str, device: str) -> RunSpec:
    quiet = (
        "data.n_train=64",
        "data.n_eval=0",
        "data.n_test=0",
        "data.scorer=null",
        "evaluate.examples=0",
        "train.micro_batch=1",
        f"topology.device={device}",
    )
    return compose(["recipe=smollm2_tools", f"model={model}", *quiet])


class Copy:
    """A model with its pool's LoRA and its own optimizer, and the same batches over and over."""

    def __init__(self, spec: RunSpec, steps: int, like: Copy | None = None) -> None:
        data, device = opened(spec), torch.device(spec.topology.device)
        base, tokenizer = load(spec.model, device)
        torch.manual_seed(spec.seed)
        # One base for both: where its weights lie in memory alone made 6 % of a step's processor time.
        frozen = {} if like is None else {id(p): p for p in like.model.parameters() if not p.requires_grad}
        self.spec = spec
        self.model = (
            add_pool(base, spec.lora).train().to(device) if like is None else copy.deepcopy(like.model, frozen)
        )
        batches = LeasedBatches(spec, data, tokenizer, device=device)
        self._batches = [batch for _, batch in batches.of(Lease(ticket=0, start=0, stop=steps))]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer_factory(spec.train)(self.parameters)

    def plain(self) -> None:
        """A block of steps as any PEFT loop takes them."""
        for batch in self._batches:
            loss = supervised_loss(self.model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.train.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            float(loss.detach())

    def through(self, engine: KPoolEngine) -> None:
        """A block of steps as the worker of `tsugi finetune` takes them."""
        for batch in self._batches:
            engine.apply_rounds()
            started_s = time.monotonic()
            loss = supervised_loss(self.model, batch)
            loss.backward()
            engine.apply(self.optimizer, batch.tokens)
            engine.report(batch.samples, batch.tokens, time.monotonic() - started_s, float(loss.detach()), 1e-3)


def metered(block: Callable[[], None]) -> Meter:
    """(wall, training thread's, whole process's) seconds."""
    before = time.perf_counter(), time.thread_time(), time.process_time()
    block()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    after = time.perf_counter(), time.thread_time(), time.process_time()
    return tuple(b - a for a, b in zip(before, after, strict=True))  # type: ignore[return-value]


class Timed:
    """Processor seconds of this thread inside the engine's calls."""

    def __init__(self, engine: KPoolEngine) -> None:
        self.seconds = 0.0
        for name in CALLS:
            setattr(engine, name, self._timed(getattr(engine, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started_s = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.thread_time() - started_s

        return timed


def rest(engine: KPoolEngine) -> None:
    """Wait until no round is under way and no beat is due that could fire one."""
    quiet_since, version = time.monotonic(), engine.aggregator.version
    while time.monotonic() - quiet_since < 0.3:
        time.sleep(0.02)
        if engine.aggregator.stage is not Stage.IDLE or engine.aggregator.version != version:
            quiet_since, version = time.monotonic(), engine.aggregator.version


def hub_main(pipe: Connection, plan: HubPlan) -> None:
    """The hub's process."""
    keys = RunKeys.generate()
    server = HubServer(plan, keys, lambda _: None)
    pipe.send(server.start("127.0.0.1", 0))
    pipe.recv()
    server.stop()


def compare(model: str, replicas: int, pairs: int, keys: RunKeys, replica: int, device: str) -> dict[str, Any]:
    """All pairs of blocks of one replica of a world."""
    spec, steps = setting(model, device), STEPS.get(model, OF_A_FOLDER)
    plain = Copy(spec, steps)
    pooled = Copy(spec, steps, like=plain)
    adamw = optimizer_factory(spec.train)
    engine = KPoolEngine(pooled.model, spec.kpool, replica, optimizer=adamw, grad_clip=spec.train.grad_clip)
    identity = Identity(replica, "bench", 0, "bench", engine.pool.layout(spec.kpool.payload))
    link = Link(keys, identity, engine.beat, spec.sideband.beat_s, spec.sideband.hub_timeout_s, leases=False)
    link.start()
    engine.start(link)
    engine.join()
    plain.plain(), pooled.through(engine)  # warm up
    calls, meters = [], list[dict[str, Meter]]()
    timed = Timed(engine)
    for number in range(pairs):
        arms = {"plain": plain.plain, "engine": lambda: pooled.through(engine)}
        pair = {}
        for arm in (("plain", "engine"), ("engine", "plain"))[number % 2]:
            rest(engine)
            version, timed.seconds = engine.aggregator.version, 0.0
            pair[arm] = metered(arms[arm])
            if arm == "engine":
                rounds, own_s = engine.aggregator.version - version, timed.seconds
        meters.append(pair)
        calls.append(1 + own_s / pair["plain"][1])
        print(model, replicas, {a: [round(x, 3) for x in m] for a, m in pair.items()}, rounds, flush=True)
    version = engine.aggregator.version
    link.stop(0.5)
    engine.stop()
    names = ("wall", "thread", "process")
    ratios = {n: [pair["engine"][i] / pair["plain"][i] for pair in meters] for i, n in enumerate(names)}
    plain_s = statistics.median(pair["plain"][2] for pair in meters) / steps
    return {
        "model": Path(model).name,
        "device": device,
        "replicas": replicas,
        "steps": steps,
        "plain_step_cpu_s": plain_s,
        "calls": _spread(calls),
        "rounds_per_step": version / (steps * (pairs + 1)),
        **{name: _spread(values) for name, values in ratios.items()},
        "pairs": meters,
    }


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "q1": low, "q3": high}


def world(model: str, replicas: int, pairs: int, device: str) -> dict[str, Any]:
    """A hub in a process of its own, and peers that train all the time."""
    spec = setting(model, device)
    plan = HubPlan("bench", "bench", replicas, replace(spec.kpool), 0, 1, 1, 120.0)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    hub = context.Process(target=hub_main, args=(theirs, plan), daemon=True)
    hub.start()
    keys = ours.recv()
    try:
        return compare(model, replicas, pairs, keys, 0, device)
    finally:
        ours.send("stop")
        hub.join(15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(STEPS), help="names, or folders of models")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--to", type=Path, help="write the figures here, not to benchmarks/results")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    worlds = []
    for model in arguments.models:
        worlds.append(world(model, 1, arguments.pairs, arguments.device))
        print({key: value for key, value in worlds[-1].items() if key != "pairs"}, flush=True)
    if arguments.to is not None:
        arguments.to.write_text(json.dumps({"worlds": worlds}), encoding="utf-8")
    elif not arguments.dry:
        save("overhead", {"worlds": worlds, **kept("overhead", "library")})


if __name__ == "__main__":
    main()
