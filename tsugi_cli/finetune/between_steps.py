"""Evaluation while training: a copy of the anchors is measured, one batch after each step, by one replica."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from tsugi_kpool.core.evaluation import stage_of
from tsugi_kpool.core.messages import Evaluated
from tsugi_kpool.engine.anchor_copy import Version
from tsugi_kpool.engine.follower import Engine

from .evaluate import Evaluator
from .reference import evaluating
from .tokens import Batch


class BetweenSteps:
    """Goes on with the evaluation of a version whenever it is asked to; in between the replica trains.

    The live parameters stay as they are: the aggregator reads them at any moment. Workers of the replica other than
    0 do nothing here.

    Args:
        model: The PEFT model that trains, not spread over workers.
        engine: The replica's.
        evaluator: Has the eval split.
        replica: Our number.
    """

    def __init__(self, model: nn.Module, engine: Engine, evaluator: Evaluator, replica: int) -> None:
        self._model, self._engine, self._evaluator, self._replica = model, engine, evaluator, replica
        self._under_way: Iterator[Evaluated | None] | None = None

    def look(self) -> None:
        """Measure the next batch of the version that was given to us, if one was."""
        given = self._engine.to_evaluate()
        if given is not None:  # whatever is under way was given to another meanwhile
            self._under_way = self._measure(given)
        if self._under_way is None:
            return
        self._engine.progress.pause("evaluating")
        measured = next(self._under_way)
        self._engine.progress.go_on()
        if measured is not None:
            self._under_way = None
            self._engine.version_evaluated(measured)

    def _measure(self, given: Version) -> Iterator[Evaluated | None]:
        """Yield None after each batch but the last, then what the version measures."""
        on_copy, sums = OnCopy(self._model, self._values(given)), dict[str, float]()
        batches: list[Batch] = self._evaluator.whole()
        for number, batch in enumerate(batches):
            with evaluating(self._model):
                self._evaluator.objective.measure(sums, on_copy, batch)
            if number < len(batches) - 1:
                yield None
        yield Evaluated(0, self._replica, "", stage_of(given.number), sums, ())

    def _values(self, given: Version) -> dict[str, Tensor]:
        pool = self._engine.pool
        by_id = dict(zip(map(id, pool.parameters()), pool.tensors(given.anchor), strict=True))
        named = self._model.named_parameters(remove_duplicate=False)
        return {name: by_id[id(parameter)] for name, parameter in named if id(parameter) in by_id}


class OnCopy:
    """The model as if its trained parameters had other values; they keep their own."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        self._model, self._values = model, values

    def __call__(self, **inputs: Any) -> Any:
        return functional_call(self._model, self._values, kwargs=inputs)
