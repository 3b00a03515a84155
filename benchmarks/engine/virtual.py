"""A fleet in virtual time that trains a real model: the hub of core/, buffers and codecs of engine/, one process.

`sim.Fleet` brings the hub, the orders, the links and the clock; here its replicas hold tensors. Every replica has a
LoRA and an optimizer of its own on one shared base model. A step is computed when its virtual end comes, on
the parameters that it had at its begin. So the load of the machine changes no figure, and a slow replica or link
costs no waiting. With `topology.data_plane=exchange` parts and results pass the simulated exchange, and the real
one's books and arithmetic reduce them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.evaluate import Evaluator
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_of
from tsugi_cli.finetune.ready import opened
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_kpool.codec import header
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.messages import AdapterFacts, Fire, Generation, Lease, Message, Reduced
from tsugi_kpool.core.replica.stage import Action, Stage
from tsugi_kpool.core.rounds.reduction import sent_payloads
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.exchanging import outcome_of, part_of
from tsugi_kpool.engine.gradient import OptimizerFactory
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.reducing import Ways
from tsugi_kpool.engine.rounds import Contribution, pack
from tsugi_kpool.engine.ways import Outcome, Way, finished
from tsugi_kpool.exchange.books import Kept
from tsugi_kpool.exchange.frames import Part
from tsugi_kpool.exchange.reduction import Reduced as Shared
from tsugi_kpool.exchange.reduction import left_by
from tsugi_kpool.exchange.reduction import opened as opened_result
from tsugi_kpool.exchange.rounds import Rounds
from tsugi_kpool.sim.fleet import Fleet
from tsugi_kpool.sim.replica import Replica, SimulatedResult
from tsugi_kpool.sim.scenario import LinkModel, Speeds, spread


@dataclass(frozen=True)
class Point:
    """The fleet's eval loss at one moment."""

    time_s: float
    samples: int
    loss: float


class Lab:
    """A base model, its data and its start values: what all arms of one seed share."""

    def __init__(self, spec: RunSpec) -> None:
        data = opened(spec)
        base, tokenizer = load(spec.model)
        torch.manual_seed(spec.seed)
        self.model = add_pool(base, spec.lora).train()
        self.batches = LeasedBatches(spec, data, tokenizer)
        self._evaluator = Evaluator(replace(spec, topology=replace(spec.topology, replicas=1)), data, tokenizer, 0)

    def copy(self) -> Any:
        """Another model on the same base weights, with the LoRA's start values."""
        frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        return copy.deepcopy(self.model, frozen)

    def loss(self, model: Any) -> float:
        sums = self._evaluator.run(model, "trained", stop=lambda: False).sums
        return sums["loss_sum"] / sums["loss_tokens"]


@dataclass(frozen=True)
class Packed(Contribution):
    """A part on its way to an exchange."""

    part: Part
    codes: np.ndarray[Any, Any]
    """Header and codes, as they are sent."""


@dataclass(frozen=True)
class TensorResult(SimulatedResult):
    """A round that an exchange has reduced."""

    shared: Shared


class TensorReplica(Replica):
    """A simulated replica that trains a model and ships real bytes."""

    def __init__(self, number: int, spec: RunSpec, lab: Lab, optimizer: OptimizerFactory | None = None) -> None:
        super().__init__(number, spec.kpool.n, False, random.Random(0))
        self._spec, self._batches, self.model = spec, lab.batches, lab.copy()
        adamw = optimizer or optimizer_of(spec)
        self.engine = KPoolEngine(self.model, spec.kpool, number, optimizer=adamw, grad_clip=spec.train.grad_clip)
        self.optimizer = adamw(self.engine.trainable())
        self.ledger = self.engine.buffer.ledger
        self.overlap = spec.kpool.overlap
        self._exchange = spec.topology.data_plane == "exchange"

    def train(self, start: int, stop: int, computed_on: int, seconds: float, active: tuple[int, ...] = ()) -> None:
        del computed_on, active  # the engine knows
        ((_, batch),) = self._batches.of(Lease(ticket=0, start=start, stop=stop))
        self._batches.schedule.set_lr(self.optimizer, start)
        supervised_loss(self.model, batch).backward()
        self.engine.apply(self.optimizer, batch.tokens)
        progress = self.progress
        progress.steps += 1
        progress.samples += batch.samples
        progress.tokens += batch.tokens
        progress.busy_s += seconds
        progress.step_s = seconds

    def begin(self) -> None:
        self.engine.buffer.apply_rounds()

    def obey(self, order: Message) -> Action:
        action = super().obey(order)
        if action is not Action.IGNORE:
            self.engine.buffer.activate(self.active)
        if action is Action.FORM:
            self.engine.buffer.apply_rounds()  # the first step's adapters
        if action.forms and isinstance(order, Generation):
            update, members = self.engine.buffer.update, order.members
            if self._exchange:
                update.divide(None, members.index(self.number))  # type: ignore[attr-defined]
            else:
                self._ways = Ways(members.index(self.number), len(members), update, self._spec.kpool)
        return action

    def contribute(self, fire: Fire) -> Any:
        self.joined(fire)
        found, settings = self.engine.buffer.contribution(fire.adapters), self._spec.kpool
        if self._exchange:
            client: Any = SimpleNamespace(incarnation=self.incarnation, sequence=fire.round)
            part = part_of(fire, tuple(fire.members), found, settings, client)
            values = {each.name: getattr(found, each.name) for each in fields(found)}
            found = Packed(**values, part=part, codes=pack(found, settings.payload).numpy())
        self.in_flight = (found, None)  # type: ignore[assignment]
        return found

    def on_reduced(self, outcome: SimulatedResult, sent_bytes: int = 0, counted: bool = True) -> str:
        if not isinstance(outcome, TensorResult):
            return super().on_reduced(outcome, sent_bytes, counted)
        given: Any = self.in_flight[0]  # type: ignore[index]
        codes = given.codes[header.header_bytes(len(given.part.adapters)) :]
        result, body, update = outcome.shared.result, outcome.shared.body, self.engine.buffer.update
        found: Any = outcome_of(given, self.rank, update, given.part, result, body, codes)
        self.in_flight = (given if counted else self.engine.buffer.void(given), found)
        self.stage, self.reduced = Stage.REDUCED, self.round
        self.sent_bytes += sent_bytes
        return found.digest

    def way(self, contribution: Contribution) -> Way:
        """Return the way that a round of ours takes."""
        return self._ways.of(contribution)

    def landed_with(self, outcome: Any, sent_bytes: int) -> Any:
        """Keep what a round has given until its Commit."""
        self.in_flight = (self.in_flight[0], outcome)  # type: ignore[index,assignment]
        self.stage, self.reduced = Stage.REDUCED, self.round
        self.sent_bytes += sent_bytes
        return outcome

    def _commit(self) -> None:
        self.engine.buffer.commit(*self.in_flight)  # type: ignore[misc,arg-type]
        if self.linger is not None:
            self.linger.committed(self.in_flight[1].steps, self.rank)  # type: ignore[index,union-attr]
        self.anchor = [self.in_flight[1].digest]  # type: ignore
        self.version += 1
        self.in_flight, self.stage = None, Stage.IDLE


class TensorFleet(Fleet):
    """`sim.Fleet` with tensors; measures the fleet's eval loss every `every` samples.

    What is measured is what the run would leave if it were told to stop there: the anchors plus everybody's buffered
    change, in which every step counts alike. Replicas step with `optimizer` instead of the run's, where one is given.
    """

    def __init__(
        self,
        spec: RunSpec,
        lab: Lab,
        speeds: Speeds,
        link: LinkModel,
        every: int,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        self._spec, self._lab, self._every, self._due = spec, lab, every, every
        self._optimizer = optimizer
        self.curve: list[Point] = []
        self._ways: dict[int, Way] = {}
        self._measured = lab.copy()
        self._measured_pool = AdapterPool(self._measured, spec.kpool.n)
        replicas, size = spec.topology.replicas, spec.train.micro_batch
        exchange = "virtual" if spec.topology.data_plane == "exchange" else ""
        plan = HubPlan("virtual", "", replicas, spec.kpool, lab.batches.total, size, size, 60.0, exchange=exchange)
        self._rounds = Rounds({}, None, None, spec.kpool.n)
        super().__init__(plan, speeds, link, spec.seed)

    def _replica(self, number: int, draw: random.Random) -> Replica:
        del draw
        return Watched(number, self._spec, self._lab, self._trained, self._optimizer)

    def _combined(self, fire: Fire, parts: Mapping[int, Any], seconds: float) -> SimulatedResult:
        """What the exchange makes of these parts."""
        for number, given in parts.items():
            self._rounds.check(number, given.part, given.codes.size)
            self._rounds.take(number, given.part, given.codes.tobytes(), self.kernel.now_s)
        collected = self._rounds.close()
        self._rounds.settle(collected)
        shared, mean = self._rounds.reduce(collected)
        left = () if mean is None else left_by(collected.part, mean)
        self._rounds.finish(collected, Kept(collected.part, shared, left))
        if mean is None:
            raise SystemExit(f"round {fire.round} is unusable: {shared.result}")
        headers, means = opened_result(collected.part, shared.result, shared.body)
        steps = headers[:, header.STEPS]
        norms = torch.from_numpy(means).norm(dim=1).tolist()
        return TensorResult(
            means=(),
            weights=header.weights_of(headers),
            noise=(0.0, 0.0),
            adapters=tuple(AdapterFacts(int(n), norm) for n, norm in zip(steps.sum(axis=0), norms, strict=True)),
            payload_bytes=len(collected.parts[min(parts)].body),
            seconds=seconds,
            steps=tuple(map(int, steps.sum(axis=1))),
            shared=shared,
        )

    def _join(self, replica: Replica, fire: Fire) -> None:
        if self.exchange is not None:
            super()._join(replica, fire)
            return
        self._ways[replica.number] = replica.way(replica.contribute(fire))  # type: ignore[attr-defined,arg-type]
        if len(self._ways) < len(fire.members):
            return
        ways, self._ways = [self._ways[number] for number in fire.members], {}
        wanted, kpool = [next(way) for way in ways], self._spec.kpool
        payload = max(each.payload_bytes for each in wanted)
        seconds = self.link.reduce_s(kpool, len(ways), payload) * spread(self._draw, self.link.jitter)
        outcomes = finished(ways, wanted)  # what comes of it is certain already
        self.kernel.after(seconds, self._reduced, fire, outcomes, payload, seconds)

    def _reduced(self, fire: Fire, outcomes: list[Outcome], payload: int, seconds: float) -> None:
        sent = round(payload * sent_payloads(self._spec.kpool, len(outcomes)))
        for number, landed in zip(fire.members, outcomes, strict=True):
            outcome = self.replicas[number].landed_with(landed, sent)  # type: ignore[attr-defined]
            self._uplinks[number].report(
                Reduced(
                    seq=0,
                    replica=0,
                    incarnation="",
                    generation=fire.generation,
                    round=fire.round,
                    digest=outcome.digest,
                    seconds=seconds,
                    payload_bytes=payload,
                    weights=outcome.weights,
                    noise_norm2=outcome.noise[0],
                    noise_trace=outcome.noise[1],
                    adapters=outcome.adapters,
                )
            )

    def _trained(self) -> None:
        samples = sum(replica.progress.samples for replica in self.replicas)
        if samples >= self._due or samples == self.plan.samples:
            self._due = samples - samples % self._every + self._every
            self.curve.append(Point(self.kernel.now_s, samples, self._lab.loss(self._merged())))

    def _merged(self) -> Any:
        """The model that stopping now would leave."""
        engines = [replica.engine for replica in self.replicas]  # type: ignore[attr-defined]
        adapters = range(self._spec.kpool.n)
        merged = engines[0].buffer.update.anchor.clone()
        ledgers = [engine.buffer.ledger for engine in engines]
        none = [0.0] * len(adapters)
        headers = [header.header([each.buffered(a) for a in adapters], each.steps, none, 0.0) for each in ledgers]
        shares = torch.from_numpy(header.shares(np.stack(headers)))
        for engine, share in zip(engines, shares, strict=True):
            merged += _buffered(engine) * share[:, None]
        self._measured_pool.write(merged)
        return self._measured


def _buffered(engine: KPoolEngine) -> Tensor:
    """Live, with what it is owed, minus anchor: [N, P]. Buffered gradients are no change yet."""
    update = engine.buffer.update
    if not isinstance(update, LocalUpdate):
        return torch.zeros_like(update.anchor)
    return engine.pool.read(range(engine.pool.n)) + update._pending - update.anchor


class Watched(TensorReplica):
    """Tells the fleet of every step."""

    def __init__(
        self, number: int, spec: RunSpec, lab: Lab, trained: Any, optimizer: OptimizerFactory | None = None
    ) -> None:
        super().__init__(number, spec, lab, optimizer)
        self._told = trained

    def train(self, start: int, stop: int, computed_on: int, seconds: float, active: tuple[int, ...] = ()) -> None:
        super().train(start, stop, computed_on, seconds, active)
        self._told()
