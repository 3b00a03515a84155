"""Loops as users of PEFT bring them that a pool cannot train: each is refused before its step, and says why."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

from tests.library import JOINED, Pair, adamw, backward, config, pooled_model, session_of_one, steps, trained
from tests.support import tiny_model
from tsugi_kpool import ConfigError, plesio_init


def training_a_second_adapter(model, _folder) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("second")
    steps(model, adamw(model), [1])


def unfreezing_more(model, _folder) -> None:
    norm = next(each for name, each in model.named_parameters() if "norm" in name)
    norm.requires_grad_(True)
    steps(model, adamw(model), [1])


def parameters_that_are_replaced(model, folder) -> None:
    model.save_pretrained(folder)
    model.load_adapter(str(folder), "default", is_trainable=True, low_cpu_mem_usage=True)
    steps(model, adamw(model), [1])


def steps_in_the_backward_pass(model, _folder) -> None:
    optimizers = {each: torch.optim.SGD([each], lr=0.1) for each in trained(model)}
    for each in trained(model):
        each.register_post_accumulate_grad_hook(lambda parameter: optimizers[parameter].step())
    backward(model, 1)


def another_scaling_swapped_in(model, folder) -> None:
    other = pooled_model(LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"]))
    other.save_pretrained(folder)
    hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")
    steps(model, adamw(model), [1])


REFUSED = {
    "second": (training_a_second_adapter, r"lora_A\.second\.weight is trained, but is not in the pool"),
    "unfrozen": (unfreezing_more, r"layernorm\.weight is trained, but is not in the pool"),
    "replaced": (parameters_that_are_replaced, r"lora_A\.default\.weight is trained, but is not in the pool"),
    "in backward": (steps_in_the_backward_pass, "steps inside the backward pass"),
    "scaling": (another_scaling_swapped_in, r"q_proj is scaled by 8, and was by 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_its_step(tmp_path, name):
    loop, text = REFUSED[name]
    settings = config(**JOINED)
    model = pooled_model(settings)
    made = []

    def training() -> None:
        with session_of_one(tmp_path / "keys", model, settings) as session:
            made.append(session.engine.progress)
            steps(model, adamw(model), [0])
            loop(model, tmp_path / "adapter")

    with pytest.raises(ConfigError, match=text):
        training()
    assert made[0].steps == 1


def test_in_gradient_mode_an_adapter_that_is_swapped_in_is_refused(tmp_path):
    """A swap leaves no trace but its values."""
    settings = config(mode="gradient", min_steps=1)
    model, other = pooled_model(settings), pooled_model(settings)
    with torch.no_grad():
        for parameter in trained(other):
            parameter.fill_(0.125)
    other.save_pretrained(tmp_path / "other")

    def loop() -> None:
        with session_of_one(tmp_path / "keys", model, settings):
            hotswap_adapter(model, str(tmp_path / "other"), adapter_name="default", torch_device="cpu")
            steps(model, adamw(model), [0])

    with pytest.raises(ConfigError, match="written to outside of a torch optimizer's step"):
        loop()


def pooled_again(model):
    return get_peft_model(model.get_base_model(), config())


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_the_cell_that_makes_the_model_is_run_again(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        with pytest.raises(ConfigError, match="this model's base is in a pool already, under another PEFT model"):
            plesio_init(pooled_again(model), config())

    pair.run(body, body)
    model = pair.models[0]
    plesio_init(pooled_again(model), config()).close()


def test_a_lora_that_is_not_there_yet_or_has_more_rows_is_refused():
    with pytest.raises(ConfigError, match=r"q_proj\.lora_A has no values yet: low_cpu_mem_usage=True"):
        plesio_init(get_peft_model(tiny_model(), config(), low_cpu_mem_usage=True), config())
    padded, fitting = pooled_model(config()), pooled_model(config())
    prepare_model_for_compiled_hotswap(padded, target_rank=16)
    with pytest.raises(ConfigError, match=r"q_proj has rank 16, and the config says 8"):
        plesio_init(padded, config())
    prepare_model_for_compiled_hotswap(fitting, target_rank=8)
    plesio_init(fitting, config()).close()
