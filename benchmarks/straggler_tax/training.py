"""What the rounds of the synchronous arms do to a real model: losses at equal data order, without a clock.

The same rounds give the same losses whatever they take, so that scenarios share them (`Course` remembers).
"""

from __future__ import annotations

from collections.abc import Sequence

from clocks import Round
from lab import Lab
from steps import Rule, one_step

from tsugi_cli.config.spec import RunSpec


class Course:
    """Losses after rounds of one seed and learning rate. Equal rounds are trained once."""

    def __init__(self, spec: RunSpec, lab: Lab, every: int) -> None:
        self._spec, self._lab, self._every = spec, lab, every
        self._known: dict[tuple[Rule, tuple[tuple[int, ...], ...]], dict[int, float]] = {}

    def losses(self, rule: Rule, rounds: Sequence[Round]) -> dict[int, float]:
        """Eval loss by samples trained on: at the first round's end after each `every` samples, and at the end."""
        totals = tuple((sum(each.counts),) for each in rounds)
        counts = totals if rule is one_step else tuple(each.counts for each in rounds)
        if (rule, counts) not in self._known:
            self._known[rule, counts] = self._train(rule, counts)
        return self._known[rule, counts]

    def _train(self, rule: Rule, rounds: Sequence[tuple[int, ...]]) -> dict[int, float]:
        losses, done, due = {}, 0, self._every
        for counts, model in zip(rounds, rule(self._spec, self._lab, rounds), strict=True):
            done += sum(counts)
            if done >= due or done == self._lab.batches.total:
                losses[done] = self._lab.loss(model)
                due = done + self._every
        return losses
