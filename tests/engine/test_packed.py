"""Packed rows: the loss and the gradients of the same samples one by one, for each family of models and attention."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.support import tiny_model
from tsugi_cli.config.spec import Lora
from tsugi_cli.data.packing import joined, pack
from tsugi_cli.data.rows import Sample
from tsugi_cli.finetune.leaks import packer_for
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.packed import Packer, Way
from tsugi_cli.finetune.tokens import Batch, collate, labelled
from tsugi_kpool.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
WINDOWED = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 5}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "smollm2": (
        "llama",
        {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "mistral, windows shorter than samples": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2, some layers windowed": ("qwen2", {"use_sliding_window": True, **WINDOWED}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma 2": ("gemma2", WINDOWED),
    "gemma 3": ("gemma3_text", WINDOWED),
    "phi 3": ("phi3", {"sliding_window": 5}),
    "gpt-2": ("gpt2", {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}),
    "mixtral": ("mixtral", EXPERTS),
    "gpt-oss": ("gpt_oss", {**WINDOWED, **EXPERTS}),
}
EAGER_ONLY = {"gemma 2", "gpt-oss"}
MODULES = {"gpt-2": ["c_attn"], "phi 3": ["qkv_proj"]}
CASES = [
    (family, attention)
    for family in FAMILIES
    for attention in ("eager", "sdpa")
    if attention == "eager" or family not in EAGER_ONLY
]


def a_pool(modules: list[str]) -> Lora:
    return Lora(rank=4, alpha=8.0, target_modules=modules)


def made(family: str, attention: str) -> Any:
    """A random model with a pool; its LoRA is not zero, so that all of it has gradients."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, more = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **more})
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    modules = MODULES.get(family, ["q_proj", "v_proj"])
    model = add_pool(base, a_pool(modules)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Weights of transformers' own size would make every attention the same, whatever it sees.
            if parameter.ndim > 1:
                parameter.normal_(std=0.15 if "lora" not in name else 0.1)
    return model


def some_samples() -> list[Sample]:
    """Of one token up to many; some are trained on from their first position, or to their last, or not at all."""
    chance = random.Random(0)
    found = [Sample([5], ((0, 1),)), Sample([7, 9], ((0, 2),)), Sample([11, 3, 4, 4], ())]
    for length in (3, 6, 9, 14, 14, 21, 30):
        ids = [chance.randrange(3, 97) for _ in range(length)]
        found.append(Sample(ids, ((1, 2), (max(2, length // 2), length))))
    return found


def rows_of(samples: list[Sample], capacity: int = 40):
    packed = pack([len(sample.ids) for sample in samples], capacity, seed=0)
    assert any(len(row) > 2 for row in packed)
    return [joined([samples[each] for each in row], row) for row in packed]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def one_by_one(model: Any, samples: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over all supervised tokens, each sample in a forward pass of its own."""
    total = sum(sample.tokens for sample in samples)
    loss = 0.0
    for sample in samples:
        if sample.tokens:
            share = supervised_loss(model, collate([labelled(sample)], 0)) * sample.tokens / total
            share.backward()
            loss += float(share.detach())
    return loss, gradients(model)


def in_rows(model: Any, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    loss = supervised_loss(model, batch)
    loss.backward()
    return float(loss.detach()), gradients(model)


def assert_same(found, wanted) -> None:
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)
    assert found[1].keys() == wanted[1].keys()
    assert sum(float(gradient.norm()) for gradient in wanted[1].values()) > 0.01
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_loss_and_gradients_are_those_of_samples_one_by_one(family, attention):
    model, samples = made(family, attention), some_samples()
    packer = packer_for(model)
    batch = packer.collate(rows_of(samples), pad_id=0)
    assert batch.tokens == sum(sample.tokens for sample in samples)
    assert_same(in_rows(model, batch), one_by_one(model, samples))


def test_one_row_without_padding_is_the_same():
    """As flash kernels get it; here the positions alone keep the samples apart."""
    model, samples = made("smollm2", "sdpa"), some_samples()
    rows = rows_of(samples)
    batch = Packer(Way.FLAT, model.config, torch.float32).collate(rows, pad_id=0)
    assert batch.worked == sum(len(sample.ids) for sample in samples)
    assert batch.samples == len(rows)
    assert_same(in_rows(model, batch), one_by_one(model, samples))


def test_masks_that_are_handed_over_are_the_same():
    model, samples = made("qwen2, some layers windowed", "sdpa"), some_samples()
    batch = Packer(Way.MASKS, model.config, torch.float32).collate(rows_of(samples), pad_id=0)
    assert isinstance(batch.mask, dict)
    assert_same(in_rows(model, batch.to(torch.device("cpu"))), one_by_one(model, samples))


def test_without_positions_it_would_be_something_else():
    """So the tests above can fail."""
    model, samples = made("llama", "sdpa"), some_samples()
    rows = rows_of(samples)
    padded = collate([labelled(Sample(row.ids, row.spans)) for row in rows], 0)
    wanted = one_by_one(model, samples)
    assert abs(in_rows(model, padded)[0] - wanted[0]) > 1e-3


def test_tokens_and_rows_are_counted_and_padding_is_seen_by_nobody():
    samples = some_samples()
    rows = rows_of(samples, capacity=30)
    model = made("llama", "sdpa")
    packer = packer_for(model)
    batch = packer.collate(rows, pad_id=0)
    assert batch.samples == len(rows)
    assert batch.weightless().samples == batch.weightless().tokens == 0
    padded = max(len(row.ids) for row in rows) * len(rows)
    assert batch.worked == padded > sum(len(row.ids) for row in rows)
    assert batch.positions is not None
    starts = (batch.positions == 0).sum().item()
    gaps = sum(len(row.ids) < max(len(each.ids) for each in rows) for row in rows)
    assert starts == len(samples) + gaps
    elsewhere = packer.collate(rows, pad_id=7)
    torch.testing.assert_close(supervised_loss(model, elsewhere), supervised_loss(model, batch), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "jamba", "qwen3_next", "recurrent_gemma", "falcon_h1", "xlstm"])
def test_models_that_carry_a_state_are_refused_by_name(kind):
    from transformers import AutoConfig

    from tsugi_cli.finetune.leaks import refuse_by_config

    with pytest.raises(ConfigError, match=f"data.packing=true: a model of the type {kind} .*data.packing=false"):
        refuse_by_config(AutoConfig.for_model(kind))


def test_convolutions_are_refused_as_well():
    from transformers import AutoConfig

    from tsugi_cli.finetune.leaks import refuse_by_config

    config = AutoConfig.for_model("lfm2", **{**SIZES, "layer_types": ["conv", "full_attention", "conv"]})
    with pytest.raises(ConfigError, match="its layers of the kind conv may carry a state"):
        refuse_by_config(config)


def test_a_model_that_hides_its_state_is_found_by_trial_and_stays_as_it_was():
    """As one with code of its own: its configuration says nothing."""
    model = tiny_model().train()
    layer = model.model.layers[0].mlp
    layer.register_forward_hook(lambda module, given, out: out + 0.1 * out.cumsum(dim=1))
    with pytest.raises(ConfigError, match=r"type llama .*changes what it computes for the next one"):
        packer_for(model)
    assert model.training


def test_what_restarts_no_positions_is_found_by_trial(monkeypatch):
    model = made("llama", "sdpa").get_base_model()
    original = model.model.rotary_emb.forward

    def going_on(x, position_ids):
        return original(x, torch.arange(position_ids.shape[1])[None] ** 2)

    monkeypatch.setattr(model.model.rotary_emb, "forward", going_on)
    with pytest.raises(ConfigError, match="does not begin anew"):
        packer_for(model)
