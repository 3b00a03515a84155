"""A simulated replica that holds tensors: the buffers and codecs of engine/, by the orders of the simulated fleet.

Every replica has a LoRA and an optimizer of its own on one shared base model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
from lab import Lab

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_of
from tsugi_kpool.codec import header
from tsugi_kpool.core.messages import Fire, Generation, Lease, Message
from tsugi_kpool.core.replica.stage import Action, Stage
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.exchanging import outcome_of, part_of
from tsugi_kpool.engine.gradient import OptimizerFactory
from tsugi_kpool.engine.reducing import Ways
from tsugi_kpool.engine.rounds import Contribution, pack
from tsugi_kpool.engine.ways import Way
from tsugi_kpool.exchange.frames import Part
from tsugi_kpool.exchange.reduction import Reduced as Shared
from tsugi_kpool.sim.replica import Replica, SimulatedResult


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
