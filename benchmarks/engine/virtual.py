"""A fleet in virtual time that trains a real model: the hub of core/, buffers and codecs of engine/, one process.

`sim.Fleet` brings the hub, the orders, the links and the clock; here its replicas hold tensors (tensor_replica.py).
A step is computed when its virtual end comes, on the parameters that it had at its begin. So the load of the machine
changes no figure, and a slow replica or link costs no waiting. With `topology.data_plane=exchange` parts and results
pass the simulated exchange, and the real one's books and arithmetic reduce them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lab import Lab
from tensor_replica import TensorResult, Watched
from torch import Tensor

from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.codec import header
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.messages import AdapterFacts, Fire, Reduced
from tsugi_kpool.core.rounds.reduction import sent_payloads
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.gradient import OptimizerFactory
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.ways import Outcome, Way, finished
from tsugi_kpool.exchange.books import Kept
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
