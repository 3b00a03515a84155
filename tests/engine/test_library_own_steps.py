"""Loops that change the LoRA by other ways than one torch optimizer: what they train is kept, or refused at once."""

from __future__ import annotations

import pytest
import torch

from tests.library import Pair, batch, config, digest, pooled_model, session_of_one, trained
from tsugi_kpool import ConfigError

JOINED = {"payload": "fp32", "min_steps": 1}


def backward(model, seed: int = 0) -> None:
    ids = batch(seed)
    model(input_ids=ids, labels=ids).loss.backward()


def values(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trained(model)]


def by_hand(model, seed: int) -> None:
    backward(model, seed)
    with torch.no_grad():
        for parameter in trained(model):
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def through_data(model, seed: int) -> None:
    backward(model, seed)
    for parameter in trained(model):
        parameter.data = parameter.data - 0.1 * parameter.grad
        parameter.grad = None


def clearing_late(model, seed: int) -> None:
    ids = batch(seed)
    loss = model(input_ids=ids, labels=ids).loss
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in trained(model):
            parameter -= 0.1 * parameter.grad


def without_grad(model, seed: int) -> None:
    ids = batch(seed)
    gradients = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, trained(model))
    with torch.no_grad():
        for parameter, gradient in zip(trained(model), gradients, strict=True):
            parameter -= 0.1 * gradient


@pytest.mark.parametrize("step", [by_hand, through_data, clearing_late, without_grad])
def test_an_update_of_the_loops_own_is_trained(tmp_path, step):
    settings = config(**JOINED)
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        for number in range(4):
            step(model, number)
        expected = values(model)
        ledger = session.engine.buffer.ledger
    torch.testing.assert_close(values(model), expected, atol=1e-6, rtol=0)
    assert ledger.committed == [4 * 22] * 4, "the last of them is counted at the end"
    assert session.engine.version >= 1


def change_in_gradient_mode(keys, step) -> None:
    settings = config(mode="gradient", min_steps=1)
    model = pooled_model(settings)
    with session_of_one(keys, model, settings) as session:
        step(model, 0)
        steps = session.engine.progress.steps
        backward(model)
        pytest.fail(f"not refused, with {steps} steps")


@pytest.mark.parametrize("step", [by_hand, through_data])
def test_in_gradient_mode_it_is_refused_at_its_first_change(tmp_path, step):
    with pytest.raises(ConfigError, match="written to outside of a torch optimizer's step"):
        change_in_gradient_mode(tmp_path / "keys", step)


def test_values_that_are_loaded_at_the_end_are_shipped(tmp_path):
    """An average of the loop's own, say."""
    settings = config(**JOINED)
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings):
        backward(model)
        torch.optim.SGD(trained(model), lr=0.1).step()
        with torch.no_grad():
            for parameter in trained(model):
                parameter.copy_(torch.full_like(parameter, 0.25))
    assert all(bool((parameter == 0.25).all()) for parameter in trained(model))


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_two_optimizers_share_the_pool(tmp_path):
    """As LoRA+ has it: one for A, one for B. The second one's steps have no pass of their own."""
    pair = Pair(tmp_path / "keys", config(**JOINED))

    def body(model, handle) -> None:
        some = trained(model)
        optimizers = [torch.optim.SGD(some[0::2], lr=0.1), torch.optim.SGD(some[1::2], lr=0.4)]
        for step in range(5):
            backward(model, 10 * handle.replica + step)
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
        optimizers[0].step()  # and once more than there are gradients
        assert pair.engine(handle.replica).progress.tokens == 5 * 22

    start = values(pair.models[0])
    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])
    assert all(bool((a != b).any()) for a, b in zip(start, values(pair.models[0]), strict=True))


def test_a_step_after_the_last_one_changes_what_it_changes_in_plain_training(tmp_path):
    """An accumulation that came out even, and `optimizer.step()` behind the loop all the same."""
    settings = config(**JOINED)
    ours, plain = pooled_model(settings), pooled_model(settings)

    def loop(model) -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
        optimizer.step()

    with session_of_one(tmp_path / "keys", ours, settings):
        loop(ours)
    loop(plain)
    torch.testing.assert_close(values(ours), values(plain), atol=1e-6, rtol=0)


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation: two passes for a step, the second where the loss is worst nearby."""

    def __init__(self, parameters) -> None:
        super().__init__(list(parameters), {"lr": 0.1})
        self.inner = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def first(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.data.clone()
            parameter.add_(0.01 * torch.sign(parameter.grad))
        self.zero_grad()

    @torch.no_grad()
    def second(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data = self.state[parameter]["old"]
        self.inner.step()
        self.zero_grad()

    def step(self, closure=None) -> None:
        self.first()
        with torch.enable_grad():
            closure()
        self.second()


@pytest.mark.usefixtures("hooks_of_two_threads")
@pytest.mark.parametrize("with_closure", [False, True])
def test_sharpness_aware_minimisation_is_trained(tmp_path, with_closure):
    pair = Pair(tmp_path / "keys", config(**JOINED))

    def body(model, handle) -> None:
        optimizer = Sam(trained(model))
        for step in range(4):
            seed = 10 * handle.replica + step
            backward(model, seed)
            if with_closure:
                optimizer.step(lambda seed=seed: backward(model, seed))
            else:
                optimizer.first()
                backward(model, seed)
                optimizer.second()
        assert pair.engine(handle.replica).progress.tokens >= 4 * 22

    start = digest(pair.models[0])
    assert pair.run(body, body) == [None, None]
    assert start != digest(pair.models[0]) == digest(pair.models[1])
