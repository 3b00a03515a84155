"""Gradient mode through the library: the user's own optimizer and loop, the fleet's steps."""

from __future__ import annotations

import time

import pytest
import torch

from tests.library import (
    JOIN_S,
    LOCK_STEP,
    Pair,
    batch,
    config,
    digest,
    hooks_of,
    our_threads,
    pooled_model,
    train,
    trained,
)
from tsugi_kpool import ConfigError, FleetAdamW, TsugiError
from tsugi_kpool.errors import TrainingError

pytestmark = pytest.mark.usefixtures("hooks_of_two_threads")


def gradient(**changes):
    return config(mode="gradient", **changes)


def backward(model, seed: int = 0, labels: torch.Tensor | None = None) -> None:
    ids = batch(seed)
    model(input_ids=ids, labels=ids if labels is None else labels).loss.backward()


def wait_for(handle, version: int) -> None:
    deadline_s = time.monotonic() + JOIN_S
    while handle.version < version:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.mark.parametrize("changes", [{}, {"payload": "int4", "overlap": False}, {"max_staleness": 2}])
def test_replicas_end_on_one_adapter(tmp_path, changes):
    pair = Pair(tmp_path / "keys", gradient(**changes))
    before = digest(pair.models[0])
    errors = pair.run(
        lambda model, handle: train(model, 12, seed=0),
        lambda model, handle: train(model, 25, seed=1),
    )
    assert errors == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1]) != before
    assert pair.handles[0].version == pair.handles[1].version >= 1
    for replica, steps in enumerate((12, 25)):
        ledger = pair.engine(replica).buffer.ledger
        assert ledger.produced == [steps * 22] * 4
        assert [c + d for c, d in zip(ledger.committed, ledger.discarded, strict=True)] == ledger.produced
        assert pair.engine(replica).progress.tokens == steps * 22
    assert [hooks_of(model) for model in pair.models] == [0, 0]
    assert our_threads() == []


def test_the_users_optimizer_steps_nothing_of_the_pool(tmp_path):
    """But it steps what else it holds, and the pool's gradients are None, not zeros."""
    pair = Pair(tmp_path / "keys", gradient(trigger="count", count=9))

    def body(model, handle) -> None:
        other = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([{"params": trained(model)}, {"params": [other], "lr": 0.5}], lr=1e-2)
        before = [parameter.detach().clone() for parameter in trained(model)]
        backward(model)
        other.grad = torch.ones(3)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, trained(model), strict=True))
        assert all(parameter.grad is None for parameter in trained(model))
        assert set(optimizer.state) == {other}
        assert (other < 1).all()

    assert pair.run(body, body) == [None, None]


def test_a_round_is_the_users_optimizers_step(tmp_path):
    """One step each, K=N, fp32, nothing in flight meanwhile: SGD with momentum on the union."""
    pair = Pair(tmp_path / "keys", config(**LOCK_STEP))
    alone = pooled_model(config())

    def body(model, handle) -> None:
        optimizer = torch.optim.SGD(trained(model), lr=0.2, momentum=0.9, weight_decay=0.1)
        for step in range(5):
            backward(model, 100 * handle.replica + step)
            for group in optimizer.param_groups:
                group["lr"] = 0.2 / (step + 1)
            optimizer.step()
            wait_for(handle, step + 1)

    assert pair.run(body, body) == [None, None]
    optimizer = torch.optim.SGD(trained(alone), lr=0.2, momentum=0.9, weight_decay=0.1)
    for step in range(5):
        for replica in range(2):
            ids = batch(100 * replica + step)
            (alone(input_ids=ids, labels=ids).loss / 2).backward()
        optimizer.param_groups[0]["lr"] = 0.2 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
    for ours, plain in zip(trained(pair.models[0]), trained(alone), strict=True):
        assert float((ours - plain).detach().norm() / plain.detach().norm()) < 1e-6


def test_no_round_fires_before_everybody_has_an_optimizer(tmp_path):
    """One replica is far ahead before the other has made its own; nothing is lost."""
    pair = Pair(tmp_path / "keys", gradient())

    def slow(model, handle) -> None:
        deadline_s = time.monotonic() + JOIN_S
        while pair.handles[0] is None or pair.engine(0).progress.steps < 30:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert handle.version == 0
        train(model, 3, seed=1)

    assert pair.run(lambda model, handle: train(model, 30), slow) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])


def test_a_replica_that_never_steps_says_so(tmp_path):
    pair = Pair(tmp_path / "keys", gradient())
    errors = pair.run(lambda model, handle: None, lambda model, handle: train(model, 3))
    assert isinstance(errors[0], ConfigError)
    assert "no optimizer has stepped the pool in this process" in str(errors[0])
    assert "replica 0: ConfigError" in str(errors[1])


class Fussy(torch.optim.SGD):
    """Cannot be made of parameters and settings."""

    def __init__(self, params, secret):
        super().__init__(params, lr=secret)


def groups_of(parameters) -> list[dict]:
    """As LoRA+ has them, B faster than A, and one matrix that decays."""
    a, b = parameters[0::2], parameters[1::2]
    return [{"params": a, "weight_decay": 0.0}, {"params": b[1:], "lr": 0.2}, {"params": b[:1], "weight_decay": 0.5}]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizers_groups_keep_their_settings(tmp_path, kind):
    """A step of two replicas is one step on the union, with every group's own rate and decay."""
    pair = Pair(tmp_path / "keys", config(**LOCK_STEP))
    alone = pooled_model(config())

    def body(model, handle) -> None:
        optimizer = kind(groups_of(trained(model)), lr=0.05)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        for step in range(4):
            backward(model, 100 * handle.replica + step)
            optimizer.step()
            schedule.step()
            handle.wait(step + 1, JOIN_S)

    assert pair.run(body, body) == [None, None]
    optimizer = kind(groups_of(trained(alone)), lr=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for step in range(4):
        for replica in range(2):
            ids = batch(100 * replica + step)
            (alone(input_ids=ids, labels=ids).loss / 2).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for ours, plain in zip(trained(pair.models[0]), trained(alone), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda model: torch.optim.LBFGS(trained(model)), "LBFGS cannot be the optimizer of gradient mode"),
        (lambda model: Fussy(trained(model), 0.1), "Fussy cannot be the optimizer of gradient mode"),
        (lambda model: FleetAdamW(trained(model), replicas=2), "not FleetAdamW"),
        (lambda model: torch.optim.AdamW(trained(model)[2:]), "AdamW lacks some of it"),
    ],
    ids=["lbfgs", "fussy", "fleet", "part"],
)
def test_an_optimizer_that_will_not_do_is_refused_at_its_first_step(tmp_path, make, text):
    pair = Pair(tmp_path / "keys", gradient())

    def refused(model, handle) -> None:
        backward(model)
        make(model).step(None)

    errors = pair.run(refused, lambda model, handle: train(model, 2))
    assert isinstance(errors[0], ConfigError)
    assert text in str(errors[0])
    assert isinstance(errors[1], TsugiError)


def test_a_closure_is_refused(tmp_path):
    pair = Pair(tmp_path / "keys", gradient())

    def body(model, handle) -> None:
        backward(model)
        with pytest.raises(ConfigError, match="without a closure"):
            torch.optim.AdamW(trained(model)).step(lambda: backward(model))
        train(model, 2)

    assert pair.run(body, body) == [None, None]


def test_the_mean_gradient_of_a_round_is_clipped(tmp_path):
    """SGD at rate 1 moves by the gradient itself: never further than the limit in one round."""
    pair = Pair(tmp_path / "keys", config(**LOCK_STEP, grad_clip=0.01))
    moved: list[float] = []

    def body(model, handle) -> None:
        optimizer = torch.optim.SGD(trained(model), lr=1.0)
        backward(model, handle.replica)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained(model)])
        assert norm > 0.1
        before = pair.engine(handle.replica).pool.read(range(4))
        optimizer.step()
        wait_for(handle, 1)
        with torch.enable_grad():
            model(input_ids=batch(0))  # applies the round
        moved.append(float((pair.engine(handle.replica).pool.read(range(4)) - before).norm()))

    assert pair.run(body, body) == [None, None]
    assert moved == [pytest.approx(0.01, rel=1e-3)] * 2


@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_a_gradient_scaler_skips_counts_for_nothing(tmp_path, mode, fused):
    """Half precision on a GPU: gradients overflow now and then, and are unscaled before they count."""
    pair = Pair(tmp_path / "keys", config(mode=mode, payload="fp32"))

    def body(model, handle) -> None:
        optimizer = torch.optim.SGD(trained(model), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for overflows in (False, True, False):
            ids = batch(handle.replica)
            loss = model(input_ids=ids, labels=ids).loss
            scaler.scale(loss).backward()
            if overflows:
                trained(model)[3].grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])
    assert all(torch.isfinite(parameter).all() for parameter in trained(pair.models[0]))
    for replica in range(2):
        ledger = pair.engine(replica).buffer.ledger
        assert ledger.produced == [2 * 22] * 4
    largest = max(float(parameter.detach().abs().max()) for parameter in trained(pair.models[0]))
    assert largest < 1.0, "a gradient that was not unscaled would have moved it by hundreds"


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_a_loss_that_is_no_number_stops_the_replica(tmp_path, mode):
    pair = Pair(tmp_path / "keys", config(mode=mode))

    def poisoned(model, handle) -> None:
        train(model, 2)
        backward(model, labels=torch.full_like(batch(0), -100))
        torch.optim.AdamW(trained(model)).step()

    errors = pair.run(poisoned, lambda model, handle: train(model, 3000))
    assert isinstance(errors[0], TrainingError)
    assert "the loss is nan" in str(errors[0])
    assert "the loss is nan" in str(errors[1])
    assert all(torch.isfinite(parameter).all() for parameter in trained(pair.models[1]))
