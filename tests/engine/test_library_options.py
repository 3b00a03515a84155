"""Every option of LoraConfig that a pool takes: averaged between replicas, and exported as plain PEFT."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.library import Pair, batch, config, digest, pooled_model, train, trained
from tests.support import tiny_model
from tsugi_kpool import ConfigError, plesio_init
from tsugi_kpool.engine.pool import AdapterPool

OPTIONS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "all-linear": {"target_modules": "all-linear"},
    "head": {"modules_to_save": ["lm_head"]},
    "head-and-norms": {"modules_to_save": ["lm_head", "input_layernorm"], "use_dora": True},
    "lora-bias": {"lora_bias": True, "n_adapters": 3, "k_active": 1},
    "tokens": {"trainable_token_indices": [1, 5, 63], "n_adapters": 5, "k_active": 2},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "lora_dropout": 0.0},
    "few-layers": {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
}


def tiny_gpt2():
    """A model with biases, whose linear layers lie the other way round."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()


BIASES = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "n_adapters": 4}


@pytest.mark.usefixtures("hooks_of_two_threads")
@pytest.mark.parametrize(
    ("base", "changes"),
    [
        *((tiny_model, changes) for changes in OPTIONS.values()),
        (tiny_gpt2, {**BIASES, "bias": "all"}),
        (tiny_gpt2, {**BIASES, "bias": "lora_only"}),
    ],
    ids=[*OPTIONS, "bias-all", "bias-lora-only"],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_replicas_end_on_one_adapter_that_plain_peft_loads(tmp_path, base, changes):
    pair = Pair(tmp_path / "keys", config(**changes), base=base)
    start = [parameter.detach().clone() for parameter in trained(pair.models[0])]
    errors = pair.run(
        lambda model, handle: train(model, 9, seed=0),
        lambda model, handle: train(model, 4, seed=1),
    )
    assert errors == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])
    for before, parameter in zip(start, trained(pair.models[0]), strict=True):
        assert (before != parameter).any(), "every trained parameter takes part"
    for replica, steps in enumerate((9, 4)):
        ledger = pair.engine(replica).buffer.ledger
        assert ledger.produced == ledger.committed == [steps * 22] * len(ledger.produced)
    pair.models[0].save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    expected = pair.models[0](input_ids=batch(0)).logits
    torch.testing.assert_close(again(input_ids=batch(0)).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dora", "head-and-norms", "tokens"])
def test_alone_it_is_plain_peft_bit_for_bit(name):
    settings = config(**OPTIONS[name])
    ours, plain = pooled_model(settings), pooled_model(LoraConfig(**settings.to_dict()))
    with plesio_init(ours, settings):
        train(ours, 5)
    train(plain, 5)
    assert digest(ours) == digest(plain)


def tied_model():
    """A model whose head is its embedding."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **shape)).eval()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_lora_that_is_tied_is_refused_by_name():
    """PEFT makes two parameters of one storage, of which one is the other turned round."""
    both = config(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    with pytest.raises(ConfigError, match=r"lm_head\.lora_A .*ensure_weight_tying makes of the LoRA of embed"):
        plesio_init(get_peft_model(tied_model(), both), both)
    for changes in (
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [1, 5], "ensure_weight_tying": True},
    ):
        settings = config(**changes)
        plesio_init(get_peft_model(tied_model(), settings), settings).close()


@pytest.mark.parametrize("n", [1, 3, 4, 8])
def test_pieces_hold_every_number_once(n):
    """Sizes that N does not divide, and one smaller than N."""
    changes = {"modules_to_save": ["lm_head"], "trainable_token_indices": [1, 5, 63], "lora_bias": True}
    model = pooled_model(config(n_adapters=n, k_active=1, target_modules=["q_proj"], **changes))
    odd = torch.nn.Parameter(torch.arange(5.0))
    model.register_parameter("odd", odd)
    pool = AdapterPool(model, n)
    rows = pool.read(range(n))
    numbers = torch.cat([parameter.detach().reshape(-1) for parameter in trained(model)])
    found = rows.reshape(-1)
    assert torch.equal(found[found != 0].sort().values, numbers[numbers != 0].sort().values)
    pool.add([n - 1], torch.ones(1, pool.size))
    pool.write(rows)
    assert torch.equal(pool.read(range(n)), rows)
    for parameter in trained(model):
        parameter.grad = parameter.detach().clone()
    assert torch.equal(pool.gradients(), rows)


def test_what_is_trained_besides_the_lora_is_part_of_the_layout():
    """Replicas whose further modules differ may not meet."""
    plain, more, other = (
        AdapterPool(pooled_model(config(modules_to_save=names)), 4).layout("int8")
        for names in (None, ["lm_head"], ["embed_tokens"])
    )
    assert len({plain, more, other}) == 3
