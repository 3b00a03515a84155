"""FleetAdamW: AdamW for replicas whose steps are averaged, on the second moment of their mean gradient."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from tsugi_cli.bench.compare.strategies import STRATEGIES
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_kpool import ConfigError, FleetAdamW
from tsugi_kpool.engine import state as checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "engine"))
from smoothed_adamw import SmoothedAdamW

SIZE = 4000
SETTINGS = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.02}


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(SIZE))


def stepped(optimizer: torch.optim.Optimizer, gradients: torch.Tensor) -> torch.Tensor:
    """The optimizer's parameter after a step on each of these gradients."""
    (held,) = optimizer.param_groups[0]["params"]
    for gradient in gradients:
        held.grad = gradient.clone()
        optimizer.step()
    return held.detach().clone()


def noise(steps: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, SIZE, generator=torch.Generator().manual_seed(seed))


def test_for_one_replica_it_is_adamw_bit_for_bit():
    ours = stepped(FleetAdamW([parameter()], replicas=1, **SETTINGS), noise())
    assert torch.equal(ours, stepped(torch.optim.AdamW([parameter()], **SETTINGS), noise()))


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 3)])
def test_when_replicas_come_or_go_the_next_step_is_as_long_as_if_they_had_always_been_so_many(before, after):
    """The rule before this one made the step 2.7 times too long when 8 became 1."""
    quiet = {**SETTINGS, "weight_decay": 0.0}
    changing, always = (FleetAdamW([parameter()], replicas=each, **quiet) for each in (before, after))
    ends = [stepped(each, noise()) for each in (changing, always)]
    changing.follow(after)
    moved = [stepped(each, noise(1, seed=1)) - end for each, end in zip((changing, always), ends, strict=True)]
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("replicas", [2, 8])
def test_the_mean_of_steps_on_noise_is_as_long_as_a_step_on_the_mean_of_noise(replicas):
    """AdamW's would be sqrt(replicas) times shorter."""
    gradients = [noise(seed=replica) for replica in range(replicas)]

    def moved(make) -> torch.Tensor:
        ends = [stepped(make(), own) - stepped(make(), own[:-1]) for own in gradients]
        return torch.stack(ends).mean(dim=0)

    quiet = {**SETTINGS, "weight_decay": 0.0}
    ours = moved(lambda: FleetAdamW([parameter()], replicas=replicas, **quiet)).norm()
    plain = moved(lambda: torch.optim.AdamW([parameter()], **quiet)).norm()
    mean = torch.stack(gradients).mean(dim=0)
    wanted = (stepped(torch.optim.AdamW([parameter()], **quiet), mean)
              - stepped(torch.optim.AdamW([parameter()], **quiet), mean[:-1])).norm()  # fmt: skip
    assert ours / wanted == pytest.approx(1.0, abs=0.1)
    assert plain / wanted == pytest.approx(replicas**-0.5, abs=0.1)


def test_a_step_on_a_gradient_without_noise_is_adamws():
    """But for the first one, in which nothing tells noise from signal."""
    gradients = torch.linspace(-3.0, 3.0, SIZE).expand(60, SIZE)
    makes = (lambda each: FleetAdamW(each, replicas=8, **SETTINGS), lambda each: torch.optim.AdamW(each, **SETTINGS))
    quick, plain = ((stepped(make([parameter()]), gradients[:1]), stepped(make([parameter()]), gradients))
                    for make in makes)  # fmt: skip
    torch.testing.assert_close(quick[1] - quick[0], plain[1] - plain[0], rtol=2e-2, atol=1e-3)


def test_it_goes_on_from_a_checkpoint_to_the_bit():
    whole = FleetAdamW([parameter()], replicas=4, **SETTINGS)
    straight = stepped(whole, noise())
    first = FleetAdamW([parameter()], replicas=4, **SETTINGS)
    held = torch.nn.Parameter(stepped(first, noise()[:20]))
    second = FleetAdamW([held], replicas=4, **SETTINGS)
    assert checkpoint.restore(second, checkpoint.moments(first))
    assert torch.equal(stepped(second, noise()[20:]), straight)


def test_it_goes_on_from_an_adamws_state_and_an_adamw_from_its():
    """A run that is resumed with another train.optimizer: the moments are the same numbers in both."""
    adamw, ours = (lambda each: torch.optim.AdamW(each, **SETTINGS), lambda each: FleetAdamW(each, 3, **SETTINGS))
    for make, other in ((adamw, ours), (ours, adamw)):
        before = make([parameter()])
        held = torch.nn.Parameter(stepped(before, noise()[:40]))
        after = other([held])
        assert checkpoint.restore(after, checkpoint.moments(before))
        stepped(after, noise()[40:41])
        straight = adamw([parameter()])
        stepped(straight, noise()[:41])
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(after.state[held][name], next(iter(straight.state.values()))[name])
        assert int(after.state[held]["step"]) == 41


def test_it_goes_on_from_the_state_that_the_rule_before_it_has_left_in_a_checkpoint():
    """That one's second moment was the fleet's: on noise a fourth of one replica's, with four."""
    old = SmoothedAdamW([parameter()], replicas=4, **SETTINGS)
    held = torch.nn.Parameter(stepped(old, noise()))
    after = FleetAdamW([held], replicas=4, **SETTINGS)
    assert checkpoint.restore(after, checkpoint.moments(old))
    start = held.detach().clone()
    ours = stepped(after, noise(1, seed=1)) - start
    theirs = stepped(old, noise(1, seed=1)) - start
    assert "smooth" not in after.state[held]
    assert ours.norm() / theirs.norm() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda params, **more: FleetAdamW(params, 2, **more)])
def test_a_state_dict_does_not_say_how_many_replicas_there_are_now(make):
    before = make([parameter()], **SETTINGS)
    stepped(before, noise(5))
    after = FleetAdamW([parameter()], replicas=8, **SETTINGS)
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["replicas"] == 8
    assert torch.isfinite(stepped(after, noise(2))).all()


def test_steps_are_counted_whatever_torch_makes_by_default():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer = FleetAdamW([torch.nn.Parameter(torch.ones(2, dtype=torch.float32))], replicas=2)
        stepped(optimizer, torch.ones(300, 2, dtype=torch.float32))
    finally:
        torch.set_default_dtype(dtype)
    (state,) = optimizer.state.values()
    assert int(state["step"]) == 300


def test_parameters_without_a_gradient_stay_and_later_ones_count_their_own_steps():
    late, always = parameter(), parameter()
    optimizer = FleetAdamW([late, always], replicas=4, **SETTINGS)
    for gradient in noise(5):
        always.grad = gradient
        optimizer.step()
    assert torch.equal(late, torch.ones(SIZE))
    late.grad = noise(1)[0]
    optimizer.step()
    alone = FleetAdamW([parameter()], replicas=4, **SETTINGS)
    torch.testing.assert_close(late.detach(), stepped(alone, noise(1)))


def test_a_closure_is_called_and_a_copy_steps_alike():
    optimizer = FleetAdamW([parameter()], replicas=2, **SETTINGS)
    (held,) = optimizer.param_groups[0]["params"]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = held.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == SIZE
    twin = copy.deepcopy(optimizer)
    optimizer.step(closure)
    twin_held = twin.param_groups[0]["params"][0]
    twin_held.grad = held.grad.clone()
    twin.step()
    assert torch.equal(held, twin_held)


def test_a_run_tells_its_optimizer_how_many_average_their_steps():
    train = compose(["train.optimizer=fleet_adamw", "train.beta2=0.9"]).train
    of_four, of_all = (optimizer_factory(train, *replicas)([parameter()]) for replicas in ([4], []))
    assert (type(of_four), of_four.defaults["replicas"], of_four.defaults["betas"]) == (FleetAdamW, 4, (0.9, 0.9))
    assert of_all.defaults["replicas"] == 1, "a step on the mean gradient, as DDP's"
    assert {name for name, method in STRATEGIES.items() if method.own_steps} == {"local_sgd", "diloco"}
    alone, fleet = (optimizer_factory(compose([]).train, many)([parameter()]) for many in (1, 4))
    assert (type(alone), type(fleet)) == (torch.optim.AdamW, FleetAdamW), "train.optimizer=auto"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"replicas": 0}, "replicas"), ({"betas": (0.9, 1.0)}, "betas"), ({"lr": -1.0}, "lr"), ({"eps": -1}, "eps")],
)
def test_what_cannot_be_is_refused_by_name(wrong, named):
    with pytest.raises(ConfigError, match=f"FleetAdamW's {named}"):
        FleetAdamW([parameter()], **{"replicas": 2, **wrong})
