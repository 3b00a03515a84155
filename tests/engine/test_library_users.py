"""Loops as users of PEFT bring them: each is trained as plain PEFT trains it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from peft.utils.hotswap import hotswap_adapter
from torch.utils.checkpoint import checkpoint

from tests.library import (
    JOINED,
    PER_BATCH,
    Pair,
    adamw,
    backward,
    batch,
    config,
    pooled_model,
    session_of_one,
    steps,
    trained,
)


def accumulation_that_does_not_come_out_even(model, _folder) -> None:
    """What is left of an epoch is stepped with the next one's."""
    optimizer = adamw(model)
    for epoch in range(3):
        for number in range(5):
            backward(model, 10 * epoch + number, 0.5)
            if (number + 1) % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()


def accumulation_that_is_thrown_away(model, _folder) -> None:
    optimizer = adamw(model)
    for epoch in range(3):
        optimizer.zero_grad()
        for number in range(5):
            backward(model, 10 * epoch + number, 0.5)
            if (number + 1) % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()


def accelerates_accumulation(model, _folder) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    data = torch.utils.data.DataLoader([batch(seed, 1)[0] for seed in range(10)], batch_size=2)
    optimizer = adamw(model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    called, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)
    for _ in range(2):
        for ids in data:
            with accelerator.accumulate(called):
                accelerator.backward(called(input_ids=ids, labels=ids).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(called.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def a_search_for_the_learning_rate(model, _folder) -> None:
    optimizer = torch.optim.AdamW(trained(model), lr=1e-5)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    for seed in range(4):
        for group in optimizer.param_groups:
            group["lr"] *= 10
        steps(model, optimizer, [seed])
    model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    steps(model, optimizer, range(2))


def a_second_adapter_as_reference(model, _folder) -> None:
    model.add_adapter("reference", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("default")
    optimizer = adamw(model)
    for seed in range(3):
        ids = batch(seed)
        model.set_adapter("reference")
        expected = model(input_ids=ids).logits.detach()  # without no_grad
        model.set_adapter("default")
        output = model(input_ids=ids, labels=ids)
        (output.loss + (output.logits - expected).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def evaluation_in_the_loop(model, _folder) -> None:
    """Between backward and step, without no_grad, without the adapter, merged."""
    optimizer = adamw(model)
    for seed in range(3):
        backward(model.train(), seed)
        model.eval()(input_ids=batch(9), labels=batch(9))
        with model.disable_adapter():
            model(input_ids=batch(9), labels=batch(9))
        model.merge_adapter()
        with torch.no_grad():
            model(input_ids=batch(9), labels=batch(9))
        model.unmerge_adapter()
        optimizer.step()
        optimizer.zero_grad()


def the_whole_model_saved_in_between(model, _folder) -> None:
    optimizer = adamw(model)
    for seed in range(3):
        steps(model, optimizer, [seed])
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        backward(torch.load(file, weights_only=False), 7)


def going_on_from_a_saved_adapter(model, folder) -> None:
    optimizer = adamw(model)
    steps(model, optimizer, range(2))
    model.save_pretrained(folder)
    steps(model, optimizer, range(2, 4))
    model.load_adapter(str(folder), "default", is_trainable=True)
    steps(model, adamw(model), range(4, 6))


def an_adapter_swapped_in(model, folder) -> None:
    model.save_pretrained(folder)
    steps(model, adamw(model), range(2))
    hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")
    steps(model, adamw(model), range(2))


def interrupts(model, _folder) -> None:
    """Ctrl-C that the loop catches: after the forward pass, and after the backward pass."""
    optimizer = adamw(model)
    for seed in range(5):
        try:
            ids = batch(seed)
            loss = model(input_ids=ids, labels=ids).loss
            if seed == 1:
                raise KeyboardInterrupt
            loss.backward()
            if seed == 3:
                raise KeyboardInterrupt
            optimizer.step()
        except KeyboardInterrupt:
            pass
        optimizer.zero_grad()


def passes_computed_again(reentrant: bool):
    def loop(model, _folder) -> None:
        optimizer = adamw(model)
        for seed in range(3):
            ids = batch(seed)
            embedded = model.get_input_embeddings()(ids).requires_grad_(True)
            loss = checkpoint(
                lambda values, ids=ids: model(inputs_embeds=values, labels=ids).loss,
                embedded,
                use_reentrant=reentrant,
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop


def an_optimizer_for_every_parameter(model, _folder) -> None:
    optimizers = [torch.optim.AdamW([each], lr=1e-2) for each in trained(model)]
    for seed in range(3):
        backward(model, seed)
        for each in optimizers:
            each.step()
            each.zero_grad()


def compiled_steps(model, _folder) -> None:
    optimizer = adamw(model)
    step = torch.compile(optimizer.step, backend="eager")
    for seed in range(3):
        backward(model, seed)
        step()
        optimizer.zero_grad()


TRAINED = {
    "uneven accumulation": (accumulation_that_does_not_come_out_even, 14),
    "discarded accumulation": (accumulation_that_is_thrown_away, 12),
    "accelerate": (accelerates_accumulation, 10),
    "learning rate": (a_search_for_the_learning_rate, 6),
    "reference": (a_second_adapter_as_reference, 3),
    "evaluation": (evaluation_in_the_loop, 3),
    "torch.save": (the_whole_model_saved_in_between, 3),
    "saved adapter": (going_on_from_a_saved_adapter, 6),
    "hotswap": (an_adapter_swapped_in, 4),
    "interrupts": (interrupts, 3),
    "reentrant": (passes_computed_again(reentrant=True), 3),
    "not reentrant": (passes_computed_again(reentrant=False), 3),
    "one each": (an_optimizer_for_every_parameter, 3),
    "compiled": (compiled_steps, 3),
}


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_trained_as_in_plain_peft(tmp_path, name):
    loop, batches = TRAINED[name]
    settings = config(**JOINED)
    ours, plain = pooled_model(settings), pooled_model(settings)
    with session_of_one(tmp_path / "keys", ours, settings) as session:
        loop(ours, tmp_path / "ours")
        ledger = session.engine.buffer.ledger
    torch._dynamo.reset()
    loop(plain, tmp_path / "plain")
    assert set(ledger.committed) == {batches * PER_BATCH}
    torch.testing.assert_close(trained(ours), trained(plain), atol=1e-6, rtol=0)


class Anchored(torch.optim.Optimizer):
    """SGD that keeps where it began, whole and every second number as Prodigy may, and the sum of its own updates."""

    def __init__(self, parameters) -> None:
        super().__init__(list(parameters), {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state |= {"start": parameter.clone(), "updates": torch.zeros_like(parameter)}
                state["some"] = parameter.reshape(-1)[::2].clone()
            parameter.sub_(parameter.grad, alpha=0.1)
            state["updates"].sub_(parameter.grad, alpha=0.1)

    def off_by(self) -> float:
        """How far the weights are from where they began and what it has changed."""
        worst = 0.0
        for parameter, state in self.state.items():
            own = parameter.detach() - state["updates"]
            worst = max(worst, float((own - state["start"]).abs().max()))
            worst = max(worst, float((own.reshape(-1)[::2] - state["some"]).abs().max()))
        return worst


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_weights_that_an_optimizer_keeps_move_with_the_rounds(tmp_path):
    """Otherwise the others' progress would be its own, or taken back."""
    pair = Pair(tmp_path / "keys", config(**JOINED, trigger="count", count=1))

    def body(model, handle) -> None:
        optimizer = Anchored(trained(model))
        for step in range(2):
            steps(model, optimizer, [10 * handle.replica + step])
            handle.wait(step + 1)
            backward(model)  # the round is applied here
            optimizer.zero_grad()
        assert pair.engine(handle.replica).version >= 2
        assert optimizer.off_by() < 1e-6

    assert pair.run(body, body) == [None, None]
