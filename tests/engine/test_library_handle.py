"""What a loop can ask of its handle: figures, rounds, means over the replicas, and to stop everybody."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from tests.library import JOIN_S, LOCK_STEP, Pair, batch, config, digest, pooled_model, session_of_one, train, trained
from tests.support import await_true
from tsugi_kpool import (
    ConfigError,
    FleetAdamW,
    KPoolCallback,
    PlesioHandle,
    PoolFigures,
    TrainingError,
    plesio_init,
    plesio_shutdown,
)
from tsugi_kpool.library import waiting
from tsugi_kpool.world import World

two_threads = pytest.mark.usefixtures("hooks_of_two_threads")


def step(model, seed: int = 0) -> None:
    ids = batch(seed)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()


@two_threads
def test_figures_means_and_a_stop_for_all(tmp_path):
    pair = Pair(tmp_path / "keys", config())
    seen: dict[int, list] = {0: [], 1: []}

    def body(model, handle) -> None:
        mine = handle.replica
        assert repr(handle).startswith(f"<PlesioHandle replica {mine} of 2, training: 0 steps")
        train(model, 6, seed=mine)
        handle.wait(1, JOIN_S)
        figures = handle.figures()
        assert (figures.steps, figures.tokens, figures.members) == (6, 6 * 22, (0, 1))
        assert 0 <= figures.committed <= figures.tokens
        assert (figures.version >= 1, figures.round >= 1, figures.reason != "") == (True, True, True)
        assert figures.lag_steps is not None
        seen[mine].append(handle.reduce({"loss": 1.0 + 2 * mine, "rows": 7}))
        seen[mine].append(handle.reduce({"loss": torch.tensor(4.0 * mine)}, weight=3.0 if mine else 1.0))
        seen[mine].append(handle.reduce({"bad": math.nan if mine else 1.0, f"only{mine}": 5}))
        if mine == 0:
            handle.stop("enough")
        await_true(lambda: handle.stopping, "the stop", JOIN_S)
        assert "stopping" in repr(handle)

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])
    assert "closed" in repr(pair.handles[0])
    assert seen[0][:2] == seen[1][:2] == [{"loss": 2.0, "rows": 7.0}, {"loss": 3.0}]
    assert math.isnan(seen[0][2]["bad"])
    assert (seen[0][2]["only0"], seen[1][2]["only1"]) == (5.0, 5.0)


@two_threads
def test_its_optimizer_is_for_as_many_replicas_as_take_part(tmp_path):
    pair = Pair(tmp_path / "keys", config())
    found = []

    def body(model, handle) -> None:
        optimizer = handle.optimizer(trained(model), lr=1e-2)
        found.append((type(optimizer), optimizer.param_groups[0]["replicas"]))
        optimizer.follow(7)
        model(input_ids=batch(0), labels=batch(0)).loss.backward()
        optimizer.step()
        found.append(optimizer.param_groups[0]["replicas"])

    assert pair.run(body, body) == [None, None]
    assert sorted(map(str, found)) == sorted(map(str, [(FleetAdamW, 2), 2] * 2))


@two_threads
@pytest.mark.parametrize("settings", [config(**LOCK_STEP), config(select_at="train")])
def test_where_nothing_is_averaged_its_optimizer_is_adamw(tmp_path, settings):
    pair = Pair(tmp_path / "keys", settings)

    def body(model, handle) -> None:
        optimizer = handle.optimizer([{"params": trained(model), "lr": 1e-2}], weight_decay=0.0)
        assert type(optimizer) is torch.optim.AdamW
        assert optimizer.param_groups[0]["lr"] == 1e-2
        model(input_ids=batch(0), labels=batch(0)).loss.backward()
        optimizer.step()

    assert pair.run(body, body) == [None, None]


@two_threads
def test_who_has_closed_is_not_waited_for(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    def second(model, handle) -> None:
        train(model, 1, seed=1)
        assert handle.reduce({"loss": 2.0}, timeout_s=JOIN_S) == {"loss": 2.0}

    assert pair.run(lambda model, handle: train(model, 1), second) == [None, None]


def test_alone_there_is_nothing_to_wait_for():
    model = pooled_model(config())
    with plesio_init(model, config()) as handle:
        assert type(handle.optimizer(trained(model))) is torch.optim.AdamW
        train(model, 2)
        handle.wait(99)
        handle.count(5)
        assert handle.reduce({"loss": 2.0}, weight=4) == {"loss": 2.0}
        assert handle.figures() == PoolFigures(members=(0,))
        assert not handle.stopping
        handle.stop()
        assert handle.stopping
        assert "replica 0 of 1, stopping" in repr(handle)


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda handle: handle.reduce([1.0]), "metrics must be a mapping"),
        (lambda handle: handle.reduce({"loss": "low"}), "a metric has a name .* found 'loss': 'low'"),
        (lambda handle: handle.reduce({3: 1.0}), "a metric has a name"),
        (lambda handle: handle.reduce({str(n): 1.0 for n in range(31)}), "at most 30 metrics"),
        (lambda handle: handle.reduce({"loss": 1.0}, weight=-1), "weight must be a number of at least 0"),
        (lambda handle: handle.close("soon"), "timeout_s must be seconds, at least 0, found 'soon'"),
        (lambda handle: handle.close(-1), "timeout_s must be seconds"),
        (lambda handle: plesio_shutdown(3), "in no pool"),
        (lambda handle: plesio_init(handle._model, config(), keys=3), "keys must be the path of a file, found 3"),
    ],
)
def test_wrong_types_are_answered_as_wrong_values_are(ask, text):
    model = pooled_model(config())
    handle = plesio_init(model, config())
    if "keys" in text:
        handle.close()
    with pytest.raises(ConfigError, match=text):
        ask(handle)
    handle.close()


@two_threads
def test_the_exact_loop_says_which_setting_it_wants(tmp_path, monkeypatch):
    """With the default min_steps every replica waits after its first step for a round that takes two."""
    monkeypatch.setattr(waiting, "ASK_S", 0.3)
    pair = Pair(tmp_path / "keys", config(**{**LOCK_STEP, "min_steps": 2, "count": 2}))

    def body(model, handle) -> None:
        step(model, handle.replica)
        with pytest.raises(ConfigError, match=r"takes 2 steps of each replica, of which this one has made 1;"):
            handle.wait(1)
        with pytest.raises(TrainingError, match=r"version 7 has not come within 0\.1 s"):
            handle.wait(7, 0.1)

    assert pair.run(body, body) == [None, None]


def test_a_forked_child_has_no_part_in_the_pool(tmp_path):
    """Neither its steps nor its exit handlers: the threads and sockets that they would need are its parent's."""
    settings = config()
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        handle = PlesioHandle(model, World(), session)
        train(model, 2)
        child = os.fork()
        if child == 0:
            try:
                step(model)
                handle.close()
                handle.abandon("child")
                handle._at_exit()
                os._exit(0 if session.engine.progress.steps == 2 else 3)
            finally:
                os._exit(1)
        ended: list[int] = []
        await_true(lambda: ended or ended.extend(each for each in os.waitpid(child, os.WNOHANG) if each), "the child")
        assert ended == [child], "and it has ended with 0"
        train(model, 2)
        assert session.engine.progress.steps == 4
        handle._detach()


@two_threads
@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize("greater", [True, False])
def test_the_best_of_a_trainers_checkpoints_is_what_its_model_holds(tmp_path, mode, greater):
    """As transformers' load_best_model_at_end does: it loads it before it says that training has ended."""
    settings = config(mode=mode)
    models = [pooled_model(settings) for _ in range(2)]
    metrics, callbacks = (0.5, 0.7), {}
    best = [[torch.full_like(parameter, 1.0 + number) for parameter in trained(models[0])] for number in range(2)]
    arguments = SimpleNamespace(max_grad_norm=0.0, load_best_model_at_end=True, greater_is_better=greater)

    def replica(number: int) -> None:
        pool = KPoolCallback(settings, replica=number, replicas=2, keys=tmp_path / "keys")
        pool.on_train_begin(arguments, None, None, model=models[number])
        train(models[number], 5, seed=number)
        with torch.no_grad():
            for parameter, values in zip(trained(models[number]), best[number], strict=True):
                parameter.copy_(values)
        pool.on_train_end(arguments, SimpleNamespace(best_metric=metrics[number]), None)
        callbacks[number] = pool

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(replica, range(2), timeout=JOIN_S))
    for number, model in enumerate(models):
        assert all(map(torch.equal, trained(model), best[number]))
        assert callbacks[number].best == (1 if greater else 0)
        assert callbacks[number].handle.closed
