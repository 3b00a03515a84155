"""The request for `tsugi bench`: from the words on the command line to a checked benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tsugi_cli.bench.spec import Bench, read, split
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.launch.request import RunRequest
from tsugi_kpool.errors import ConfigError

from . import plan
from .folder import Folder, newest
from .plan import Arm, Run

T = TypeVar("T")
RESUME = "resume="


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that is checked and not begun."""

    bench: Bench
    base: tuple[str, ...]
    """Overrides that all its runs share."""
    tokens: tuple[str, ...]
    """The benchmark's own tokens, as typed."""
    spec: RunSpec
    """The settings of the base alone."""

    @staticmethod
    def read(tokens: Sequence[str]) -> Benchmark:
        """Read what a user has typed.

        Raises:
            ConfigError: with all mistakes, those of single arms included.
            DataError: the data cannot be trained on.
        """
        own, base = split(tokens)
        problems: list[str] = []
        bench, spec = _or_problems(partial(read, own), problems), _or_problems(partial(compose, base), problems)
        if bench is None or spec is None:
            raise ConfigError(problems)
        if spec.topology.replicas < 2:
            problems.append("topology.replicas must be at least 2 in a benchmark: one replica waits for nobody")
        if spec.topology.workers > 1:
            problems.append("topology.workers must be 1 in a benchmark: every replica is one process")
        given = {"train.neftune": spec.train.neftune, "train.label_smoothing": spec.train.label_smoothing}
        problems += [
            f"{key} must be 0 in a benchmark: only K-Pool's runs would have it" for key in given if given[key]
        ]
        if spec.evaluate.metric is not None:
            problems.append("evaluate.metric must be null in a benchmark, which compares losses")
        if spec.train.objective != "sft":
            problems.append("train.objective must be sft in a benchmark: only K-Pool's runs would have another")
        found = Benchmark(bench, tuple(base), tuple(own), spec)
        for arm in found.arms if not problems else ():
            _or_problems(partial(RunRequest.read, found.overrides(Run(arm, 1.0, bench.seeds[0])), True), problems)
        if problems:
            raise ConfigError(problems)
        return found

    @property
    def replicas(self) -> int:
        return self.spec.topology.replicas

    @property
    def arms(self) -> list[Arm]:
        return plan.arms(self.bench, self.replicas)

    def overrides(self, run: Run) -> list[str]:
        """Return the overrides of `tsugi finetune` for a run."""
        return plan.overrides(self.bench, self.base, self.spec.train.lr, run, self.replicas)

    def predicted_s(self, run: Run) -> float:
        """Return the predicted seconds of its training."""
        return plan.training_s(self.bench, run, self.replicas)


def asked(tokens: Sequence[str]) -> tuple[Folder | None, Benchmark]:
    """Return (the directory of a benchmark to resume, or None; the benchmark). No data are made."""
    resume = [token for token in tokens if token.startswith(RESUME)]
    if not resume:
        return None, Benchmark.read(tokens)
    places = [token for token in tokens if token.startswith("runs_dir=")]
    for token in tokens:
        if token not in resume and token not in places:
            raise ConfigError([f"{token}: a benchmark that goes on keeps its settings"])
    where = resume[-1].removeprefix(RESUME)
    runs_dir = Path(places[-1].partition("=")[2] if places else "runs")
    folder = newest(runs_dir) if where == "last" else Folder(Path(where).resolve())
    base, own = folder.read_request()
    return folder, Benchmark.read([*base, *own])


def _or_problems(make_it: Callable[[], T], problems: list[str]) -> T | None:
    """Return what the call makes, or None after noting its mistakes once."""
    try:
        return make_it()
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None
