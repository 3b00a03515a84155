"""The library in a process without peers: plain PEFT, and what is refused before anything starts."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from tests.library import batch, config, digest, our_threads, pooled_model, train, trained
from tests.support import tiny_model
from tsugi_kpool import ConfigError, plesio_init, plesio_shutdown


def test_alone_it_is_plain_peft_bit_for_bit():
    ours = pooled_model(config())
    plain = pooled_model(LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    assert digest(ours) == digest(plain)
    with plesio_init(ours, config()) as handle:
        assert (handle.replica, handle.replicas, our_threads()) == (0, 1, [])
        train(ours, 10)
    train(plain, 10)
    assert digest(ours) == digest(plain)


def losses(model, prepare) -> list[float]:
    """Of a loop with clipping, through accelerate or without it."""
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    called, optimizer, backward, clip = prepare(model, optimizer)
    found = []
    for step in range(6):
        loss = called(input_ids=batch(step), labels=batch(step)).loss
        backward(loss)
        clip(trained(model), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def plainly(model, optimizer):
    return model, optimizer, lambda loss: loss.backward(), torch.nn.utils.clip_grad_norm_


def accelerated(model, optimizer):
    accelerator = Accelerator(cpu=True)
    return *accelerator.prepare(model, optimizer), accelerator.backward, accelerator.clip_grad_norm_


@pytest.mark.parametrize("prepare", [plainly, accelerated])
@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_alone_it_has_the_losses_of_plain_peft_of_the_whole_rank(mode, prepare):
    ours = pooled_model(config(mode=mode))
    plain = pooled_model(LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    with plesio_init(ours, config(mode=mode)):
        found = losses(ours, prepare)
    assert found == losses(plain, prepare)
    assert found == pytest.approx(losses(pooled_model(config()), plainly), rel=1e-6)


def test_a_model_is_in_one_pool_at_a_time():
    model = pooled_model(config())
    handle = plesio_init(model, config())
    with pytest.raises(ConfigError, match="already"):
        plesio_init(model, config())
    plesio_shutdown(model)
    assert handle.closed
    handle.close()
    with pytest.raises(ConfigError, match="in no pool"):
        plesio_shutdown(model)
    plesio_init(model, config()).close()


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="get_peft_model"):
        plesio_init(tiny_model(), config())
    model = pooled_model(config())
    with pytest.raises(ConfigError, match="not the one of this config"):
        plesio_init(model, config(n_adapters=8))
    model.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"lm_head\.weight is trained, but PEFT does not save it"):
        plesio_init(model, config())
    frozen = pooled_model(config())
    trained(frozen)[0].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"lora_A\.default\.weight is part of the pool but frozen"):
        plesio_init(frozen, config())
    half = get_peft_model(tiny_model().bfloat16(), config(), autocast_adapter_dtype=False)
    with pytest.raises(ConfigError, match="a pool is trained in fp32"):
        plesio_init(half, config())


def test_another_adapter_name_will_do():
    model = get_peft_model(tiny_model(), config(), adapter_name="mine")
    plesio_init(model, config()).close()
