"""What one replica does, from its model to its adapter. `finetune` is the training story: read it first."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.packing import PackedSample
from tsugi_cli.data.prepared import Prepared
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.run_lock import holder
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.core.replica.orders import Limits
from tsugi_kpool.engine.collective import CollectiveError
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Engine, Follower
from tsugi_kpool.engine.gradient import OptimizerFactory
from tsugi_kpool.engine.inside import ALONE, Inside
from tsugi_kpool.engine.network import Network
from tsugi_kpool.errors import ConfigError, FencedError, SidebandError
from tsugi_kpool.machine import Probe
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.addresses import own_address, split
from tsugi_kpool.sideband.link import Identity, Link

from .assembled import assembled
from .bad_batches import BadBatches
from .between_steps import BetweenSteps
from .checkpoint_state import CheckpointState, note_early_end
from .data import DataOrder, group_of, micro_batches, noise_seed, total_samples
from .evaluate import Evaluator
from .exchange import exchange_client
from .export import beside, export
from .leaks import packer_for
from .left_alone import kept_when_left_alone
from .lora import start_of
from .objectives import objective_of
from .optimizers import optimizer_of
from .pace import StepPacing
from .packed import Packer
from .precision import LossScale, dtype_of
from .ready import opened
from .room import tokens_at_once
from .schedule import Schedule
from .step import StepBatches, gradients
from .tokens import Batch, collate, collate_pairs, labelled
from .track import Track
from .workers import CPU, part


def finetune(
    spec: RunSpec, paths: RunPaths, replica: int, inside: Inside = ALONE, device: torch.device = CPU
) -> None:
    """Train one replica of a run: evaluate, train on leased data at its own pace, settle, evaluate, export.

    All workers of the replica tell this story in step; worker 0 alone talks to the fleet.
    """
    torch.manual_seed(spec.seed)
    data = opened(spec, paths)
    model, forward, tokenizer = assembled(spec, paths, inside, device)
    packer = packer_for(model, device) if data.train.packed else None
    batches = LeasedBatches(spec, data, tokenizer, inside, device, packer)
    evaluator = Evaluator(spec, data, tokenizer, replica, inside, device, objective_of(spec, model))
    make = optimizer_of(spec, model)
    engine = worker_engine(model, spec, replica, inside, make, batches.schedule, paths)
    optimizer = make(engine.trainable())
    batches.most = tokens_at_once(spec, batches.longest, model, forward, evaluator.objective, device)
    bad, between = watchers(model, engine, batches, evaluator, replica)
    scale = LossScale(engine.pool.parameters(), device, dtype_of(spec.model.dtype, device) is torch.float16)
    pace, track = StepPacing(spec.fault, replica, spec.seed), Track.of(spec, paths, replica, inside.worker)
    checkpoint_state = CheckpointState.of(paths, replica)
    checkpoint_state.into(engine, optimizer)
    write = partial(export_adapter, model, tokenizer, spec, paths, data, inside)
    with kept_when_left_alone(engine, paths, write), joined(engine, spec, paths, replica, data):
        engine.join()
        if not checkpoint_state.resumed and not engine.version:
            evaluate(engine, evaluator, model, "base")
        checkpoint_state.go_on()
        begin(engine, track)
        for lease in engine.leases():
            for work in pace.feed(batches.steps(lease), engine.progress):
                engine.apply_rounds()  # rounds that were committed while the last step ran
                track.look(batches.schedule.done(work.position), engine)
                if engine.saving:
                    engine.save(optimizer)
                if engine.draining:
                    break
                between.look()
                pace.start()
                lr = batches.schedule.set_lr(optimizer, work.position)
                taken = gradients(forward, work, inside, evaluator.objective, scale)
                step = taken.whole
                pace.slow_down()
                pace.spoil(engine)
                batches.schedule.set_decay(optimizer, step.tokens)
                # Local: step and buffer the change; gradient: buffer that. A model that has diverged begins again.
                engine.apply(optimizer, step.tokens, step.samples, bad.judge(work, taken))
                engine.report(step.samples, step.tokens, pace.seconds(), step.loss, lr, step.worked)
        bad.clear()
        wanted = engine.finish()  # after the last round: every replica stands on the same anchors
        track.end(pace, engine)
        if engine.saving:
            engine.save(optimizer)
        if wanted:
            evaluate(engine, evaluator, model, "trained")
        elif paths.slot.exists():
            note_early_end(paths)
        if replica == engine.first or paths.slot.exists():  # once on every machine
            engine.progress.activity = "exporting"
            write()


def export_adapter(
    model: Any, tokenizer: Any, spec: RunSpec, paths: RunPaths, data: Prepared, inside: Inside
) -> None:
    """The result, with what belongs to it; for all workers but the first a collective only."""
    told = beside(spec, model, tokenizer, data.fingerprint())
    start = paths.lora_start if spec.lora.changes_base else None
    export(model, paths.adapter if inside.worker == 0 else None, told, start)


def worker_engine(
    model: Any,
    spec: RunSpec,
    replica: int,
    inside: Inside,
    make: OptimizerFactory,
    schedule: Schedule,
    paths: RunPaths,
) -> Engine:
    """The replica's engine for its worker 0, what follows it for the others."""
    clip, decay = spec.train.grad_clip, schedule.round_tokens
    if inside.worker:
        return Follower(model, spec.kpool, inside, grad_clip=clip)
    engine = KPoolEngine(
        model,
        spec.kpool,
        replica,
        network=network(spec, paths),
        optimizer=make,
        grad_clip=clip,
        decay_tokens=decay,
        inside=inside,
    )
    engine.keep(paths.checkpoints, apart=paths.slot.exists())
    if spec.evaluate.every is not None:
        engine.evaluate_between_steps()
    return engine


@contextmanager
def joined(engine: Engine, spec: RunSpec, paths: RunPaths, replica: int, data: Prepared) -> Iterator[None]:
    """Take part in the run for as long as the block lasts; a failure in it is told to the hub."""
    if isinstance(engine, Follower):
        yield
        return
    pool = engine.pool.layout(spec.kpool.payload, spec.kpool.reduce)
    layout = f"{pool}:{data.fingerprint()}:{start_of(spec.lora, paths.lora_start)}"
    identity = Identity(replica, platform.node(), os.getpid(), paths.fleet_hash(), layout, paths.seat())
    run_keys = keys.load(paths.keys)
    link = Link(
        run_keys,
        identity,
        engine.beat,
        spec.sideband.beat_s,
        spec.sideband.hub_timeout_s,
        vitals=Probe().sample,
        budget_bytes_s=spec.sideband.budget_bytes_s,
        hub_lives=lambda: holder(paths) is not None,
        limits=limits(spec, data, sealed=run_keys.curve and not network(spec, paths).loopback),
    )
    exchange = exchange_client(spec, paths, replica)
    link.start()
    engine.start(link, exchange=exchange)
    try:
        yield
        engine.flush(spec.train.grace_s)
        link.bye()
    except (CollectiveError, FencedError, SidebandError):
        raise  # nothing of our own that would happen to others: they go on without us
    except BaseException as error:
        who = "" if engine.inside.workers == 1 else f"replica {replica}, worker 0: "
        link.failed(f"{who}{type(error).__name__}: {error}")
        raise
    finally:
        link.stop()
        engine.stop()


def limits(spec: RunSpec, data: Prepared, sealed: bool = False) -> Limits:
    """What no order of the run's hub exceeds."""
    most = spec.topology.replicas + spec.topology.spare
    return Limits(most, spec.kpool.n, total_samples(spec, len(data.train)), spec.train.step_samples, sealed)


def network(spec: RunSpec, paths: RunPaths) -> Network:
    """Where the other replicas reach this machine: loopback, unless some of them come from elsewhere."""
    topology = spec.topology
    if not topology.spreads or keys.load(paths.keys).exchange:
        return Network()  # with an exchange nobody reaches this machine at all
    address = topology.address or own_address(split(keys.load(paths.keys).address or "")[0])
    return Network(address, topology.trust_network)


def evaluate(engine: Engine, evaluator: Evaluator, model: Any, stage: str) -> None:
    """Measure this replica's share and send it to the hub."""
    engine.progress.activity = "evaluating"
    # A run that has stopped early was told to drain, and wants its result measured all the same.
    stop = engine.ask_draining if stage == "base" else _never
    engine.evaluated(evaluator.run(model, stage, stop))


def _never() -> bool:
    return False


def begin(engine: Engine, track: Track) -> None:
    """The fleet is complete: goodput counts from now."""
    engine.progress.activity, engine.progress.started_s = "training", time.monotonic()
    track.begin()


def watchers(
    model: Any, engine: Engine, batches: LeasedBatches, evaluator: Evaluator, replica: int
) -> tuple[BadBatches, BetweenSteps]:
    """Who judges steps, and who evaluates between them."""
    bad = BadBatches(model, batches.names, engine, evaluator.objective)
    return bad, BetweenSteps(model, engine, evaluator, replica)


class LeasedBatches:
    """This worker's parts of the steps on leased positions, in the run's data order."""

    def __init__(
        self, spec: RunSpec, data: Prepared, tokenizer: Any, inside: Inside = ALONE, device: torch.device = CPU,
        packer: Packer | None = None,
    ) -> None:  # fmt: skip
        if data.train.packed and packer is None:
            raise ConfigError(["data.packing=true: this command trains on single samples; set data.packing=false"])
        self._inside, self._device, self._packer, self._seed = inside, device, packer, spec.seed
        self.total = total_samples(spec, len(data.train))
        self._size, self._pad = spec.train.step_samples, tokenizer.pad_token_id
        self._micro_batch = spec.train.micro_batch
        self.most: int | None = None if spec.train.batch_tokens == "auto" else spec.train.batch_tokens
        """Tokens that a worker computes at once; None: samples are counted."""
        self._rows = data.train
        self._lengths = self._rows.lengths()
        self.longest = max(self._lengths)
        """Tokens of the longest sample."""
        self._order = DataOrder(spec.seed, len(self._rows), self._lengths, group_of(spec))
        self._counts = self._rows.tokens()
        in_order = [self._counts[self._order(position)] for position in range(self.total)]
        self.schedule = Schedule(spec.train, in_order, spec.topology.replicas)

    def of(self, lease: Lease) -> Iterator[tuple[int, Batch]]:
        """(position of the first sample, our part) for every step of a lease, none of which is cut."""
        for positions in self._cut(lease):
            yield positions[0], self._batch(positions)

    def steps(self, lease: Lease) -> Iterator[StepBatches]:
        """Every step of a lease, cut into micro-batches."""
        for positions in self._cut(lease):
            lengths = [self._lengths[self._order(position)] for position in positions]
            parts = micro_batches(positions, lengths, self._micro_batch, self.most, self._inside.workers)
            tokens = self.schedule.tokens(positions.start, positions.stop)
            noise = noise_seed(self._seed, positions.start, self._inside.worker)
            yield StepBatches(tokens, tuple(self._batch(each) for each in parts), tuple(parts), noise)

    def names(self, position: int) -> list[str]:
        """`file:line` of what stands there in the data order."""
        return self._rows.places(self._order(position))

    def _cut(self, lease: Lease) -> Iterator[range]:
        """The positions of each step."""
        size = lease.micro_batch or self._size
        for start in range(lease.start, lease.stop, size):
            yield range(start, min(start + size, lease.stop))

    def _batch(self, positions: range) -> Batch:
        """Our part of these positions."""
        mine, counts = part(positions, self._inside)
        batch = self._collated([self._rows[self._order(p)] for p in mine]).to(self._device)
        return batch if counts else batch.weightless()

    def _collated(self, rows: list[PackedSample]) -> Batch:
        if self._packer is not None:
            return self._packer.collate(rows, self._pad)
        if self._rows.pairs:
            return collate_pairs(rows, self._pad, self._counts[0])
        return collate([labelled(row) for row in rows], self._pad)
