"""Closing waits for whoever trains, and for nobody else: each of its waits ends, and says why."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.library import JOIN_S, Pair, config, our_threads, pooled_model, session_of_one, train, trained
from tests.support import await_true
from tsugi_kpool.core.hub import refusals
from tsugi_kpool.core.replica import closing
from tsugi_kpool.errors import TrainingError
from tsugi_kpool.library import patience


def test_the_hub_hears_of_no_negative_duration(tmp_path):
    """A step that waits for the buffer's lock longer than it takes itself."""
    settings = config()
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        session.engine.buffer._waited_s = 5.0
        session.engine.report(1, 22, 0.001, 1.0, 0.1)
        assert (session.engine.progress.busy_s, session.engine.progress.step_s) == (0.0, 0.0)


def test_a_replica_that_is_not_heard_says_so_and_does_not_wait_for_ever(tmp_path, monkeypatch, caplog):
    """As any beat was whose duration was negative: the hub refuses all of them, and never hears of the end."""
    monkeypatch.setattr(closing, "REFUSED_S", 0.0)
    monkeypatch.setattr(patience, "LOOK_S", 0.05)
    monkeypatch.setattr(refusals, "NOTICE_EVERY_S", 0.1)
    settings = config()
    model = pooled_model(settings)
    with pytest.raises(TrainingError, match=r"does not take in what this replica says, Beat \(range\)"):
        close_unheard(tmp_path / "keys", model, settings)
    assert caplog.text.count("the hub does not take in what replica 0 says: Beat (range)") == 1
    assert our_threads() == []


def close_unheard(keys, model, settings) -> None:
    with session_of_one(keys, model, settings) as session:
        train(model, 2)
        session.engine.progress.busy_s = -1e6
        await_true(lambda: session._link.not_taken, "the hub's notice")
        assert session.status().refused_of[0].endswith("Beat of replica 0 (range)")
        session._link.not_taken = None


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_a_deadline_of_the_users_names_who_is_waited_for(tmp_path):
    pair = Pair(tmp_path / "keys", config())
    given_up = threading.Event()

    def first(model, handle) -> None:
        train(model, 2)
        try:
            with pytest.raises(TrainingError, match=r"within 0\.5 s: replica 1 \(.*\) is training at step"):
                handle.close(0.5)
        finally:
            given_up.set()

    def second(model, handle) -> None:
        while not given_up.wait(0.01):
            train(model, 1, seed=1)
        await_true(lambda: raises(lambda: train(model, 1, seed=1)), "the end of the run", JOIN_S)

    assert pair.run(first, second)[0] is None


def raises(act) -> bool:
    try:
        act()
    except TrainingError:
        return True
    return False


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_every_loop_that_hung_the_fleet_ends(tmp_path):
    """Steps without a forward pass since the last one, each the last thing before closing, and others behind them."""
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
        train(model, 4, seed=handle.replica)
        for parameter in trained(model):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.step()

    assert pair.run(body, body) == [None, None]
