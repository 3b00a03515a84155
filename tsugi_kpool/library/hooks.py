"""How a training loop that knows nothing of us is followed: hooks on the optimizers' steps and the model's forward.

A step of any optimizer that holds parameters of the pool is a step, with the supervised tokens of all forward
passes since the step before as its weight. In local mode the step's change enters the buffer. In gradient mode the
gradients do, right before the step, which then finds none (None, not zeros) and moves nothing of the pool. Committed
rounds are applied right after a step and before the first forward pass that follows. Steps that a gradient scaler
skips are none.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tsugi_kpool.core.settings import Mode, SelectAt
from tsugi_kpool.engine.active import Frozen
from tsugi_kpool.engine.fleet_optimizer import like
from tsugi_kpool.engine.follower import Engine
from tsugi_kpool.engine.local_group import Whole, whole
from tsugi_kpool.errors import ConfigError

from .held import HeldByOptimizer, overflowed, unscale
from .hook_of_one import HookOfOne, never_compiled
from .outside_pool import OutsidePool
from .outside_writes import OutsideWrites
from .passes import Passes, Trained, has_gradient, in_backward
from .refusals import (
    CLOSURE,
    IN_BACKWARD,
    NO_PASS,
    NO_TENSOR,
    NO_WEIGHT,
    OUTSIDE,
    UNSEEN,
    refuse_ddp,
    refuse_nonsense,
)
from .step import Step
from .weighing import Weigher
from .weight_copies import WeightCopies

NOTHING = Whole(0, 0, 0.0, 0, 1.0)


class Hooks:
    """Feeds an engine from hooks until `remove`.

    Args:
        model: The module that the training loop calls.
        engine: A joined engine whose pool lies in the model.
    """

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self._engine, self._process = engine, os.getpid()
        self._pool = engine.pool.parameters()
        self._held, self._outside_pool = HeldByOptimizer(self._pool), OutsidePool(model, self._pool)
        self._copies = WeightCopies(self._pool)
        self._weigher, self._passes, self._outside = Weigher(model), Passes(self._pool), OutsideWrites(self._pool)
        self._whole, self._weighed = NOTHING, NOTHING
        """Of the present step, and of the newest one that had a weight."""
        self._trained = Trained()
        self._step, self._own_closure, self._seen, self._arrived = Step.NONE, False, False, False
        self._unweighed = False
        """The LoRA has changed since its last weight."""
        training_some = engine.settings.select_at is SelectAt.TRAIN
        self._frozen = Frozen(engine.pool, lambda: engine.active) if training_some else None
        self._handles = [
            register_optimizer_step_pre_hook(never_compiled(self._before_step)),
            register_optimizer_step_post_hook(never_compiled(self._after_step)),
            model.register_forward_pre_hook(HookOfOne(model, self._before_forward), with_kwargs=True),
            model.register_forward_hook(HookOfOne(model, self._after_forward)),
            *(
                each.register_post_accumulate_grad_hook(self._gradient_has_come)  # type: ignore[no-untyped-call, unused-ignore]
                for each in self._pool
            ),
        ]

    def remove(self) -> None:
        """Follow nothing any more."""
        self._drop_failed_step()
        # The fleet's optimizer may be stepping in the aggregator's thread, going through torch's list of hooks.
        with self._engine.undisturbed():
            for handle in self._handles:
                handle.remove()
            if self._frozen is not None:
                self._frozen.remove()

    def count(self, tokens: int) -> None:
        """The newest forward pass, or the step if there was none, has so many tokens."""
        self._passes.tell(tokens)

    def set_aside(self) -> list[Tensor]:
        """Take what the loop has loaded into the pool's parameters out again; a step of the pool's own is none."""
        self._drop_failed_step()
        taken = [parameter.detach().clone() for parameter in self._pool]
        self._engine.apply_rounds()
        self._engine.pool.write(self._engine.anchors())
        self._outside.remember()
        self._passes.take()
        self._unweighed = False
        return taken

    def finish(self) -> None:
        """The loop has ended: what the LoRA holds beyond its last weight is training, too.

        Raises:
            ConfigError: in gradient mode, in which nobody else than an optimizer may change it.
        """
        self._drop_failed_step()
        self._unweighed = self._unweighed or self._outside.seen(closely=True)
        if not self._unweighed:
            return
        if self._engine.settings.mode is Mode.GRADIENT:
            raise ConfigError([OUTSIDE])
        if self._passes.reached:
            self._count_own_step()
        if self._unweighed or not self._weighed.tokens:
            self._engine.ship_rest(self._weighed.tokens or 1)

    # --- forward and backward -----------------------------------------------------------------------------

    def _before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if os.getpid() != self._process:
            return  # a forked child, which has none of our threads
        if not self._own_closure:
            self._drop_failed_step()
        if self._is_training():
            refuse_ddp(self._engine.inside)
            self._seen = True
            # Where a replica has several workers, applying takes them all, and a step is the place where all are.
            if self._step is Step.NONE and self._engine.inside.workers == 1 and not in_backward():
                self._look_for_outside_writes()
                if not self._passes.any:
                    self._apply_rounds()
            self._passes.begin(self._weigher.weigh(args, kwargs))

    def _after_forward(self, _args: tuple[Any, ...], output: Any) -> None:
        if os.getpid() == self._process and self._is_training():
            self._passes.end(output)

    def _is_training(self) -> bool:
        """Whether a pass may reach the pool; where another adapter is active, PEFT has frozen the pool's.

        Not model.training: from_pretrained gives a model in evaluation mode, and nothing says that a loop must
        change that.
        """
        return torch.is_grad_enabled() and any(each.requires_grad for each in self._pool)

    def _gradient_has_come(self, _parameter: Tensor) -> None:
        self._arrived = True

    def _look_for_outside_writes(self) -> None:
        """An update that the loop has made itself is a step, in local mode; other values wait for the next one."""
        thrown_away = self._passes.thrown_away()
        # In local mode values are shipped, whoever wrote them. In gradient mode a round would write over them.
        gradient = self._engine.settings.mode is Mode.GRADIENT
        if self._outside.seen(closely=thrown_away or gradient):
            if gradient:
                raise ConfigError([OUTSIDE])
            self._unweighed = True
            if self._passes.reached:
                self._count_own_step()
            self._outside.remember()
        elif thrown_away:
            self._passes.forget()
            self._arrived = False

    def _count_own_step(self) -> None:
        self._whole = self._weigh()
        if self._whole.tokens:
            self._engine.open_step()
            self._close_step(self._engine.progress.lr)

    # --- the optimizer's step -----------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
        if os.getpid() != self._process:
            return
        self._outside_pool.refuse(optimizer)
        if not self._held.concerns(optimizer):
            return
        if in_backward():
            raise ConfigError([IN_BACKWARD])
        self._drop_failed_step()
        if overflowed(optimizer):
            self._passes.forget()
            self._arrived = False
            return
        self._own_closure = any(callable(each) for each in (*args[1:], *kwargs.values()))
        gradient = self._engine.settings.mode is Mode.GRADIENT
        if self._own_closure and gradient:
            raise ConfigError([CLOSURE])
        if not (self._own_closure or self._held.gradients(optimizer)):
            return  # it moves nothing of ours
        self._outside_pool.refuse_scaling()
        refuse_nonsense(self._passes.newest_loss())
        step = Step.OPEN if self._own_closure else self._kind_of_step(optimizer)
        if gradient:
            self._take_gradients(optimizer, step)
        else:
            self._open(optimizer, step)

    def _kind_of_step(self, optimizer: Optimizer) -> Step:
        """Whether what has been seen is the weight of this step.

        Raises:
            ConfigError: there is none, and never was.
        """
        gradient = self._engine.settings.mode is Mode.GRADIENT
        if self._outside.seen(
            closely=gradient
        ):  # in local mode the values themselves are shipped, whoever wrote them
            if gradient:
                raise ConfigError([OUTSIDE])
            self._unweighed = True
        self._whole = self._weigh()
        if self._whole.tokens:
            return Step.OPEN
        if not has_gradient(self._held.gradients(optimizer)):
            return Step.OPEN if self._passes.any else Step.MORE
        if not (self._seen or self._passes.any):
            raise ConfigError([UNSEEN])
        if self._passes.any or self._arrived or not self._weighed.tokens:
            raise ConfigError([NO_WEIGHT.format(why=NO_TENSOR if self._passes.any else NO_PASS)])
        return Step.MORE

    def _open(self, optimizer: Optimizer, step: Step) -> None:
        self._copies.before(optimizer, self._held.gradients(optimizer))
        self._engine.prepare(optimizer)
        self._engine.open_step()
        self._step = step
        if self._frozen is not None:
            self._frozen.save(optimizer)

    def _take_gradients(self, optimizer: Optimizer, step: Step) -> None:
        if not self._engine.equipped:
            self._engine.equip(like(optimizer, self._engine.pool.spans()))
        unscale(optimizer, self._pool)
        if step is Step.OPEN:
            with self._engine.collecting(self._whole.tokens, self._held.lr(optimizer)):
                pass
        for parameter in self._pool:
            parameter.grad = None
        self._step = Step.TAKEN if step is Step.OPEN else Step.NONE

    def _after_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
        if self._step is Step.NONE or not self._held.concerns(optimizer):
            return
        step, lr = self._step, self._held.lr(optimizer)
        self._copies.after(optimizer)
        if step is not Step.TAKEN and self._frozen is not None:
            self._frozen.restore(optimizer)
        if step is Step.MORE:
            self._drop_failed_step()
            self._unweighed = True
            self._apply_rounds()
            return
        if self._own_closure:  # its forward passes were part of the step
            self._whole = self._weigh()
        self._close_step(lr, open=step is Step.OPEN)
        self._apply_rounds()

    def _close_step(self, lr: float, open: bool = True) -> None:
        """The step is complete: it enters the buffer with its weight, and the hub hears of it."""
        every, done, moved = self._whole, self._trained, self._outside.seen(closely=False)
        self._step, self._own_closure, self._arrived = Step.NONE, False, False
        self._passes.take()
        if open:
            self._engine.close_step(every.tokens, lr)
        if every.tokens:
            self._weighed, self._unweighed = every, False
        elif moved and not self._seen:
            raise ConfigError([UNSEEN])
        elif moved and not self._weighed.tokens:
            raise ConfigError([NO_WEIGHT.format(why=NO_TENSOR)])
        self._engine.report(every.samples, every.tokens, done.seconds(), every.loss, lr, every.worked)

    def _apply_rounds(self) -> None:
        with self._copies.following():
            self._engine.apply_rounds()
        self._outside.remember()

    def _weigh(self) -> Whole:
        """The step of the whole replica, of the passes that count so far."""
        self._trained = done = self._passes.trained()
        return whole(self._engine.inside, done.tokens, done.samples, done.loss, done.worked)

    def _drop_failed_step(self) -> None:
        """torch calls no hook when a step raises, so that the buffer's lock may still be ours: give it back."""
        if self._step in (Step.OPEN, Step.MORE):
            self._engine.drop_step()
        elif self._step is Step.TAKEN:
            self._passes.take()
        self._step, self._own_closure = Step.NONE, False
