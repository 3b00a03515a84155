"""Runs of `tsugi finetune` in this process: hub, checkpoints and replicas as threads, so that a test sees inside."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
import torch

from tests.support import await_true
from tsugi_cli.finetune import story
from tsugi_cli.finetune.objectives import Objective
from tsugi_cli.launch.checkpointing import Checkpoints
from tsugi_cli.launch.hub import serve
from tsugi_cli.launch.request import RunRequest
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.sideband.hub.server import HubServer

WAIT_S = 100.0
QUIET = (
    "model=tiny",
    "data.n_train=64",
    "data.n_eval=2",
    "data.n_test=0",
    "data.scorer=null",
    "evaluate.examples=0",
    "train.micro_batch=2",
)
ALONE = (*QUIET, "topology.replicas=1", "topology.min_replicas=1")
TURN_S = 0.01


class Stopped(Exception):
    """Raised in a replica's thread: it dies there."""


@contextlib.contextmanager
def steps_call(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Iterator[None]:
    """Inside the block every micro-batch begins with `act(its number in this process)`."""
    with monkeypatch.context() as patch:
        patch.setattr(story, "objective_of", lambda *of, made=story.objective_of: _Counted(made(*of), act))
        yield


@contextlib.contextmanager
def _begun(monkeypatch: pytest.MonkeyPatch, engines: list[KPoolEngine]) -> Iterator[None]:
    """Inside the block every engine that begins is added to the list."""
    original = KPoolEngine.start

    def start(engine: KPoolEngine, *words, **more) -> None:
        engines.append(engine)
        original(engine, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(KPoolEngine, "start", start)
        yield


class _Counted:
    """An objective whose losses are counted where something learns from them."""

    def __init__(self, objective: Objective, act: Callable[[int], None]) -> None:
        self._objective, self._act, self._count = objective, act, 0
        self.measure = objective.measure

    def loss(self, forward, batch):
        if forward.training and torch.is_grad_enabled():
            self._count += 1
            self._act(self._count)
        return self._objective.loss(forward, batch)


def run(
    words: Sequence[str],
    cwd: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int | None = None,
    dies: Callable[[int], bool] = lambda number: False,
    turn: Callable[[Checkpoints, HubServer], None] = lambda checkpoints, hub: None,
    prepare: Callable[[RunPaths], None] = lambda paths: None,
) -> RunPaths:
    """One replica trains to the end, until it is told to stop at a step, or dies in one.

    Told to stop it begins no step after the next one, however late a busy machine passes the word on.
    """
    request = RunRequest.read([*words, f"runs_dir={cwd / 'runs'}"])
    paths = request.settle(datetime.now())
    prepare(paths)
    plan, recorder = request.plan(paths), Recorder(paths)
    checkpoints = Checkpoints(request, paths, plan.hub, recorder.tell)
    serving = serve(request.spec, paths, plan.hub, checkpoints.tell)
    hub = serving.hub
    errors: list[BaseException] = []
    engines: list[KPoolEngine] = []

    def act(number: int) -> None:
        if number == stop_at:
            hub.interrupt()
        if stop_at is not None and number > stop_at:
            await_true(lambda: engines[-1].draining, "the word to stop", WAIT_S)
        if dies(number):
            raise Stopped

    def replica() -> None:
        try:
            story.finetune(request.spec, paths, 0)
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    thread = threading.Thread(target=replica, daemon=True)
    with steps_call(monkeypatch, act), _begun(monkeypatch, engines):
        thread.start()
        deadline_s = time.monotonic() + WAIT_S
        while thread.is_alive() and time.monotonic() < deadline_s:
            checkpoints.turn(hub.save)
            turn(checkpoints, hub)
            time.sleep(TURN_S)
    serving.stop()
    checkpoints.close()
    recorder.close()
    assert not thread.is_alive(), "not in time"
    if errors and not isinstance(errors[0], Stopped):
        raise errors[0]
    return paths
